"""Many processes want one directory, some are killed: exactly one holds it at any time."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

RUNNER = """
import errno, os, random, sys, time
from pathlib import Path
from executors.errors import LockedError
from executors.work import lock

folder, log, rounds, links, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4], int(sys.argv[5])
rng = random.Random(seed)
if links == "no":
    def refuse(*a):
        raise OSError(errno.EPERM, "no hard links")
    os.link = refuse
lock.SILENCE = 1.0
lock.BEAT = 0.1
out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def say(what):
    os.write(out, f"{what} {os.getpid()} {time.monotonic_ns()}\\n".encode())

done = 0
while done < rounds:
    try:
        with lock.hold(folder):
            say("enter")
            time.sleep(rng.random() * 0.01)
            say("leave")
            done += 1
    except LockedError as error:
        if "cannot be read" not in str(error) and "kill" not in str(error):
            say("wrong")
    time.sleep(rng.random() * 0.01)
"""


def start(folder, log, rounds, links, seed):
    argv = [sys.executable, "-c", RUNNER, folder, log, rounds, links, seed]
    return subprocess.Popen([str(a) for a in argv], cwd=ROOT)


def check(log, killed=()):
    """Between one's enter and its leave (or its death) nobody else enters."""
    inside, entered = None, 0
    for line in log.read_text().splitlines():
        what, pid, _ = line.split()
        assert what != "wrong"
        if what == "enter":
            assert inside is None or inside in killed, line
            inside, entered = int(pid), entered + 1
        else:
            assert inside == int(pid), line
            inside = None
    return entered


@pytest.mark.parametrize("links", ["yes", "no"])
def test_two_runners_never_at_once(memory_path, scale, links):
    rounds = scale(20, 100)
    log = memory_path / "log"
    children = [start(memory_path / "run", log, rounds, links, seed) for seed in range(3)]
    assert [child.wait(timeout=100) for child in children] == [0, 0, 0]
    assert check(log) == 3 * rounds
    assert len([p for p in (memory_path / "run").iterdir() if p.name.startswith("lock.")]) == 1


@pytest.mark.parametrize("links", ["yes", "no"])
def test_killed_holders_are_overtaken(memory_path, scale, links):
    rng = random.Random(7)
    log, killed = memory_path / "log", set()
    log.touch()
    children = []
    try:
        for seed in range(scale(12, 100)):
            while len(children) < 3:
                children.append(start(memory_path / "run", log, 10**6, links, seed * 10 + len(children)))
                time.sleep(0.1 if len(killed) else 0.4)
            time.sleep(rng.random() * 0.05)
            victim = children.pop(rng.randrange(3))
            # As the kernel does it: no Python code of the holder runs any more.
            os.kill(victim.pid, signal.SIGKILL)
            killed.add(victim.pid)
            victim.wait()
        before = check(log, killed)
        until = time.monotonic() + 30
        while check(log, killed) < before + 10:
            assert time.monotonic() < until
            time.sleep(0.1)
    finally:
        for child in children:
            child.kill()
            child.wait()
    assert before > 10
