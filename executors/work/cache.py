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
    from collections.abc import Iterable

_TABLE = """create table if not exists files (
  path text, treename text, size integer, mtime integer, entries integer, uuid text, found text,
  primary key (path, treename)) without rowid"""


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


class Cache:
    """Entries of files by path, tree, size and time of last change."""

    def __init__(self, folder: Path | None) -> None:
        self._path = (folder or default_folder()) / "entries.sqlite"
        self._base: sqlite3.Connection | None = None
        with contextlib.suppress(OSError, sqlite3.Error, RuntimeError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._base = sqlite3.connect(self._path, timeout=5.0, isolation_level=None)
            self._base.execute(_TABLE)

    def get(self, path: str, treename: str, size: int, mtime: int) -> Known | None:
        """What is known of a file that is still the same."""
        if self._base is None:
            return None
        try:
            row = self._base.execute(
                "select * from files where path = ? and treename = ? and size = ? and mtime = ?",
                (path, treename, size, mtime),
            ).fetchone()
        except (sqlite3.Error, UnicodeError):
            return None
        return None if row is None else Known(*row)

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
