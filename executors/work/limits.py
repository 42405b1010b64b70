"""How much memory and how many cores there really are here: the least of all limits, and who set it.

The machine's own total is only one of them: a control group (of the login session, the container, the batch
job), a scheduler's promise or a limit of the shell may be smaller. Nothing outside of this room may ask the
machine alone. Everything is read below ``root``, so that a tree of files can stand for a machine.
"""

from __future__ import annotations

import os
import re
import resource
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from executors.work import processes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path("/")
UNLIMITED = 1 << 60  # version 1 says 2**63 less a page
NEED = 10**9  # bytes of a worker, where nothing is known of its chunks
RUNNER = 300 << 20  # bytes that the runner itself takes
USABLE = 0.85  # of a limit: the rest is for what nobody foresees
_AD = re.compile(
    r"^(Memory|MemoryProvisioned|RequestMemory|Cpus|CpusProvisioned|RequestCpus) = (\d+)$", re.MULTILINE
)
_V1_FILES, _V2_FILES = ("memory.limit_in_bytes",), ("memory.max", "memory.high")


class Limit(NamedTuple):
    """A number of bytes that must not be exceeded."""

    bytes: int
    source: str  # who says so, for people
    shared: bool = True  # by all processes there together; else each may use so much
    used: int = 0  # now, by anybody; of a limit that each has for itself: by what is no memory

    def left(self, own: int) -> int:
        """What a process of ``own`` bytes, and its children, can have of it with the others as they are."""
        return max(0, self.bytes - (max(0, self.used - own) if self.shared else self.used))

    def usable(self, own: int) -> int:
        """What may be planned with: some is kept free, and what is shared has the runner in it."""
        whole = min(int(USABLE * self.bytes), self.left(own))
        return max(0, whole - RUNNER) if self.shared else whole


class Choice(NamedTuple):
    """How many workers fit, and why so many."""

    workers: int
    why: str


def memory_limit(root: Path = ROOT, env: Mapping[str, str] | None = None) -> Limit:
    """The least of all limits of memory that hold for this process."""
    return min(limits(root, env), key=lambda limit: limit.bytes)


def available(root: Path = ROOT, env: Mapping[str, str] | None = None) -> int:
    """Bytes that this process and its children may use now: what the others leave of every limit."""
    own = processes.resident()[0]
    return min(limit.left(own) for limit in limits(root, env))


def share(workers: int, root: Path = ROOT, env: Mapping[str, str] | None = None) -> Limit:
    """What each of so many workers here may plan with, and by which limit."""
    own = processes.resident()[0]
    each = (
        limit._replace(bytes=limit.usable(own) // (workers if limit.shared else 1), shared=False, used=0)
        for limit in limits(root, env)
    )
    return min(each, key=lambda limit: limit.bytes)


def workers_for(need: int = NEED, root: Path = ROOT, env: Mapping[str, str] | None = None) -> int:
    """How many workers of ``need`` bytes fit here: not more than cores, and no swap; at least one."""
    return choice(need, root, env).workers


def choice(
    need: int = NEED,
    root: Path = ROOT,
    env: Mapping[str, str] | None = None,
    promised: int | None = None,
) -> Choice:
    """The same, with the reason; ``promised`` is what the user gives all workers together."""
    own = processes.resident()[0]
    rooms = [(limit.usable(own), limit.source) for limit in limits(root, env) if limit.shared]
    if promised is not None:
        rooms.append((promised, "--memory"))
    room, source = min(rooms, default=(UNLIMITED, "no limit"))
    most = cores(root, env)
    fitting = room // max(1, need)
    each = f"{need / 1e9:.1f} GB each in {room / 1e9:.1f} GB of memory ({source})"
    if fitting >= most:
        return Choice(most, f"one for each core, {each}")
    return Choice(max(1, fitting), f"{each}, with {most} cores")


def limits(root: Path = ROOT, env: Mapping[str, str] | None = None) -> list[Limit]:
    """Every limit of memory that is known here, the machine's last."""
    env = os.environ if env is None else env
    found = [*_groups(root), *_slurm(env), *_condor(root, env), *_shell(), *_machine(root)]
    return found or [Limit(UNLIMITED, "no limit is known")]


# -- control groups -----------------------------------------------------------------------------------


class Group(NamedTuple):
    """The control group of this process in one hierarchy: folders, its own first, up to the highest seen."""

    version: int
    folders: tuple[Path, ...]


def groups(root: Path, controller: str) -> Iterator[Group]:
    """The groups of this process in every hierarchy that can hold a controller."""
    mounts = list(_mounts(root))
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        version = 2 if number == "0" and not names else 1
        if version == 1 and controller not in names.split(","):
            continue
        for kind, options, inside, point in mounts:
            if kind == ("cgroup2" if version == 2 else "cgroup") and (version == 2 or controller in options):
                yield Group(version, _upwards(root / point.lstrip("/"), _below(path, inside)))


def _mounts(root: Path) -> Iterator[tuple[str, list[str], str, str]]:
    """Kind, options, the part that is seen, and where, of every mount of control groups."""
    for line in _read(root / "proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        fields, more = left.split(), right.split()
        if len(fields) >= 5 and len(more) >= 3 and more[0] in ("cgroup", "cgroup2"):
            yield more[0], more[2].split(","), _unescaped(fields[3]), _unescaped(fields[4])


def _unescaped(path: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found.group(1), 8)), path)


