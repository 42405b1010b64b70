"""Hostile values in every string that could reach the text of a batch job, for every batch system.

Each is refused by the name of its field, or what reads the text gets the same value back and nothing else runs:
``condor_submit -dry-run`` and ``sbatch --test-only`` where they are installed, and job.sh itself, run with a
stub for the worker. The fields are found by walking the dataclasses, so a new one is tested by itself.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
import time
import types
import typing
from collections import Counter
from pathlib import Path

import pytest
from batch_text import Condor, Slurm, condor_submit, directives, run, stub

from executors.batch import allowed
from executors.batch.render import SCHEDULERS, render
from executors.batch.spec import JobSpec, spec_of
from executors.errors import ExecutorsError, UsageError
from sites.overrides import overridden
from sites.profile import load_site
from sites.schema import SiteProfile, keys

CANARY = "canary"
RUN = f"touch {CANARY}"
HOSTILE = [
    f"a\n{RUN}\n", f"a\r{RUN}", f"a\r\n{RUN}\r\n", "a\n", "\na", "a\x00b", "\x00", "a\x0bb", "a\x0c", "a\x1b[2J", "a\x7f",
    "a\x85b", "a\u2028b", "a\u2029b", f"a;{RUN}", f"; {RUN};", f"a & {RUN}", f"a && {RUN}", f"a || {RUN}", f"a | {RUN}",
    f"$({RUN})", f"`{RUN}`", f"a$({RUN})b", f'"$({RUN})"', f"'$({RUN})'", f"';{RUN};'", f'";{RUN};"', f"'\n{RUN}\n'",
    f"\\'; {RUN}; \\'", f"\\$({RUN})", f"$'\\n{RUN}\\n'", "${HOME}", "$HOME", "${IFS}", f"$(( $({RUN}) ))", f"<({RUN})",
    f"a > {CANARY}", f">{CANARY}", f"a>>{CANARY}", f"2>{CANARY}", "a < /etc/passwd", "'", '"', '""', "a'b", 'a"b', "\\",
    "a\\", "a\\\\", "a\\nb", "-a", "--wrap=true", "-", "--", "~", "~root", "*", "?", "[a-z]*", "{a,b}", "!!", "!a",
    "#", "# a", f"#SBATCH --wrap='{RUN}'", "#PBS -v A", "a #b", " ", "  a", "a ", "\t", "a\tb", "", "%j", "%A_%a", "a%",
    "%%", "$(ClusterId)", "$(Process)", "$$(Machine)", "$ENV(HOME)", "$F(job)", "$INT(a)", f"a\nqueue\nexecutable = {RUN}",
    "queue 100", f'" {RUN} "', "a, b", "a,b", "a=b", "a:b", "host:/a", "../../etc", "/etc/passwd", "a/../../b", "@",
    "@file", "=a", "(a)", "a(b", "{cores}", "{0}", "{user.__class__}", "%(a)s", "\u202eabc", "a\u200fb", "a\u200b",
    "\ufeffa", "\u0430dmin", "\u05d0", "\u0661", "\uff21", "\u2013a", "caf\u00e9", "\U0001f600", "\udc80", "a" * 257, "a" * 1_000_000,
    "A=1\x00B=2", "() { :; }; " + RUN, "BASH_FUNC_ls%%", "true", "1", "-1", "1e999", "nan", "None", "${jndi:ldap://a}",
    f"eval {RUN}", f"exec {RUN}", f"a\u0020;\u0020{RUN}", f"x' || {RUN} #", f"x\" || {RUN} #", "universe = local",
]  # fmt: skip
HINTS = typing.get_type_hints(
    JobSpec, localns={"Mapping": typing.Mapping, "Scalar": str | int | float | bool}
)
NO_TEXT = {"shared"}  # flags
BY_THE_SHELL = ("setup",)  # raw by design: shell of the profile's owner, who is the one that runs it


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jobs")
    stub(folder)
    (folder / "apptainer").write_text('#!/bin/sh\nprintf "%s" "$2" > "$CS_TOLD.image"; shift 2; exec "$@"\n')
    (folder / "apptainer").chmod(0o755)
    (folder / "logs").mkdir()
    return folder


def harmless(scheduler, place):
    """A spec in which every string is set, so that each of them reaches the text."""
    attribute = scheduler == "condor"
    return JobSpec(
        name="cs-me-01234567",
        command=(str(place / "stub"), "pilot.json"),
        memory=2**30,
        walltime=3600.0,
        queue="short",
        queue_directive="+JobFlavour" if attribute else None,
        account="cms",
        image="/cvmfs/image" if attribute else None,
        image_directive="+SingularityImage" if attribute else None,
        directives={"+Comment": "abc"} if attribute else {"--comment": "abc"},
        env={"CS_VALUE": "abc"},
        transfer=(place / "stub",),
        folder=place,
        logs=place / "logs",
    )


def with_value(spec, name, hint, bad):
    """(what it is, the spec) for each place that a field has for a string."""
    put = lambda value: dataclasses.replace(spec, **{name: value})  # noqa: E731
    now, kind = getattr(spec, name), typing.get_origin(hint)
    if kind is tuple and typing.get_args(hint)[0] is Path:
        yield name, put((Path(bad),))
    elif kind is tuple:
        yield f"{name} first", put((bad, *now[1:]))
        yield f"{name} last", put((*now, bad))
    elif kind is not None and issubclass(kind, typing.Mapping):
        yield f"{name} value", put({next(iter(now)): bad})
        yield f"{name} key", put({**now, bad: "abc"})
    elif Path in (hint, *typing.get_args(hint)):
        yield name, put(Path(bad))
    elif kind in (None, types.UnionType) and {str, int, float} & {hint, *typing.get_args(hint)}:
        yield name, put(bad)
    else:
        pytest.fail(f"no rule how a string gets into the field {name}: {hint}")


def rendered(scheduler, spec):
    """The files, or None if a field was refused by name."""
    try:
        return render(scheduler, spec)
    except UsageError as error:
        assert error.message.isprintable() and len(error.message) < 500, error.message
        assert error.about.get("field") or "unknown" in error.message, error.message
        return None


def names(error_field, name):
    """Whether the field an error names is the one that was wrong."""
    known = {"folder": "run's folder", "logs": "log folder", "transfer": "file to carry"}
    return known.get(name, name.partition("_")[0]) in error_field


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_refusal_names_the_field(scheduler, place):
    for field in dataclasses.fields(JobSpec):
        if field.name in NO_TEXT:
            continue
        for what, spec in with_value(harmless(scheduler, place), field.name, HINTS[field.name], "a\nb"):
            spec = dataclasses.replace(spec, shared=True)
            if "image" in field.name and scheduler != "condor" and "directive" not in field.name:
                spec = dataclasses.replace(spec, image_directive="--image")
            wants = field.name.removesuffix("_directive")
            if wants != field.name and getattr(spec, wants) is None:
                spec = dataclasses.replace(spec, **{wants: "/a"})
            if what in (["folder"] if scheduler == "condor" else ["disk", "transfer"]):  # no part of the text
                assert render(scheduler, spec) == render(scheduler, harmless(scheduler, place))
                continue
            with pytest.raises(UsageError) as caught:
                print(what, render(scheduler, spec))
            assert names(caught.value.about["field"], field.name), (what, caught.value.about["field"])
            assert "a\\nb" in caught.value.message


def wiped(place, script):
    """Remove what a setup line was free to make; with PBS nobody hears when a process substitution is done."""
    until = time.monotonic() + 10
    late = "<(" in script and "exec >>" in script
    while late and not (place / CANARY).exists() and time.monotonic() < until:
        time.sleep(0.01)
    for path in place.glob(f"{CANARY}*"):
        path.unlink()


def unharmed(place, scheduler, before):
    """Nothing was made beside what the readers write."""
    new = {path.name for path in place.iterdir()} - before
    assert not new, f"{scheduler}: {new}"


def accepted(scheduler, place):
    """(field, what, value, spec, files) for every hostile value that is let through."""
    spec, plain = harmless(scheduler, place), render(scheduler, harmless(scheduler, place))
    for field in dataclasses.fields(JobSpec):
        if field.name in NO_TEXT:
            continue
        for bad in HOSTILE:
            for what, changed in with_value(spec, field.name, HINTS[field.name], bad):
                files = rendered(scheduler, changed)
                if files is not None and files != plain:
                    yield field.name, what, bad, changed, files


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_what_is_let_through_is_read_back_and_nothing_else_runs(scheduler, place):
    told = ("told.args", "told.env", "told.image", "job.sh", "job.sub")
    before = {path.name for path in place.iterdir()} | set(told)
    seen, counts = {}, Counter()
    for field, what, bad, spec, files in accepted(scheduler, place):
        script = "".join(line for line in files["job.sh"].splitlines(True) if not line.startswith("#"))
        if script not in seen:
            seen[script] = None
            check_run(place, field, what, bad, spec, files["job.sh"])
            if field in BY_THE_SHELL:
                wiped(place, files["job.sh"])
            unharmed(place, f"{scheduler} {what} {bad[:40]!r}", before)
        counts[field] += 1
    assert counts["env"] > 30, counts  # or the test tests nothing
    assert counts["command"] > 30, counts


def check_run(place, field, what, bad, spec, script):
    code, said, args, env = run(script, place, {"PATH": f"/usr/bin:/bin:{place}"})
    if what == "command first":
        assert bad == "true" or code in (126, 127), (what, bad, code, said)
        assert args is None
    elif field == "setup":
        # Whatever it does, it neither swallows what follows nor is passed over in silence; "exec" is its right.
        ran = args is not None and args == ["pilot.json"] and code == 0
        assert (
            ran or bad.startswith("exec ") or (args is None and ("setup line 1 failed" in said or code == 78))
        ), (bad, code, said)
    elif field == "scratch":
        assert code == 0 or "TMPDIR" in said or "is not set" in said or code == 78, (bad, code, said)
    elif field in ("folder", "logs") and code:
        assert code in (1, 78) and bad in said and args is None, (what, bad, code, said)
    else:
        assert code == 0, (what, bad, code, said)
        assert args == list(spec.command[1:]), (what, bad, args)
        if field == "image" and "cs_run" in script:
            assert (place / "told.image").read_text() == bad
        for name, value in spec.env.items():
            assert env[name] == value, (what, bad)


@pytest.mark.parametrize("scheduler", ["slurm", "sge", "pbs", "lsf"])
def test_directives_stay_directives(scheduler, place):
    """By our own reading, as the shell splits words: what each system's parser is like, too."""
    plain = len(directives(scheduler, render(scheduler, harmless(scheduler, place))["job.sh"]))
    for field, what, bad, _, files in accepted(scheduler, place):
        found = directives(scheduler, files["job.sh"])
        lines = [
            line for line in files["job.sh"].split("\n") if line.startswith("#") and line != "#!/bin/bash"
        ]
        assert len(found) == len(lines) - 1, (what, bad)  # and the one that says who wrote it
        assert abs(len(found) - plain) <= 1, (what, bad)
        if what == "directives value":
            words = [word for line in found for word in line]
            assert bad == "" or any(bad in word for word in words), (what, bad)


