"""What a person sees: numbers, lines, frames, tables; and that no reader can disturb a run."""

from __future__ import annotations

import errno
import io
import logging
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from executors.show import Progress, frame, line, summary_table, summary_text
from executors.tables import amount, bar, cells, clipped, duration, percent, size
from executors.work.report import DatasetCount, Observer, Snapshot, Summary

REPOSITORY = Path(__file__).parents[2]
WIDE = "数据" * 20


def row(name: str, planned: int = 1000, counted: int = 0, **more: Any) -> DatasetCount:
    about = {
        "files": 2,
        "chunks_planned": 10,
        "chunks_done": counted * 10 // planned if planned else 10,
        **more,
    }
    return DatasetCount(name, events_planned=planned, events_counted=counted, **about)


def snapshot(*rows: DatasetCount, **more: Any) -> Snapshot:
    return Snapshot(rows, **{"elapsed": 10.0, "rate": 50.0, "bytes_read": 2_500_000, "in_flight": 3, **more})


def test_numbers_are_short() -> None:
    assert [amount(n) for n in (0, 950, 12345, 999_999, 1_234_567, 45_600_000, 2e9, 3e13)] == [
        "0",
        "950",
        "12,345",
        "999,999",
        "1.23M",
        "45.6M",
        "2.00G",
        "30.0T",
    ]
    assert [size(n) for n in (0, 999, 1500, 2e9, 3.5e12)] == ["0 B", "999 B", "1.5 kB", "2.0 GB", "3.5 TB"]
    assert [duration(s) for s in (-1, 0.4, 59, 61, 700, 3700, 360_000)] == [
        "0 s",
        "0 s",
        "59 s",
        "1 min 1 s",
        "11 min",
        "1 h 1 min",
        "4 days",
    ]
    assert [percent(a, b) for a, b in ((0, 0), (0, 10), (10, 10), (999_999, 1_000_000), (5, 10))] == [
        100,
        0,
        100,
        99,
        50,
    ]
    assert bar(0, 4) == "────"
    assert bar(100, 4) == bar(170, 4) == "━━━━"
    assert bar(50, 4) == "━━──"


def test_text_is_clipped_by_columns() -> None:
    assert clipped("abcdef", 6) == "abcdef"
    assert clipped("abcdef", 4) == "abc…"
    assert cells(WIDE) == 80
    for width in range(12):
        assert cells(clipped(WIDE, width)) <= width
        assert cells(clipped("e\u0301" * 20, width)) <= width


def test_one_line_says_it_all() -> None:
    text = line(snapshot(row("a", 1000, 500, failures=2), row("b", 1000, 0, events_missing=100)))
    assert text == (
        " 25%  500 of 2,000 events, 50/s, 5 of 20 chunks, 2.5 MB read, 2 failures,"
        " 100 events given up, 28 s left"
    )
    assert line(snapshot(row("a"), rate=0.0)).endswith("10 s so far")
    assert line(snapshot(row("a", 10, 10))).startswith("100%")
    assert line(snapshot()).startswith("100%")


@pytest.mark.parametrize("width", [1, 10, 20, 40, 80, 200])
@pytest.mark.parametrize("height", [1, 2, 3, 5, 24, 100])
def test_a_frame_fits_any_window(width: int, height: int) -> None:
    rows = [
        row(f"{WIDE}{i}" if i % 2 else f"set{i}", 1000, 100 * (i % 11), failures=i % 3) for i in range(30)
    ]
    lines = frame(snapshot(*rows), width, height)
    assert 1 <= len(lines) <= max(height - 1, 1)
    assert all(cells(text) <= max(width, 10) for text in lines)
    if height == 100:
        assert len(lines) == 31
    elif height > 3:
        assert "more datasets" in lines[-1] or width < 40


def test_a_frame_shows_what_moves_first() -> None:
    lines = frame(snapshot(row("done", 10, 10), row("waits"), row("moves", 1000, 300)), 100, 24)
    assert [text.split()[0] for text in lines[1:]] == ["moves", "waits", "done"]
    lines = frame(snapshot(*(row(f"d{i}", 10, 10) for i in range(9)), row("moves", 1000, 300)), 100, 5)
    assert "moves" in lines[1]
    assert lines[-1].strip() == "… and 8 more datasets (9 of 10 done)"


