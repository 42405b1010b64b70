"""The pool alone, over slots without workers: which starts that fail count against the engine."""

from __future__ import annotations

import pytest

from executors.engines.base import WorkerDied
from executors.engines.call import run
from executors.engines.pool import CRASH_LIMIT, Pool
from executors.errors import EngineError


class Slot:
    """Cannot be had at first, for the reasons that are given."""

    def __init__(self, *reasons: str) -> None:
        self.reasons = list(reasons)

    def ready(self) -> None:
        if self.reasons:
            raise WorkerDied.of(self.reasons.pop(0))

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
