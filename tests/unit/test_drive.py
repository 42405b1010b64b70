"""The driver over a thread pool: what is planned is counted once, whatever happens."""

import itertools
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from fakes import FakeAnalysis, Garbage, drive_to_end, fake_sum, make_drive, make_plan, pack, result, truth

from executors.engines.base import WorkerDied
from executors.engines.call import run
from executors.engines.pool import Pool
from executors.work.model import Kind


def check(drive, plan):
    assert np.array_equal(result(drive), truth(plan))
    assert drive.ledger.complete
    assert not drive.ledger.lost


@pytest.mark.parametrize("files", [(1,), (10, 0, 25, 7), (0, 0, 3), (1000,), tuple(range(40))])
@pytest.mark.parametrize("fsize", [None, 1, 3])
def test_counts_everything(tmp_path, files, fsize):
    plan = make_plan(files, fsize=fsize, datasets=("a", "bb", "ccc"))
    drive = drive_to_end(plan, tmp_path)
    check(drive, plan)
    if drive.terms.merging:
        assert len(drive.coverage.stored) <= 1 + (0 in files)


def test_second_run_does_nothing(tmp_path):
    plan = make_plan((100, 200))
    drive_to_end(plan, tmp_path)
    again = FakeAnalysis()
    check(drive_to_end(plan, tmp_path, again), plan)
    assert not again.runs


def test_workers_without_the_store(tmp_path):
    plan = make_plan((100, 200, 37))
    check(drive_to_end(plan, tmp_path, shared=False), plan)


def test_changed_analysis_takes_nothing_over(tmp_path):
    drive_to_end(make_plan((50,)), tmp_path)
    again = FakeAnalysis()
    plan = make_plan((50,), fingerprint="0" * 40)
    check(drive_to_end(plan, tmp_path, again), plan)
    assert sum(again.runs.values()) == 10


def test_passing_failures_are_retried(tmp_path):
    plan = make_plan((100,), chunk=10)
    left = [3]

    def flaky(start, stop):
        left[0] -= 1
        if left[0] >= 0:
            raise TimeoutError("slow")

    check(drive_to_end(plan, tmp_path, FakeAnalysis({("a/0.root", 50): flaky})), plan)


def test_bad_chunk_is_named_and_the_rest_counted(tmp_path):
    plan = make_plan((100, 100), chunk=10)
    analysis = FakeAnalysis({("a/0.root", 50): Garbage("zeros")})
    drive = drive_to_end(plan, tmp_path, analysis)
    (failure,) = drive.ledger.lost.values()
    assert (failure.path, failure.range, failure.kind) == ("a/0.root", (50, 60), Kind.BAD)
    assert np.array_equal(result(drive), truth(plan) - fake_sum("a/0.root", 50, 60))
    assert analysis.runs["a/0.root", 50, 60] == 2
    assert not drive.ledger.complete
    check(drive_to_end(plan, tmp_path, FakeAnalysis()), plan)


def test_memory_splits_the_chunk(tmp_path):
    plan = make_plan((100_000,), chunk=50_000)

    class Hungry(FakeAnalysis):
        def pack(self, value):
            if value.sum() * 64 / 2 > 15_000:
                raise MemoryError
            return super().pack(value)

    analysis = Hungry()
    drive = drive_to_end(plan, tmp_path, analysis)
    check(drive, plan)
    assert max(stop - start for (_, start, stop), n in analysis.runs.items() if n) == 50_000
    assert all(n == 1 for n in analysis.runs.values())


def test_user_bug_stops_at_once(tmp_path):
    plan = make_plan((10_000,), chunk=10)
    analysis = FakeAnalysis({("a/0.root", 10 * i): ValueError("bug") for i in range(1000)})
    drive = drive_to_end(plan, tmp_path, analysis)
    assert drive.halted.kind is Kind.USER
    assert sum(analysis.runs.values()) <= 8


def test_user_bug_late_keeps_the_rest(tmp_path):
    plan = make_plan((1000,), chunk=10)
    drive = drive_to_end(plan, tmp_path, FakeAnalysis({("a/0.root", 500): ValueError("bug")}))
    assert drive.halted is None
    (failure,) = drive.ledger.lost.values()
    assert failure.kind is Kind.USER
    assert drive.ledger.events_counted == 990


def test_damaged_object_is_made_again(tmp_path):
    plan = make_plan((100, 200, 30))
    drive_to_end(plan, tmp_path)
    (path,) = (tmp_path / "store").rglob("*.part")
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)
    again = FakeAnalysis()
    with ThreadPoolExecutor(2) as pool:
        drive = make_drive(plan, tmp_path, pool, again)
        drive.resume()
        drive.plan_work()
        drive.run()
        packed, events = drive.total(again.combine)
    assert events == 330
    assert again.runs
    assert np.array_equal(packed.regions["<f8"], truth(plan))


@pytest.mark.parametrize("seconds", [0.0, 0.001, 1e9])
def test_task_size_does_not_change_the_bits(tmp_path, seconds):
    plan = make_plan((997, 13, 550), chunk=7)

    class Rough(FakeAnalysis):
        def pack(self, value):
            return super().pack(np.sqrt(value + 0.1))

    one = result(drive_to_end(plan, tmp_path / "one", Rough(), slots=1, task_seconds=0.0))
    two = result(drive_to_end(plan, tmp_path / "two", Rough(), slots=4, task_seconds=seconds))
    assert one.tobytes() == two.tobytes()


