"""Which schedd takes the jobs: a collector's table in, the options of every later command out."""

from __future__ import annotations

import shlex
from dataclasses import replace

import pytest

from executors.batch.schedd import chosen
from executors.batch.schedulers import CommandError, scheduler_of
from executors.errors import SiteError
from sites.profile import load_site

TABLE = "lpcschedd1.example\t31.5\nlpcschedd2.example\t7.25\nlpcschedd3.example\t12.0\n"


class Commands:
    """Programs on PATH that are small scripts; each writes down how it was called."""

    def __init__(self, folder):
        self.folder, self.log = folder, folder.parent / "called"
        folder.mkdir()

    def put(self, name, script="", *, out="", err="", code=0):
        for kind, text in (("out", out), ("err", err)):
            (self.folder / f".{name}.{kind}").write_text(text)
        base, path = self.folder / f".{name}", self.folder / name
        note = (
            f'{{ printf "%s" {name}; for one in "$@"; do printf "\\t%s" "$one"; done; echo; }} >> {self.log}'
        )
        path.write_text(f"#!/bin/bash\n{note}\n{script}\ncat {base}.out; cat {base}.err >&2; exit {code}\n")
        path.chmod(0o755)

    @property
    def calls(self):
        return [line.split("\t") for line in self.log.read_text().splitlines()] if self.log.exists() else []


