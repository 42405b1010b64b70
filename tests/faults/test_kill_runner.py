"""The runner, killed with -9 at random moments until the run is done: exact, and nothing twice."""

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

SCRIPT = """
import os, random, signal, sys, time
sys.path[:0] = [sys.argv[1], sys.argv[2]]
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from dataclasses import replace
from fakes import FakeAnalysis, auto_plan, make_plan, promise, resumed, rough_sum
from executors.work import lock
from executors.work.plan import Plan
from executors.work.ranges import Ranges, beside
from executors.work.sizing import Sizing

base, wanted, shared, fsize = Path(sys.argv[3]), int(sys.argv[4]), sys.argv[5] == "True", int(sys.argv[6])
auto = sys.argv[7] == "True"
sizes = (60, 0, 13, 55, 122)
if auto:
    plan = auto_plan(tuple(700 * n for n in sizes) * 4, ("a", "b"), fsize=fsize or None)
else:
    plan = make_plan(sizes * 20, chunk=5, fsize=fsize or None)
keep = {"keep_splits": bool(fsize)}
rng = random.Random(wanted)

def greedy(call):
    # Each run measures other memory, and would cut otherwise.
    def measured(task):
        receipt = call(task)
        peaks = (replace(r, peak=int(2e8 + rng.uniform(1e3, 9e3) * r.entries), before=1) for r in receipt.chunks)
        return replace(receipt, chunks=tuple(peaks))
    return measured

def run(folder, busy):
    path = folder / "plan.json"
    with lock.hold(folder):
        if not path.exists():
            plan.save(path)
        kept, ranges = Plan.load(path), Ranges(beside(path))
        sizing = Sizing([d.name for d in kept.datasets], budget=rng.randint(300, 500) * 10**6) if auto else None
        with ThreadPoolExecutor(4) as pool:
            return resumed(
                kept, folder, FakeAnalysis(value=rough_sum, busy=busy), pool=pool, sizing=sizing, ranges=ranges,
                shared=shared, task_seconds=rng.choice((0.0, 0.01, 0.03)), wrap=greedy if auto else None, **keep,
            )

def child(action, *args):
    pid = os.fork()
    if not pid:
        try:
            action(*args)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return pid

def check(folder):
    drive = run(folder, 0.0)
    promise(drive, drive.tree.planned(), value=rough_sum)
    assert Plan.load(folder / "plan.json").digest() == drive.tree.planned().digest()
    roots = [drive.tree.split_root(n) for n in range(len(drive.tree.splits))] if fsize else []
    on_disk = {node for node, _ in drive.store.scan()}
    assert on_disk == {*drive.coverage.stored, *roots}, on_disk
    assert not [p for p in folder.rglob("*") if p.name.endswith(".tmp")]
    if fsize:
        for n in range(len(roots)):
            assert drive.total_of_split(n, FakeAnalysis().combine) is not None

kills = rounds = 0
while kills < wanted:
    folder = base / str(rounds)
    rounds += 1
    while True:
        rng.random()
        pid = child(run, folder, 0.002)
        time.sleep(rng.random() ** 2 * 0.15)
        os.kill(pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code == 0:
            break
        assert code == -9, code
        kills += 1
        if kills >= wanted:
            break
    code = os.waitstatus_to_exitcode(os.waitpid(child(check, folder), 0)[1])
    assert code == 0, folder
print(kills, rounds)
"""


@pytest.mark.parametrize(
    ("shared", "fsize", "auto"),
    [(True, 0, False), (True, 7, False), (False, 0, False), (True, 7, True), (False, 0, True)],
)
def test_a_runner_killed_until_done(memory_path, scale, shared, fsize, auto):
    kills = scale(30 if shared else 15, 300)
    argv = [sys.executable, "-c", SCRIPT, TESTS, TESTS.parent, memory_path, kills, shared, fsize, auto]
    done = subprocess.run([str(a) for a in argv], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]
    print(done.stdout)
    assert int(done.stdout.split()[0]) >= kills
