"""Peaks of memory against events, with the fitted line and the limit: as text, or as a picture.

It draws what it is given. Nothing is read or measured here, and the library for pictures is imported only to
make one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from executors.errors import UsageError
from executors.tables import amount, cells, clipped, size
from executors.work.sizing import GROWTH

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from executors.work.footprint import Fit

MARKS = "●○▲■◆"
PLAIN = {"●": "o", "○": "x", "▲": "+", "■": "#", "◆": "*", "·": ".", "─": "-", "│": "|", "└": "+", "…": "~"}
MOST = len(MARKS)  # curves in one picture of text: more cannot be told apart
SMALLEST = (32, 8)  # columns and lines below which there is nothing to see
FAR = 4  # a limit so many times above all peaks is named, not drawn: it would flatten all else


@dataclass(frozen=True, slots=True)
class Curve:
    """The measured chunks of one dataset, and the line through them where there is one."""

    name: str
    points: tuple[tuple[int, int], ...]  # events, bytes
    fit: Fit | None = None
    limit: int | None = None  # bytes


def plain(text: str) -> str:
    """The text in ASCII, for a terminal that has nothing else."""
    return "".join(PLAIN.get(char, char) for char in text).encode("ascii", "replace").decode()


def drawn(curves: Sequence[Curve], width: int = 80, height: int = 20) -> str:
    """The highest curves as text of so many columns and lines at most; nothing if that is too small."""
    shown = sorted((c for c in curves if c.points), key=_highest, reverse=True)[:MOST]
    legend = _legend(shown, len(curves), width)
    rows = height - len(legend) - 3  # the axis, its numbers, a word on the limit
    if not shown or width < SMALLEST[0] or rows < SMALLEST[1] - 4:
        return ""
    field = _Field(shown, min((c.limit for c in shown if c.limit), default=None), width, rows)
    return "\n".join([*field.lines(), *legend])


def picture(curves: Sequence[Curve], path: Path) -> None:
    """Write the same as a picture, in the format that the file's name says; or UsageError."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError(f"--plot needs matplotlib ({error}): pip install matplotlib") from error
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for curve in curves:
        _scattered(axes, curve)
    top = max((_highest(c) for c in curves if c.points), default=0)
    for limit in sorted({c.limit for c in curves if c.limit and c.limit <= FAR * top}):
        axes.axhline(limit / 1e6, color="black", linestyle="--", linewidth=1, label=f"limit {size(limit)}")
    axes.set(xlabel="events of a chunk", ylabel="peak of resident memory (MB)")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small")
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise UsageError(f"--plot {path}: {error}") from error


def _scattered(axes: Any, curve: Curve) -> None:
    events = [x for x, _ in curve.points]
    # A name may hold what the library takes for a formula, and one with '_' first is left out.
    name = curve.name.replace("$", r"\$").lstrip("_") or "_"
    dots = axes.scatter(events, [y / 1e6 for _, y in curve.points], s=12, label=name)
    if curve.fit is not None and events:
        ends = [0, max(events)]
        color = dots.get_facecolor()[0]
        axes.plot(ends, [curve.fit.peak(x) / 1e6 for x in ends], color=color, linewidth=1)


def _highest(curve: Curve) -> int:
    return max(y for _, y in curve.points)


def _legend(shown: Sequence[Curve], count: int, width: int) -> list[str]:
    lines = [clipped(f"  {mark} {curve.name}", width) for mark, curve in zip(MARKS, shown, strict=False)]
    if len(lines) < count:
        lines.append(clipped(f"  … and {count - len(lines):,} more, all below these", width))
    return lines


def _ticks(top: float, most: int) -> list[float]:
    """Round values from nought to the top, not more than so many and two."""
    step = 10.0 ** math.floor(math.log10(max(top, 1)) - 1)
    for factor in (1, 2, 5, 10, 20, 50, 100):
        if top / (factor * step) <= max(most, 1):
            break
    return [n * factor * step for n in range(int(top / (factor * step)) + 1)]


class _Field:
    """A grid of characters with axes: bytes upwards, events to the right, both from nought."""

    def __init__(self, curves: Sequence[Curve], limit: int | None, width: int, rows: int) -> None:
        self.curves, self.limit, self.width, self.rows = curves, limit, width, rows
        top = max(1, *map(_highest, curves))
        self.far = limit is not None and limit > FAR * top
        self.top = 1.05 * (top if limit is None or self.far else max(top, limit))
        self.labels = {self._row(value): size(value) for value in _ticks(self.top, rows // 3)}
        self.margin = max(map(cells, self.labels.values())) + 1
        self.columns = width - self.margin - 1
        self.right = max(x for c in curves for x, _ in c.points)
        self.grid = [[" "] * self.columns for _ in range(rows)]

    def lines(self) -> list[str]:
        """The picture, and below it the axis with its numbers."""
        self._fill()
        out = []
        for i, row in enumerate(self.grid):
            out.append(f"{self.labels.get(i, ''):>{self.margin - 1}} │{''.join(row)}".rstrip())
        out.append(" " * self.margin + "└" + "─" * self.columns)
        end = f"{amount(self.right)} events"
        out.append(" " * (self.margin + 1) + "0" + f"{end:>{self.columns - 1}}")
        if self.far:
            out.append(clipped(f"  the limit, {size(self.limit or 0)}, is far above", self.width))
        return out

    def _fill(self) -> None:
        if self.limit is not None and not self.far:
            row = self.grid[self._row(self.limit)]
            row[:] = "─" * self.columns
            words = f" limit {size(self.limit)} "
            if len(words) + 4 < self.columns:
                row[2 : 2 + len(words)] = words
        for curve in self.curves:
            if curve.fit is not None:
                for column in range(self.columns):
                    events = self.right * column / max(self.columns - 1, 1)
                    if events <= GROWTH * curve.fit.widest:  # beyond, it is not to be believed
                        self._put(column, curve.fit.peak(round(events)), "·")
        for mark, curve in reversed([*zip(MARKS, self.curves, strict=False)]):
            for x, y in curve.points:
                self._put(round((self.columns - 1) * x / max(self.right, 1)), y, mark)

    def _row(self, value: float) -> int:
        return self.rows - 1 - round((self.rows - 1) * value / self.top)

    def _put(self, column: int, value: float, mark: str) -> None:
        row = self._row(value)
        if 0 <= row < self.rows and 0 <= column < self.columns:
            self.grid[row][column] = mark