def _below(path: str, inside: str) -> str:
    """Where a group is below the mount point; the mount point itself where it cannot be told."""
    if path.startswith("/.."):  # outside of this name space: what is seen of it is the mount's top
        return ""
    if inside != "/":
        # A container with the host's path: the mount shows just this group, or one above it.
        return path[len(inside) :] if f"{path}/".startswith(f"{inside.rstrip('/')}/") else ""
    return path


def _upwards(point: Path, below: str) -> tuple[Path, ...]:
    folder = point / below.strip("/")
    return (folder, *(above for above in folder.parents if above == point or point in above.parents))


def _groups(root: Path) -> Iterator[Limit]:
    for group in groups(root, "memory"):
        for folder in group.folders:
            used = _used(folder, group.version)
            for name in _V2_FILES if group.version == 2 else _V1_FILES:
                if (value := _number(folder / name)) is not None:
                    yield Limit(value, f"control group {name}", True, used)
        if group.version == 1:
            # The least of all groups above, those that a container does not see included.
            text = _read(group.folders[0] / "memory.stat")
            if (value := _stat(text, "hierarchical_memory_limit")) and value < UNLIMITED:
                yield Limit(value, "control group", True, _used(group.folders[0], 1))


def _used(folder: Path, version: int) -> int:
    """What the group uses that cannot be dropped: its pages of files can."""
    text = _read(folder / "memory.stat")
    if version == 2:
        used, files = _number(folder / "memory.current"), _stat(text, "file") - _stat(text, "shmem")
    else:
        used = _number(folder / "memory.usage_in_bytes")
        files = _stat(text, "total_inactive_file") + _stat(text, "total_active_file")
    return max(0, (used or 0) - files)


def _stat(text: str, name: str) -> int:
    found = re.search(rf"^{name} (\d+)$", text, re.MULTILINE)
    return int(found.group(1)) if found else 0


def _number(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.isdecimal() and int(text) < UNLIMITED else None


# -- what else limits ---------------------------------------------------------------------------------


def _slurm(env: Mapping[str, str]) -> Iterator[Limit]:
    if "SLURM_JOB_ID" not in env:  # of a shell that has left its job
        return
    node, core = _whole(env, "SLURM_MEM_PER_NODE"), _whole(env, "SLURM_MEM_PER_CPU")
    if node:  # 0 is the whole node
        yield Limit(node << 20, "SLURM_MEM_PER_NODE")
    elif core and (count := _whole(env, "SLURM_CPUS_ON_NODE")):
        yield Limit(core * count << 20, "SLURM_MEM_PER_CPU")


def _condor(root: Path, env: Mapping[str, str]) -> Iterator[Limit]:
    for name, value in _ads(root, env):
        if "Memory" in name and value:
            yield Limit(value << 20, f"HTCondor's {name}")


def _ads(root: Path, env: Mapping[str, str]) -> Iterator[tuple[str, int]]:
    """What the slot and the job say of themselves in whole numbers; an expression says nothing yet."""
    for variable in ("_CONDOR_MACHINE_AD", "_CONDOR_JOB_AD"):
        if path := env.get(variable):
            for name, value in _AD.findall(_read(root / path.lstrip("/"))):
                yield name, int(value)


def _shell() -> Iterator[Limit]:
    for name in ("RLIMIT_AS", "RLIMIT_DATA"):
        soft, _ = resource.getrlimit(getattr(resource, name))
        if 0 <= soft < UNLIMITED and soft != resource.RLIM_INFINITY:
            yield Limit(soft, name, False, _reserved() if name == "RLIMIT_AS" else 0)


def _reserved() -> int:
    """Bytes of address space that are not in memory: a limit on the one leaves less for the other."""
    status = processes.status()
    return max(0, status.size - status.resident) if status is not None else 0


def _machine(root: Path) -> Iterator[Limit]:
    text = _read(root / "proc/meminfo")
    found = dict(re.findall(r"^(MemTotal|MemAvailable): +(\d+) kB$", text, re.MULTILINE))
    if "MemTotal" in found:
        total = int(found["MemTotal"]) << 10
        yield Limit(total, "the machine", True, total - (int(found.get("MemAvailable", 0)) << 10 or total))
    elif root == ROOT:
        yield Limit(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "the machine")


def cores(root: Path = ROOT, env: Mapping[str, str] | None = None) -> int:
    """Cores that this process may use: those it is bound to, its groups' share of time, its job's."""
    env = os.environ if env is None else env
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    promised = [value for name, value in _ads(root, env) if "Cpus" in name and value]
    if "SLURM_JOB_ID" in env and (count := _whole(env, "SLURM_CPUS_ON_NODE")):
        promised.append(count)
    return max(1, min([bound, *promised, *_quotas(root)]))


def _quotas(root: Path) -> Iterator[int]:
    for group in groups(root, "cpu"):
        for folder in group.folders:
            if group.version == 2:
                words = _read(folder / "cpu.max").split()
            else:
                words = [_read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
            if len(words) == 2 and all(word.isdecimal() and int(word) for word in words):
                yield max(1, int(words[0]) // int(words[1]))


def _whole(env: Mapping[str, str], name: str) -> int:
    text = env.get(name, "")
    return int(text) if text.isdecimal() else 0


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
