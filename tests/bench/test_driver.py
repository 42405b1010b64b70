"""The driver: what a chunk costs the runner and the way to the worker, plans of a million chunks, resuming.

``BENCH_FULL=1`` for the full figures; small ones otherwise.
"""

from __future__ import annotations

import os
import pickle
import statistics
import subprocess
import sys
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import pytest
from bench.figures import FULL, ROUNDS, Figure, report
from fakes import FakeAnalysis, drive_to_end, make_drive, make_plan

import executors
from executors.work.layout import Tree
from executors.work.ledger import Ledger
from executors.work.plan import Plan

ROOT = Path(__file__).resolve().parents[2]
CHUNKS = int(os.environ.get("BENCH_CHUNKS", "20000" if FULL else "5000"))
PLANNED = int(os.environ.get("BENCH_PLANNED", "1000000"))
DONE = int(os.environ.get("BENCH_DONE", "100000" if FULL else "20000"))
PER_FILE = int(os.environ.get("BENCH_PER_FILE", "10"))  # chunks; what a plan costs goes by its files
EVENTS = 5


class Weighing(Executor):
    """A pool that weighs what goes to it and what comes back."""

    def __init__(self, pool):
        self.pool, self.bytes, self.tasks = pool, 0, 0

    def submit(self, call, task):
        self.bytes += len(pickle.dumps(task, 5))
        self.tasks += 1
        return self.pool.submit(self._weighed, call, task)

    def _weighed(self, call, task):
        receipt = call(task)
        self.bytes += len(pickle.dumps(receipt, 5))
        return receipt


@pytest.mark.parametrize("chunks", [1, CHUNKS], ids=["a chunk a task", "many chunks a task"])
def test_bytes_through_the_scheduler(memory_path, chunks):
    """Tasks and receipts, pickled: what an engine has to carry where workers see the store."""
    plan = make_plan((EVENTS,) * 200 if chunks == 1 else (EVENTS * chunks // 10,) * 10, chunk=EVENTS)
    total = sum(file.chunks(plan.chunk) for dataset in plan.datasets for file in dataset.files)
    terms = {"task_seconds": 0.0} if chunks == 1 else {}
    with ThreadPoolExecutor(2) as pool:
        weighing = Weighing(pool)
        drive_to_end(plan, memory_path, FakeAnalysis(), weighing, slots=2, **terms)
    each = weighing.bytes / total
    report(
        Figure(f"bytes through the scheduler a chunk, {total:,} chunks in {weighing.tasks} tasks and merges", "", f"{each:,.0f} B",
               None, "<= 1000 B", "<= 300 B")
    )  # fmt: skip
    assert each <= 1000 or chunks == 1


@pytest.mark.timeout(900)
def test_the_runners_own_time(memory_path):
    """Chunks of no work on two workers of ``futures``: processor seconds of the runner's process, threads included."""
    found, walls = [], []
    with executors.open("futures", workers=2) as pool:
        drive_to_end(make_plan((50,) * 2, chunk=5), memory_path / "first", FakeAnalysis(), pool, slots=2)
        for turn in range(ROUNDS):
            plan = make_plan((EVENTS * CHUNKS // 10,) * 10, chunk=EVENTS)
            began, cpu = time.perf_counter(), time.process_time()
            drive = drive_to_end(plan, memory_path / str(turn), FakeAnalysis(), pool, slots=2)
            found.append(1e6 * (time.process_time() - cpu) / CHUNKS)
            walls.append(1e6 * (time.perf_counter() - began) / CHUNKS)
            assert drive.ledger.chunks_done == CHUNKS
    each = statistics.median(found)
    report(
        Figure(f"runner's processor time a chunk, {CHUNKS:,} chunks of no work, futures", f"wall {statistics.median(walls):.0f} us",
               f"{each:.1f} us", None, "<= 300 us", "<= 50 us", ROUNDS, f"{min(found):.3g}-{max(found):.3g}")
    )  # fmt: skip
    assert each <= 300


def million():
    """A plan of a million chunks, in files of ten."""
    return make_plan(
        (EVENTS * PER_FILE,) * (PLANNED // PER_FILE // 4), chunk=EVENTS, fsize=100, datasets=tuple("abcd")
    )


def highest() -> float:
    """The most memory this process had, in MB. Not ru_maxrss: that is also of what it was before it ran this program."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def make_and_walk(path):
    """What a run does with a plan before its first task: keep it, read it back, lay it out, find what is missing."""
    began = time.process_time()
    million().save(path)
    plan = Plan.load(path)
    tree = Tree(plan)
    ledger = Ledger(tree)
    drive = make_drive(plan, path.parent, None)
    drive.plan_work()
    drive._next(1)
    took = time.process_time() - began
    peak = highest()
    assert ledger.chunks_planned == PLANNED
    print(took, peak, tree.size(tree.root))


def test_a_plan_of_a_million_chunks(tmp_path):
    """Seconds and memory of a process that makes, saves, loads and lays out the plan."""
    base = "import sys; sys.path[:0] = [{!r}, {!r}]; from bench import test_driver as t; from pathlib import Path; "
    base = base.format(str(ROOT), str(ROOT / "tests"))
    rows = []
    for turn in range(ROUNDS):
        empty = run(base + "print(0, t.highest(), 0)")
        full = run(base + f"t.make_and_walk(Path({str(tmp_path / f'{turn}.json')!r}))")
        rows.append((full[0], full[1], full[1] - empty[1]))
    took, whole, above = (statistics.median(row[i] for row in rows) for i in range(3))
    report(
        Figure(f"plan of {PLANNED:,} chunks: make, save, load, lay out", "", f"{took:.2f} s", None, "<= 5 s", "<= 1 s", ROUNDS,
               f"{min(r[0] for r in rows):.3g}-{max(r[0] for r in rows):.3g}"),
        Figure("the same: memory, imports included", f"above the imports {above:.0f} MB", f"{whole:.0f} MB", None, "<= 500 MB",
               "<= 150 MB", ROUNDS),
    )  # fmt: skip
    assert took <= 5
    assert whole <= 500


def run(code):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [float(text) for text in done.stdout.split()]


def test_resuming_from_many_done(memory_path):
    """A store of chunks done one by one: how long it takes to know what is missing."""
    plan = make_plan((EVENTS * PER_FILE,) * (DONE // PER_FILE), chunk=EVENTS)
    drive = make_drive(plan, memory_path, None)
    root = drive.store.root
    for split in range(len(drive.tree.splits)):
        (root / f"{split:06d}").mkdir(parents=True, exist_ok=True)
    for split, file, lo, hi in drive.tree.pieces(drive.tree.root):
        for chunk in range(lo, hi):
            node = drive.tree.root._replace(split=split, first=file, last=file + 1, lo=chunk, hi=chunk + 1)
            drive.store.path(node, drive.tree.id(node)).touch()
    found = []
    for _ in range(ROUNDS):
        again = make_drive(plan, memory_path, None)
        began = time.process_time()
        events = again.resume()
        again.plan_work()
        found.append(time.process_time() - began)
        assert events == again.ledger.events_planned
        again.journal.close()
    took = statistics.median(found)
    report(
        Figure(f"resume scan of {DONE:,} chunks done one by one", f"{1e6 * took / DONE:.1f} us each", f"{took:.2f} s", None,
               f"<= {3 * DONE / 1e5:.3g} s", f"<= {0.3 * DONE / 1e5:.3g} s", ROUNDS, f"{min(found):.3g}-{max(found):.3g}")
    )  # fmt: skip
    assert took <= 3 * DONE / 1e5
