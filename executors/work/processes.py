"""What the kernel says of the memory of a process and of those that it started: read from /proc at each call.

Nothing is kept between calls, no file stays open (a processor may close every descriptor, and its own next
file would get the number), nothing is raised: where the kernel does not say, the answer is None or empty.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import re
import resource
import sys
from pathlib import Path
from typing import NamedTuple

_FIELD = re.compile(rb"^(VmSize|VmHWM|VmRSS|RssFile):\s+(\d+) kB", re.MULTILINE)
_ROLLUP = re.compile(rb"^(Rss|Pss|Private_Clean|Private_Dirty):\s+(\d+) kB", re.MULTILINE)
_PARENT = re.compile(rb"\) \S (\d+) ")
_LISTS_CHILDREN = Path(f"/proc/self/task/{os.getpid()}/children").exists()  # a kernel may be built without
_PAGE = os.sysconf("SC_PAGESIZE")
_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024


class Status(NamedTuple):
    """Bytes of one process."""

    size: int  # of its address space
    peak: int  # resident, at the highest since the last reset
    resident: int
    mapped: int  # of the resident: pages of files


class Rollup(NamedTuple):
    """Bytes of one process, what it shares with others taken into account."""

    resident: int
    pss: int  # shared pages divided among those who share them
    uss: int  # without shared pages


def status(pid: int | str = "self") -> Status | None:
    """The figures of a process; about 25 µs."""
    found = {name: int(kilobytes) << 10 for name, kilobytes in _FIELD.findall(_read(f"/proc/{pid}/status"))}
    if b"VmHWM" not in found or b"VmRSS" not in found:
        return None
    return Status(found.get(b"VmSize", 0), found[b"VmHWM"], found[b"VmRSS"], found.get(b"RssFile", 0))


def resident() -> tuple[int, int]:
    """Bytes of this process that are resident, and those of them that belong to no file; about 12 µs."""
    try:
        _, pages, shared = _read("/proc/self/statm").split()[:3]
        return int(pages) * _PAGE, (int(pages) - int(shared)) * _PAGE
    except ValueError:
        return _resident_elsewhere(), 0


def _resident_elsewhere() -> int:
    try:
        import psutil
    except ImportError:
        return 0
    try:
        return int(psutil.Process().memory_info().rss)
    except (psutil.Error, OSError):
        return 0


def reset(pid: int | str = "self") -> bool:
    """Let the high-water mark of a process start from now; False where the kernel cannot; about 5 µs."""
    # Whatever goes wrong here, at closing too, is no failure of the chunk that is being measured.
    with contextlib.suppress(OSError), io.FileIO(f"/proc/{pid}/clear_refs", "w") as file:
        file.write(b"5")
        return True
    return False


def rollup(pid: int | str = "self") -> Rollup | None:
    """What a process has for itself alone; 0.3 ms and more, so not for every chunk."""
    found = {
        name: int(kilobytes) << 10 for name, kilobytes in _ROLLUP.findall(_read(f"/proc/{pid}/smaps_rollup"))
    }
    if len(found) < 4:
        return None
    private = found[b"Private_Clean"] + found[b"Private_Dirty"]
    return Rollup(found[b"Rss"], found[b"Pss"], private)


def ever() -> int:
    """The highest that this process ever was, where nothing better is known; it may be its parent's."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_UNIT


def largest_ended() -> int:
    """The highest of any child that has ended and was waited for; each has its parent's for a start."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * _MAXRSS_UNIT


def has_children() -> bool:
    """Whether this process has any child: one call of the kernel, 1 µs."""
    if not hasattr(os, "waitid"):
        return False
    try:
        # WNOWAIT: whoever started the child still gets its exit code.
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except OSError:
        return False
    return True


def descendants() -> list[int]:
    """The processes that this one started, and theirs, as far as they have kept their parents."""
    found: list[int] = []
    todo = [os.getpid()]
    while todo:
        kids = _children(todo.pop())
        found += kids
        todo += kids
    return found


def is_fork(pid: int) -> bool:
    """Whether a process runs the very program of this one, begun by a fork alone."""
    # Where the stack begins is drawn by lot for each program that is started, and a fork keeps it.
    mine, its = (_read(f"/proc/{who}/stat").rpartition(b")")[2].split()[25:26] for who in ("self", pid))
    return mine == its


def _children(pid: int) -> list[int]:
    try:
        threads = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208 - called often; half the time of the other way
    except OSError:
        return []
    if _LISTS_CHILDREN:  # by the thread that started them
        return [
            int(kid) for thread in threads for kid in _read(f"/proc/{pid}/task/{thread}/children").split()
        ]
    return _children_by_parent(pid)


def _children_by_parent(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        parent = _PARENT.search(_read(f"{path}/stat"))
        if parent is not None and int(parent.group(1)) == pid:
            found.append(int(path.name))
    return found


def give_back() -> bool:
    """Have the C library return to the kernel what it keeps of freed memory; False where it cannot."""
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (AttributeError, OSError):  # not glibc
        return False


def _read(path: str) -> bytes:
    with contextlib.suppress(OSError), io.FileIO(path) as file:  # the process may just have ended
        return bytes(file.read(1 << 16) or b"")
    return b""
