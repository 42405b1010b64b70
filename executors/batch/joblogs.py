"""The last lines that a job left in the log folder: bounded, from plain files alone, in plain characters."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from executors.batch.schedulers import clean

if TYPE_CHECKING:
    from collections.abc import Iterable

TAIL = 8192  # bytes
NAMES = 20_000  # directory entries looked at
ORDER = (
    ".err",
    ".out",
)  # what is worth reading, first choice first; scheduler's own .log says nothing of why


def last_lines(folder: Path, ids: Iterable[str], count: int = 5) -> tuple[str, list[str]]:
    """Name of the file and its last lines that are not empty, for the first file that has any."""
    for path in _files(folder, [one for one in ids if one]):
        lines = [line for raw in _tail(path).splitlines() if (line := clean(raw, 240))]
        if lines:
            return path.name, lines[-count:]
    return "", []


def _files(folder: Path, ids: list[str]) -> list[Path]:
    wanted = re.compile("|".join(rf"(?<!\d)(?<!\d\.){re.escape(one)}(?!\d)" for one in ids)) if ids else None
    found: list[Path] = []
    try:
        with os.scandir(folder) as entries:
            for _, entry in zip(range(NAMES), entries, strict=False):
                path = Path(entry.path)
                if wanted is not None and path.suffix in ORDER and wanted.search(entry.name):
                    found.append(path)
    except OSError:
        return []
    return sorted(found, key=lambda path: (ORDER.index(path.suffix), path.name))


def _tail(path: Path) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    with os.fdopen(fd, "rb") as file:
        about = os.fstat(fd)
        if not stat.S_ISREG(about.st_mode):
            return ""
        file.seek(max(0, about.st_size - TAIL))
        return file.read(TAIL).decode(errors="replace")