@pytest.mark.skipif(
    condor_submit() is None, reason="no condor_submit: the real parser did not read these values"
)
def test_condor_submit_reads_the_same_values(place, tmp_path):
    shown = {
        "queue": "jobflavour",
        "account": "acctgroup",
        "image": "singularityimage",
        "directives value": "comment",
    }
    condor, counts = Condor(tmp_path), Counter()
    before = {path.name for path in tmp_path.iterdir()} | {"job.sh", "job.sub", "job.ad"}
    plain = condor.read(render("condor", harmless("condor", place)))
    wanted = {"cmd", "out", "err", "coffeascaleout", "transferinput", "periodicremove", "jobuniverse"}
    for field, what, bad, spec, files in accepted("condor", place):
        if files["job.sub"] == render("condor", harmless("condor", place))["job.sub"] or field == "proxy":
            continue
        read = condor.read(files, unknown="directive" in field)
        counts[what] += 1
        if what in shown and bad:  # an empty directive is left out
            assert read[shown[what]].strip('"') == (meant(bad) if field == "directives" else bad), (what, bad)
        same = wanted - {"transferinput" if field == "transfer" else "", "periodicremove"}
        if field not in ("logs", "name"):
            assert {key: read[key] for key in same} == {key: plain[key] for key in same}, (what, bad)
        unharmed(tmp_path, f"{what} {bad[:40]!r}", before)
    assert counts["directives value"] > 20, counts


