"""The pool alone, over slots without workers: which starts that fail count against the engine."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future

import pytest

from executors.engines.base import WorkerDied
from executors.engines.call import run
from executors.engines.host import Host
from executors.engines.pool import CRASH_LIMIT, Pool
from executors.errors import EngineError


class Slot:
    """Cannot be had at first, for the reasons that are given; then there is one worker after the other."""

    def __init__(self, *reasons: str) -> None:
        self.reasons = list(reasons)
        self.worker = ""
        self.renewed: list[str] = []
        self.starts = 0

    def ready(self) -> None:
        if self.reasons:
            raise WorkerDied.of(self.reasons.pop(0))
        if not self.worker:
            self.starts += 1
            self.worker = f"worker {self.starts}"

    def renew(self, worker: str) -> None:
        self.renewed.append(worker)
        self.worker = ""

    def call(self, blob: bytes) -> bytes:
        return run(blob)

    def kill(self, why: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def first_answer(*reasons: str) -> int:
    pool = Pool([Slot(*reasons)], lambda: None)
    try:
        return pool.submit(abs, -3).result(20)
    finally:
        pool.close()


def test_workers_that_do_not_start_end_the_pool():
    assert first_answer(*["exit"] * (CRASH_LIMIT - 1)) == 3
    with pytest.raises(EngineError, match="did not start"):
        first_answer(*["exit"] * CRASH_LIMIT)


@pytest.mark.parametrize("why", ["removed", "node", "walltime"])
def test_what_a_batch_system_takes_away_is_no_failed_start(why):
    assert first_answer(*[why] * (5 * CRASH_LIMIT)) == 3


def test_one_death_of_what_all_wait_for_is_one_failed_start():
    gone = threading.Event()

    class Behind(Slot):
        """Waits with all the others for machines behind one host, which dies; the next host has them."""

        def ready(self) -> None:
            if not gone.is_set():
                gone.wait()
                death = WorkerDied.of("lost: the host ended")
                death.about["of"] = "host 1"
                raise death
            time.sleep(0.2)

    pool = Pool([Behind() for _ in range(2 * CRASH_LIMIT)], lambda: None)
    try:
        answer = pool.submit(abs, -3)
        gone.set()
        assert answer.result(20) == 3
    finally:
        pool.close()


@pytest.mark.parametrize("dies", [True, False])
def test_only_a_death_that_has_come_is_one_for_all(dies):
    """What does not end is met again and again, and has to count each time."""

    class Child:
        ticket = 7
        death = staticmethod(lambda _: WorkerDied.of("signal", -9) if dies else None)

    class Keeper:
        kill = staticmethod(lambda *_: None)

    about = Host(Keeper(), "dask-host", "module:function", {}).bury(Child()).about
    assert about.get("of") == ("dask-host 7" if dies else None)


@pytest.fixture
def one():
    """A pool of one slot, and the slot."""
    slot = Slot()
    pool = Pool([slot], lambda: None)
    yield pool, slot
    pool.close()


def test_who_made_a_result_is_replaced_before_the_next_call(one):
    pool, slot = one
    first, second = pool.submit(abs, -1), pool.submit(abs, -2)
    assert (first.result(20), second.result(20)) == (1, 2)
    assert pool.renew(first)
    assert not pool.renew(first), "once is enough"
    assert pool.submit(abs, -3).result(20) == 3
    assert (slot.renewed, slot.worker) == (["worker 1"], "worker 2")
    assert pool.submit(abs, -4).result(20) == 4
    assert slot.starts == 2


def test_what_no_worker_made_renews_nothing(one):
    pool, slot = one
    assert not pool.renew(Future())
    failed = pool.submit(abs, "no number")
    assert isinstance(failed.exception(20), TypeError)
    assert pool.renew(failed), "its worker lives, and it was its call"
    assert pool.submit(abs, -3).result(20) == 3
    assert slot.renewed == ["worker 1"]


def test_a_worker_that_cannot_be_replaced_at_once_costs_no_call(one):
    pool, slot = one
    first = pool.submit(abs, -1)
    assert first.result(20) == 1
    assert pool.renew(first)
    slot.reasons = ["exit"] * (CRASH_LIMIT - 1)
    assert pool.submit(abs, -3).result(20) == 3
    assert slot.starts == 2


def test_a_call_for_which_there_is_no_worker_any_more_says_why(one):
    pool, slot = one
    first = pool.submit(abs, -1)
    assert first.result(20) == 1
    slot.reasons = ["exit"] * CRASH_LIMIT
    assert pool.renew(first)
    assert isinstance(pool.submit(abs, -3).exception(20), EngineError)


def test_what_a_worker_may_use_is_asked_for_each_time():
    sizes = iter([None, 5, 7])
    pool = Pool([Slot()], lambda: None, memory=lambda: next(sizes))
    try:
        assert [pool.memory for _ in range(3)] == [None, 5, 7]
    finally:
        pool.close()