@pytest.fixture
def commands(tmp_path, monkeypatch):
    made = Commands(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{made.folder}:/usr/bin:/bin")
    monkeypatch.delenv("FERMIHTC_REMOTE_POOL", raising=False)
    return made


def lpc(**schedd):
    one = load_site("lpc")
    return replace(one, schedd=replace(one.schedd, **schedd))


class Told(list):
    def __call__(self, level, text):
        self.append(text)


def test_the_one_with_the_lowest_rank_takes_all(commands, monkeypatch):
    monkeypatch.setenv("FERMIHTC_REMOTE_POOL", "collector.example:9618")
    commands.put("condor_status", out=TABLE)
    told = Told()
    site = chosen(lpc(), told)
    assert site.job.submit_options == (
        "-spool",
        "-name",
        "lpcschedd2.example",
        "-pool",
        "collector.example:9618",
    )
    assert told == ["jobs go to the schedd lpcschedd2.example, the best of 3 (7.25)"]
    (call,) = commands.calls
    wanted = lpc().schedd
    assert call == [
        "condor_status", "-pool", "collector.example:9618", "-schedd", "-constraint", wanted.constraint,
        "-af:t", "Name", wanted.rank,
    ]  # fmt: skip


def test_every_command_of_the_engine_goes_there(commands, monkeypatch, tmp_path):
    monkeypatch.setenv("FERMIHTC_REMOTE_POOL", "collector.example")
    commands.put("condor_status", out=TABLE)
    options = chosen(lpc(), Told()).job.submit_options
    for name in ("condor_q", "condor_rm", "condor_history", "condor_transfer_data"):
        commands.put(name, out="[]" if name in ("condor_q", "condor_history") else "")
    scheduler = scheduler_of("condor", options)
    scheduler.query("cs-me-1", ["1.0"])
    scheduler.cancel(["1.0"])
    scheduler.fetch(["1.0"])
    scheduler.why_pending(["1.0"])
    scheduler.cancel_named("cs-me-1")
    there = ["-name", "lpcschedd2.example", "-pool", "collector.example"]
    asked = [call for call in commands.calls if call[0] != "condor_status"]
    assert {call[0] for call in asked} == {"condor_q", "condor_rm", "condor_history", "condor_transfer_data"}
    assert [call[1:5] for call in asked] == [there] * len(asked)
    assert scheduler.cancel_argv("cs-me-1")[1:5] == there


def test_the_collector_may_stand_in_the_configuration(commands):
    commands.put("condor_config_val", out="collector.example\n")
    commands.put("condor_status", out=TABLE)
    assert chosen(lpc(), Told()).job.submit_options[-1] == "collector.example"
    assert commands.calls[0] == ["condor_config_val", "FERMIHTC_REMOTE_POOL"]


@pytest.mark.parametrize("first", ["dead", "empty"])
def test_the_next_collector_is_asked(commands, monkeypatch, first):
    monkeypatch.setenv("FERMIHTC_REMOTE_POOL", "dead.example, second.example")
    fails = {"dead": "echo cannot connect >&2; exit 1", "empty": "exit 0"}[first]
    commands.put("condor_status", f'case "$2" in dead*) {fails};; esac', out=TABLE)
    assert chosen(lpc(), Told()).job.submit_options[-1] == "second.example"


def test_without_a_pool_htcondors_own_is_asked(commands):
    commands.put("condor_status", out=TABLE)
    site = chosen(lpc(pool=None), Told())
    assert site.job.submit_options == ("-spool", "-name", "lpcschedd2.example")
    assert "-pool" not in commands.calls[0]


def test_all_that_answered_are_drained(commands, monkeypatch):
    monkeypatch.setenv("FERMIHTC_REMOTE_POOL", "collector.example")
    commands.put("condor_status", 'case "$*" in *-constraint*) exit 0;; esac', out=TABLE)
    with pytest.raises(SiteError) as caught:
        chosen(lpc(), Told())
    assert caught.value.exit_code == 4
    for part in (
        "collector.example has lpcschedd1.example",
        "lpcschedd3.example",
        "FERMIHTC_DRAIN",
        "condor_status",
    ):
        assert part in str(caught.value)


def test_nobody_answers(commands, monkeypatch):
    monkeypatch.setenv("FERMIHTC_REMOTE_POOL", "one.example two.example")
    commands.put("condor_status", err="Error: could not connect\x1b[31m", code=1)
    with pytest.raises(SiteError, match=r"one.example: .*could not connect.*; two.example: ") as caught:
        chosen(lpc(), Told())
    assert caught.value.exit_code == 4
    assert "\x1b" not in str(caught.value)


def test_the_collector_is_named_nowhere(commands):
    commands.put("condor_config_val", err="Not defined: FERMIHTC_REMOTE_POOL", code=1)
    with pytest.raises(SiteError, match=r"\$FERMIHTC_REMOTE_POOL.*CONDOR_CONFIG"):
        chosen(lpc(), Told())


def test_no_htcondor_here(commands, monkeypatch):
    with pytest.raises(CommandError, match="condor_config_val is not here"):
        chosen(lpc(), Told())
    monkeypatch.setenv("FERMIHTC_REMOTE_POOL", "one.example")
    with pytest.raises(SiteError, match="condor_status is not here"):
        chosen(lpc(), Told())


@pytest.mark.parametrize(
    ("out", "best"),
    [
        ("a.example\tundefined\nb.example\t99\n", "b.example"),
        ("a.example\terror\nb.example\tundefined\n", "a.example"),
        ("b.example\tnan\na.example\t1e3\n", "a.example"),
        ("b.example\t-1\na.example\t0\n", "b.example"),
        ("-name\t1\nx y\t0\n$(id)\t0\n;id\t0\na\tb\t0\ngood@host.example\t7\n\n", "good@host.example"),
    ],
)
def test_odd_answers(commands, monkeypatch, out, best):
    """A rank that cannot be worked out is the worst; what is no name of a schedd is passed over."""
    monkeypatch.setenv("FERMIHTC_REMOTE_POOL", "collector.example")
    commands.put("condor_status", out=out)
    assert chosen(lpc(), Told()).job.submit_options[2] == best


@pytest.mark.parametrize("options", [("-name", "mine"), ("-spool", "-remote", "mine"), ("-pool", "other")])
def test_who_names_a_server_has_chosen(commands, options):
    one = lpc()
    one = replace(one, job=replace(one.job, submit_options=options))
    assert chosen(one, Told()) is one
    assert not commands.calls


@pytest.mark.parametrize("name", ["condor", "lxplus", "slurm", "local", "naf"])
def test_elsewhere_nothing_is_asked(commands, name):
    one = load_site(name)
    assert chosen(one, Told()) is one
    assert not commands.calls


@pytest.mark.parametrize("text", ["$FERMIHTC_REMOTE_POOL; id", "`id`", "$(id)"])
def test_nothing_of_a_pools_name_is_run(commands, tmp_path, text):
    commands.put("condor_status", out=TABLE)
    commands.put("id", f"touch {shlex.quote(str(tmp_path / 'ran'))}")
    chosen(lpc(pool=text), Told())
    assert not (tmp_path / "ran").exists()
    for call in commands.calls:
        assert all(word.isascii() and not set(word) & set("`;$ ") for word in call[2:3])
