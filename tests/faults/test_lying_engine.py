"""An engine that runs tasks twice, late, never, and answers with what is not true: never believed."""

import dataclasses
import random
import threading
import time
from concurrent.futures import Executor, Future, ThreadPoolExecutor

import pytest
from fakes import FakeAnalysis, WorkerDied, drive_to_end, make_plan, promise, resumed, rough_sum

from executors.errors import EngineError
from executors.work.merge import MergeTask
from executors.work.model import Failure, Kind, Node, Part, Receipt
from executors.work.policy import Limits, classify_engine


class Unspeakable(Exception):
    """An exception that cannot even be shown."""

    def __str__(self):
        raise RuntimeError("no words")

    __repr__ = __str__


class Odd(BaseException):
    """Not even an ``Exception``."""


class LyingPool(Executor):
    """Runs what it is given, more or less; the shares say how often it does what instead."""

    def __init__(self, seed=1, twice=0.3, dropped=0.01, late=0.05, false=0.1, workers=4):
        self._random = random.Random(seed)
        self._pool = ThreadPoolExecutor(workers)
        self._lock = threading.Lock()
        self._old: list = []
        self._shares = (twice, dropped, late, false)
        self.told = {"twice": 0, "dropped": 0, "late": 0, "false": 0}

    def submit(self, fn, /, *args, **kwargs):
        (task,) = args
        out = Future()
        twice, dropped, late, false = (self._random.random() < share for share in self._shares)
        lie = self._lie(task) if false else None
        for name, on in zip(self.told, (twice, dropped, late, false), strict=True):
            self.told[name] += on
        if twice:
            self._pool.submit(self._again, fn, task, self._random.random() * 0.05)
        if dropped and self._random.random() < 0.5:
            return out
        self._pool.submit(self._run, fn, task, out, dropped, late, lie)
        return out

    def shutdown(self, wait=True, *, cancel_futures=False):
        self._pool.shutdown(wait=wait)

    @staticmethod
    def _again(fn, task, wait):
        time.sleep(wait)
        fn(task)

    def _run(self, fn, task, out, dropped, late, lie):
        if lie is not None and not out.cancelled():
            lie(out)
            return
        if not out.set_running_or_notify_cancel():
            return
        receipt = fn(task)
        with self._lock:
            self._old.append(receipt)
        if dropped:
            return
        if late:
            time.sleep(0.3)
        out.set_result(receipt)

    def _lie(self, task):
        pick = self._random.choice
        with self._lock:
            old = pick(self._old) if self._old else None
        kind = pick(
            ("old", "own", "nothing", "garbage", "empty", "forged", "exception", "cancelled", "broken")
        )
        if kind == "exception":
            error = pick((WorkerDied("x"), Unspeakable(), Odd("odd"), ValueError("\udcff"), OSError(5, "EIO"),
                          ConnectionResetError(), StopIteration(), GeneratorExit(), TimeoutError()))  # fmt: skip
            return lambda out: out.set_exception(error)
        if kind == "cancelled":
            return lambda out: (out.cancel(), out.set_running_or_notify_cancel())
        answer = {
            "old": old,
            "own": dataclasses.replace(old, task=task.id) if old is not None else None,
            "nothing": None,
            "garbage": pick((42, "receipt", b"\x00" * 200, object(), [], {}, Receipt, Future())),
            "empty": Receipt(task.id, (), (), ()),
            "forged": self._forged(task),
            "broken": pick((
                Receipt(task.id, None, None, None),
                Receipt(task.id, (None,), (42,), (3,)),
                Receipt(task.id, (Part(None, None, None, None, None),), (), ()),
                Receipt(task.id, (), (Failure(None, "x", None, None, None, None, None),), ()),
                Receipt(task.id, (), (), (), extra=None),
                Receipt(task.id, (), (), (), extra={"put_error": 5}),
                Receipt(task.id, (), (), (), extra={"damaged": "x"}),
                Receipt(None, (), (), (), seconds="x"),
            )),
        }[kind]  # fmt: skip
        return lambda out: out.set_result(answer)

    def _forged(self, task):
        """A receipt that names the right task and claims what was never done."""
        node = task.node
        other = Node(node.split, 0, 1, 0, 10**6)
        part = self._random.choice((
            Part(node, task.id, "0" * 40, 5, 100),
            Part(node, "0" * 40, "0" * 40, 5, 100),
            Part(other, task.id, "0" * 40, 5, 100),
            Part(node, task.id, "0" * 40, 5, 100, b"CXSTORE1" + b"\0" * 300),
        ))  # fmt: skip
        return Receipt(task.id, (part,), (), ())


