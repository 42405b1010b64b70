"""What a process and those it has started hold of memory, and whether the kernel has killed for it.

For whoever keeps workers within their share: read often, so a look costs microseconds while all is well.
Only the standard library may enter: a keeper imports it on any node.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PAGE = os.sysconf("SC_PAGESIZE")
LEAST_PAUSE = 0.02
PAUSE_EACH = 0.001  # a look at one takes a hundredth of that
LEAST_PART = 0.5  # of a job's memory, its workers may always use
ADDS_UP = ("condor",)  # batch systems that may count for each process what several share
KIN_EVERY = 0.2  # seconds between looks for what a worker has started
NO_LIMIT = 1 << 60  # version 1 of cgroups has a number for "none", a little below 2**63


class Scale:
    """Weighs workers, each with all that descends from it."""

    def __init__(self) -> None:
        self._kin: dict[int, tuple[float, list[int]]] = {}

    @staticmethod
    def pause(workers: int) -> float:
        """Seconds between looks at so many workers, each of which fills some megabytes in a millisecond."""
        return max(LEAST_PAUSE, PAUSE_EACH * workers)

    def weigh(self, pid: int, limit: int, adopted: Iterable[int] = ()) -> int:
        """Bytes that a process and its descendants hold; exact only where it comes near the limit.

        ``adopted``: descendants whose own parents are gone, so that they are not found below it.
        """
        kin = [*self._descendants(pid), *adopted]
        sizes = [_held(one, limit) for one in (pid, *kin)]
        if kin and sum(sizes) > limit:
            return sum(_fair(one, size) for one, size in zip((pid, *kin), sizes, strict=True))
        return sum(sizes)

    def _descendants(self, pid: int) -> list[int]:
        now = time.monotonic()
        since, kin = self._kin.get(pid, (0.0, []))
        if now - since > KIN_EVERY:
            kin = list(descendants(pid))
            self._kin[pid] = (now, kin)
        return kin

    def forget(self, pid: int) -> None:
        """That process is gone."""
        self._kin.pop(pid, None)


def share(job: int | None, workers: int, own: int, each: int = 0) -> int | None:
    """What a worker may use, so that all of a job stays below what it has.

    ``own``: what the job needs for itself, ``each``: what it needs for a worker beside that.
    """
    if job is None:
        return None
    return int(max(job - own - workers * each, LEAST_PART * job) / workers)


def least(*limits: int | None) -> int | None:
    """The least of those that are known."""
    return min((one for one in limits if one is not None), default=None)


def descendants(pid: int) -> Iterator[int]:
    """Every process below one."""
    with contextlib.suppress(OSError, ValueError):
        for task in os.scandir(f"/proc/{pid}/task"):
            with open(f"{task.path}/children", encoding="ascii") as file:  # noqa: PTH123 - twenty times a second
                children = file.read()
            for child in map(int, children.split()):
                yield child
                yield from descendants(child)


def _held(pid: int, limit: int) -> int:
    """Bytes of a process that cannot be dropped: files that it has mapped are given back under pressure."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:  # noqa: PTH123 - twenty times a second
            _, resident, shared = map(int, file.read().split()[:3])
    except (OSError, ValueError):
        return 0
    if resident * PAGE <= limit:
        return (resident - shared) * PAGE
    # Memory that processes share counts as shared too, and is as real as any.
    rows = _rows(f"/proc/{pid}/status", ("RssAnon", "RssShmem"))
    return sum(rows.values()) if "RssAnon" in rows else (resident - shared) * PAGE


def _fair(pid: int, otherwise: int) -> int:
    """Bytes of a process of which others have a share: a fork has its parent's pages until it writes."""
    rows = _rows(f"/proc/{pid}/smaps_rollup", ("Pss_Anon", "Pss_Shmem"))
    return sum(rows.values()) if "Pss_Anon" in rows else otherwise


def _rows(path: str, names: tuple[str, ...]) -> dict[str, int]:
    found = {}
    with contextlib.suppress(OSError, ValueError), open(path, encoding="ascii", errors="replace") as lines:  # noqa: PTH123
        for line in lines:
            name, _, rest = line.partition(":")
            if name in names:
                found[name] = int(rest.split()[0]) * 1024
    return found


class Kills:
    """The kernel's count of processes that it killed for memory; each is accounted for once."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._file = _own_group(root)
        self._known = self._count()

    @property
    def readable(self) -> bool:
        """Whether there is such a count at all: kernels before 4.13 have none."""
        return self._known is not None

    def forget(self) -> None:
        """Whatever was killed until now is nobody's that will be asked for."""
        self._known = self._count()

    def one_more(self) -> bool:
        """Whether there was another kill than those accounted for; it is now."""
        count = self._count()
        if count is None or self._known is None or count <= self._known:
            return False
        self._known += 1
        return True

    def _count(self) -> int | None:
        # The count of one's own group is exact; that of the whole machine also knows of others' kills.
        own = None if self._file is None else _oom_kill(self._file)
        return own if own is not None else _oom_kill(self._root / "proc/vmstat")


def _oom_kill(path: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError), path.open(encoding="ascii", errors="replace") as lines:
        for line in lines:
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return None


def _own_group(root: Path) -> Path | None:
    """The file with the count of this process's own group: version 2, or 1 where that has the memory."""
    for folder, version in groups(root):
        return folder / ("memory.events" if version == 2 else "memory.oom_control")
    return None


def group_limit(root: Path = Path("/")) -> int | None:
    """The least that the groups of this process allow in bytes, None if they allow everything."""
    least = None
    for folder, version in groups(root):
        for name in ("memory.max", "memory.high") if version == 2 else ("memory.limit_in_bytes",):
            with contextlib.suppress(OSError, ValueError):
                limit = int((folder / name).read_text(encoding="ascii"))
                if limit < NO_LIMIT:
                    least = limit if least is None else min(least, limit)
    return least


def groups(root: Path = Path("/")) -> Iterator[tuple[Path, int]]:
    """The folders of this process's own memory group and of those above it, and the version of cgroups."""
    try:
        own = (root / "proc/self/cgroup").read_text(errors="replace").splitlines()
        mounts = (root / "proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return
    paths = {
        controllers: path
        for _, controllers, path in (line.split(":", 2) for line in own if line.count(":") > 1)
    }
    one = next((path for names, path in paths.items() if "memory" in names.split(",")), None)
    version, path = (2, paths.get("")) if one is None else (1, one)
    for line in mounts:
        left, _, right = line.partition(" - ")
        kind, _, options = right.partition(" ")
        fits = kind == "cgroup2" if version == 2 else kind == "cgroup" and re.search(r"\bmemory\b", options)
        if path is not None and fits:
            top, at = left.split()[3:5]
            yield from ((folder, version) for folder in _upwards(root / at.lstrip("/"), _below(path, top)))
            return


def _below(path: str, top: str) -> str:
    """A group's path below the folder that is mounted, which may itself be a group of the host's."""
    if path.startswith("/.."):  # outside of what this namespace shows
        return ""
    inside = path == top or path.startswith(f"{top.rstrip('/')}/")
    return path[len(top) :] if inside and top != "/" else path


def _upwards(mount: Path, below: str) -> Iterator[Path]:
    folder = mount / below.strip("/")
    if not folder.is_dir():  # a container shows its own group as the top
        folder = mount
    yield folder
    while folder != mount:
        folder = folder.parent
        yield folder
