"""``runner.py memory``: what the chunks of runs needed of memory, as tables, a plot and data.

What is told comes from ``usage``; nothing is read or measured here.
"""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING, Any

from executors.errors import UnknownNameError
from executors.memory import plot as memory_plot
from executors.memory.usage import KINDS, Usage, read
from executors.tables import cells, clipped, size
from executors.work.report import Outcome
from executors.work.sizing import GROWTH

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from executors.work.footprint import Fit

AHEAD = 100_000  # events that a prediction is printed for
NARROW = 72  # columns below which the table becomes a list
TALLEST = 20  # lines of the plot


def memory(
    folders: Sequence[Path], *, only: str = "", plot: Path | None = None, width: int | None = None
) -> Outcome:
    """What the chunks of these runs needed, in words and data; UsageError where nothing is known."""
    usages = [usage for folder in dict.fromkeys(folders) for usage in read(folder)]
    if only:
        usages = _chosen(usages, only)
    if plot is not None:
        memory_plot.picture([usage.curve for usage in usages], plot)
    said = memory_text(usages, width) + (f"\n\n→ {plot}" if plot is not None else "")
    return Outcome(0, fitting(said), None, report(usages))


def memory_text(usages: Sequence[Usage], width: int | None = None) -> str:
    """The tables and the plot, as the terminal has room for them."""
    columns, lines = shutil.get_terminal_size((100, 24))
    columns = width or columns
    drawn = memory_plot.drawn([u.curve for u in usages], min(columns, 100), min(lines - 2, TALLEST))
    parts = (overview(usages, columns), comparison(usages, columns), drawn)
    return "\n\n".join(part for part in parts if part)


def _chosen(usages: Sequence[Usage], only: str) -> list[Usage]:
    found = [usage for usage in usages if usage.dataset == only]
    if not found:
        raise UnknownNameError.of("dataset", only, {usage.dataset for usage in usages})
    return found


def overview(usages: Sequence[Usage], width: int) -> str:
    """A line for each dataset: its chunks, their peak, the fixed part, an event, and what is predicted."""
    several = len({usage.run for usage in usages}) > 1
    bounded = any(usage.budget for usage in usages)
    head = ["dataset", "chunks", "events", "peak", "fixed", "an event", f"at {AHEAD // 1000}k"]
    rows = [_row(usage, several) for usage in usages]
    if not bounded:
        rows = [row[:-1] for row in rows]
    else:
        head.append("limit")
    if width < NARROW:
        text = "\n".join(_listed(head, row, width) for row in rows)
    else:
        text = table([head, *rows], width)
    return "\n".join([text, *_notes(usages, width)])


def _row(usage: Usage, several: bool) -> list[str]:
    fit = usage.fit
    name = f"{usage.dataset} ({usage.run})" if several else usage.dataset
    return [
        name,
        f"{usage.chunks:,}",
        f"{fit.widest:,}" if fit else "-",
        size(usage.highest) if usage.highest else "-",
        size(fit.fixed) if fit else "-",
        size(fit.per_event) if fit else "-",
        _ahead(fit) if fit else "-",
        size(usage.budget) if usage.budget else "-",
    ]


def _ahead(fit: Fit) -> str:
    """The prediction; marked where the line does not reach so far."""
    return ("" if fit.widest * GROWTH >= AHEAD else "~") + size(fit.upper(AHEAD))


def _notes(usages: Sequence[Usage], width: int) -> list[str]:
    """Which chunk was the highest, and what failed."""
    notes = []
    for usage in sorted(usages, key=lambda u: -u.highest)[:5]:
        if usage.where is not None:
            path, start, stop = usage.where
            notes.append(_shortened(f"{size(usage.highest):>8}  ", path, f" [{start}:{stop}]", width))
    if notes:
        notes.insert(0, "the chunks that needed most:" if len(notes) > 1 else "the chunk that needed most:")
    notes += [
        clipped(f"{u.dataset}: {u.too_big:,} times a chunk was too big and was halved", width)
        for u in usages
        if u.too_big
    ]
    return notes


def _shortened(head: str, path: str, tail: str, width: int) -> str:
    """The line, the path cut at its beginning if need be: its end tells files apart."""
    room = max(width - cells(head) - cells(tail), 8)
    if cells(path) > room:
        path = clipped(path[::-1], room)[::-1]
    return head + path + tail


def _listed(head: Sequence[str], row: Sequence[str], width: int) -> str:
    pairs = [f"  {name:<9}{text:>12}" for name, text in zip(head[1:], row[1:], strict=True)]
    return "\n".join(clipped(line, width) for line in (row[0], *pairs))


def comparison(usages: Sequence[Usage], width: int) -> str:
    """Peaks in MB by what the results hold, as on the original's page; nothing where that is not known."""
    there = {usage.kind for usage in usages}
    columns = [kind for kind in KINDS if kind in there or (kind != KINDS[-1] and there & {*KINDS[:-1]})]
    if not columns:
        return ""
    lines: dict[str, dict[str, int]] = {}
    for usage in usages:
        name = usage.dataset
        if usage.kind in lines.get(name, {}):  # two runs of one kind: both are shown
            name = f"{usage.dataset} ({usage.run})"
        lines.setdefault(name, {})[usage.kind] = usage.highest
    rows = [
        [name, *(f"{peaks[kind] / 1e6:,.0f}" if kind in peaks else "-" for kind in columns)]
        for name, peaks in lines.items()
    ]
    return table([["peak in MB", *columns], *rows], width)


def table(rows: Sequence[Sequence[str]], width: int) -> str:
    """Rows below a head and a line; the first column is clipped where the others leave too little."""
    widths = [max(cells(row[i]) for row in rows) for i in range(len(rows[0]))]
    widths[0] = min(widths[0], max(width - sum(widths[1:]) - 2 * (len(widths) - 1), 8))
    lines = []
    for row in rows:
        name = clipped(row[0], widths[0])
        parts = [name + " " * (widths[0] - cells(name))]
        parts += [" " * (w - cells(text)) + text for text, w in zip(row[1:], widths[1:], strict=True)]
        lines.append(clipped("  ".join(parts), width).rstrip())
    lines.insert(1, "─" * min(width, sum(widths) + 2 * (len(widths) - 1)))
    return "\n".join(lines)


def report(usages: Sequence[Usage]) -> dict[str, Any]:
    """The same for a program: a row for each dataset of each run."""
    return {"datasets": [_data(usage) for usage in usages]}


def _data(usage: Usage) -> dict[str, Any]:
    fit = usage.fit
    return {
        "dataset": usage.dataset,
        "run": usage.run,
        "holds": usage.kind or None,
        "chunks": usage.chunks,
        "peak": usage.highest,
        "chunk": list(usage.where) if usage.where else None,
        "fixed": fit.fixed if fit else None,
        "bytes_per_event": fit.per_event if fit else None,
        "spread": fit.spread if fit else None,
        f"predicted_{AHEAD}": fit.upper(AHEAD) if fit else None,
        "widest": fit.widest if fit else None,
        "budget": usage.budget,
        "too_big": usage.too_big,
        "points": [list(point) for point in usage.footprint.points],
    }


def fitting(text: str) -> str:
    """The text without what standard output cannot write."""
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return memory_plot.plain(text.replace("→", "->"))
    return text
