"""What is left in a batch queue is removed by the keeper, however the runner or the host ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RUNNER = """
import sys, time
from pathlib import Path
from executors.engines.call import pack_outfit
from executors.engines.futures import WorkerSlot
from executors.engines.nursery import Nursery
logs, mark = Path(sys.argv[1]), sys.argv[2]
said = [sys.executable, "-c", f"open({mark!r}, 'a').write('x')"]
private = logs / "private"
(private / "job").mkdir(parents=True)
if len(sys.argv) > 3:
    (private / "job" / "submitting").touch()
nursery = Nursery(logs, farewell=[["/no/such/command"], said], sweep=private)
slot = WorkerSlot(nursery, 0, pack_outfit(None, ()))
slot.ready()  # by then the keeper has been told what to say, and listens
slot.close()
print("up", nursery.pid, flush=True)
sys.stdin.read()
nursery.close()
print("closed", flush=True)
"""


@pytest.fixture
def start(tmp_path):
    started = []

    def start(*more):
        process = subprocess.Popen(
            [sys.executable, "-c", RUNNER, str(tmp_path), str(tmp_path / "mark"), *more],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
        started.append(process)
        word, pid = process.stdout.readline().split()
        assert word == "up"
        process.keeper = int(pid)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def said(mark: Path) -> int:
    return len(mark.read_text()) if mark.exists() else 0


def gone(folder: Path) -> bool:
    return not (folder / "private").exists()


@pytest.mark.parametrize(("more", "times"), [((), 1), (("submitting",), 2)])
def test_on_leaving(start, tmp_path, more, times):
    """Twice where a submission was under way: its job is in the queue a moment after its process was killed."""
    runner = start(*more)
    runner.stdin.close()
    assert runner.stdout.readline() == "closed\n"
    assert runner.wait(30) == 0
    assert said(tmp_path / "mark") == times
    assert gone(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize(("more", "times"), [((), 1), (("submitting",), 2)])
def test_after_the_runner_was_killed(start, tmp_path, number, more, times):
    runner = start(*more)
    time.sleep(0.3)
    assert said(tmp_path / "mark") == 0
    os.kill(runner.pid, number)
    deadline = time.monotonic() + 20
    while not gone(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert gone(tmp_path)
    assert said(tmp_path / "mark") == times


def test_after_the_keeper_was_killed(start, tmp_path):
    """Then the runner does it itself when it leaves."""
    runner = start()
    os.kill(runner.keeper, signal.SIGKILL)
    time.sleep(0.3)
    assert said(tmp_path / "mark") == 0
    runner.stdin.close()
    assert runner.stdout.readline() == "closed\n"
    assert said(tmp_path / "mark") == 1
