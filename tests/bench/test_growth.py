"""Growth: what a chunk costs among a hundred and among a hundred thousand; what a kill at half-way costs.

``BENCH_FULL=1`` for the full figures; small ones otherwise.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bench.figures import FULL, ROUNDS, Figure, report
from fakes import FakeAnalysis, drive_to_end, make_plan

import executors

ROOT = Path(__file__).resolve().parents[2]
MOST = int(os.environ.get("BENCH_GROWTH", "100000" if FULL else "10000"))
BUSY = 0.002  # seconds of a chunk
EVENTS = 5


def memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.timeout(3600)
def test_wall_time_of_a_chunk(memory_path):
    """Chunks of 2 ms on two workers, from 100 to 100,000 of them: seconds of each, and the runner's memory."""
    sizes = [n for n in (100, 1000, 10_000, 100_000) if n <= MOST]
    walls = {n: [] for n in sizes}
    grown = {}
    with executors.open("futures", workers=2) as pool:
        drive_to_end(make_plan((50,) * 2, chunk=5), memory_path / "first", FakeAnalysis(), pool, slots=2)
        for turn in range(ROUNDS):
            for n in sizes if turn == 0 else [m for m in sizes if m <= 10_000]:
                before = memory()
                plan = make_plan((EVENTS * n // 10,) * 10, chunk=EVENTS)
                began = time.perf_counter()
                drive = drive_to_end(
                    plan, memory_path / f"{turn}-{n}", FakeAnalysis(busy=BUSY), pool, slots=2
                )
                walls[n].append(2 * (time.perf_counter() - began) / n)
                assert drive.ledger.chunks_done == n
                grown.setdefault(n, memory() - before)
    base = statistics.median(walls[100])
    each = {n: statistics.median(walls[n]) for n in sizes}
    report(
        *(
            Figure(f"worker's seconds a chunk of {BUSY * 1e3:g} ms, {n:,} chunks", f"100 chunks {1e3 * base:.2f} ms",
                   f"{1e3 * each[n]:.2f} ms; runner +{grown[n] / 1e6:.1f} MB", each[n] / base, "<= 1.1", "flat", len(walls[n]),
                   f"{1e3 * min(walls[n]):.2f}-{1e3 * max(walls[n]):.2f} ms")
            for n in sizes
        )
    )  # fmt: skip
    assert each[sizes[-1]] <= 1.1 * base


KILLED = """
import json, sys, time
began = time.time()
sys.path[:0] = [{root!r}, {tests!r}]
import executors
from fakes import FakeAnalysis, make_plan, resumed

with executors.open("futures", workers=2) as pool:
    plan = make_plan(({events},) * 10, chunk=5)
    ready = time.time()
    print(json.dumps({{"ready": ready - began}}), flush=True)
    drive = resumed(plan, sys.argv[1], FakeAnalysis(busy={busy}), pool=pool, slots=2, task_seconds=1.0)
    print(json.dumps({{"done": drive.ledger.complete, "resumed": drive.ledger.resumed_events, "took": time.time() - ready}}))
"""


def start(folder):
    chunks = 2000 if FULL else 600
    text = KILLED.format(root=str(ROOT), tests=str(ROOT / "tests"), events=EVENTS * chunks // 10, busy=0.01)
    return subprocess.Popen([sys.executable, "-c", text, str(folder)], stdout=subprocess.PIPE, text=True)


def to_end(folder):
    began = time.time()
    with start(folder) as process:
        said = [json.loads(line) for line in process.stdout]
    assert process.returncode == 0
    assert said[-1]["done"]
    return time.time() - began, said[-1]["took"]


@pytest.mark.timeout(900)
def test_a_kill_at_half_way(memory_path):
    """The runner is killed at half of its time and started again: seconds more than undisturbed, all start-up included."""
    lost, flight = [], []
    for turn in range(ROUNDS):
        whole, work = to_end(memory_path / f"{turn}-whole")
        folder = memory_path / f"{turn}-killed"
        began = time.time()
        with start(folder) as process:
            process.stdout.readline()
            time.sleep(work / 2)
            process.send_signal(signal.SIGKILL)
        first = time.time() - began
        stored = sum(1 for _ in (folder / "store").rglob("*.part"))
        second, rest = to_end(folder)
        lost.append(first + second - whole)
        flight.append(max(0.0, work / 2 + rest - work))
        assert stored
    report(
        Figure("time lost to a kill at half-way", f"work in flight {statistics.median(flight):.2f} s", f"{statistics.median(lost):.2f} s",
               None, "<= in flight + 5 s", "<= in flight + 1 s", ROUNDS, f"{min(lost):.2f}-{max(lost):.2f} s")
    )  # fmt: skip
    assert statistics.median(lost) <= statistics.median(flight) + 5