def meant(bad):
    """A directive for an attribute of the job: "=" begins an expression, quotes of one's own are taken off."""
    if bad.startswith("="):
        return bad[1:].strip()
    return bad[1:-1] if len(bad) > 1 and bad[0] == bad[-1] == '"' else bad


@pytest.mark.skipif(
    shutil.which("sbatch") is None, reason="no sbatch: the real parser did not read these values"
)
def test_sbatch_reads_the_same_values(place, tmp_path):
    shown = {"queue": "partition", "account": "account", "directives value": "comment", "name": "job-name"}
    slurm, counts = Slurm(tmp_path), Counter()
    plain = slurm.read(render("slurm", harmless("slurm", place)))
    assert plain["export-file"] == "job.env"
    before = {path.name for path in tmp_path.iterdir()}
    for field, what, bad, _, files in accepted("slurm", place):
        head = [line for line in files["job.sh"].splitlines() if line.startswith("#")]
        if head == [
            line
            for line in render("slurm", harmless("slurm", place))["job.sh"].splitlines()
            if line.startswith("#")
        ]:
            continue
        read = slurm.read(files, unknown=what == "directives key" or field.endswith("_directive"))
        if read is None:
            continue
        counts[what] += 1
        if what in shown and bad:
            assert read[shown[what]] == bad, (what, bad)
        changed = {key for key in {*plain, *read} if plain.get(key) != read.get(key)}
        assert len(changed) <= 1 or field in ("name", "logs"), (what, bad, changed)
        unharmed(tmp_path, f"{what} {bad[:40]!r}", before)
    assert counts["directives value"] > 20, counts


