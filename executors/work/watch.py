"""Looks for workers that hang: stopped by a signal, or silent long after their own time limit.

A worker ends itself when a chunk takes too long; one that is stopped cannot. What it is in is in its note.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

from executors.work.model import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

EVERY = 2.0
STOPPED = 6.0  # seconds that a process is seen stopped before it counts as hung
GRACE = 10.0  # seconds after the chunk's time limit in which the worker ends by itself


class Watch:
    """Reads the notes of running tasks now and then."""

    def __init__(self, folder: Path, limit: float | None) -> None:
        self._folder, self._limit = folder, limit
        self._next = time.monotonic() + EVERY
        self._stopped: dict[str, float] = {}

    def hung(self) -> Iterator[tuple[str, str]]:
        """How the ids of tasks begin whose worker hangs, and why; nothing when it is too early to look."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + EVERY
        seen = {}
        for path in self._folder.glob("*.*.*"):
            task = path.name.partition(".")[0]
            if self._is_stopped(path.name):
                seen[path.name] = since = self._stopped.get(path.name, now)
                if now - since >= STOPPED:
                    yield task, "stopped"
            elif self._limit and time.time() - _since(path) > self._limit + GRACE:
                yield task, Kind.TIMEOUT.value
        self._stopped = seen

    @staticmethod
    def _is_stopped(name: str) -> bool:
        host, _, pid = name.partition(".")[2].rpartition(".")
        if host != socket.gethostname():
            return False
        with contextlib.suppress(OSError, IndexError):
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
        return False


def _since(path: Path) -> float:
    """When the chunk of a note began; now if it cannot be told."""
    try:
        return float(json.loads(path.read_text().partition("\n")[0])["since"])
    except (OSError, ValueError, KeyError, TypeError):
        return time.time()
