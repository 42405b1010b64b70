"""What to do about a failure: pure functions over kinds and counts, tested as a table without any engine."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from executors.work.model import Kind

if TYPE_CHECKING:
    from collections.abc import Mapping


class Action(enum.StrEnum):
    """What the driver does next about one chunk."""

    RETRY = "retry"
    SPLIT = "split"  # process it in twice as many pieces
    QUARANTINE = "quarantine"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class Limits:
    """How often each kind is tried. Each kind has its own count."""

    retries: int = 3  # of what may pass
    bad: int = 2  # a bad input is bad when two workers say so
    lost: int = 3  # workers lost in a row before the chunk is suspected of needing too much memory
    timeouts: int = 2
    floor: int = 1000  # entries: smaller pieces are not made to save memory
    user: int = 3  # distinct chunks on which the analysis may raise
    backoff: float = 1.0  # seconds before the first retry of a passing failure; doubles each time
    most_backoff: float = 60.0


@dataclass(slots=True)
class History:
    """What has happened to one chunk so far."""

    counts: dict[Kind, int] = field(default_factory=dict)
    parts: int = 1  # in how many pieces it is processed now
    silent_splits: int = 0  # splits for lost workers, without evidence that it was memory
    room: int | None = None  # bytes that a worker had when it was too little

    def add(self, kind: Kind) -> int:
        """Count one more failure of a kind; how many there are now."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        return self.counts[kind]


def decide(kind: Kind, history: History, entries: int, limits: Limits, *, room: int | None = None) -> Action:
    """What to do about a chunk of ``entries`` events that failed once more, ``history`` counting this one.

    ``room`` is what workers that start now have of memory, where that is known.
    """
    n = history.counts.get(kind, 0)
    if kind is Kind.SITE:
        return Action.STOP
    if kind is Kind.MEMORY:
        return _too_big(history, entries, limits, room)
    if kind is Kind.LOST:
        return _lost(n, history, limits)
    tries = {Kind.PASSING: limits.retries + 1, Kind.BAD: limits.bad, Kind.TIMEOUT: limits.timeouts}
    return Action.RETRY if n < tries.get(kind, 0) else Action.QUARANTINE


def _too_big(history: History, entries: int, limits: Limits, room: int | None) -> Action:
    before, history.room = history.room, room
    if entries // (history.parts * 2) >= limits.floor:
        return Action.SPLIT
    # It cannot get smaller, but jobs may have got larger since it failed.
    return Action.RETRY if before is not None and room is not None and room > before else Action.QUARANTINE


def _lost(n: int, history: History, limits: Limits) -> Action:
    # Without a word of memory, halving again and again would cost hundreds of workers for a chunk that
    # simply crashes; one halving finds out whether size is the matter.
    if n < limits.lost:
        return Action.RETRY
    if n == limits.lost and not history.silent_splits:
        return Action.SPLIT
    return Action.RETRY if n < 2 * limits.lost - 1 else Action.QUARANTINE


def stop_for_user(distinct_chunks: int, succeeded: bool, limits: Limits) -> bool:
    """Whether the analysis itself is at fault, so that going on only costs time."""
    return distinct_chunks >= limits.user or (distinct_chunks > 0 and not succeeded)


def backoff(n: int, limits: Limits) -> float:
    """Seconds to wait before the ``n``-th retry."""
    return float(min(limits.backoff * 2.0 ** min(n - 1, 60), limits.most_backoff))


# Deaths that a batch system owns up to: the machine was taken away, whatever ran there.
TAKEN_AWAY = frozenset({"removed", "node", "walltime"})
MOST_TAKEN = 10  # times a task may lose its machine so before its chunk is suspected after all


def taken_away(error: BaseException | None) -> bool:
    """Whether the site ended the worker for reasons of its own."""
    return getattr(error, "why", "") in TAKEN_AWAY


LOST_NAMES: Mapping[str, Kind] = {
    # Type names, because no engine may be imported here.
    "WorkerDied": Kind.LOST,
    "WorkerDiedError": Kind.LOST,
    "KilledWorker": Kind.LOST,
    "WorkerLost": Kind.LOST,
    "ManagerLost": Kind.LOST,
    "BrokenProcessPool": Kind.LOST,
    "TerminatedWorkerError": Kind.LOST,
    "CancelledError": Kind.LOST,
    "FutureCancelledError": Kind.LOST,
    "CommClosedError": Kind.LOST,
    "MemoryError": Kind.MEMORY,
    "ArrayMemoryError": Kind.MEMORY,
}


def died(error: BaseException) -> bool:
    """Whether it only says that a worker is gone; its exit code, the base class's, is no analysis's."""
    return any(kind.__name__ in LOST_NAMES for kind in type(error).__mro__)


def classify_engine(error: BaseException) -> Kind:
    """What kind of failure an exception is that came from the engine instead of a receipt.

    The worker catches and describes whatever a chunk raises; what gets past it is the engine's own:
    a worker that died, a result lost on the way. None of it is the chunk's fault until shown.
    """
    # An engine that watches its workers says why it ended one.
    why = getattr(error, "why", "")
    if why in (Kind.MEMORY.value, Kind.TIMEOUT.value):
        return Kind(why)
    for kind in type(error).__mro__:
        if kind.__name__ in LOST_NAMES:
            return LOST_NAMES[kind.__name__]
    return Kind.LOST
