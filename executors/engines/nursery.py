"""The runner's side of the keeper: start it, ask it for children, hear how each one ended, end them all.

What a child does is its target's business; no engine's library may enter.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import secrets
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from executors.engines import strays
from executors.engines.base import WorkerDied
from executors.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

KEEPER = Path(__file__).with_name("keeper.py")
WORKER_SCORE, SERVANT_SCORE = 500, 200  # for the kernel, when it has to choose whom to kill for memory
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class Child:
    """One process of the nursery: the runner's end of its socket, and its death once it has come."""

    def __init__(self, ticket: int, sock: socket.socket) -> None:
        self.ticket = ticket
        self.sock = sock
        self._death: WorkerDied | None = None
        self._lock = threading.Lock()
        self._listeners: list[Callable[[], object]] = []

    @property
    def alive(self) -> bool:
        """Whether no death has been reported."""
        return self._death is None

    def on_death(self, call: Callable[[], object]) -> None:
        """Call this once the child is dead, at once if it is."""
        with self._lock:
            if self._death is None:
                self._listeners.append(call)
                return
        call()

    def off_death(self, call: Callable[[], object]) -> None:
        """Call this no more."""
        with self._lock, contextlib.suppress(ValueError):
            self._listeners.remove(call)

    def buried(self, death: WorkerDied) -> None:
        """Record the death and wake whoever waits for this child."""
        with self._lock:
            if self._death is not None:
                return
            self._death = death
            listeners, self._listeners = self._listeners, []
        with contextlib.suppress(OSError):
            # A task's own child may hold the other end open: without this the reader would wait for it.
            self.sock.shutdown(socket.SHUT_RDWR)
        for call in listeners:
            call()

    def death(self, timeout: float) -> WorkerDied | None:
        """How it ended; None if it has not within the time."""
        done = threading.Event()
        self.on_death(done.set)
        done.wait(timeout)
        return self._death


