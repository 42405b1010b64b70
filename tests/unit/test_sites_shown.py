"""What ``sites``, ``sites NAME`` and ``--show-config`` say of a site as a run would use it, and who says what."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import executors
import runner
from executors import registry, site_words
from executors.errors import UsageError
from executors.settings import resolve
from executors.where import where
from sites import detect, overrides
from sites.profile import load_site, site_names

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    """A folder of one's own, no settings and no site of the machine."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("X509_CERT_DIR", "COFFEA_IMAGE_FULL"):
        monkeypatch.delenv(name, raising=False)
    for name in list(os.environ):
        if name.startswith("COFFEA_SCALEOUT_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(detect, "full_hostname", lambda: "laptop")


def said(capsys, *words):
    """What a command prints, and its exit code."""
    code = runner.main(list(words))
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def rows(text):
    """Key -> (value, origin) of a table that ``sites NAME`` prints, of what stands on one line."""
    found = {}
    for line in text.splitlines():
        if match := re.match(r"([a-z_]+(?:\.\S+)?)\s+[!?]{0,2}\s+(\S.*?)\s{2,}(\S.*)$", line):
            found[match[1]] = (match[2], match[3])
    return found


# option, the key it means, how it is shown
OPTIONS = [
    (["--cores", "4"], "resources.cores", "4"),
    (["--memory", "9GB"], "resources.memory", "9GB"),
    (["--disk", "10GB"], "resources.disk", "10GB"),
    (["--walltime", "12h"], "resources.walltime", "12h"),
    (["--queue", "tomorrow"], "job.queue", "tomorrow"),
    (["--account", "mine"], "job.account", "mine"),
    (["--image", "/cvmfs/x"], "job.image", "/cvmfs/x"),
    (["--directive", "+Group=x"], "directives.+Group", "x"),
    (["--env", "A=b"], "env.A", "b"),
    (["--worker-setup", "echo hi"], "job.setup", "echo hi"),
    (["--worker-python", "python3"], "job.python", "python3"),
    (["--ship-env", "container"], "job.ship", "container"),
    (["--shared-store", "no"], "shares_store", "false"),
    (["--start-timeout", "2h"], "limits.start", "2h"),
    (["--site-set", "limits.polls_per_minute=2"], "limits.polls_per_minute", "2"),
    (["-j", "2"], "job.workers", "2"),
    (["-s", "50"], "limits.usual", "50"),
]


@pytest.mark.parametrize(("words", "key", "value"), OPTIONS, ids=lambda one: str(one))
def test_every_option_of_a_site_is_shown_with_its_origin(words, key, value, capsys, tmp_path):
    """From the command line, the run's file, the environment, --set, and a Python call alike."""
    flag, text = words
    option = {"-j": "workers", "-s": "scaleout"}.get(flag, flag.lstrip("-").replace("-", "_"))
    assert rows(said(capsys, "sites", "lxplus", *words)[1])[key] == (value, "command line")
    setting = f"{option}.{text}" if "=" in text else f"{option}={text}"
    assert rows(said(capsys, "sites", "lxplus", "--set", setting)[1])[key] == (value, "--set")
    name, equals, inner = text.partition("=")
    table = f'{{"{name}" = "{inner}"}}' if equals else None
    toml = table or (f'["{text}"]' if option == "worker_setup" else text if text.isdigit() else f'"{text}"')
    (tmp_path / "r.toml").write_text(f"{option} = {toml}\n")
    assert rows(said(capsys, "sites", "lxplus", "--config", "r.toml")[1])[key] == (value, "file r.toml")
    shown = said(capsys, "--executor", "dask/lxplus", "--config", "r.toml", "--show-config")[1]
    assert re.search(rf"(?m)^# {re.escape(key)} = {re.escape(value)} +# file r\.toml$", shown), shown


@pytest.mark.parametrize(("words", "key", "value"), OPTIONS, ids=lambda one: str(one))
def test_the_environment_says_it_too(words, key, value, capsys, monkeypatch):
    flag, text = words
    option = {"-j": "workers", "-s": "scaleout"}.get(flag, flag.lstrip("-").replace("-", "_"))
    variable = f"COFFEA_SCALEOUT_{option.upper()}"
    monkeypatch.setenv(variable, text)
    placed = registry.place("dask/lxplus")
    assert placed.site == load_site("lxplus")  # names alone read no settings
    data = json.loads(said(capsys, "sites", "lxplus", "--as-json")[1])["values"]
    whole, _, row = key.rpartition(".") if key.startswith(("env.", "directives.")) else (key, "", "")
    origin = data[whole]["origin"]
    assert (origin[row] if row else origin) == f"env {variable}"


FIXED = [
    ("lxplus", "scheduler_port", "8787", "port 8786 and no other"),
    ("lxplus", "site_set.ports.worker", "1-2", "10000 to 10100 open only"),
    ("lpc", "shared_store", "yes", "no folder of the login nodes"),
    ("naf_lite", "memory", "3GB", "a lite job has 2 GB"),
    ("naf_lite", "cores", "2", "a lite job has one core"),
    ("naf_lite", "walltime", "4h", "ended after 3 hours"),
    ("casa", "cores", "2", "are the facility's"),
    ("casa", "disk", "9GB", "are the facility's"),
]


@pytest.mark.parametrize(("site", "option", "value", "reason"), FIXED)
def test_what_a_site_fixes_is_refused_from_every_side(
    site, option, value, reason, capsys, monkeypatch, tmp_path
):
    monkeypatch.setenv("COFFEA_IMAGE_FULL", "/cvmfs/x")
    name, _, key = option.partition(".")
    number = value if value.isdigit() else f'"{value}"'
    (tmp_path / "r.toml").write_text(f'{name} = {{"{key}" = {number}}}\n' if key else f"{name} = {number}\n")
    flag = "--" + name.replace("_", "-")
    sides = {
        "command line": [flag, f"{key}={value}" if key else value],
        "--set": ["--set", f"{option}={value}"],
        "file r.toml": ["--config", "r.toml"],
    }
    for side, words in sides.items():
        for verb in (["sites", site], ["check", "--executor", f"dask/{site}"]):
            code, _, error = said(capsys, *verb, *words)
            assert code == 2
            assert reason in error
            assert f"{side}: " in error
            assert "Traceback" not in error
    variable = f"COFFEA_SCALEOUT_{name.upper()}"
    monkeypatch.setenv(variable, f"{key}={value}" if key else value)
    code, _, error = said(capsys, "sites", site)
    assert (code, reason in error, f"env {variable}: " in error) == (2, True, True)
    monkeypatch.delenv(variable)
    given = {name: {key: value}} if key else {name: int(value) if value.isdigit() else value}
    with pytest.raises(UsageError, match=re.escape(reason)), executors.open(f"dask/{site}", **given):
        pass


def test_one_site_by_an_executors_name(capsys, monkeypatch):
    code, out, _ = said(capsys, "sites", "dask/existing/uchicago")
    assert code == 0
    assert rows(out)["scheduler"] == ("existing", "the executor's name")
    assert said(capsys, "sites", "dask/slurm/uchicago")[0] == 2
    monkeypatch.setattr("executors.naming.detect", lambda among: detect.Detected("psi", "a test"))
    assert said(capsys, "sites", "auto")[1].startswith("psi:")


def test_options_without_a_site_are_refused(capsys):
    code, _, error = said(capsys, "sites", "--memory", "3GB")
    assert (code, "NAME" in error) == (2, True)
    code, _, error = said(capsys, "sites", "lxplus", "--memmory", "3GB")
    assert (code, "--memory" in error) == (2, True)
    code, _, error = said(capsys, "sites", "lxpuls")
    assert (code, "'lxplus'" in error) == (2, True)


def test_a_secret_of_the_environment_is_not_shown(capsys):
    secret = "sesame-open-thou"
    for words in (
        ["sites", "slurm"],
        ["sites", "slurm", "--as-json"],
        ["--executor", "dask/slurm", "--show-config"],
    ):
        code, out, _ = said(capsys, *words, "--env", f"MY_TOKEN={secret}")
        assert (code, secret in out, "MY_TOKEN" in out) == (0, False, True)


@pytest.mark.parametrize(
    "name", ["futures", "dask/lxplus", "dask/lpc", "parsl/naf_lite", "dask/nowhere", "auto"]
)
def test_show_config_stays_a_file_that_is_read_again(name, capsys, tmp_path):
    code, out, error = said(capsys, "--wf", "a:b", "--executor", name, "--show-config")
    assert (code, error) == (0, "")
    (tmp_path / "again.toml").write_text(out)
    assert tomllib.loads(out)["executor"] == name
    assert said(capsys, "--config", "again.toml", "--show-config")[0] == 0
    if name == "dask/lpc":
        assert "# --image /cvmfs/… (or the variable $COFFEA_IMAGE_FULL) has to be given" in out
    if name == "dask/nowhere":
        assert "# unknown site 'nowhere'" in out


def test_the_list_says_what_each_site_needs():
    known = {one["name"]: one for one in json.loads(site_words.listed(as_json=True))["sites"]}
    listed = site_words.listed()
    assert sorted(known) == site_names()
    for name, row in known.items():
        site = load_site(name)
        text = " ".join(row["needs"])
        for key in overrides.lacking(site):
            assert overrides.OPTIONS[key] in text
        assert ("proxy" in text or "token" in text) == (site.proxy.kind is not None)
        assert bool(row["commands"]) == (site.scheduler in site_words.COMMANDS)
        block = re.search(rf"(?ms)^{name} .*?(?=^\S|\Z)", listed)[0]
        for need in row["needs"]:
            assert " ".join(need.split()) in " ".join(block.split())


def test_a_site_of_the_same_machines_is_not_offered_elsewhere():
    """A profile for another kind of job, or another gateway, is of its base's machines."""
    for name in ("naf_lite", "purdue_slurm"):
        assert not site_words.usable(load_site(name), "laptop").yes
    found = detect.detect("naf-cms14.desy.de", exists=lambda _: False)
    assert (found.site, found.others) == ("naf", ("naf_lite",))


# -- how many jobs, and what a worker gets of the runner's environment ------------------------------


def test_how_many_jobs(tmp_path):
    assert where(resolve(executor="dask/slurm").settings).jobs == 6
    assert where(resolve(executor="parsl/claix").settings).jobs == 20
    assert where(resolve(executor="parsl/claix", scaleout=300).settings).jobs == 300
    few = where(resolve(executor="dask/brux", scaleout=100).settings)
    assert (few.jobs, few.warnings) == (100, ())
    many = where(resolve(executor="dask/brux", scaleout=1000).settings)
    assert many.jobs == 336
    assert "336 jobs at brux, not 1000; more: --site-set limits.jobs=1000" in many.warnings[0]
    more = where(resolve(executor="dask/brux", scaleout=1000, site_set={"limits.jobs": 1000}).settings)
    assert (more.jobs, more.warnings) == (1000, ())
    (tmp_path / "few.site.toml").write_text('inherits = "slurm"\nengines = ["dask"]\n[limits]\njobs = 2\n')
    quiet = where(resolve(executor="dask/few").settings)  # nobody asked for six
    assert (quiet.jobs, quiet.warnings) == (2, ())


@pytest.mark.parametrize(
    ("name", "value", "passed"),
    [
        ("dask/slurm", "/home/me/env/etc/certificates", True),
        ("parsl/psi", "/cvmfs/grid/certificates", True),
        ("dask/lxplus", "/tmp/certificates", False),  # their own /tmp
        ("dask/lxplus", "/afs/cern.ch/me/certificates", True),
        ("dask/mit", "/home/me/certificates", False),  # nothing is shared
        ("dask/mit", "/cvmfs/grid/certificates", True),
        ("dask/slurm", "", False),
        ("futures", "/home/me/certificates", False),  # has the runner's environment anyway
    ],
)
def test_where_the_certificates_lie_is_passed_on(name, value, passed, monkeypatch):
    monkeypatch.setenv("X509_CERT_DIR", value)
    asked = {"job.account": "a", "job.image": "/cvmfs/x"} if name.endswith("mit") else {}
    placed = registry.place(name, overrides=asked)
    assert placed.site.env.get("X509_CERT_DIR") == (value if passed else None)
    assert (placed.origins.get("env.X509_CERT_DIR") == "env X509_CERT_DIR") == passed


def test_what_a_profile_or_an_option_says_wins_over_what_is_passed_on(monkeypatch):
    monkeypatch.setenv("X509_CERT_DIR", "/a")
    assert registry.place("dask/claix").site.env["X509_CERT_DIR"].startswith("/cvmfs/")
    placed = registry.place("dask/slurm", overrides={"env.X509_CERT_DIR": "/b"})
    assert placed.site.env["X509_CERT_DIR"] == "/b"
    assert "X509_CERT_DIR" not in registry.place("dask/slurm", overrides={"shares_store": False}).site.env
    assert "X509_CERT_DIR" not in registry.place("dask/slurm", overrides={"job.pass_env": []}).site.env
    with pytest.raises(UsageError, match="no name of one"):
        registry.place("dask/slurm", overrides={"job.pass_env": ["A B"]})
    monkeypatch.setenv("X509_CERT_DIR", "/a\nb")
    with pytest.raises(UsageError, match="env X509_CERT_DIR: "):
        registry.place("dask/slurm")


def test_the_list_goes_into_a_pipe_that_is_closed(tmp_path):
    """As ``runner.py sites | head -1`` does."""
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} {ROOT / 'runner.py'} sites | head -1"],
        capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.stdout.startswith("site ")
    assert done.stderr == ""


