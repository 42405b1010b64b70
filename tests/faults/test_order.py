"""Numbers whose sum depends on the order of adding: the same bits however the work was cut and came back."""

import random
import threading
from collections import Counter
from concurrent.futures import Executor, Future, ThreadPoolExecutor

import numpy as np
import pytest
from breaking import Inline
from fakes import FakeAnalysis, WorkerDied, drive_to_end, make_plan, promise, resumed, rough_sum

from executors.work import drive as module
from executors.work import merging
from executors.work.merge import MergeTask
from executors.work.policy import Limits

PLANS = {
    "one long file": make_plan((5 * 301,), chunk=5),
    "many short files": make_plan(tuple(n % 11 for n in range(300)), chunk=5),
    "splits": make_plan((7, 0, 33, 120, 1, 64, 5, 5), chunk=5, fsize=3, datasets=("a", "bb", "ccc")),
    "one chunk": make_plan((3,), chunk=5),
    "empty": make_plan((0, 0), chunk=5),
}


class Shuffling(Executor):
    """Runs what it holds in random order, after it has gathered some; kills some on the way."""

    def __init__(self, seed, killed=0.0):
        self._random = random.Random(seed)
        self._killed = killed
        self._held, self._more = [], threading.Condition()
        self._over = False
        self._thread = threading.Thread(target=self._work, name="shuffling")
        self._thread.start()

    def submit(self, fn, /, *args, **kwargs):
        out = Future()
        with self._more:
            self._held.append((out, fn, args))
            self._more.notify()
        return out

    def _work(self):
        while True:
            with self._more:
                self._more.wait_for(lambda: self._held or self._over)
                if not self._held:
                    return
                if len(self._held) < 8:
                    self._more.wait(0.001)
                out, fn, args = self._held.pop(self._random.randrange(len(self._held)))
            self._run(out, fn, args)

    def _run(self, out, fn, args):
        if not out.set_running_or_notify_cancel():
            return
        if self._random.random() < self._killed:
            if self._random.random() < 0.5:
                fn(*args)  # done and stored, but nobody hears of it
            out.set_exception(WorkerDied("killed"))
            return
        out.set_result(fn(*args))

    def shutdown(self, wait=True, *, cancel_futures=False):
        with self._more:
            self._over = True
            self._more.notify()
        self._thread.join()


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("seed", range(3))
def test_any_grouping_any_order(memory_path, monkeypatch, name, seed):
    rng = random.Random(f"{name}{seed}")
    real = module.Drive._most_chunks
    monkeypatch.setattr(
        module.Drive, "_most_chunks", lambda self: real(self) and rng.choice((1, 2, 3, 8, 17, 64, 512))
    )
    monkeypatch.setattr(merging, "FAN_IN", rng.choice((2, 3, 16, 10**6)))
    limits = Limits(retries=50, backoff=0.001)  # a merge may be killed several times in a row
    with Shuffling(seed, killed=0.15) as pool:
        drive = drive_to_end(
            PLANS[name], memory_path, FakeAnalysis(value=rough_sum), pool,
            slots=rng.choice((1, 3, 9)), limits=limits,
        )  # fmt: skip
    promise(drive, PLANS[name], value=rough_sum)


@pytest.mark.parametrize("seed", range(3))
def test_cut_off_and_resumed_with_other_sizes(memory_path, monkeypatch, seed, scale):
    """Each run is stopped somewhere and the next one cuts the work differently."""
    plan = PLANS["splits"]
    rng = random.Random(seed)
    for _ in range(scale(8, 40)):
        monkeypatch.setattr(merging, "FAN_IN", rng.choice((2, 5, 16)))
        left = [rng.randrange(1, 12)]

        def wrap(call, left=left):
            def called(task):
                left[0] -= 1
                if left[0] < 0:
                    stop.set()
                    raise WorkerDied
                return call(task)

            return called

        with ThreadPoolExecutor(2) as pool:
            from fakes import make_drive, make_place, notes

            notes.clear(make_place(memory_path).run / "notes")
            drive = make_drive(plan, memory_path, pool, FakeAnalysis(value=rough_sum), wrap=wrap, slots=2,
                               task_seconds=rng.choice((0.0, 0.001, 9.0)), merging=rng.random() < 0.7)  # fmt: skip
            stop = drive.stop
            drive.resume()
            drive.plan_work()
            drive.run()
            drive.journal.close()
    promise(resumed(plan, memory_path, FakeAnalysis(value=rough_sum)), plan, value=rough_sum)


def test_the_order_matters_at_all():
    """Or the tests above could not fail."""
    plan = PLANS["one long file"]
    spans = plan.datasets[0].files[0].ranges(5)
    straight = np.zeros(16)
    for span in spans:
        straight = straight + rough_sum("a/0.root", *span)
    from fakes import expected

    tree = expected(plan, value=rough_sum)
    assert np.allclose(straight, tree)
    assert straight.tobytes() != tree.tobytes()


@pytest.mark.parametrize("flat", [True, False])
def test_merged_flat_or_in_pairs(memory_path, flat):
    from fakes import pack

    class Analysis(FakeAnalysis):
        def pack(self, value):
            return pack(value, additive=flat)

        def combine(self, left, right):
            return pack(left.regions["<f8"] + right.regions["<f8"], additive=flat)

    plan = PLANS["splits"]
    promise(
        drive_to_end(plan, memory_path, Analysis(value=rough_sum), Inline(), inline=True),
        plan,
        value=rough_sum,
    )


def test_more_pieces_than_files_may_be_open(memory_path, scale):
    """A directory full of single chunks, as an old run may leave it, under a usual limit of open files."""
    import resource

    plan = make_plan((5 * scale(700, 3000),), chunk=5)
    drive_to_end(plan, memory_path, FakeAnalysis(value=rough_sum), merging=False, task_seconds=0.0)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (400, hard))
    try:
        again = FakeAnalysis(value=rough_sum)
        drive = resumed(plan, memory_path, again)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    promise(drive, plan, value=rough_sum)
    assert not again.runs


def test_splits_are_told_once_each_is_whole(memory_path, monkeypatch):
    """Whatever order the merges come in, each split's own sum exists before anything above it."""
    plan = PLANS["splits"]
    for seed in range(5):
        folder = memory_path / str(seed)
        told = Counter()
        from fakes import make_drive

        with Shuffling(seed) as pool:
            drive = make_drive(plan, folder, pool, FakeAnalysis(value=rough_sum), keep_splits=True, slots=3)
            drive.on_split = lambda n, told=told: told.update([n])
            drive.resume()
            drive.plan_work()
            drive.run()
            for n in range(len(drive.tree.splits)):
                packed, events = drive.total_of_split(n, FakeAnalysis().combine)
                assert events == drive.tree.events(drive.tree.split_root(n))
            drive.sum = drive.total(FakeAnalysis().combine)
            drive.journal.close()
        promise(drive, plan, value=rough_sum)
        assert set(told) == set(range(len(drive.tree.splits)))
        assert not any(isinstance(a.task, MergeTask) for a in drive._inflight.values())
