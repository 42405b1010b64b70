"""The command line: help, hints, exit codes, and that nothing but words ever reaches the user."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
import types
from pathlib import Path
from typing import Any

import pytest

import executors
import runner
from executors import command
from executors.errors import (
    AnalysisError,
    DamagedError,
    EngineError,
    ExecutorsError,
    IncompleteError,
    InterruptedRunError,
    LockedError,
    SiteError,
    UsageError,
)
from executors.options import options
from executors.work.report import DatasetCount, Outcome, Summary

REPOSITORY = Path(__file__).parents[2]
RUNNER = [sys.executable, str(REPOSITORY / "runner.py")]
HEAVY = (
    "coffea",
    "uproot",
    "awkward",
    "hist",
    "numpy",
    "dask",
    "distributed",
    "parsl",
    "rich",
    "yaml",
    "cloudpickle",
)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """The rooms below, replaced: every call is kept, and answered with ``answer`` or an exception."""
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
    state = types.SimpleNamespace(calls=calls, answer=Outcome())

    def stand_in(name: str) -> Any:
        def call(*args: Any, **named: Any) -> Outcome:
            calls.append((name, args, named))
            if isinstance(state.answer, BaseException):
                raise state.answer
            return state.answer

        return call

    homes = {
        "running": ("execute", "plan_only"),
        "combining": ("merge_dirs",),
        "inspection": ("status", "inspect"),
    }
    for home, names in homes.items():
        module = types.ModuleType(f"executors.{home}")
        for name in names:
            setattr(module, name, stand_in(name))
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(executors, home, module, raising=False)
    for name in [name for name in os.environ if name.startswith("COFFEA_SCALEOUT_")]:
        monkeypatch.delenv(name)
    return state


def run(*argv: str, **more: Any) -> subprocess.CompletedProcess[str]:
    about = {"capture_output": True, "text": True, "timeout": 60, "cwd": "/", "check": False, **more}
    return subprocess.run([*RUNNER, *argv], **about)


# -- help -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [["--help"], ["-h"], [], *([verb, "--help"] for verb in command.VERBS)])
def test_help_is_readable(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert runner.main(argv) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert max(map(len, out.splitlines())) <= 80
    if argv[:1] in ([], ["--help"], ["-h"]):
        for each in options():
            assert all(flag in out for flag in each.flags), each.name
            assert each.about["group"] + ":" in out
        for word in (
            *command.VERBS,
            "--memory",
            "--voms",
            "--wf-arg year=2022",
            "COFFEA_SCALEOUT_",
            "exit codes",
        ):
            assert word in out


def test_help_and_mistakes_import_nothing_heavy() -> None:
    script = textwrap.dedent("""
        import sys, runner
        for line in ("--help", "merge --help", "--chnk 3", "--show-config", "mrge", "--limit 0"):
            runner.main(line.split())
        print("HEAVY", sorted({m.split(".")[0] for m in sys.modules} & set(sys.argv[1].split(","))))
        import executors
        print("HEAVY", sorted({m.split(".")[0] for m in sys.modules} & set(sys.argv[1].split(","))))
    """)
    done = subprocess.run(
        [sys.executable, "-c", script, ",".join(HEAVY)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=REPOSITORY,
        check=False,
    )
    assert done.stdout.count("HEAVY []") == 2, done.stdout[-500:] + done.stderr


def test_help_comes_at_once() -> None:
    def user_time(*argv: str) -> float:
        before = os.times()
        subprocess.run([sys.executable, *argv], capture_output=True, timeout=60, check=True)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    # CPU time, the best of several: the box is shared. A bare Python takes 10 to 20 ms.
    bare = min(user_time("-c", "pass") for _ in range(5))
    full = min(user_time(str(REPOSITORY / "runner.py"), "--help") for _ in range(5))
    assert full < max(8 * bare, 0.25), (full, bare)


# -- what argv means --------------------------------------------------------------------------------


def test_options_arrive_as_settings(fake: types.SimpleNamespace) -> None:
    code = runner.main(
        [
            "--workflow",
            "w",
            "--json=f.json",
            "-j",
            "4",
            "-s",
            "5",
            "--wf-arg",
            "year=2022",
            "--wf-arg",
            "a=-1",
            "--only",
            "x",
            "--only",
            "y",
            "--no-postprocess",
            "--no-merge",
            "-q",
            "-o",
            "out.coffea",
            "--index",
            "1,2",
        ]
    )
    ((name, (settings,), named),) = fake.calls
    assert (code, name) == (0, "execute")
    assert (settings.wf, settings.json, settings.workers, settings.scaleout) == ("w", "f.json", 4, 5)
    assert settings.wf_arg == {"year": "2022", "a": "-1"}
    assert (settings.only, settings.postprocess, settings.no_merge, settings.quiet) == (
        ("x", "y"),
        False,
        True,
        True,
    )
    assert (settings.output, settings.index) == (Path("out.coffea"), (1, 2))
    assert callable(named["observer"].progressed)


def test_the_environment_and_a_file_are_read(
    fake: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COFFEA_SCALEOUT_WORKERS", "7")
    (tmp_path / "run.toml").write_text('wf = "w"\njson = "f"\nworkers = 2\nchunk = 5\n')
    assert runner.main(["--config", str(tmp_path / "run.toml"), "--set", "chunk=6"]) == 0
    settings = fake.calls[0][1][0]
    assert (settings.wf, settings.workers, settings.chunk) == ("w", 7, 6)


def test_looking_starts_nothing(fake: types.SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    assert runner.main(["--show-config", "--wf-arg", "my_token=canary"]) == 0
    assert fake.calls == []
    out = capsys.readouterr().out
    assert "# chunk is not set" in out
    assert "canary" not in out
    fake.answer = Outcome(0, "the plan")
    assert runner.main(["--wf", "w", "--json", "f", "--dry-run"]) == 0
    assert runner.main(["plan", "--wf", "w", "--json", "f", "--validate"]) == 0
    assert [name for name, *_ in fake.calls] == ["plan_only", "plan_only"]
    assert fake.calls[1][1][0].validate
    assert capsys.readouterr().out == "the plan\nthe plan\n"


def test_verbs(fake: types.SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    assert runner.main(["merge", "a", "b", "-o", "x.coffea", "--allow-missing", "5", "--overwrite"]) == 0
    name, args, named = fake.calls.pop()
    assert (name, args) == ("merge_dirs", ([Path("a"), Path("b")], Path("x.coffea")))
    assert named == {"overwrite": True, "allow_missing": 5, "allow_missing_files": 0, "postprocess": True}
    assert runner.main(["merge", "a", "--allow-missing", "many"]) == 2
    assert runner.main(["merge", "a", "--allow-missing", "-1"]) == 2
    fake.answer = Outcome(3, "incomplete", data={"missing": 7})
    assert runner.main(["status", "d"]) == 3
    assert fake.calls[-1][:2] == ("status", (Path("d"),))
    assert runner.main(["inspect", "x", "y"]) == 3
    assert [call[1] for call in fake.calls[-2:]] == [(Path("x"),), (Path("y"),)]
    capsys.readouterr()
    assert runner.main(["status", "d", "--as-json"]) == 3
    assert json.loads(capsys.readouterr().out) == {"missing": 7}


def test_the_table_is_the_last_word(fake: types.SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    rows = (DatasetCount("dy", 2, 1000, 900, 100, ("1 file: input, bad",)),)
    fake.answer = Outcome(3, "incomplete: failed.json can be given to --json", Summary(rows, wall=2.0))
    assert runner.main(["--wf", "w", "--json", "f", "--quiet"]) == 3
    out = capsys.readouterr().out
    assert "incomplete" in out
    assert re.search(r"dy +2 +1,000 +900 +100  1 file: input, bad", out)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--year", "2022"], "given as --wf-arg year=2022"),
        (["--isSyst=all"], "given as --wf-arg isSyst=all"),
        (["--ttbar-reweights"], "given as --wf-arg ttbar_reweights=…"),
        (["--submit", "4"], "comes with the submission of jobs, a later part"),
        (["--jobName=x"], "comes with the submission of jobs, a later part"),
        (["--skip-structure-validation"], "--validate"),
        (["--chnk", "5"], "unknown option '--chnk': did you mean '--chunk'"),
        (["--chun", "5"], "unknown option '--chun'"),  # never an abbreviation
        (["--work", "5"], "unknown option '--work'"),
        (["-x"], "unknown option '-x'"),
        (["-jj"], "--workers j: expected a whole number"),
        (["--wf", "w", "stray"], "unexpected 'stray'"),
        (["--wf"], "expected one argument"),
        (["--quiet=yes"], "--quiet"),
        (["--wf", "w"], "missing --json"),
        (["-q"], "missing --wf and --json"),
        (["rum"], "unknown command 'rum'"),
        (["mrege", "x"], "did you mean 'merge'"),
        (["merge"], "DIR"),
        (["status", "--chunk", "5", "d"], "unknown option '--chunk'"),
        (["--\x1b[31m"], "unknown option"),
        (["--limit", "0"], "--limit 0: expected at least 1"),
        (["--executor"], "--executor"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    fake: types.SimpleNamespace, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    assert runner.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("runner.py: error: ")
    assert message in err
    assert err.count("\n") == 1
    assert "\x1b" not in err
    assert fake.calls == []


# -- every option of the original ---------------------------------------------------------------------

ORIGINAL = (
    "--wf",
    "--workflow",
    "-o",
    "--output",
    "--outputdir",
    "--json",
    "--year",
    "--campaign",
    "--isSyst",
    "--ttbar-reweights",
    "--isArray",
    "--noHist",
    "--overwrite",
    "--executor",
    "-j",
    "--workers",
    "-s",
    "--scaleout",
    "--memory",
    "--disk",
    "--voms",
    "--chunk",
    "--retries",
    "--fsize",
    "--index",
    "--validate",
    "--skipbadfiles",
    "--only",
    "--skip-structure-validation",
    "--validate-files-per-sample",
    "--limit",
    "--max",
    "--jobName",
    "--condorFileSize",
    "--outputXrootdDir",
    "--remoteRepo",
)


@pytest.mark.parametrize("flag", ORIGINAL)
def test_every_option_of_the_original_is_answered(
    flag: str, fake: types.SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {each for option in options() for each in option.flags}
    if flag in known:
        return
    assert runner.main([flag, "x"]) == 2
    assert "did you mean" not in capsys.readouterr().err


# -- errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("wrong"), 2),
        (AnalysisError("raised"), 1),
        (IncompleteError("missing"), 3),
        (DamagedError("torn"), 3),
        (SiteError("full"), 4),
        (EngineError("closed"), 4),
        (LockedError("held"), 4),
        (InterruptedRunError("stopped"), 130),
        (ExecutorsError("other"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_each_error_has_its_exit_code(
    fake: types.SimpleNamespace, capsys: pytest.CaptureFixture[str], error: BaseException, code: int
) -> None:
    fake.answer = error
    assert runner.main(["--wf", "w", "--json", "f"]) == code
    err = capsys.readouterr().err
    assert err.startswith("runner.py: error: ")
    assert "Traceback" not in err


def test_secrets_and_control_characters_do_not_reach_the_terminal(
    fake: types.SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.answer = SiteError("cannot open root://h//f?authz=canary \x1b[2J\x07 é\nand more")
    assert runner.main(["--wf", "w", "--json", "f"]) == 4
    err = capsys.readouterr().err
    assert "canary" not in err
    assert "\x1b" not in err
    assert "\\x1b[2J\\x07 é\nand more" in err


def test_a_bug_of_ours_is_a_line_and_a_file(
    fake: types.SimpleNamespace,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    fake.answer = KeyError("TOKEN=canary")
    assert runner.main(["--wf", "w", "--json", "f"]) == runner.CRASHED
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "unexpected KeyError" in err
    (report,) = tmp_path.glob("coffea-scaleout-crash-*.log")
    assert str(report) in err
    assert report.stat().st_mode & 0o777 == 0o600
    assert "Traceback" in report.read_text()
    assert "canary" not in report.read_text() + err
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    assert runner.main(["--wf", "w", "--json", "f"]) == runner.CRASHED
    assert "could not be written" in capsys.readouterr().err


def test_the_crash_code_is_no_documented_one() -> None:
    assert runner.CRASHED not in (0, 1, 2, 3, 4, 130)


# -- the process ------------------------------------------------------------------------------------


def test_the_real_command(tmp_path: Path) -> None:
    done = run("--wf", "dimuo", "--json", "x.json")
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean 'dimuon'" in done.stderr
    done = run("--wf", "dimuon", "--json", str(tmp_path / "none.json"))
    assert done.returncode == 2
    assert "No such file" in done.stderr
    assert run("--help").returncode == 0
    module = run("--help").stdout
    assert "usage: runner.py --wf WF --json FILESET" in module


def test_a_mistake_in_the_users_module_shows_only_the_users_lines(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def f():\n    return {}['x']\nf()\n")
    (tmp_path / "set.json").write_text('{"a": ["/x.root"]}')
    done = run("--wf", "broken.py:P", "--json", "set.json", cwd=tmp_path)
    assert done.returncode == 2
    assert "KeyError: 'x'" in done.stderr
    assert "broken.py:2 in f: return {}['x']" in done.stderr
    assert "Traceback" not in done.stderr
    assert "/executors/" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == [
        "broken.py",
        "set.json",
    ]


@pytest.mark.parametrize("how", ["pipe", "device", "closed"])
def test_a_stream_that_cannot_be_written_is_no_crash(how: str) -> None:
    if how == "pipe":
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run(
            [*RUNNER, "--help"], stdout=write, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
        os.close(write)
    elif how == "device":
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [*RUNNER, "--show-config"],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                timeout=60,
                check=False,
            )
    else:
        line = f"{sys.executable} {REPOSITORY / 'runner.py'} --show-config >&- 2>/dev/null; echo $?"
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, check=False)
        assert done.stdout.strip() == "0"
        return
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert done.returncode == 0


def test_an_ascii_terminal_gets_all_text(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = run("--wf", "é", "--json", "f", env=env)
    assert done.returncode == 2
    assert "unknown workflow '\\xe9'" in done.stderr
    assert run("--help", env=env).returncode == 0


def test_bytes_that_are_no_text_are_refused_in_words() -> None:
    done = subprocess.run(
        [*RUNNER, b"--wf", b"\xff\xfe", b"--json", b"x"], capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_anything_has_started(tmp_path: Path, number: int) -> None:
    (tmp_path / "slow_wf.py").write_text("import time, sys\nprint('here', flush=True)\ntime.sleep(60)\n")
    (tmp_path / "set.json").write_text('{"a": ["/x.root"]}')
    child = subprocess.Popen(
        [*RUNNER, "--wf", "slow_wf.py:P", "--json", "set.json"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "here\n"
    began = time.monotonic()
    child.send_signal(number)
    _, err = child.communicate(timeout=30)
    assert child.returncode == 130
    assert time.monotonic() - began < 10
    assert "Traceback" not in err
    assert "interrupted" in err
