"""What a run tells while it works and when it ends: counts, snapshots, summaries, plain data only.

Whoever drives fills these in, whoever shows them draws them; nothing here prints, decides or imports a
library.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, slots=True)
class DatasetCount:
    """One dataset of the plan, and how much of it has been counted so far."""

    name: str
    files: int = 0
    events_planned: int = 0
    events_counted: int = 0
    events_missing: int = 0  # given up, not merely still to come
    reasons: tuple[str, ...] = ()  # why events are missing, most events first
    chunks_planned: int = 0
    chunks_done: int = 0
    failures: int = 0  # every failure, also those that a retry healed
    files_unopened: int = 0  # whose events nobody could count: they are in no other number
    peak_memory: int = 0  # bytes, of the chunk that needed most; 0 where unknown
    bytes_per_event: float = 0.0  # of the part that grows with the events; 0 where unknown


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a run at one moment."""

    datasets: tuple[DatasetCount, ...]
    elapsed: float  # seconds since this runner started
    in_flight: int = 0  # tasks handed out
    bytes_read: int = 0
    rate: float = 0.0  # events per second, lately
    resumed_events: int = 0  # counted by an earlier run: not part of the rate

    @property
    def events_planned(self) -> int:
        """Events in the plan."""
        return sum(row.events_planned for row in self.datasets)

    @property
    def events_counted(self) -> int:
        """Events in stored results, those of an earlier run included."""
        return sum(row.events_counted for row in self.datasets)

    @property
    def events_missing(self) -> int:
        """Events given up."""
        return sum(row.events_missing for row in self.datasets)

    @property
    def chunks_planned(self) -> int:
        """Chunks in the plan."""
        return sum(row.chunks_planned for row in self.datasets)

    @property
    def chunks_done(self) -> int:
        """Chunks whose result is stored."""
        return sum(row.chunks_done for row in self.datasets)

    @property
    def failures(self) -> int:
        """Failures so far, healed ones included."""
        return sum(row.failures for row in self.datasets)

    @property
    def seconds_left(self) -> float | None:
        """Seconds to the end at the present rate; None while that cannot be said."""
        left = self.events_planned - self.events_counted - self.events_missing
        if left <= 0:
            return 0.0
        return left / self.rate if self.rate > 0 else None


@dataclass(frozen=True, slots=True)
class Summary:
    """What a finished or stopped run amounts to."""

    rows: tuple[DatasetCount, ...]
    wall: float = 0.0
    cpu: float = 0.0
    peak_memory: int = 0  # bytes, the highest of any chunk; 0 where unknown
    bytes_read: int = 0
    digest: str = ""  # of the merged result
    outputs: tuple[str, ...] = ()
    resumed_events: int = 0

    @property
    def complete(self) -> bool:
        """Whether every planned event was counted, exactly once."""
        return all(row.events_counted == row.events_planned for row in self.rows)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command came to: its exit code, and what there is to say of it."""

    exit_code: int = 0
    text: str = ""  # for a person; the runner prints it
    summary: Summary | None = None
    data: Mapping[str, Any] = field(default_factory=dict)  # the same for a program (--as-json)


class Observer(Protocol):
    """Who is told what a run does. Called from one thread; every method returns at once and never raises."""

    def started(self, datasets: Sequence[DatasetCount], *, workers: int = 0, resumed_events: int = 0) -> None:
        """The plan is fixed; work begins. ``resumed_events`` were counted by an earlier run."""

    def progressed(self, snapshot: Snapshot) -> None:
        """Something has moved; may be called as often as the driver likes."""

    def message(self, level: str, text: str) -> None:
        """One thing worth saying: ``level`` is debug, info, warning or error."""

    def finished(self, summary: Summary) -> None:
        """No more work is done, whatever the outcome."""


class Silent:
    """An observer that says nothing: the default of the Python interface and of tests."""

    def started(self, datasets: Sequence[DatasetCount], *, workers: int = 0, resumed_events: int = 0) -> None:
        """Say nothing."""

    def progressed(self, snapshot: Snapshot) -> None:
        """Say nothing."""

    def message(self, level: str, text: str) -> None:
        """Say nothing."""

    def finished(self, summary: Summary) -> None:
        """Say nothing."""