def test_a_merge_holds_few_sums(tmp_path, monkeypatch):
    """Whatever the number of stored sums: in pairs at most three at once, in blocks hardly one."""
    import tracemalloc

    from executors.work import merge
    from executors.work.model import Node
    from executors.work.packed import add_into
    from executors.work.store import Store

    store = Store(tmp_path / "store")
    size = 4_000_000
    nodes = []
    for i in range(16):
        packed = pack(np.arange(size) * (i + 1.5))
        node = Node(0, 0, 1, i, i + 1)
        store.put(node, "a" * 40, {"entries": 1}, packed.sections())
        nodes.append((node, "a" * 40))

    def shape(rows):
        half = len(rows) // 2
        return rows[0] if len(rows) == 1 else (shape(rows[:half]), shape(rows[half:]))

    def peak(call):
        tracemalloc.start()
        found = call()
        most = tracemalloc.get_traced_memory()[1] / (8 * size)
        tracemalloc.stop()
        return found, most

    (blocks, events), flat = peak(lambda: merge.total(shape(nodes), store, add_into))
    (pairs, _), paired = peak(lambda: merge._paired_total(shape(nodes), store, add_into))
    assert events == 16
    assert blocks.digest() == pairs.digest()
    assert flat < 1.5
    assert paired < 3.3


class Telling(ThreadPoolExecutor):
    """A pool at a batch site: it hears how much is left, and knows what still waits in its queue."""

    def __init__(self, *args, **about):
        super().__init__(*args, **about)
        self.heard = []

    def need(self, tasks):
        self.heard.append(tasks)

    def waiting(self, future):
        return not future.running() and not future.done()


def test_the_pool_hears_when_little_is_left(tmp_path):
    plan = make_plan((200,), chunk=5)
    with Telling(2) as pool:
        check(drive_to_end(plan, tmp_path, pool=pool, slots=20, task_seconds=0.0), plan)
    assert pool.heard
    assert pool.heard == sorted(pool.heard, reverse=True)
    assert pool.heard[0] < 20
    assert pool.heard[-1] <= 2


def test_the_pool_hears_of_tasks_and_not_of_chunks_once_all_are_handed_out(tmp_path):
    """A long task of many chunks keeps one worker busy: the others have nothing to wait for."""
    plan = make_plan((400,), chunk=5)
    with Telling(4) as pool:
        check(
            drive_to_end(plan, tmp_path, FakeAnalysis(busy=0.005), pool=pool, slots=4, task_seconds=10), plan
        )
    assert pool.heard[-1] == 1
    assert len(pool.heard) < 40


def test_waiting_in_a_queue_is_not_being_late(memory_path):
    """A batch system may take hours for the next machine: nothing is handed out twice for that."""
    plan = make_plan((300,), chunk=5)
    with Telling(1) as pool:
        drive = drive_to_end(plan, memory_path, FakeAnalysis(busy=0.02), pool=pool, slots=60, patience=0.1)
    check(drive, plan)
    late = [line for line in (memory_path / "journal.jsonl").read_text().splitlines() if '"late"' in line]
    assert len(late) <= 2  # there is one worker: a machine that stalls makes late what runs, and no other


class TakenAway(Exception):
    def __init__(self, why):
        super().__init__(why)
        self.why = why


class Stuck:
    """A lane's worker that never answers some of the calls, counted over all lanes, and can be killed."""

    def __init__(self, numbers, stuck):
        self.numbers, self.stuck = numbers, stuck
        self.worker = "w"
        self.killed = threading.Event()

    def call(self, blob):
        if next(self.numbers) in self.stuck:
            self.killed.wait()
            self.killed.clear()
            raise WorkerDied.of("killed")
        return run(blob)

    def kill(self, why):
        self.killed.set()

    def ready(self):
        """It is."""

    renew = close = lambda *_: None


@pytest.mark.parametrize(("stuck", "lanes"), [(range(1, 5), 8), ([30], 1)], ids=["canaries", "last worker"])
def test_calls_that_are_never_answered_hold_up_nothing_for_ever(memory_path, stuck, lanes):
    plan, numbers = make_plan((1000,), chunk=5), itertools.count(1)
    pool = Pool([Stuck(numbers, stuck) for _ in range(lanes)], lambda: None)
    try:
        drive = drive_to_end(
            plan, memory_path, None, pool, patience=0.05, hung=0.2, slots=lanes, task_seconds=0.001
        )
    finally:
        pool.close()
    check(drive, plan)


@pytest.mark.parametrize("why", ["removed", "node", "walltime"])
def test_machines_that_are_taken_away_are_nobodys_fault(tmp_path, why):
    """Far more often than a chunk may lose a worker otherwise, and the bits stay the same."""
    plan = make_plan((40,), chunk=5)
    taken = {}

    def wrap(call):
        def taking(task):
            taken[task.node] = taken.get(task.node, 0) + 1
            if taken[task.node] <= 6 and task.node.hi >= 0:
                raise TakenAway(why)
            return call(task)

        return taking

    drive = drive_to_end(plan, tmp_path, wrap=wrap, task_seconds=0.0, slots=8)
    check(drive, plan)
    assert max(taken.values()) == 7


def test_a_chunk_that_always_loses_its_machine_is_suspected_in_the_end(tmp_path):
    plan = make_plan((10, 10), chunk=5)

    def wrap(call):
        def taking(task):
            if task.node.hi >= 0 and task.node.first == 0 and task.node.lo == 0:
                raise TakenAway("walltime")
            return call(task)

        return taking

    drive = drive_to_end(plan, tmp_path, wrap=wrap, task_seconds=0.0)
    assert len(drive.ledger.lost) == 1
    assert not drive.ledger.complete