@pytest.mark.parametrize("shared", [True, False])
def test_lies_are_never_believed(memory_path, scale, shared):
    chunks = scale(1500, 10_000)
    plan = make_plan((5 * 11,) * (chunks // 11), chunk=5, fsize=40)
    # Without notes each lie is charged to the chunk: so many in a row must not look like its fault, and not
    # like a lack of memory either, for which it would be processed in pieces, with other last bits.
    # A merge has to be tried as often as it is lied about.
    limits = Limits(lost=10, retries=50, backoff=0.001)
    with LyingPool() as pool:
        drive = drive_to_end(
            plan, memory_path, FakeAnalysis(value=rough_sum), pool,
            shared=shared, patience=0.15, task_seconds=0.0, limits=limits,
        )  # fmt: skip
    assert min(pool.told.values()) > 0
    promise(resumed(plan, memory_path, FakeAnalysis(value=rough_sum)), plan, value=rough_sum)
    promise(drive, plan, value=rough_sum)


def test_all_dropped_ends(memory_path):
    """An engine that answers no more is given up; what it brought before is kept."""
    plan = make_plan((200,), chunk=5)

    class Fading(ThreadPoolExecutor):
        left = 10

        def submit(self, fn, task):
            self.left -= 1
            return super().submit(fn, task) if self.left >= 0 else Future()

    with Fading(2) as pool, pytest.raises(EngineError, match="no valid receipt"):
        drive_to_end(plan, memory_path, None, pool, patience=0.02, task_seconds=0.0)
    again = FakeAnalysis()
    promise(resumed(plan, memory_path, again), plan)
    assert sum(again.runs.values()) == 30


def test_many_dropped_at_once(memory_path):
    """More tasks are lost than the pool has room for: what it lost takes no room."""
    plan = make_plan((1000,), chunk=5)
    with LyingPool(twice=0, late=0, false=0, dropped=0.3, workers=2) as pool:
        drive = drive_to_end(plan, memory_path, None, pool, patience=0.05, slots=1, task_seconds=0.001)
    promise(drive, plan)


def test_merges_told_wrong(memory_path):
    """Only merges are lied about: a damage that is none, another's sum, an error."""
    plan = make_plan((400,) * 6, chunk=5, fsize=2)
    old = []

    class Pool(ThreadPoolExecutor):
        count = 0

        def submit(self, fn, task):
            if not isinstance(task, MergeTask):
                return super().submit(fn, task)
            self.count += 1
            return super().submit(self._merge, fn, task, self.count)

        @staticmethod
        def _merge(fn, task, count):
            if count % 4 == 1 and old:
                return old[0]
            if count % 4 == 2:
                raise WorkerDied("while merging")
            receipt = fn(task)
            old.append(
                dataclasses.replace(receipt, parts=(), extra={"damaged": ((task.node, task.id, "not so"),)})
            )
            return old[-1] if count % 4 == 3 else receipt

    with Pool(2) as pool:
        drive = drive_to_end(plan, memory_path, None, pool, limits=Limits(retries=50, backoff=0.001))
    assert old
    promise(drive, plan)


def test_kind_is_known_for_all(memory_path):
    """An engine's exceptions are all about the engine: the chunk is not blamed without a note."""
    for error in (WorkerDied("x"), ValueError(), Odd(), Unspeakable(), OSError()):
        assert classify_engine(error) is Kind.LOST
    assert classify_engine(MemoryError()) is Kind.MEMORY
