"""Hostile values by every way a user has of saying something about a site, and in every key of every profile.

The ways: command line, ``--set``, ``--site-set``, run file, environment, keyword of a call, site file, the
variable that names an image. What comes out is refused, or is a text that ``test_injection`` would let pass:
the job's script runs the worker, with the words that it was given, and nothing else. Options and keys are
taken from where they are declared, so that a new one is tested by itself.
"""

from __future__ import annotations

import json
import re
import shlex
import socket
import subprocess
from collections import Counter
from dataclasses import replace
from types import MappingProxyType

import pytest
from batch_text import Condor, condor_submit, run, stub
from hostile.test_injection import HOSTILE, RUN, wiped

from executors.batch import schedd
from executors.batch.render import SCHEDULERS, render
from executors.batch.schedulers import Answer
from executors.batch.spec import spec_of
from executors.engines import dask_keywords
from executors.errors import ExecutorsError
from executors.options import options
from executors.settings import resolve
from executors.where import asked_of_site
from sites import ports
from sites.overrides import filled, overridden
from sites.profile import Layer, built_in, load, load_site, site_names
from sites.schema import IDENTITY, keys, value_of
from sites.values import Table

pytestmark = pytest.mark.usefixtures("signals_as_they_were")

OF_SITES = [each for each in options() if each.about.get("site") is not None]
# A few of each kind, where all of them would take minutes: run with --full for the rest.
SHARP = [f"a\n{RUN}\n", f"a\r{RUN}", "\x00", "a\u2028b", f"a;{RUN}", f"$({RUN})", f"`{RUN}`", f"';{RUN};'", f'";{RUN};"',
         "a\\", "-a", "%j", "$(Process)", "a b", "\u202eabc", f"a\nqueue\nexecutable = {RUN}", "a" * 1_000_000]  # fmt: skip
ROWS = ("--comment", "+Comment", "CS_VALUE")
BATCH = sorted(name for name in site_names() if load_site(name).scheduler in SCHEDULERS)


@pytest.fixture
def judge(tmp_path):
    """Runs each script once, and fails where more than the worker ran."""
    stub(tmp_path)
    (tmp_path / "apptainer").write_text('#!/bin/sh\nshift 2; exec "$@"\n')
    (tmp_path / "apptainer").chmod(0o755)
    (tmp_path / "logs").mkdir()
    return Judge(tmp_path)


class Judge:
    """What was asked of a site, made into text for its batch system, and that text tried."""

    def __init__(self, place):
        self.place = place
        self.seen = set()
        self.asked = self.refused = 0
        self.before = {path.name for path in place.iterdir()} | {"told.args", "told.env", "job.sh"}

    def of(self, scheduler, what, asked, site=None):
        """Ask a site for something; refused by a name, or harmless."""
        self.asked += 1
        try:
            profile = overridden(site or load_site(scheduler), asked)[0]
            self.of_profile(scheduler, what, profile)
        except ExecutorsError as error:
            self.refused += 1
            assert error.message.isprintable(), (what, error.message)
            assert len(error.message) < 700, (what, error.message[:900])

    def of_profile(self, scheduler, what, profile):
        command = (
            str(self.place / "stub") if profile.job.python is None else profile.job.python,
            "pilot.json",
        )
        folders = {"folder": self.place, "logs": self.place / "logs"}
        more = {"proxy": self.place / "proxy"} if profile.proxy.kind == "x509" else {}
        spec = spec_of(profile, name="cs-me-01234567", command=command, **folders, **more)
        files = render(scheduler, spec)
        directives = [line for line in files["job.sh"].splitlines() if line.startswith("#")]
        assert all(line.isprintable() and line.isascii() for line in directives), (what, directives)
        script = re.sub(r"(?m)^#.*\n", "", files["job.sh"])
        if script not in self.seen:
            self.seen.add(script)
            self.run(what, profile, script)

    def run(self, what, profile, script):
        code, said, args, _ = run(script, self.place, {"PATH": f"/usr/bin:/bin:{self.place}"})
        raw = profile.job.setup
        if raw:
            wiped(self.place, script)
        free = raw or profile.job.scratch or profile.job.python is not None
        assert args == ["pilot.json"] or free, (what, code, said)
        new = {path.name for path in self.place.iterdir()} - self.before
        assert not new, (what, new)


