"""How a call travels to a worker and its outcome back: bytes made by cloudpickle, framed on a socket.

Every engine uses these same bytes, so a function of ``__main__``, an exception that cannot be rebuilt or a
result that cannot be pickled behaves the same on all of them. No engine's library may enter.
"""

from __future__ import annotations

import os
import pickle
import socket
import struct
import sys
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import cloudpickle

from executors.engines.base import RemoteError, RemoteTraceback, WorkerDied

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

HEADER = struct.Struct("<cQ")
CALL, OUTCOME, READY, FAILED, DIED, LANE, KILL, SAY, NEED, WORKER, RENEW = (
    b"C",
    b"O",
    b"R",
    b"F",
    b"D",
    b"L",
    b"K",
    b"S",
    b"N",
    b"W",
    b"A",
)
SMALL = 1 << 16
LOG_LIMIT = 16 << 20  # a task that prints a gigabyte must not fill the disk with it
TRACEBACK_LIMIT = 50_000


class Frame(NamedTuple):
    """One message: what it is and its bytes."""

    kind: bytes
    body: bytes | bytearray


def send(sock: socket.socket, kind: bytes, body: bytes | bytearray = b"") -> None:
    """Write one frame; blocks until the other side has taken it."""
    header = HEADER.pack(kind, len(body))
    if len(body) < SMALL:
        sock.sendall(header + body)
    else:
        sock.sendall(header)
        sock.sendall(body)


def receive(sock: socket.socket) -> Frame | None:
    """Read one frame; None when the other side is gone."""
    try:
        header = _exactly(sock, HEADER.size)
        if header is None:
            return None
        kind, size = HEADER.unpack(header)
        body = _exactly(sock, size)
    except OSError:
        return None
    return None if body is None else Frame(kind, body)


def _exactly(sock: socket.socket, size: int) -> bytearray | None:
    data = bytearray(size)
    view, done = memoryview(data), 0
    while done < size:
        count = sock.recv_into(view[done:], 0, socket.MSG_WAITALL)
        if not count:
            return None
        done += count
    return data


def pack_call(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """The bytes of a call; what belongs to ``__main__`` travels by value."""
    data: bytes = cloudpickle.dumps((fn, args, kwargs), protocol=5)
    return data


def run(blob: bytes | bytearray) -> bytes:
    """On a worker: make the call and return its outcome as bytes, whatever happens."""
    try:
        fn, args, kwargs = pickle.loads(blob)
        outcome: bytes = cloudpickle.dumps((True, fn(*args, **kwargs)), protocol=5)
    except BaseException as error:  # noqa: BLE001 - the worker's edge: SystemExit of a task is its outcome too
        outcome = pack_error(error)
    trim_log()
    return outcome


def pack_error(error: BaseException) -> bytes:
    """The outcome of a call that raised; readable even where the exception itself cannot be rebuilt."""
    text = "".join(traceback.format_exception(error))[-TRACEBACK_LIMIT:]
    summary = "".join(traceback.format_exception_only(error)).strip()[-TRACEBACK_LIMIT:]
    try:
        itself = cloudpickle.dumps(error, protocol=5)
    except Exception:  # noqa: BLE001 - the worker's edge: an exception may hold anything at all
        itself = None
    return pickle.dumps((False, (itself, type(error).__name__, summary, text)), protocol=5)


def settle(future: Future[Any], outcome: bytes | bytearray) -> None:
    """In the runner: give a future the outcome of its call."""
    try:
        good, value = pickle.loads(outcome)
    except BaseException as error:  # noqa: BLE001 - a result's own code runs here; it must not end the lane
        refused = RemoteError(
            f"the result of the task cannot be rebuilt here: {error!r}", type=type(error).__name__
        )
        refused.__cause__ = error
        future.set_exception(refused)
        return
    if good:
        future.set_result(value)
    else:
        future.set_exception(rebuild(*value))


def rebuild(itself: bytes | None, kind: str, summary: str, text: str) -> BaseException:
    """The exception of a task as it was raised, its worker's traceback as the cause; else a description."""
    reason = "it cannot be pickled"
    if itself is not None:
        try:
            error = pickle.loads(itself)
        except BaseException as broken:  # noqa: BLE001 - an exception's own __init__ runs here
            reason = f"rebuilding it raised {broken!r}"
        else:
            if isinstance(error, BaseException):
                error.__cause__ = RemoteTraceback(text)
                return error
    remote = RemoteError(f"the task raised {summary} ({reason})", type=kind, traceback=text)
    remote.__cause__ = RemoteTraceback(text)
    return remote


def rebuild_outcome(outcome: bytes | bytearray) -> BaseException:
    """The exception of an outcome that is known to be one."""
    return rebuild(*pickle.loads(outcome)[1])


def trim_log(fd: int = 1, limit: int = LOG_LIMIT) -> None:
    """Write out what a task printed, and cut the log when it is larger than the limit; a pipe has no size."""
    with suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
        sys.stderr.flush()
        if os.fstat(fd).st_size > limit:
            os.ftruncate(fd, limit // 2)
            os.write(fd, b"\n[the log was too long and was cut here]\n")


def pack_outfit(initializer: Callable[..., object] | None, initargs: tuple[Any, ...]) -> bytes:
    """The bytes of what each new worker runs before its first task."""
    data: bytes = cloudpickle.dumps((initializer, initargs), protocol=5)
    return data


def put_on(outfit: bytes | bytearray) -> None:
    """On a worker: run the initializer that an outfit holds."""
    initializer, initargs = pickle.loads(outfit)
    if initializer is not None:
        initializer(*initargs)


def serve(sock: socket.socket) -> None:
    """A worker process of its own: outfit first, then one call at a time until the runner is gone."""
    first = receive(sock)
    if first is None:
        return
    try:
        put_on(first.body)
    except BaseException as error:  # noqa: BLE001 - the worker's edge: the runner must learn why
        send(sock, FAILED, pack_error(error))
        return
    send(sock, READY)
    while (frame := receive(sock)) is not None:
        outcome = run(frame.body)
        del frame
        send(sock, OUTCOME, outcome)


def pack_death(death: WorkerDied) -> bytes:
    """A death as bytes, for a host that tells its runner."""
    return pickle.dumps((death.why, death.exitcode, death.peak))


def unpack_death(body: bytes | bytearray) -> WorkerDied:
    """The death that ``pack_death`` described."""
    return WorkerDied.of(*pickle.loads(body))