class Spare:
    """A keeper that nobody needs yet: it imports what will be asked for while the runner has other work."""

    def __init__(
        self,
        preload: Sequence[str] = (),
        *,
        log: IO[bytes] | int = subprocess.DEVNULL,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.mark = f"keeper-{secrets.token_hex(8)}"  # by which its children are found if it is killed
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = _start(theirs, log, env, self.mark)
        self.tell({"path": _path(), "preload": list(preload)})

    def tell(self, words: dict[str, Any]) -> None:
        """One of the two things that it is told."""
        with contextlib.suppress(OSError):  # a keeper that is gone is noticed by who listens to it
            if self.process.stdin is not None:
                pickle.dump(words, self.process.stdin)
                self.process.stdin.flush()

    @property
    def there(self) -> bool:
        """Whether it can still be used."""
        return self._waits and self.process.poll() is None

    @property
    def _waits(self) -> bool:
        return self.process.stdin is not None and not self.process.stdin.closed

    def close(self) -> None:
        """End it, if nobody has taken it: it has no children and nothing to remove."""
        if self._waits:
            self.process.kill()
            self.process.wait()
            self.taken()
            self.control.close()

    def taken(self) -> None:
        """It has been told all and belongs to a nursery, or to nobody."""
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()


class Nursery:
    """A keeper process and the children that it forks; safe to use from any thread."""

    def __init__(
        self,
        log_dir: Path,
        *,
        env: Mapping[str, str] | None = None,
        memory: int | None = None,
        preload: tuple[str, ...] = (),
        sweep: Path | None = None,
        farewell: Sequence[Sequence[str]] = (),
        spare: Spare | None = None,
    ) -> None:
        self._log_dir = log_dir
        self._farewell = [list(command) for command in farewell]
        self._patience = 15.0 + 42.0 * len(farewell)
        self._private = sweep
        self._lock = threading.Lock()
        self._children: dict[int, Child] = {}
        self._tickets = 0
        self._closed = False
        own = spare if spare is not None and spare.there else self._new(env)
        self._control, self._process, self._mark = own.control, own.process, own.mark
        own.tell(self._setup(memory, preload) | self._surroundings(env, own is spare))
        own.taken()
        self._listener = threading.Thread(target=self._listen, name="nursery", daemon=True)
        self._listener.start()

    def _new(self, env: Mapping[str, str] | None) -> Spare:
        with (self._log_dir / "keeper.log").open("ab") as log:
            return Spare(log=log, env=env)

    def _setup(self, memory: int | None, preload: tuple[str, ...]) -> dict[str, Any]:
        return {
            "path": _path(),
            "memory": memory,
            "preload": ["executors.engines.call", *preload],
            "farewell": self._farewell,
            "sweep": str(self._private or ""),
        }

    def _surroundings(self, env: Mapping[str, str] | None, late: bool) -> dict[str, Any]:
        """Log and environment, for a keeper that was started without."""
        if not late:
            return {"log": "", "env": None}
        return {"log": str(self._log_dir / "keeper.log"), "env": dict(os.environ) | dict(env or {})}

    @property
    def pid(self) -> int:
        """The keeper's process number."""
        return self._process.pid

    def spawn(self, target: str, log: str, score: int = SERVANT_SCORE) -> Child:
        """Fork a child that calls ``module:function`` with its end of a new socket.

        ``score``: how gladly the kernel may kill it when memory is short.
        """
        ours, theirs = socket.socketpair()
        with theirs, self._lock:
            self._tickets += 1
            child = Child(self._tickets, ours)
            if self._closed:
                child.buried(WorkerDied.of("the pool was closed"))
                return child
            self._children[child.ticket] = child
            request = {
                "ticket": child.ticket,
                "target": target,
                "log": str(self._log_dir / log),
                "score": score,
            }
            try:
                socket.send_fds(self._control, [pickle.dumps(request)], [theirs.fileno()])
            except OSError:
                del self._children[child.ticket]
                child.buried(WorkerDied.of("lost: the process that keeps the workers is gone"))
        return child

    def kill(self, child: Child, why: str) -> None:
        """Kill a child and the processes of its group; its death will say why."""
        with self._lock, contextlib.suppress(OSError):
            self._control.send(pickle.dumps({"kill": child.ticket, "why": why}))

    def close(self) -> None:
        """End every process that came from here, and wait until they are gone."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            with contextlib.suppress(OSError):
                self._control.shutdown(socket.SHUT_RDWR)
        try:
            self._process.wait(self._patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._listener.join(5)
        self._control.close()
        if self._process.returncode != 0:  # it was killed, and has ended and removed nothing
            for command in self._farewell:
                with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                    subprocess.run(command, stdin=subprocess.DEVNULL, timeout=20, check=False)  # noqa: S603
            if self._private is not None:
                strays.end(self._private, self._mark)

    def _listen(self) -> None:
        while True:
            try:
                data = self._control.recv(1 << 16)
            except OSError:
                break
            if not data:
                break
            ticket, code, why, peak = pickle.loads(data)
            with self._lock:
                child = self._children.pop(ticket, None)
            if child is not None:
                child.buried(WorkerDied.of(why, code, peak))
        with self._lock:
            left, self._children = list(self._children.values()), {}
            why = (
                "the pool was closed" if self._closed else "lost: the process that keeps the workers is gone"
            )
        for child in left:
            child.buried(WorkerDied.of(why))


def _path() -> list[str]:
    return [entry or str(Path.cwd()) for entry in sys.path]


def _start(
    sock: socket.socket, log: IO[bytes] | int, env: Mapping[str, str] | None, mark: str
) -> subprocess.Popen[bytes]:
    if not sys.executable:
        raise EngineError("there is no Python executable to start workers with (sys.executable is empty)")
    command = [sys.executable, "-P", str(KEEPER), str(sock.fileno()), str(os.getpid()), mark]
    try:
        return subprocess.Popen(  # noqa: S603 - our own interpreter and file
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=dict(os.environ) | dict(env or {}),
            pass_fds=[sock.fileno()],
            start_new_session=True,  # a Ctrl-C of the terminal is the runner's alone
        )
    except OSError as error:
        raise EngineError(f"the workers' keeper cannot be started: {error}") from error


def thread_limits(cores: int, given: Mapping[str, str]) -> dict[str, str]:
    """Environment that keeps numeric libraries to a task's cores, unless somebody has decided already."""
    return {name: str(cores) for name in THREAD_VARIABLES if name not in os.environ and name not in given}