def ways(each, bad, folder):
    """(way, keyword arguments of ``resolve``) for one option and one value."""
    typed = (
        [f"CS_VALUE={bad}", f"+Comment={bad}", f"{bad}=abc"]
        if each.table
        else [[bad] if each.repeated else bad]
    )
    for value in typed:
        yield "command line", {"cli": {each.name: [value] if each.table else value}}
        if each.table:
            yield "--set of a row", {"cli": {"set": [f"{each.name}.{value}"]}}
        yield "environment", {"env": {each.variable: value if isinstance(value, str) else bad}}
    yield "--set", {"cli": {"set": [f"{each.name}={bad}"]}}
    tables = (
        [{"CS_VALUE": bad}, {"+Comment": bad}, {bad: "abc"}]
        if each.table
        else [[bad]]
        if each.repeated
        else [bad]
    )
    for value in tables:
        yield "keyword", {each.name: value}
        file = folder / "run.toml"
        try:
            file.write_text(f"{each.name} = {toml(value)}\n")
        except UnicodeEncodeError:
            continue  # no file can hold it
        yield "run file", {"config_file": file}


def toml(value):
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(key)} = {toml(one)}" for key, one in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


@pytest.mark.parametrize("each", OF_SITES, ids=lambda each: each.name)
def test_every_option_by_every_way(each, judge, tmp_path, scale):
    """Each way ends in the same words for the site, or is refused on the way; the words then meet every system."""
    counts, wanted = Counter(), {}
    for bad in scale(SHARP, HOSTILE):
        for way, given in ways(each, bad, tmp_path):
            counts[way] += 1
            try:
                asked = asked_of_site(resolve(**given).settings)
            except ExecutorsError as error:
                assert error.message.isprintable(), (way, error.message)
                assert len(error.message) < 700 or len(bad) > 300, (way, error.message)
                continue
            wanted[repr(asked)] = asked
    judge.before.add("run.toml")
    for asked in wanted.values():
        for scheduler in SCHEDULERS:
            judge.of(scheduler, f"{each.flag} {asked!r:.200}", asked)
    assert min(counts.values()) >= 10, counts
    assert {"command line", "--set", "environment", "keyword", "run file"} <= set(counts)


def asks(key, bad):
    """What could be asked of one key of a profile."""
    if not key.table:
        return [{key.name: bad}, {key.name: [bad]}]
    return [{f"{key.name}.{bad}": "abc"}, *({f"{key.name}.{row}": bad} for row in ROWS)]


@pytest.mark.parametrize("name", BATCH)
def test_every_key_of_every_profile(name, judge, scale):
    """As ``--site-set`` and keywords change it."""
    site = load_site(name)
    site = replace(site, job=replace(site.job, setup=()))  # what there is at the site only
    for bad in scale(SHARP if name in SCHEDULERS else SHARP[::3], HOSTILE):
        for key in keys().values():
            for asked in asks(key, bad):
                for scheduler in {site.scheduler, *site.schedulers} - {"existing"}:
                    judge.of(scheduler, f"{name}: {asked!r:.200}", asked, site)
    assert judge.asked > len(keys())
    assert 0 < judge.refused < judge.asked


def test_every_key_in_a_site_file(tmp_path, scale):
    """A file says what an option could say: the same value, or it is refused, too."""
    base, file, same = load_site("slurm"), tmp_path / "mine.toml", 0
    among = [built_in(), Layer("test", MappingProxyType({"mine": file}), trusted=False)]
    for bad in scale(SHARP, HOSTILE):
        for key in keys().values():
            if key.name in IDENTITY:
                continue
            for asked in asks(key, bad)[:2]:
                ((dotted, value),) = asked.items()
                section, _, last = key.name.rpartition(".")
                inner = {dotted[len(key.name) + 1 :]: value} if key.table else value
                try:
                    text = (
                        f'inherits = "slurm"\n{f"[{section}]" if section else ""}\n{last} = {toml(inner)}\n'
                    )
                    file.write_text(text)
                    found = load("mine", among).profile
                except (ExecutorsError, UnicodeEncodeError) as error:
                    assert not isinstance(error, ExecutorsError) or error.message.isprintable()
                    continue
                now = value_of(found, key.name)
                texts = (
                    now.items()
                    if isinstance(now, Table)
                    else [("", one) for one in (now if isinstance(now, tuple) else [now])]
                )
                assert all(str(one).isprintable() for row in texts for one in row), (key.name, now)
                same += now != value_of(base, key.name)
    assert same > 20


