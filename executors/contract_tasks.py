"""What the contract's tests let workers do, and how they look at processes; no test may enter."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

import psutil

TOKEN = "SCALEOUT_CONTRACT_TOKEN"  # noqa: S105 - a mark in the environment, not a secret


class Peculiar(Exception):  # noqa: N818 - a name for a test
    """An exception with an attribute of its own."""

    def __init__(self, message: str, number: int = 0) -> None:
        super().__init__(message, number)
        self.number = number


class Awkward(Exception):  # noqa: N818 - a name for a test
    """Pickles well and cannot be rebuilt: its arguments are not what its class takes."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


def echo(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments themselves."""
    return args, kwargs


def none() -> None:
    """Nothing, as fast as it goes."""


def length(data: bytes) -> int:
    """Number of bytes that arrived."""
    return len(data)


def blob(size: int) -> bytes:
    """Bytes that have to come back."""
    return b"x" * size


def raise_peculiar(number: int) -> NoReturn:
    """Raise an exception that can be rebuilt."""
    raise Peculiar("as asked", number)


def raise_awkward() -> NoReturn:
    """Raise an exception that cannot."""
    raise Awkward("this", "that")


def leave(code: int) -> NoReturn:
    """Call sys.exit, as a careless analysis does."""
    sys.exit(code)


def lock() -> Any:
    """A value that cannot be pickled."""
    return threading.Lock()


def semaphore() -> str:
    """Have a semaphore with a name, as long as this process lives."""
    _kept.append(multiprocessing.get_context("spawn").Semaphore())
    return str(_kept[-1])


def pid() -> int:
    """The worker's process."""
    return os.getpid()


def environment(name: str) -> str | None:
    """A variable as the worker sees it."""
    return os.environ.get(name)


def path_and_cwd() -> tuple[list[str], str]:
    """Where the worker looks for modules, and where it is."""
    return list(sys.path), str(Path.cwd())


def interval(seconds: float) -> tuple[int, float, float]:
    """Process, beginning and end of a short sleep."""
    began = time.monotonic()
    time.sleep(seconds)
    return os.getpid(), began, time.monotonic()


def wait_for(path: str, seconds: float) -> str:
    """Wait for a file; workers that do not see it wait for the time."""
    limit = time.monotonic() + seconds
    while not Path(path).exists() and time.monotonic() < limit:
        time.sleep(0.05)
    return "finished"


def die(how: str) -> None:
    """End the worker: ``exit``, ``kill``, ``segfault`` or ``stop``."""
    if how == "exit":
        os._exit(3)
    if how == "segfault":
        ctypes.string_at(0)
    os.kill(os.getpid(), signal.SIGSTOP if how == "stop" else signal.SIGKILL)
    time.sleep(600)


def hold_gil(seconds: float) -> None:
    """Keep the interpreter's lock without ever letting go."""
    ctypes.PyDLL(None).usleep(ctypes.c_uint(int(seconds * 1e6)))


def eat(size: int, seconds: float) -> int:
    """Fill memory and keep it."""
    held = bytearray(size)
    held[:: 1 << 12] = b"x" * len(held[:: 1 << 12])
    time.sleep(seconds)
    return len(held)


EATER = """
import sys, time
held = bytearray(int(sys.argv[1]))
held[::4096] = b"x" * len(held[::4096])
time.sleep(float(sys.argv[2]))
"""


def eat_elsewhere(size: int, processes: int, seconds: float) -> None:
    """The same in several processes of the task's own."""
    command = [sys.executable, "-S", "-E", "-c", EATER, str(size), str(seconds)]
    started = [subprocess.Popen(command) for _ in range(processes)]  # noqa: S603 - our own interpreter
    for one in started:
        one.wait()


def shout(size: int) -> None:
    """Write to both streams, through Python and past it."""
    print("x" * size)  # noqa: T201 - what tasks do
    sys.stderr.write("y" * size)
    os.write(1, b"z" * size)


def detach() -> int:
    """Start a program in a session of its own and leave it behind."""
    command = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
    return subprocess.Popen(command, start_new_session=True).pid  # noqa: S603 - our own interpreter


_called: list[str] = []
_kept: list[Any] = []


def initialize(word: str) -> None:
    """An initializer that leaves a trace."""
    _called.append(word)


def initialized() -> list[str]:
    """The traces in this process."""
    return list(_called)


def descendants(of: int | None = None) -> set[psutil.Process]:
    """Every process below this one (or another), zombies not counted."""
    try:
        below = psutil.Process(of).children(recursive=True)
    except psutil.NoSuchProcess:
        return set()
    return {one for one in below if alive(one)}


def marked(token: str) -> set[psutil.Process]:
    """Every process that carries the token in its environment."""
    found = set()
    for process in psutil.process_iter():
        try:
            if process.environ().get(TOKEN) == token and alive(process):
                found.add(process)
        except (psutil.Error, OSError):
            continue
    return found


def alive(process: psutil.Process) -> bool:
    """Whether it runs, or could."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def gone(processes: set[psutil.Process], seconds: float) -> set[psutil.Process]:
    """What is left of them when all are gone or the time is up."""
    limit = time.monotonic() + seconds
    while (left := {one for one in processes if alive(one)}) and time.monotonic() < limit:
        time.sleep(0.02)
    return left


def listeners(processes: set[psutil.Process]) -> set[tuple[str, int]]:
    """Addresses on which any of them listens."""
    found: set[tuple[str, int]] = set()
    for process in processes:
        try:
            connections = process.net_connections("inet")
        except psutil.Error:
            continue
        found |= {
            (str(one.laddr[0]), int(one.laddr[1]))
            for one in connections
            if one.laddr and one.status == psutil.CONN_LISTEN
        }
    return found
