"""Numbers, bars and tables as plain text of a given width. No colour, no terminal, no run."""

from __future__ import annotations

import shutil
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from executors.work.report import DatasetCount, Summary

_HEAD = ("dataset", "files", "planned", "counted", "missing", "peak", "an event", "why")
_MEMORY = (5, 6)  # of these


def amount(value: float) -> str:
    """A number of things, short: 950, 12,345, 1.23M."""
    value = round(value)
    for bound, unit in ((10**12, "T"), (10**9, "G"), (10**6, "M")):
        if abs(value) >= bound:
            return f"{value / bound:.{2 if abs(value) < 10 * bound else 1}f}{unit}"
    return f"{value:,}"


def size(number: float) -> str:
    """A number of bytes, short."""
    for bound, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= bound:
            return f"{number / bound:.1f} {unit}"
    return f"{number:.0f} B"


def duration(seconds: float) -> str:
    """A time, in one or two units."""
    seconds = round(max(seconds, 0))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s" if seconds < 600 else f"{seconds // 60} min"
    if seconds < 100 * 3600:
        return f"{seconds // 3600} h {seconds % 3600 // 60} min"
    return f"{seconds // 86400:,} days"


def percent(part: float, whole: float) -> float:
    """Per cent, never 100 before all is there, and 100 where there is nothing to do."""
    if whole <= 0:
        return 100.0
    return 100.0 if part >= whole else min(100.0 * part / whole, 99.0)


def bar(share: float, width: int) -> str:
    """A bar of ``width`` cells, filled to ``share`` per cent."""
    full = int(width * min(max(share, 0.0), 100.0) / 100)
    return "━" * full + "─" * (width - full)


def cells(text: str) -> int:
    """How many columns of a terminal the text takes."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text
    )


def clipped(text: str, width: int) -> str:
    """The text in at most ``width`` columns; what is cut away shows as ``…``."""
    if cells(text) <= width:
        return text
    kept, used = "", 0
    for char in text:
        used += cells(char)
        if used > width - 1:
            break
        kept += char
    return (kept + "…")[:width] if width > 0 else ""


def summary_table(rows: Sequence[DatasetCount], width: int = 100) -> str:
    """The accounting of a run: dataset, files, events planned, counted, missing and why; a line for all.

    What the chunks needed of memory is told where there is room for it.
    """
    body = [_cells_of(row) for row in rows]
    if len(rows) != 1:
        body.append(_total(rows))
    table = _columns([_HEAD, *body], width)
    columns, why = len(table[0]), table[0][-1] == _HEAD[-1]
    widths = [max(cells(line[i]) for line in table) for i in range(columns)]
    # Numbers are never cut; what is too long is the name, or the reason.
    fixed = sum(widths[1 : columns - why]) + 2 * (columns - 1)
    widths[0] = min(widths[0], max(width - fixed - (20 if why else 0), 8))
    if why:
        widths[-1] = max(min(widths[-1], width - fixed - widths[0]), 8)
    lines = [_row(line, widths, left=(0, columns - 1) if why else (0,)) for line in table]
    lines.insert(1, "─" * min(width, max(cells(text) for text in lines)))
    if len(rows) != 1:
        lines.insert(-1, lines[1])
    return "\n".join(lines)


def _columns(table: Sequence[Sequence[str]], width: int) -> list[list[str]]:
    """The columns that have something to say; those on memory only where all others still fit beside them."""
    said = [i for i in range(len(_HEAD)) if i < _MEMORY[0] or any(line[i] for line in table[1:])]
    widths = [max(cells(line[i]) for line in table) for i in range(len(_HEAD))]
    widths[-1] = min(widths[-1], 20)  # a reason may be clipped
    needed = sum(widths[i] for i in said)
    if needed + 2 * (len(said) - 1) > width:
        said = [i for i in said if i not in _MEMORY]
    return [[line[i] for i in said] for line in table]


def _cells_of(row: DatasetCount) -> tuple[str, ...]:
    missing = row.events_planned - row.events_counted
    why = "; ".join(row.reasons) or ("not yet done" if missing else "")
    return (
        row.name,
        f"{row.files:,}",
        f"{row.events_planned:,}",
        f"{row.events_counted:,}",
        _missing(missing, row.files_unopened),
        size(row.peak_memory) if row.peak_memory else "",
        size(row.bytes_per_event) if row.bytes_per_event else "",
        why,
    )


def _missing(events: int, files: int) -> str:
    """Events, and files of which nobody knows how many events they hold."""
    return f"{events:,}" + (f" + {files:,} file{'s' if files > 1 else ''}" if files else "")


def _total(rows: Sequence[DatasetCount]) -> tuple[str, ...]:
    planned = sum(row.events_planned for row in rows)
    counted = sum(row.events_counted for row in rows)
    files = sum(row.files for row in rows)
    missing = _missing(planned - counted, sum(row.files_unopened for row in rows))
    peak = max((row.peak_memory for row in rows), default=0)
    return ("all", f"{files:,}", f"{planned:,}", f"{counted:,}", missing, size(peak) if peak else "", "", "")


def _row(line: Sequence[str], widths: Sequence[int], left: Sequence[int]) -> str:
    parts = []
    for i, (text, width) in enumerate(zip(line, widths, strict=True)):
        shown = clipped(text, width)
        gap = " " * (width - cells(shown))
        parts.append(shown + gap if i in left else gap + shown)
    return "  ".join(parts).rstrip()


def summary_text(summary: Summary, width: int | None = None) -> str:
    """All that is said at the end: the table, what it took, where the outputs are."""
    width = width or shutil.get_terminal_size((100, 24)).columns
    counted = sum(row.events_counted for row in summary.rows) - summary.resumed_events
    facts = [duration(summary.wall)]
    if summary.wall > 0 and counted > 0:
        facts.append(f"{amount(counted / summary.wall)} events/s")
    if summary.cpu:
        facts.append(f"{duration(summary.cpu)} of CPU time")
    if summary.bytes_read:
        facts.append(f"{size(summary.bytes_read)} read")
    if summary.peak_memory:
        facts.append(f"{size(summary.peak_memory)} at most on a worker")
    lines = [summary_table(summary.rows, width), ", ".join(facts)]
    lines += [f"→ {path}" for path in summary.outputs]
    return "\n".join(lines)
