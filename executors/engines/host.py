"""An engine that is a system of its own (Dask, Parsl) lives in a host: a process of the nursery.

The runner speaks to it through lanes, one socket and one task at a time per worker. Its threads, ports, logs,
signal handlers and listeners are never the runner's, and ending it is ending the host's process tree. No
engine's library may enter here.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import threading
import traceback
from typing import TYPE_CHECKING, Any

from executors.engines.base import WorkerDied
from executors.engines.call import (
    CALL,
    DIED,
    FAILED,
    HEADER,
    KILL,
    LANE,
    NEED,
    OUTCOME,
    READY,
    RENEW,
    SAY,
    WORKER,
    Frame,
    pack_death,
    pack_error,
    rebuild_outcome,
    receive,
    send,
    unpack_death,
)
from executors.errors import EngineError, SiteError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from executors.engines.nursery import Child, Nursery
    from executors.engines.pool import Slot


MEMORY = "memory"  # what a host says in bytes, beside what it says to people


class Host:
    """The runner's side: starts the host, and again when it has died; opens lanes to it."""

    def __init__(
        self,
        nursery: Nursery,
        name: str,
        target: str,
        setup: dict[str, Any],
        tell: Callable[[str, str], None] | None = None,
    ) -> None:
        self._nursery = nursery
        self._name = name
        self._target = target
        self._setup = pickle.dumps(setup, protocol=5)
        self._tell = tell
        self.memory: int | None = None  # bytes that a worker of the newest jobs may use, once that was said
        self._lock = threading.Lock()
        self._child: Child | None = None

    def start(self) -> None:
        """Have the host running; EngineError if it says that it cannot work."""
        with self._lock:
            if self._child is None or not self._child.alive:
                self._child = self._start()

    def lane(self, index: int) -> tuple[socket.socket, Child]:
        """The runner's end of a new lane and its host; EngineError if the host says that it cannot work."""
        with self._lock:
            if self._child is None or not self._child.alive:
                self._child = self._start()
            ours, theirs = socket.socketpair()
            with theirs, contextlib.suppress(OSError):  # a dead host shows as a closed lane
                socket.send_fds(self._child.sock, [HEADER.pack(LANE, index)], [theirs.fileno()])
            return ours, self._child

    def bury(self, child: Child) -> WorkerDied:
        """How a host ended whose lane was closed; until that is known, it would be taken for a living one."""
        if child.death(5.0) is None:
            self._nursery.kill(child, "it closed its lanes")
        death = child.death(5.0)
        how = death or WorkerDied.of("lost")
        whole = WorkerDied.of(f"lost: the {self._name} ended ({how}); see {self._name}.log in the logs")
        if death is not None:  # one death, however many lanes it ends; what cannot be ended counts each time
            whole.about["of"] = f"{self._name} {child.ticket}"
        return whole

    def kill(self, index: int) -> None:
        """Ask for the worker behind a lane to be killed."""
        with self._lock, contextlib.suppress(OSError):
            if self._child is not None:
                self._child.sock.sendall(HEADER.pack(KILL, index))

    def need(self, tasks: int) -> None:
        """Let the host know that no more than so many tasks are left to do at once."""
        with self._lock, contextlib.suppress(OSError):
            if self._child is not None:
                self._child.sock.sendall(HEADER.pack(NEED, tasks))

    def leave(self, timeout: float) -> None:
        """Have the host end by itself, where it has to say goodbye to somebody else's machines."""
        with self._lock:
            child = self._child
            self._let_go()
        if child is not None:
            child.death(timeout)

    def close(self) -> None:
        """Let go of the host's socket; the nursery ends the host."""
        with self._lock:
            self._let_go()

    def _let_go(self) -> None:
        if self._child is not None:
            with contextlib.suppress(OSError):
                self._child.sock.shutdown(socket.SHUT_RDWR)  # wakes the thread that listens
            self._child.sock.close()

    def _start(self) -> Child:
        self._let_go()
        child = self._nursery.spawn(self._target, f"{self._name}.log")
        with contextlib.suppress(OSError):
            send(child.sock, CALL, self._setup)
        frame = self._answer(child)
        if frame is not None and frame.kind == READY:
            threading.Thread(target=self._answer, args=(child,), name=self._name, daemon=True).start()
            return child
        if frame is not None:
            error = rebuild_outcome(frame.body)
            if isinstance(error, SiteError | UsageError):
                raise error
            raise EngineError(f"the {self._name} did not start: {type(error).__name__}: {error}") from error
        death = child.death(5.0)
        raise WorkerDied.of(
            f"lost: the {self._name} did not start ({death}); see {self._name}.log in the logs"
        )

    def _answer(self, child: Child) -> Frame | None:
        """What the host answers next; what it only wants to be known is passed on."""
        while (frame := receive(child.sock)) is not None and frame.kind == SAY:
            level, _, text = frame.body.decode(errors="replace").partition(" ")
            if level == MEMORY:
                self.memory = int(text)
            elif self._tell is not None:
                self._tell(level, text)
        return frame


