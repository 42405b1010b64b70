"""How many events a chunk takes, where that follows the memory: small first, then by what was measured.

Decides only; cutting files and handing out work is the driver's. Per dataset: a canary chunk, a larger one
when its peak is known, and when the line through the peaks reaches far enough, all the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from executors.work.footprint import Footprint

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from executors.work.footprint import Fit
    from executors.work.model import Node

FIRST = 1000  # events of the first canary
GROWTH = 8  # how many times more events than were measured a line is trusted for
MOST = 200_000  # events, however little they need: longer chunks gain nothing and lose more to a dead worker
BLIND = 20_000  # events, where canaries give no measurement: the file is bad, or the analysis fails on it
FEW = 20_000  # events: smaller chunks are not made to give every worker one
SHARE = 0.7  # of the budget


@dataclass(slots=True)
class Trial:
    """Where one dataset stands: its canary, and what waits for it."""

    canary: Node | None = None
    size: int = 0  # of the last canary
    failed: bool = False  # it gave no measurement
    waiting: list[Node] = field(default_factory=list)


class Sizing:
    """The measured memory of each dataset, and the sizes of chunks that follow from it."""

    def __init__(
        self,
        names: Sequence[str],
        *,
        budget: int | None = None,
        known: Mapping[str, Fit] | None = None,
        most: int = MOST,
    ) -> None:
        self.budget = self._asked = budget
        self.most = most
        self._names = names
        self._known = dict(known or {})
        self._measured = [Footprint() for _ in names]
        self._burst: list[int] = [0] * len(names)  # events that were too many, 0 where none were
        self.trials = [Trial() for _ in names]

    def given(self, memory: int) -> None:
        """What a worker really has, once that is known: some of a job is its pilot's."""
        self.budget = min(memory, self._asked) if self._asked else None

    def took(self, dataset: int, events: int, peak: int, before: int) -> None:
        """A chunk was measured."""
        self._measured[dataset].add(events, peak, before)

    def burst(self, dataset: int, events: int, peak: int) -> None:
        """A chunk needed more than there was: at least ``peak``, or the budget where nobody could see it."""
        self._measured[dataset].add(events, max(peak, self.budget or 0))
        self._burst[dataset] = min(self._burst[dataset] or events, events)

    def fit(self, dataset: int) -> Fit | None:
        """The line through what this run measured; what is remembered, before it has measured enough."""
        now, known = self.measured(dataset), self._known.get(self._names[dataset])
        if now is None or (known is not None and known.widest > GROWTH * now.widest):
            return known
        return now

    def measured(self, dataset: int) -> Fit | None:
        """The line through what this run measured."""
        return self._measured[dataset].fit()

    def fits(self) -> dict[str, Fit]:
        """The lines that this run measured, by dataset."""
        found = ((name, m.fit()) for name, m in zip(self._names, self._measured, strict=True))
        return {name: fit for name, fit in found if fit is not None}

    def size(self, dataset: int, longest: int = MOST) -> int | None:
        """Events of a dataset's next chunks, of which no file has more than ``longest``.

        None while a canary is needed to tell.
        """
        wanted, fit = self._wanted(dataset), self.fit(dataset)
        if wanted is None or fit is None or min(wanted, longest) > GROWTH * fit.widest:
            return BLIND if self.trials[dataset].failed else None
        return wanted

    def canary(self, dataset: int) -> int:
        """Events of a dataset's next canary."""
        fit, wanted = self.fit(dataset), self._wanted(dataset)
        if fit is None or wanted is None:
            return FIRST
        return min(GROWTH * fit.widest, wanted)

    def _wanted(self, dataset: int) -> int | None:
        fit = self.fit(dataset)
        if fit is None:
            return None
        fitting = fit.within(int(SHARE * self.budget)) if self.budget else self.most
        if self._burst[dataset]:
            fitting = min(fitting, self._burst[dataset] // 2)
        return rounded(max(FIRST, min(fitting, self.most)))


def shared(size: int, left: int, slots: int) -> int:
    """The size of chunks that also gives every worker some of the events that are left."""
    fair = left // (2 * slots)
    return size if size <= fair else min(size, max(rounded(fair), FEW))


def rounded(events: int) -> int:
    """Two digits are all that a prediction of memory deserves, and people read the ranges."""
    step: int = 10 ** max(0, len(str(events)) - 2)
    return max(1, events - events % step)
