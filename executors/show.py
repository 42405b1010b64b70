"""What a person sees of a run: a live picture on a terminal, or a line now and then in a pipe.

It draws what ``work.report`` holds and decides nothing. A reader who goes away, a tiny window or a text that
cannot be written never disturbs the run.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Self

from executors.redact import RedactingFilter, redact
from executors.tables import amount, bar, cells, clipped, duration, percent, size, summary_table, summary_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from executors.work.report import DatasetCount, Snapshot, Summary

__all__ = ["Progress", "frame", "line", "summary_table", "summary_text"]

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_LONGEST_MESSAGE = 2000
_MOST_MESSAGES = 200  # of one level: a run of a million chunks may have something to say of each
_QUIETEST, _BRISKEST, _STEP = 10.0, 2.0, 0.05  # seconds, seconds, part of the whole between lines in a pipe


class Progress:
    """The observer of a command: told what happens, it shows that as well as its stream can."""

    def __init__(
        self,
        stream: Any = None,
        *,
        quiet: bool = False,
        level: str = "info",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._out = _Forgiving(sys.stderr if stream is None else stream)
        self._level = LEVELS["error"] if quiet else LEVELS[level]
        self._quiet = quiet
        self._clock = clock
        self._live: Any = None
        self._snapshot: Snapshot | None = None
        self._said: dict[str, int] = {}
        self._last_time = float("-inf")
        self._last_part = 0.0
        self._jobs = ""  # the state of batch jobs
        self._jobs_said = float("-inf")
        self._handler: logging.Handler | None = None
        self._lock = threading.RLock()

    def __enter__(self) -> Self:
        self._handler = _LogLines(self)
        logger = logging.getLogger("executors")
        logger.addHandler(self._handler)
        self._propagated, logger.propagate = logger.propagate, False
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
        if self._handler is not None:
            logger = logging.getLogger("executors")
            logger.removeHandler(self._handler)
            logger.propagate = self._propagated

    def started(self, datasets: Sequence[DatasetCount], *, workers: int = 0, resumed_events: int = 0) -> None:
        """Say what there is to do, and begin to draw."""
        files = sum(row.files for row in datasets)
        events = sum(row.events_planned for row in datasets)
        chunks = sum(row.chunks_planned for row in datasets)
        cut = f"{chunks:,} chunks of " if chunks else ""  # else sizes follow the memory: none is chosen yet
        text = f"{amount(events)} events in {cut}{files:,} files, {len(datasets):,} datasets"
        if workers:
            text += f", on {workers:,} workers"
        if resumed_events:
            text += f"; {amount(resumed_events)} of them are done already"
        self.message("info", text)
        if not self._quiet and self._out.terminal:
            self._open()

    def progressed(self, snapshot: Snapshot) -> None:
        """Take note; a pipe gets a line when enough has happened."""
        self._snapshot = snapshot
        if self._live is not None or self._quiet or self._out.terminal:
            return
        now, part = self._clock(), percent(snapshot.events_counted, snapshot.events_planned)
        waited, moved = now - self._last_time, part - self._last_part
        if self._last_time == float("-inf"):
            self._last_time = now
        elif waited >= _QUIETEST or (waited >= _BRISKEST and moved >= 100 * _STEP):
            self._last_time, self._last_part = now, part
            self._out.line(line(snapshot))

    def status(self, text: str) -> None:
        """The state of batch jobs: part of the picture; a pipe hears of it now and then, while it changes."""
        text = redact(text)
        changed, self._jobs = text != self._jobs, text
        now = self._clock()
        if self._live is None and not self._quiet and changed and now - self._jobs_said >= _QUIETEST:
            self._jobs_said = now
            self.message("info", f"jobs: {text}")

    def message(self, level: str, text: str) -> None:
        """Say one thing, once; above the picture where there is one."""
        if LEVELS.get(level, LEVELS["info"]) < self._level:
            return
        text = redact(text)
        text = text if len(text) <= _LONGEST_MESSAGE else text[:_LONGEST_MESSAGE] + " […]"
        with self._lock:
            count = self._said[level] = self._said.get(level, 0) + 1
            if count > _MOST_MESSAGES:
                return
            if count == _MOST_MESSAGES:
                text += f" (no more of level {level} is shown; the journal has all)"
            text = text if level == "info" else f"{level}: {text}"
            if self._live is not None:
                self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)
            else:
                self._out.line(text)

    def finished(self, summary: Summary) -> None:  # noqa: ARG002 - the runner prints it
        """Stop drawing; the closing table is the runner's to print."""
        self._close()

    def _open(self) -> None:
        from rich.console import Console
        from rich.live import Live

        console = Console(file=self._out, highlight=False, soft_wrap=False)  # type: ignore[arg-type]
        self._live = Live(
            console=console,
            get_renderable=lambda: self._picture(console),
            transient=True,
            refresh_per_second=4,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()

    def _picture(self, console: Any) -> Any:
        from rich.text import Text

        if self._snapshot is None:
            return Text("starting …")
        width, height = console.size
        lines = frame(self._snapshot, width, height - bool(self._jobs))
        if self._jobs:
            lines.insert(1, clipped(f"  jobs: {self._jobs}", width))
        return Text("\n".join(lines), no_wrap=True, overflow="crop")

    def _close(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.stop()
        if self._snapshot is not None and not self._quiet and live is not None:
            self._out.line(line(self._snapshot))
            self._snapshot = None


def line(snapshot: Snapshot) -> str:
    """The state of a run in one line."""
    planned, counted = snapshot.events_planned, snapshot.events_counted
    parts = [
        f"{percent(counted, planned):3.0f}%  {amount(counted)} of {amount(planned)} events",
        f"{amount(snapshot.rate)}/s",
        f"{snapshot.chunks_done:,} of {snapshot.chunks_planned:,} chunks",
        f"{size(snapshot.bytes_read)} read",
    ]
    if snapshot.failures:
        parts.append(f"{snapshot.failures:,} failures")
    if snapshot.events_missing:
        parts.append(f"{amount(snapshot.events_missing)} events given up")
    left = snapshot.seconds_left
    parts.append(f"{duration(left)} left" if left is not None else f"{duration(snapshot.elapsed)} so far")
    return ", ".join(parts)


def frame(snapshot: Snapshot, width: int, height: int) -> list[str]:
    """The lines of the live picture, at most ``height - 1`` of at most ``width`` cells."""
    width, room = max(width, 10), max(height - 1, 1)
    share = percent(snapshot.events_counted, snapshot.events_planned)
    left = snapshot.seconds_left
    parts = [
        f"{share:3.0f}% {bar(share, min(24, max(4, width - 70)))}",
        f"{amount(snapshot.events_counted)} of {amount(snapshot.events_planned)} events",
        f"{amount(snapshot.rate)}/s",
        f"{duration(left)} left" if left is not None else "…",
        f"{snapshot.chunks_done:,}/{snapshot.chunks_planned:,} chunks",
        f"{snapshot.failures:,} failures",
        f"{size(snapshot.bytes_read)} read",
        f"{snapshot.in_flight:,} tasks out",
        duration(snapshot.elapsed),
    ]
    lines = [clipped("  ".join(parts), width)]
    rows = sorted(snapshot.datasets, key=_order)
    shown = rows if len(rows) < room else rows[: max(room - 2, 0)]
    name_width = min(max((cells(row.name) for row in shown), default=0), max(width // 3, 4))
    lines += [clipped(_dataset_line(row, name_width), width) for row in shown]
    if len(shown) < len(rows) and room > 1:
        done = sum(_done(row) for row in rows)
        rest = f"  … and {len(rows) - len(shown):,} more datasets ({done:,} of {len(rows):,} done)"
        lines.append(clipped(rest, width))
    return lines[:room]


def _done(row: DatasetCount) -> bool:
    return row.chunks_done >= row.chunks_planned


def _order(row: DatasetCount) -> int:
    if _done(row):
        return 2
    return 0 if row.chunks_done else 1


def _dataset_line(row: DatasetCount, name_width: int) -> str:
    name = clipped(row.name, name_width)
    share = percent(row.events_counted, row.events_planned)
    text = f"  {name}{' ' * (name_width - cells(name))}  {share:3.0f}% {bar(share, 12)}"
    text += f"  {amount(row.events_counted)} of {amount(row.events_planned)}"
    text += f"  {row.failures:,} failures" if row.failures else ""
    return text + (f"  {amount(row.events_missing)} given up" if row.events_missing else "")


class _Forgiving:
    """A text stream that goes quiet when nobody reads it any more, instead of raising."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.encoding = getattr(stream, "encoding", None) or "utf-8"
        self.terminal = self.isatty() and os.environ.get("TERM", "") not in ("", "dumb")

    def isatty(self) -> bool:
        """Whether somebody watches."""
        try:
            return bool(self._stream.isatty())
        except (AttributeError, ValueError, OSError):
            return False

    def fileno(self) -> int:
        """The descriptor below, for the size of the window."""
        return int(self._stream.fileno())

    def write(self, text: str) -> int:
        """Write, or give up for good."""
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush, or give up for good."""
        self._try(getattr(self._stream, "flush", bool))

    def line(self, text: str) -> None:
        """Write one line at once."""
        self.write(text + "\n")
        self.flush()

    def _try(self, act: Callable[[], object]) -> None:
        if self._stream is None:
            return
        try:
            act()
        except UnicodeEncodeError:
            pass  # a terminal of another alphabet: this text is lost, the next may pass
        except (OSError, ValueError, AttributeError):
            self._stream = None


class _LogLines(logging.Handler):
    """What the project's own loggers say, said by the progress display."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self._progress = progress
        self.addFilter(RedactingFilter())

    def emit(self, record: logging.LogRecord) -> None:
        level = "error" if record.levelno >= 40 else record.levelname.lower()
        self._progress.message(level, record.getMessage())