class HostSlot:
    """A worker behind a host, seen from the runner."""

    def __init__(self, host: Host, index: int) -> None:
        self._host = host
        self._index = index
        self._lane: socket.socket | None = None
        self._child: Child | None = None
        self._why = ""
        self.worker = ""

    def ready(self) -> None:
        """Open a lane unless a good one is there; the host starts the worker."""
        if self._lane is not None and not self._why:
            return
        self._drop()
        self._why = ""
        self._lane, self._child = self._host.lane(self._index)
        frame = receive(self._lane)
        if frame is not None and frame.kind == READY:
            return
        self._drop()
        if frame is not None and frame.kind == FAILED:
            raise rebuild_outcome(frame.body)
        raise self._host.bury(self._child)

    def call(self, blob: bytes) -> bytes | bytearray:
        """The outcome of one call; WorkerDied says how the worker ended otherwise."""
        self.ready()
        lane, child = self._lane, self._child
        if lane is None or child is None:
            raise WorkerDied.of("lost")
        if self._why:  # the kill came while the lane was being opened
            raise WorkerDied.of(self._why)
        with contextlib.suppress(OSError):
            send(lane, CALL, blob)
        frame = receive(lane)
        if frame is not None and frame.kind == WORKER:
            self.worker = frame.body.decode()
            frame = receive(lane)
        if frame is not None and frame.kind == OUTCOME:
            return frame.body
        why = self._why
        self._drop()
        if frame is None:
            death = self._host.bury(child)
            raise WorkerDied.of(why) if why else death
        death = unpack_death(frame.body)
        raise WorkerDied.of(why or death.why, death.exitcode, death.peak)

    def renew(self, worker: str) -> None:
        """Pass it on, and wait until the host has seen to it."""
        if self._lane is not None:
            with contextlib.suppress(OSError):
                send(self._lane, RENEW, worker.encode())
            frame = receive(self._lane)
            if frame is None or frame.kind != READY:  # the next lane will tell why
                self._drop()

    def kill(self, why: str) -> None:
        """Kill the worker; the lane is not used again."""
        self._why = why or "killed"
        self._host.kill(self._index)

    def _drop(self) -> None:
        if self._lane is not None:
            self._lane.close()
            self._lane = None

    def close(self) -> None:
        """Close the lane."""
        self._drop()


_said = threading.Lock()
_listener: list[socket.socket] = []
_needs: list[Callable[[int], object]] = []


def on_need(call: Callable[[int], object]) -> None:
    """In the host: hear how many tasks are left, where that changes how many workers are wanted."""
    _needs.append(call)


def say(level: str, text: str) -> None:
    """In the host: let the runner know; "status" is the state of jobs and workers in a line."""
    with _said, contextlib.suppress(OSError):
        for trunk in _listener:
            send(trunk, SAY, f"{level} {text}".encode(errors="replace"))


def serve_host(trunk: socket.socket, build: Callable[[dict[str, Any]], Callable[[int], Slot]]) -> None:
    """In the host: build the engine from its setup, then serve lanes until the runner is gone."""
    first = receive(trunk)
    if first is None:
        return
    _listener.append(trunk)
    try:
        make = build(pickle.loads(first.body))
    except BaseException as error:  # noqa: BLE001 - the worker's edge: the runner must learn why
        send(trunk, FAILED, pack_error(error))
        os._exit(1)
    with _said:
        send(trunk, READY)
    _serve_lanes(trunk, make)
    leave = getattr(make, "leave", None)
    if leave is not None:
        leave()
    os._exit(0)  # threads of the engine may never end; the keeper ends its processes


def _serve_lanes(trunk: socket.socket, make: Callable[[int], Slot]) -> None:
    slots: dict[int, Slot] = {}
    while True:
        try:
            data, fds, _, _ = socket.recv_fds(trunk, HEADER.size, 1)
        except OSError:
            return
        if not data:
            return
        kind, index = HEADER.unpack(data)
        if kind == KILL and index in slots:
            slots[index].kill("killed")
        elif kind == NEED:
            for hear in _needs:
                hear(index)
        elif kind == LANE:
            slot = slots.get(index) or slots.setdefault(index, make(index))
            lane = socket.socket(fileno=fds[0])
            os.set_inheritable(lane.fileno(), False)
            threading.Thread(target=_serve_lane, args=(lane, slot), name=f"lane-{index}", daemon=True).start()


def _ready(lane: socket.socket, slot: Slot) -> bool:
    try:
        slot.ready()
    except BaseException as error:  # noqa: BLE001 - the runner decides what it means
        send(lane, FAILED, pack_error(error))
        return False
    send(lane, READY)
    return True


def _serve_lane(lane: socket.socket, slot: Slot) -> None:
    with lane, contextlib.suppress(OSError):
        if not _ready(lane, slot):
            return
        worker = ""
        while (frame := receive(lane)) is not None:
            if frame.kind == RENEW:
                slot.renew(frame.body.decode())
                if not _ready(lane, slot):
                    return
                continue
            try:
                outcome = slot.call(bytes(frame.body))
            except WorkerDied as death:
                send(lane, DIED, pack_death(death))
                return
            except Exception as error:  # noqa: BLE001 - the worker's edge: the next lane tells it; others go on
                traceback.print_exc()
                send(lane, DIED, pack_death(WorkerDied.of(f"lost: {error}")))
                return
            del frame
            if slot.worker != worker:
                worker = slot.worker
                send(lane, WORKER, worker.encode())
            send(lane, OUTCOME, outcome)
            del outcome
