"""Signals that stop a run: the first one in order, the second one at once, whoever else wants them."""

from __future__ import annotations

import contextlib
import signal
import threading
import traceback
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def as_they_were() -> Iterator[None]:
    """What is imported leaves signals alone: dask-jobqueue makes Ctrl-C a ``sys.exit()``."""
    before = {number: signal.getsignal(number) for number in ENDING}
    try:
        yield
    except SystemExit as end:
        if _of_a_handler(end):  # Ctrl-C, after it was changed and before the rest was imported
            raise KeyboardInterrupt from end
        raise
    finally:
        for number, handler in before.items():
            if handler is not None and signal.getsignal(number) is not handler:
                with contextlib.suppress(ValueError):  # not in the main thread, where they cannot be changed
                    signal.signal(number, handler)


def _of_a_handler(end: SystemExit) -> bool:
    """Whether a handler that is in place raised this."""
    handlers = [getattr(signal.getsignal(number), "__code__", None) for number in ENDING]
    return any(frame.f_code in handlers for frame, _ in traceback.walk_tb(end.__traceback__))


@contextlib.contextmanager
def stopping(
    stop: threading.Event, flag: Path | None = None, force_after: float | None = None
) -> Iterator[None]:
    """Let the first signal stop the run in order, the second at once; workers look for ``flag``."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    timers: list[threading.Timer] = []

    def on_signal(number: int, _: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        if flag is not None:
            with contextlib.suppress(OSError):
                flag.touch()
        if force_after is not None:
            # The task runs in this very thread: give it a while to end, then interrupt it.
            timers.append(threading.Timer(force_after, signal.raise_signal, (number,)))
            timers[-1].daemon = True
            timers[-1].start()

    # Under nohup a hang-up is ignored, and stays so.
    handled = [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, on_signal) for number in handled}
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)
