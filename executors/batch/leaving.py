"""The end of a crew: its jobs are removed by their name until the queue shows none.

By name, so that jobs are found which no submission named. What the jobs were for may not enter.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from executors.errors import SiteError

if TYPE_CHECKING:
    from collections.abc import Callable

    from executors.batch.schedulers import Scheduler

FIRST, LONGEST = 0.25, 2.0  # seconds between looks
REMOVE_EVERY = 4  # looks


def leave(scheduler: Scheduler, name: str, patience: float, tell: Callable[[str, str], None]) -> None:
    """Remove every job of this name; returns when none is left, or says after so long what is."""
    deadline, pause, turn, left = time.monotonic() + patience, FIRST, 0, ["?"]
    while left and time.monotonic() < deadline:
        if turn % REMOVE_EVERY == 0:
            remove(scheduler, name, tell)
        left = _left(scheduler, name)
        if left:
            time.sleep(pause)
        pause, turn = min(LONGEST, 2 * pause), turn + 1
    if left:
        command = " ".join(scheduler.cancel_argv(name))
        tell("warning", f"left in the queue: {', '.join(left[:5])}; this removes them: {command}")


def remove(scheduler: Scheduler, name: str, tell: Callable[[str, str], None]) -> None:
    """Have all jobs of this name removed."""
    try:
        scheduler.cancel_named(name)
    except SiteError as error:
        tell("warning", f"the jobs could not be removed: {error.message}")


def _left(scheduler: Scheduler, name: str) -> list[str]:
    """Jobs that are not over, each with its phase; one that is ending may hang on a lost node."""
    try:
        states = scheduler.query(name, ())
    except SiteError:
        return ["perhaps jobs, for the batch system does not answer"]
    return [f"job {one.id} ({one.phase})" for one in states.values() if not one.ended]
