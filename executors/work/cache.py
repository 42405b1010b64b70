"""What was counted once is not counted again: entries by file identity, in a small database of the user's.

Only a saving: a cache that is missing, locked or damaged is passed over, and the worker checks every file
against the plan anyway.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_TABLE = """create table if not exists files (
  path text, treename text, size integer, mtime integer, entries integer, uuid text, found text,
  primary key (path, treename)) without rowid"""

AT_ONCE = 500  # paths in a question; the oldest SQLite takes 999


class Known(NamedTuple):
    """A file as it was when it was counted. ``treename`` is what was asked for, ``found`` what is there."""

    path: str
    treename: str
    size: int
    mtime: int
    entries: int
    uuid: str
    found: str


def default_folder() -> Path:
    """Where this user's caches lie."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "coffea-scaleout"


def _opened(path: Path) -> sqlite3.Connection:
    base = sqlite3.connect(path, timeout=5.0, isolation_level=None)
    try:
        base.execute(_TABLE)
    except sqlite3.OperationalError:  # locked, or not to be written to: others may need it
        base.close()
        raise
    except sqlite3.DatabaseError:  # damaged: nothing in it can be had, and it would be so for ever
        base.close()
        for part in (path, path.with_name(f"{path.name}-journal")):
            part.unlink(missing_ok=True)
        base = sqlite3.connect(path, timeout=5.0, isolation_level=None)
        base.execute(_TABLE)
    return base


class Cache:
    """Entries of files by path, tree, size and time of last change."""

    def __init__(self, folder: Path | None) -> None:
        self._path = (folder or default_folder()) / "entries.sqlite"
        self._base: sqlite3.Connection | None = None
        with contextlib.suppress(OSError, sqlite3.Error, RuntimeError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._base = _opened(self._path)

    def get(self, path: str, treename: str, size: int, mtime: int) -> Known | None:
        """What is known of a file that is still the same."""
        found = self.find([path]).get((path, treename))
        return found if found is not None and (found.size, found.mtime) == (size, mtime) else None

    def find(self, paths: Iterable[str]) -> dict[tuple[str, str], Known]:
        """All that is known under these paths, by path and tree; the files may be others by now."""
        found = {}
        for row in self._rows(list(paths)):
            found[row[0], row[1]] = Known(*row)
        return found

    def _rows(self, paths: list[str]) -> Iterator[tuple[str, str, int, int, int, str, str]]:
        if self._base is None:
            return
        with contextlib.suppress(sqlite3.Error, UnicodeError):
            for start in range(0, len(paths), AT_ONCE):
                some = paths[start : start + AT_ONCE]
                yield from self._base.execute(
                    f"select * from files where path in ({','.join('?' * len(some))})",  # noqa: S608
                    some,
                )

    def put(self, rows: Iterable[Known]) -> None:
        """Remember files."""
        if self._base is None:
            return
        with contextlib.suppress(sqlite3.Error, UnicodeError):
            self._base.execute("begin")
            self._base.executemany("insert or replace into files values (?, ?, ?, ?, ?, ?, ?)", rows)
            self._base.execute("commit")

    def close(self) -> None:
        """Let go of the database."""
        if self._base is not None:
            with contextlib.suppress(sqlite3.Error):
                self._base.close()
