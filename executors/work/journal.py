"""The journal: a log of what happened, for people and reports. Nothing depends on it.

Each line is JSON with a checksum of its own; a torn or damaged line is passed over.
"""

from __future__ import annotations

import json
import time
import zlib
from typing import IO, TYPE_CHECKING, Any

from executors.work.store import ours

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


LONGEST = 1 << 20


class Journal:
    """Appends lines to a file, flushed in groups. A disk that refuses is said once, never fatal."""

    def __init__(self, path: Path, clean: Callable[[str], str] = str) -> None:
        self.path = path
        self._clean = clean  # what each text goes through: errors name addresses, tokens and all
        self.failed: OSError | None = None
        self._file: IO[bytes] | None = None
        self._flushed = 0.0
        try:
            self._file = open(path, "ab", buffering=1 << 16, opener=ours)  # noqa: SIM115
            if self._file.tell():
                # The last line may be torn: it must not take the next one along.
                self._file.write(b"\n")
        except OSError as error:
            self.failed = error

    def write(self, event: str, **about: Any) -> None:
        """Append one line."""
        if self._file is None:
            return
        said = {key: self._clean(value) if isinstance(value, str) else value for key, value in about.items()}
        body = json.dumps(
            {"t": round(time.time(), 3), "event": event, **said}, default=str, separators=(",", ":")
        )
        try:
            self._file.write(f"{zlib.crc32(body.encode()):08x} {body}\n".encode())
            if time.monotonic() - self._flushed > 1.0:
                self._file.flush()
                self._flushed = time.monotonic()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self.failed = error
        file, self._file = self._file, None
        try:
            if file is not None:
                file.close()
        except OSError:
            return

    def close(self) -> None:
        """Flush what is left."""
        if self._file is not None:
            try:
                self._file.close()
            except OSError as error:
                self.failed = error
            self._file = None


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The journal's good lines."""
    try:
        file = path.open("rb")
    except OSError:
        return
    with file:
        for line in _lines(file):
            checksum, _, body = line.rstrip(b"\n").partition(b" ")
            try:
                if int(checksum, 16) == zlib.crc32(body):
                    yield json.loads(body)
            except ValueError:
                continue


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    while True:
        try:
            line = file.readline(LONGEST)
        except OSError:
            return
        if not line:
            return
        yield line