def test_the_table_of_a_complete_run() -> None:
    rows = [row("dy", 1_000_000, 1_000_000), row("ttbar", 2_500, 2_500, files=1)]
    assert summary_table(rows, 80).splitlines() == [
        "dataset  files    planned    counted  missing",
        "─────────────────────────────────────────────",
        "dy           2  1,000,000  1,000,000        0",
        "ttbar        1      2,500      2,500        0",
        "─────────────────────────────────────────────",
        "all          3  1,002,500  1,002,500        0",
    ]
    assert len(summary_table(rows[:1], 80).splitlines()) == 3
    assert summary_table([], 80).splitlines()[-1].split() == ["all", "0", "0", "0", "0"]


def test_the_table_says_what_is_missing_and_why() -> None:
    rows = [
        row("dy", 1000, 900, events_missing=100, reasons=("2 files: input, bad", "1 chunk: time limit")),
        row("tt", 1000, 500),
    ]
    text = summary_table(rows, 100)
    assert "100  2 files: input, bad; 1 chunk: time limit" in text
    assert re.search(r"tt +2 +1,000 +500 +500  not yet done", text)
    assert re.search(r"all +4 +2,000 +1,400 +600", text)


@pytest.mark.parametrize("width", [1, 20, 50, 60, 80, 120])
def test_the_table_never_cuts_a_number(width: int) -> None:
    rows = [
        row(WIDE + "x" * 50, 123_456_789, 123_456_000, events_missing=789, reasons=("why " * 60,)),
        row("b"),
    ]
    text = summary_table(rows, width)
    assert "123,456,789" in text
    assert "123,456,000" in text
    if width >= 60:
        assert max(cells(each) for each in text.splitlines()) <= width


def test_the_summary_has_the_outputs() -> None:
    summary = Summary(
        (row("a", 100, 100),),
        wall=2.0,
        cpu=3.0,
        peak_memory=5 * 10**8,
        bytes_read=10**6,
        outputs=("out/x.coffea",),
        resumed_events=50,
    )
    text = summary_text(summary, 80)
    assert "2 s, 25 events/s, 3 s of CPU time, 1.0 MB read, 500.0 MB at most on a worker" in text
    assert text.endswith("→ out/x.coffea")
    assert summary.complete


# -- progress in a pipe -----------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def said(stream: io.StringIO) -> list[str]:
    return stream.getvalue().splitlines()


