"""The input that a worker had open last, kept for its next task: parsing a tree takes longer than a chunk.

At most one is kept, and it is used again only as long as it is surely the same file.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from executors.coffea.classify import local_path, remote

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from executors.coffea.events import Input
    from executors.work.model import FileSlice

IDLE = 60.0  # seconds: a server may have closed a file that nobody read for longer


class _Entry:
    """One open input between two tasks, or within one."""

    def __init__(self, key: Hashable, opened: AbstractContextManager[Input]) -> None:
        self.key = key
        self._files = contextlib.ExitStack()
        self.source = self._files.enter_context(opened)
        self.since = 0.0

    def close(self) -> None:
        """Close the file; one that fails to close has given what it had."""
        with contextlib.suppress(Exception):
            self._files.close()


class Kept:
    """Opens inputs, and leaves the last one open until the next is asked for."""

    def __init__(self) -> None:
        # Empty while it is used: several threads may share an analysis, and each then opens its own.
        self._slot: list[_Entry] = []

    @contextlib.contextmanager
    def open(
        self,
        piece: FileSlice,
        dataset: str,
        metadata: Mapping[str, Any],
        opened: Callable[[], AbstractContextManager[Input]],
    ) -> Iterator[Input]:
        """The input of a slice: the one that is open already, or what ``opened()`` opens."""
        key = _key(piece)
        entry = self._taken(key)
        try:
            if entry is None:
                entry = _Entry(key, opened())
            else:
                entry.source.serve(piece, dataset, metadata)
            yield entry.source
        except BaseException:
            if entry is not None:
                entry.close()
            raise
        self._put(entry)

    def close(self) -> None:
        """Keep nothing open."""
        while self._slot:
            self._slot.pop().close()

    def _taken(self, key: Hashable) -> _Entry | None:
        try:
            entry = self._slot.pop()
        except IndexError:
            return None
        if key is not None and entry.key == key and time.monotonic() - entry.since < IDLE:
            return entry
        entry.close()
        return None

    def _put(self, entry: _Entry) -> None:
        entry.source.rest()
        entry.since = time.monotonic()
        if entry.source.failed or entry.key is None or self._slot:
            entry.close()
        else:
            self._slot.append(entry)

    def __reduce__(self) -> tuple[Any, ...]:
        """What is open here does not travel."""
        return Kept, ()


def _key(piece: FileSlice) -> Hashable:
    """What a file is known again by; None for one that is not there."""
    address = piece.address
    if remote(address):
        return address, piece.treename
    try:
        status = Path(local_path(address)).stat()
    except OSError:
        return None
    return address, piece.treename, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
