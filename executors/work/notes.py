"""What dead workers left: which chunk each was in. The driver's side of ``worker.Note``."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from executors.work.model import Kind

if TYPE_CHECKING:
    from pathlib import Path

# What is not the user's in a dump of all threads: the standard library, packages, this project.
_NOT_USER = re.compile(r"/lib/python3\.\d+/|/executors/(work|coffea|engines|jobs)")
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+) in (?P<name>.+)')


@dataclass(frozen=True, slots=True)
class LastWords:
    """The chunk a worker was in when it died, and what it said of the reason."""

    file: int
    chunk: int
    kind: Kind
    host: str
    pid: int
    frames: tuple[str, ...] = ()


def collect(folder: Path, task: str) -> LastWords | None:
    """Read and remove the note of a task whose worker died; None if it never began a chunk."""
    found = None
    for path in sorted(folder.glob(f"{task[:32]}.*")):
        text = ""
        with contextlib.suppress(OSError):
            text = path.read_text(errors="replace")
            path.unlink()
        found = _read(text, path.name) or found
    return found


def _read(text: str, name: str) -> LastWords | None:
    line, _, rest = text.partition("\n")
    host, _, pid = name.partition(".")[2].rpartition(".")
    try:
        content = json.loads(line)
        file, chunk = int(content["file"]), int(content["chunk"])
    except (ValueError, KeyError, TypeError, OverflowError):
        return None
    timeout = "Timeout (" in rest
    every = [m.groupdict() for m in _FRAME.finditer(rest)]
    own = [m for m in every if not _NOT_USER.search(m["file"])]
    frames = tuple(f"{m['file']}:{m['line']} in {m['name']}" for m in own or every)
    return LastWords(
        file,
        chunk,
        Kind.TIMEOUT if timeout else Kind.LOST,
        host,
        int(pid) if pid.isdecimal() else 0,
        frames[:12][::-1],
    )


def clear(folder: Path) -> None:
    """Remove all notes: whoever wrote them is gone."""
    for path in folder.glob("*"):
        with contextlib.suppress(OSError):
            path.unlink()
