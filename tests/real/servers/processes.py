"""Processes and ports as the servers of the tests need them: found by what is in them, ended by number.

Nothing here ends a process by its name, and what one batch system needs alone lives in its own module.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

PORTS = range(20_000, 32_000)  # below what the kernel hands out by itself


def state(pid: int) -> str:
    """The one letter the kernel keeps for a process; empty when there is none."""
    return _stat(pid)[0]


def alive(pid: int) -> bool:
    """Whether it runs. A zombie that nobody reaps (a container without an init) does not."""
    return state(pid) not in ("", "Z", "X")


def born(pid: int) -> int:
    """When it was started, in ticks since the machine's start: with the number, this names one process for ever."""
    return int(_stat(pid)[19] or 0)


def parent(pid: int) -> int:
    """Its parent."""
    return int(_stat(pid)[1] or 0)


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return [""] * 20


def command(pid: int) -> str:
    """Its name as the kernel has it."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def environment(pid: int) -> dict[str, str]:
    """What it was started with; empty where that cannot be read."""
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    pairs = (entry.partition(b"=") for entry in raw.split(b"\0"))
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}


def everyone() -> list[int]:
    """All living processes but this one."""
    numbers = (int(name) for name in os.listdir("/proc") if name.isdigit())
    return [pid for pid in numbers if pid != os.getpid() and alive(pid)]


def with_environment(name: str, wanted: Callable[[str], bool]) -> list[int]:
    """Processes in whose environment a variable has a wanted value."""
    return [pid for pid in everyone() if wanted(environment(pid).get(name, ""))]


def within(folder: str) -> list[int]:
    """Processes that work in a folder. Some change their title and with it what they seem to be started with."""
    found = []
    for pid in everyone():
        with contextlib.suppress(OSError):
            if f"{os.readlink(f'/proc/{pid}/cwd')}/".startswith(f"{folder}/"):
                found.append(pid)
    return found


def family(pids: Iterable[int]) -> list[int]:
    """These processes and all below them."""
    parents = {pid: parent(pid) for pid in everyone()}
    found = set(pids)
    while more := {pid for pid, above in parents.items() if above in found} - found:
        found |= more
    return sorted(found)


def end(pids: Iterable[int], first: int = signal.SIGTERM, patience: float = 6.0) -> list[int]:
    """End processes, in the end by force; those that needed it."""
    left = send(pids, first)
    until = time.monotonic() + patience
    while (left := [pid for pid in left if alive(pid)]) and time.monotonic() < until:
        time.sleep(0.05)
    forced = send(left, signal.SIGKILL)
    wait_for(lambda: not any(map(alive, forced)), 5)
    return forced


def send(pids: Iterable[int], number: int) -> list[int]:
    """Send a signal to each that is there."""
    reached = []
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, number)
            reached.append(pid)
    return reached


def wait_for(what: Callable[[], object], within: float, every: float = 0.1) -> bool:
    """Whether something became true in time."""
    until = time.monotonic() + within
    while not what():
        if time.monotonic() > until:
            return False
        time.sleep(every)
    return True


def free_ports(count: int) -> int:
    """The first of so many ports in a row that nobody listens at."""
    for _ in range(200):
        first = random.choice(PORTS)
        if all(free(port) for port in range(first, first + count)):
            return first
    raise OSError(f"no {count} free ports in a row between {PORTS.start} and {PORTS.stop}")


def free(port: int) -> bool:
    """Whether nobody listens at a port."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