def test_the_variable_that_names_an_image(judge):
    site = load_site("slurm")
    site, _ = overridden(site, {"job.image_variable": "THE_IMAGE"})
    for bad in HOSTILE:
        for scheduler in SCHEDULERS:
            try:
                judge.of_profile(scheduler, bad, filled(site, {"THE_IMAGE": bad})[0])
            except ExecutorsError as error:
                assert error.message.isprintable()


def test_what_chooses_a_schedd_is_words_of_one_command(monkeypatch):
    """Expressions reach ``condor_status`` whole, as words that are no options."""
    calls = []

    def ask(argv, *_):
        calls.append(argv)
        return Answer(0, "good@host.example\t1\n", "")

    monkeypatch.setattr(schedd, "ask", ask)
    for bad in HOSTILE:
        for key in ("constraint", "rank", "pool"):
            calls.clear()
            try:
                site = overridden(load_site("condor"), {f"schedd.{key}": bad})[0]
                schedd.chosen(site, lambda *_: None)
            except ExecutorsError as error:
                assert error.message.isprintable()
                continue
            for argv in calls:
                assert all(word.isprintable() for word in argv)
                options_ = [word for word in argv[1:] if word.startswith("-")]
                free = {bad} if key == "constraint" else set()  # what follows -constraint is never an option
                assert set(options_) - free <= {"-pool", "-schedd", "-constraint", "-af:t"}, (key, bad, argv)