def strings(profile):
    """(dotted key, its kind) of every key of a profile that can hold text."""
    for key, about in keys().items():
        yield key, about.table


def hostile_profiles(site, bad):
    """A profile for each key with the value in it, by the way that options and run files take."""
    for key, table in strings(site):
        rows = [f"{key}.{row}" for row in ("--comment", "+Comment", "CS_VALUE")]
        asks = (
            [{f"{key}.{bad}": "abc"}, *({row: bad} for row in rows)] if table else [{key: bad}, {key: [bad]}]
        )
        for asked in asks:
            try:
                yield key, overridden(site, asked)[0]
            except ExecutorsError as error:
                assert error.message.isprintable() and len(error.message) < 700, (key, error.message[:2000])


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_from_an_option_to_the_text(scheduler, place):
    """Through the overrides and spec_of: refused on the way, or a text that runs the worker and nothing else."""
    site = load_site(scheduler)
    told = ("told.args", "told.env", "told.image", "job.sh", "job.sub")
    before = {path.name for path in place.iterdir()} | set(told)
    seen, reached = set(), Counter()
    for bad in HOSTILE:
        for key, profile in hostile_profiles(site, bad):
            files = of_profile(scheduler, profile, place)
            if files is None:
                continue
            script = re.sub(r"(?m)^#.*\n", "", files["job.sh"])
            if script in seen:
                continue
            seen.add(script)
            code, said, args, _ = run(files["job.sh"], place, {"PATH": f"/usr/bin:/bin:{place}"})
            reached[key] += 1
            assert args == ["pilot.json"] or key.startswith(("job.setup", "job.scratch")), (
                key,
                bad,
                code,
                said,
            )
            if key.startswith("job.setup"):
                wiped(place, files["job.sh"])
            unharmed(place, f"{key} {bad[:40]!r}", before)
    assert reached["env"] > 30, reached


def of_profile(scheduler, profile, place):
    try:
        spec = spec_of(
            profile,
            name="cs-me-01234567",
            command=(str(place / "stub"), "pilot.json"),
            folder=place,
            logs=place / "logs",
        )
        return render(scheduler, spec)
    except ExecutorsError as error:
        assert error.message.isprintable() and len(error.message) < 500, error.message
        return None


def test_the_table_is_large_enough():
    assert len(set(HOSTILE)) >= 60
    assert {field.name for field in dataclasses.fields(SiteProfile)} >= {"job", "directives", "env"}


@pytest.mark.parametrize("bad", HOSTILE, ids=range(len(HOSTILE)))
def test_an_error_can_be_shown(bad):
    """Whatever was in the value, the message is one printable ASCII piece of at most 80 characters."""
    text = allowed.shown(bad)
    assert text.isascii() and text.isprintable() and len(text) <= 80
