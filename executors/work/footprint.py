"""What a dataset's chunks need of memory: peaks against events, the line through them, and what follows.

Pure arithmetic on figures that workers sent. A peak is absolute: what the process held already is in it,
so the line has a fixed part (imports, the analysis, what it keeps) and a part that grows with the events.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

KEPT = 32  # points of each class of sizes: enough for a quantile, and the same for a million chunks
QUANTILE = 0.95
UNSEEN = 0.25  # how much more than a single point's a chunk of the same size may well need
MANY = 1 << 40  # events, where memory does not limit them


class Point(NamedTuple):
    """One chunk: its events, the highest memory of its process, and the memory before it began."""

    events: int
    peak: int
    before: int = 0


@dataclass(frozen=True, slots=True)
class Fit:
    """A line under the peaks of one dataset, and how far above it chunks were seen."""

    fixed: int  # bytes
    per_event: float  # bytes, of the growing part
    spread: float  # of the growing part: 0.2 where chunks of the upper quantile need a fifth more
    points: int = 0
    most: Point | None = None  # the chunk with the highest peak
    widest: int = 0  # the most events of any chunk that was measured

    def peak(self, events: int) -> int:
        """What a chunk of so many events mostly needs."""
        return int(self.fixed + self.per_event * events)

    def upper(self, events: int) -> int:
        """What nearly every chunk of so many events stays below."""
        return int(self.fixed + self.per_event * (1 + self.spread) * events)

    def within(self, budget: int) -> int:
        """The most events of a chunk that nearly always stays within a budget; 0 if none does."""
        left = budget - self.fixed
        growth = self.per_event * (1 + self.spread)
        if left <= 0:
            return 0
        return min(MANY, int(left / growth)) if growth * MANY > left else MANY

    def as_row(self) -> dict[str, Any]:
        """Plain data, for files."""
        return asdict(self) | {"most": list(self.most) if self.most else None}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Fit:
        """The fit that ``as_row`` described; LookupError, TypeError or ValueError if it is none."""
        most = row["most"]
        return cls(
            int(row["fixed"]),
            float(row["per_event"]),
            float(row["spread"]),
            int(row["points"]),
            Point(*map(int, most)) if most else None,
            int(row["widest"]),
        )


class Footprint:
    """The measured chunks of one dataset, a bounded number of them, and the line through them."""

    def __init__(self) -> None:
        self._classes: dict[int, deque[Point]] = {}  # by size, four classes to a factor of two
        self._tops: dict[int, Point] = {}  # the highest of each: rare heavy chunks are what a budget is for
        self._widest = 0
        self._count = 0
        self._most: Point | None = None
        self._fit: Fit | None = None

    def add(self, events: int, peak: int, before: int = 0) -> None:
        """Take one chunk in; what measured nothing is passed over."""
        if events <= 0 or peak <= 0:
            return
        point, number = Point(events, peak, before), int(4 * math.log2(events))
        kept = self._classes.get(number)
        if kept is None:
            kept = self._classes[number] = deque(maxlen=KEPT)
        kept.append(point)
        if number not in self._tops or peak > self._tops[number].peak:
            self._tops[number] = point
            if self._most is None or peak > self._most.peak:
                self._most = point
        self._widest = max(self._widest, events)
        self._count += 1
        self._fit = None

    @property
    def points(self) -> tuple[Point, ...]:
        """The chunks that are kept, small ones first."""
        return tuple(self._all())

    def fit(self) -> Fit | None:
        """The line; None before anything is measured."""
        if self._fit is None and self._count:
            fixed, per_event = self._line()
            self._fit = Fit(
                int(fixed),
                per_event,
                self._spread(fixed, per_event),
                self._count,
                self._most,
                self._widest,
            )
        return self._fit

    def _all(self) -> Iterator[Point]:
        for number in sorted(self._classes):
            kept, top = self._classes[number], self._tops[number]
            yield from kept
            if top not in kept:
                yield top

    def _line(self) -> tuple[float, float]:
        middles = [_middle(self._classes[number]) for number in sorted(self._classes)]
        base = min((p.before for p in self._all() if p.before), default=0)
        lowest = min(p.peak for p in self._all())
        if middles[-1].events < 2 * middles[0].events:
            fixed: float = min(base or lowest, lowest)
        else:
            fixed = min(max(_intercept(middles), base), lowest)
        # Through the fixed part: clipping it must not leave the line below what was seen.
        weight = sum(p.events**2 for p in middles)
        growth = sum((p.peak - fixed) * p.events for p in middles) / weight
        return fixed, max(0.0, growth)

    def _spread(self, fixed: float, per_event: float) -> float:
        if per_event <= 0:
            return 0.0
        over = sorted((p.peak - fixed) / (per_event * p.events) for p in self._all() if _grown(p, fixed))
        if not over:
            return UNSEEN
        upper = over[min(len(over) - 1, int(QUANTILE * len(over)))] - 1
        return max(upper, UNSEEN / len(over), 0.0)


def _grown(point: Point, fixed: float) -> bool:
    """Whether a chunk's own part stands out of the fixed one: the ratio of two small numbers says nothing."""
    return point.peak - fixed > max(8 << 20, 0.05 * fixed)


def _middle(points: Sequence[Point]) -> Point:
    ordered = sorted(points, key=lambda p: p.peak)
    return Point(
        sorted(p.events for p in points)[len(points) // 2], ordered[len(points) // 2].peak, ordered[0].before
    )


def _intercept(points: Sequence[Point]) -> float:
    n = len(points)
    x, y = sum(p.events for p in points) / n, sum(p.peak for p in points) / n
    slope = sum((p.events - x) * (p.peak - y) for p in points) / sum((p.events - x) ** 2 for p in points)
    return y - slope * x