def test_an_address_is_one_of_this_machine(monkeypatch):
    """Whatever ``network.address`` says: what goes on to workers is numbers, or nothing."""

    def unknown(name, *_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    for bad in [*HOSTILE, "interface:$(touch x)", "0.0.0.0", "::", "interface:"]:
        with pytest.raises(ExecutorsError) as caught:
            ports.address(bad)
        assert caught.value.message.isprintable() or not bad.isprintable()
    assert ports.address("loopback") == "127.0.0.1"


KINDS = {"condor": "HTCondor", "lsf": "LSF", "pbs": "PBS", "sge": "SGE", "slurm": "SLURM"}


def class_text(scheduler, asked, folder):
    """What dask-jobqueue's own class would submit, for what was asked."""
    import dask_jobqueue

    kind = getattr(dask_jobqueue, f"{KINDS[scheduler]}Cluster")
    site, _ = overridden(load_site(scheduler), asked)
    setup = {"name": "cs-me-01234567", "workers": 1, "python": "python3",
             "private": str(folder / "private"), "logs": str(folder / "logs")}  # fmt: skip
    given, _ = dask_keywords.fitting(kind, dask_keywords.offered(site, setup), site.dask.cluster_options)
    given |= {"cores": given.get("cores") or 1, "memory": "1GB"}  # it fails over a few bytes, or none
    if scheduler == "condor":
        given["disk"] = given.get("disk") or "1GB"
    given.pop("shared_temp_directory")
    given["log_directory"] = None  # it would be made
    return str(kind.job_cls("tls://127.0.0.1:1", name="one", **given).job_script())


@pytest.mark.parametrize("scheduler", ["lsf", "pbs", "sge", "slurm"])
def test_a_class_that_quotes_nothing_runs_nothing_else(scheduler, tmp_path, scale):
    """dask-jobqueue's own script, with whatever got past us, run with a stub for Python."""
    pytest.importorskip("dask_jobqueue")
    bin_, work, seen, reached = tmp_path / "bin", tmp_path / "work", set(), Counter()
    work.mkdir()
    bin_.mkdir()
    (bin_ / "python3").write_text('#!/bin/sh\nprintf "%s\\n" "$@" >> "$CS_TOLD"\n')
    (bin_ / "python3").chmod(0o755)
    env = {"PATH": f"{bin_}:/usr/bin:/bin", "CS_TOLD": str(tmp_path / "told"), "HOME": str(work)}
    for bad in scale(SHARP, HOSTILE):
        for key in keys().values():
            more = [{f"dask.cluster_options.{row}": bad} for row in ("local_directory", "worker_command")]
            for asked in [*asks(key, bad), *(more if key.name == "dask.cluster_options" else [])]:
                try:
                    text = class_text(scheduler, asked, tmp_path)
                except ExecutorsError as error:
                    assert error.message.isprintable()
                    continue
                script = re.sub(r"(?m)^#.*\n", "", text)
                if script in seen:
                    continue
                seen.add(script)
                reached[key.name] += 1
                argv = ["/bin/bash", "-c", script]
                done = subprocess.run(argv, cwd=work, env=env, capture_output=True, timeout=60)
                if key.name == "job.setup":
                    wiped(work, script)
                elif key.name not in ("job.python", "job.scratch"):
                    assert done.returncode == 0, (asked, done.stderr)
                assert not list(work.iterdir()), (asked, list(work.iterdir()))
    assert len(seen) > 3, reached
    words = (tmp_path / "told").read_text()
    assert "dask_worker" in words or "distributed.cli" in words
    assert shlex.quote(str(tmp_path))  # the folder itself needs no quoting, or the test would prove nothing


def argument_list(raw):
    """HTCondor's list of arguments, as the starter takes it apart: blanks part, quotes hold together."""
    found, word, quoted, at = [], "", False, 0
    while at < len(raw):
        if raw[at] == "'" and quoted and raw[at + 1 : at + 2] == "'":
            word, at = word + "'", at + 1
        elif raw[at] == "'":
            quoted = not quoted
        elif raw[at] == " " and not quoted:
            found, word = [*found, word], ""
        else:
            word += raw[at]
        at += 1
    return [*found, word]


@pytest.mark.skipif(condor_submit() is None, reason="no condor_submit: the real parser did not read these")
def test_a_class_of_htcondor_runs_nothing_else(tmp_path, scale):
    """dask-jobqueue's submit text, read by the real parser; the command in it run with a stub for Python."""
    pytest.importorskip("dask_jobqueue")
    bin_, work, seen, plain = tmp_path / "bin", tmp_path / "work", set(), None
    (tmp_path / "submit").mkdir()
    condor = Condor(tmp_path / "submit")
    work.mkdir()
    bin_.mkdir()
    (bin_ / "python3").write_text('#!/bin/sh\nprintf "%s\\n" "$@" >> "$CS_TOLD"\n')
    (bin_ / "python3").chmod(0o755)
    env = {"PATH": f"{bin_}:/usr/bin:/bin", "CS_TOLD": str(tmp_path / "told"), "HOME": str(work)}
    for key, bad in [(None, ""), *((key, bad) for key in keys().values() for bad in scale(SHARP, HOSTILE))]:
        for asked in asks(key, bad) if key else [{}]:
            try:
                text = class_text("condor", asked, tmp_path)
            except ExecutorsError as error:
                assert error.message.isprintable()
                continue
            assert text.count("\nQueue") == 1, asked
            if text in seen:
                continue
            seen.add(text)
            read = condor.read({"job.sub": re.sub(r"(?m)^Queue\n?", "", text)}, unknown=True)
            plain = plain or read
            assert read["cmd"] == plain["cmd"] == '"/bin/sh"', asked
            words = argument_list(read["arguments"][1:-1].replace('\\"', '"'))
            done = subprocess.run(["/bin/sh", *words], cwd=work, env=env, capture_output=True, timeout=60)
            if key is not None and key.name == "job.setup":
                wiped(work, "")
            elif key is None or key.name not in ("job.python", "job.scratch"):
                assert done.returncode == 0, (asked, done.stderr)
            assert not list(work.iterdir()), (asked, list(work.iterdir()))
    assert len(seen) > 20
    assert (tmp_path / "told").read_text().count("dask_worker") > 10
