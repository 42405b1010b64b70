"""The folder of one test session: short enough for a socket's path, and found again when the session has died.

A session that was killed leaves daemons; the next one ends them. It knows them by their folder's file, and it
knows that their session is dead by number and birth. What one server needs lives in its own module.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from real.servers import processes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PREFIX = "csr-"
MARK = "session.json"
# The second one for pools whose jobs have a /tmp of their own: these cannot live below /tmp themselves.
BASES = (Path("/tmp"), Path("/var/cache") if os.geteuid() == 0 else Path.home() / ".cache")


@contextlib.contextmanager
def folder(base: Path = BASES[0]) -> Iterator[Path]:
    """A folder that others may enter, for daemons and jobs of other users; removed in the end."""
    path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
    path.chmod(0o755)
    owner = {"pid": os.getpid(), "born": processes.born(os.getpid())}
    (path / MARK).write_text(json.dumps(owner))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def sweep(*ends: Callable[[Path], object]) -> list[Path]:
    """End what dead sessions of this user left, and remove their folders."""
    found = [path for base in BASES for path in base.glob(f"{PREFIX}*") if _orphaned(path)]
    for path in found:
        for end in ends:
            end(path)
        shutil.rmtree(path, ignore_errors=True)
    return found


def _orphaned(path: Path) -> bool:
    try:
        if path.stat().st_uid != os.getuid():
            return False
        owner = json.loads((path / MARK).read_text())
    except (OSError, ValueError):  # just being made, or somebody else's
        return False
    pid = int(owner["pid"])
    return not processes.alive(pid) or processes.born(pid) != owner["born"]