KEYS = [
    ("limits.polls_per_minute", "2", "2"), ("resources.memory", "3GB", "3GB"), ("shares_store", "no", "false"),
    ("job.pass_env", "A", "A"), ("urls.rewrite.root://a//", "root://b//", "root://b//"), ("limits.death", "9s", "9s"),
    ("network.address", "loopback", "loopback"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "typed", "value"), KEYS)
def test_every_key_can_be_set_as_it_is_shown(key, typed, value, capsys):
    for words in (["--set", f"{key}={typed}"], ["--set", f"site_set.{key}={typed}"]):
        assert rows(said(capsys, "sites", "slurm", *words)[1])[key] == (value, "--set")
    assert rows(said(capsys, "sites", "slurm", "--site-set", f"{key}={typed}")[1])[key] == (
        value,
        "command line",
    )


def test_a_runs_file_may_say_what_a_profile_says(capsys, tmp_path):
    (tmp_path / "r.toml").write_text(
        'shares_store = false\n[resources]\nmemory = "3GB"\ncores = 3\n[job]\nsetup = ["hi"]\nqueue = "a"\n'
        '[job.queues]\na = "3h"\n[site_set.limits]\njobs = 3\n[site_set]\n"limits.death" = "9s"\n'
        '[urls.rewrite]\n"root://a//" = "root://b//"\n'
    )
    found = rows(said(capsys, "sites", "slurm", "--config", "r.toml")[1])
    mine = {key: value for key, (value, origin) in found.items() if origin == "file r.toml"}
    assert mine == {
        "shares_store": "false", "resources.memory": "3GB", "resources.cores": "3", "job.setup": "hi",
        "job.queue": "a", "job.queues.a": "3h", "limits.jobs": "3", "limits.death": "9s",
        "urls.rewrite.root://a//": "root://b//",
    }  # fmt: skip
    code, out, _ = said(capsys, "--executor", "dask/slurm", "--config", "r.toml", "--show-config")
    (tmp_path / "again.toml").write_text(out)
    again = rows(said(capsys, "sites", "slurm", "--config", "again.toml")[1])
    assert (code, again["job.queues.a"], again["resources.memory"]) == (
        0, ("3h", "file again.toml"), ("3GB", "file again.toml")
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "value", "origin"),
    [
        (["--memory", "7GB"], "7GB", "command line"),
        (["--memory", "7GB", "--set", "resources.memory=8GB"], "8GB", "--set"),
        (["--site-set", "resources.memory=9GB", "--set", "memory=8GB"], "8GB", "--set"),
        ([], "3GB", "file r.toml"),
    ],
)
def test_the_later_layer_counts_however_a_key_is_spelt(words, value, origin, capsys, tmp_path):
    (tmp_path / "r.toml").write_text('[resources]\nmemory = "3GB"\n')
    shown = said(capsys, "sites", "slurm", "--config", "r.toml", *words)[1]
    assert rows(shown)["resources.memory"] == (value, origin)


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("resorces.memory=1GB", "'resources'"),
        ("resources.memry=1GB", "'resources.memory'"),
        ("resources=3", "unknown key"),
        ("engines=dask", "says what the site"),
        ("ports.scheduler=0", "--scheduler-port must be"),
    ],
)
def test_a_key_that_cannot_be_set_is_said(text, near, capsys):
    code, _, error = said(capsys, "sites", "slurm", "--set", text)
    assert (code, near in error, "Traceback" in error) == (2, True, False), error