def drive(progress: Progress, clock: Clock, steps: int, seconds: float) -> None:
    progress.started([row("a", 1000)], workers=2)
    for step in range(steps + 1):
        progress.progressed(snapshot(row("a", 1000, 1000 * step // steps)))
        clock.now += seconds / steps
    progress.finished(Summary((row("a", 1000, 1000),)))


@pytest.mark.parametrize(
    ("seconds", "most", "least"), [(0.5, 1, 1), (60, 22, 10), (3600, 362, 300), (30, 21, 5)]
)
def test_a_pipe_gets_a_line_now_and_then(seconds: float, most: int, least: int) -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress(stream, clock=clock) as progress:
        drive(progress, clock, 2000, seconds)
    assert least <= len(said(stream)) <= most
    assert said(stream)[0] == "1,000 events in 10 chunks of 2 files, 1 datasets, on 2 workers"
    assert "\x1b" not in stream.getvalue()
    assert "\r" not in stream.getvalue()


def test_a_resumed_run_says_so() -> None:
    stream = io.StringIO()
    Progress(stream).started([row("a", 1000, 400)], resumed_events=400)
    assert said(stream)[0].endswith("; 400 of them are done already")


def test_quiet_says_only_errors() -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress(stream, quiet=True, clock=clock) as progress:
        drive(progress, clock, 100, 3600)
        progress.message("warning", "hm")
        progress.message("error", "oh")
    assert said(stream) == ["error: oh"]


def test_messages_have_levels_and_no_secrets_and_an_end() -> None:
    stream = io.StringIO()
    progress = Progress(stream, level="warning")
    progress.message("info", "not said")
    progress.message("warning", "opening root://h//f?authz=canary")
    progress.message("error", "x" * 10**6)
    assert len(said(stream)) == 2
    assert "canary" not in stream.getvalue()
    assert len(stream.getvalue()) < 5000
    for i in range(10_000):
        progress.message("warning", f"warning {i}")
    assert len(said(stream)) < 300
    assert "no more of level warning is shown" in stream.getvalue()


def test_our_own_loggers_are_heard_and_let_go() -> None:
    stream = io.StringIO()
    logger = logging.getLogger("executors.engines.test")
    with Progress(stream):
        logger.warning("a worker said %s", "TOKEN=canary")
        logger.critical("gone")
    logger.info("not any more")
    assert said(stream) == ["warning: a worker said TOKEN=[hidden]", "error: gone"]
    assert logging.getLogger("executors").propagate
    assert logging.getLogger("executors").handlers == []


@pytest.mark.parametrize(
    "error", [BrokenPipeError(), OSError(errno.ENOSPC, "no space"), ValueError("closed")]
)
def test_a_reader_who_left_disturbs_nothing(error: Exception) -> None:
    class Gone(io.StringIO):
        tries = 0

        def write(self, text: str) -> int:
            self.tries += 1
            raise error

    stream, clock = Gone(), Clock()
    with Progress(stream, clock=clock) as progress:
        drive(progress, clock, 100, 3600)
        progress.message("error", "nobody hears")
    assert stream.tries == 1


def test_a_stream_that_cannot_write_a_letter_goes_on() -> None:
    stream = io.TextIOWrapper(raw := io.BytesIO(), encoding="ascii")
    progress = Progress(stream)
    progress.message("error", "é")
    progress.message("error", "plain")
    assert raw.getvalue() == b"error: plain\n"


def test_no_stream_at_all() -> None:
    clock = Clock()
    sys_stderr, sys.stderr = sys.stderr, None  # as under a daemon
    try:
        with Progress(clock=clock) as progress:
            drive(progress, clock, 10, 100)
    finally:
        sys.stderr = sys_stderr


def test_it_is_an_observer() -> None:
    observer: Observer = Progress(io.StringIO())
    assert callable(observer.progressed)


# -- progress on a terminal -------------------------------------------------------------------------

ON_A_TERMINAL = """
import sys, time
from executors.show import Progress
from executors.work.report import DatasetCount, Snapshot, Summary
def rows(n):
    chunks = {"chunks_planned": 10, "chunks_done": n // 100}
    return tuple(DatasetCount(f"set{i}", 1, 1000, n, **chunks) for i in range(30))
with Progress() as progress:
    progress.started(rows(0), workers=2)
    for n in range(0, 1001, 50):
        progress.progressed(Snapshot(rows(n), elapsed=n / 100, rate=1000.0))
        if n == 500:
            progress.message("warning", "half [bold]way[/bold]")
        time.sleep(0.04)
    progress.finished(Summary(rows(1000)))
try:
    print("after", "rich" in sys.modules)
except OSError:
    pass
"""


def on_a_terminal(rows: int, columns: int, close_after: float | None = None, **env: str) -> tuple[str, int]:
    """What the script writes to a terminal of that size, and its exit code; the terminal may go away."""
    import fcntl
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TERM": "xterm-256color", **env}
    for name in ("COLUMNS", "LINES"):
        environment.pop(name, None)
    child = subprocess.Popen(
        [sys.executable, "-c", ON_A_TERMINAL],
        stdout=theirs,
        stderr=theirs,
        env=environment,
        start_new_session=True,
    )
    os.close(theirs)
    shown, began = b"", time.monotonic()
    while time.monotonic() - began < 60:
        if close_after is not None and time.monotonic() - began > close_after:
            break
        if select.select([ours], [], [], 0.1)[0]:
            try:
                data = os.read(ours, 65536)
            except OSError:  # the other side is closed
                break
            if not data:
                break
            shown += data
    os.close(ours)
    return shown.decode(errors="replace"), child.wait(timeout=60)


@pytest.mark.parametrize(("rows", "columns"), [(24, 80), (3, 10), (1, 1), (60, 250)])
def test_a_live_picture(rows: int, columns: int) -> None:
    text, code = on_a_terminal(rows, columns)
    assert code == 0, text
    assert "Traceback" not in text
    assert "after True" in text.replace("\r\n", "").replace("\n", "") or columns < 20
    if columns >= 80:
        assert "30.0k" not in text
        assert re.search(r"\d+% [━─]+", text)
        assert "half [bold]way[/bold]" in text
        assert "set1" in text
        assert "100%  30,000 of 30,000 events" in text  # the last line stays


def test_no_colour_and_dumb_terminals() -> None:
    text, code = on_a_terminal(24, 80, NO_COLOR="1")
    assert code == 0
    assert not re.search(r"\x1b\[[0-9;]*m", text)
    text, code = on_a_terminal(24, 80, TERM="dumb")
    assert code == 0
    assert "\x1b" not in text


def test_a_terminal_that_goes_away_does_not_stop_the_work() -> None:
    _, code = on_a_terminal(24, 80, close_after=0.9)
    assert code in (0, 120)  # 120: only the last flush of the interpreter found nobody
