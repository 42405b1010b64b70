"""What a task of ours does on a Dask worker of somebody else: hands the call to a guest process beside it.

The scheduler and the workers know nothing of this package, so this module travels by value: it must stand
alone, on the standard library and on Dask. The call runs in a process of its own (``guest``), so nothing is
imported, printed or left behind in theirs, a crash is ours alone, and a task can be ended. A guest goes when
its worker goes, when its call is no longer wanted, or after a while without any.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from typing import Any, NamedTuple

FRAME = "<cQ"  # as in call.py, which is not there
CALL, OUTCOME, READY, FAILED, DIED = b"C", b"O", b"R", b"F", b"D"
SHELF = "_coffea_scaleout"  # the worker's attribute in which idle guests wait
LOOK = 1.0  # seconds between looks whether the call is still wanted
OWN_MEMORY = 100 << 20  # of a guest and its keeper, beside what the calls need
START = 300.0  # seconds for the guest's imports from a slow file system
GONE = b"the process that made the call is gone"


class Guest(NamedTuple):
    """A process beside the worker, and the socket to it."""

    process: Any
    sock: Any


def call(
    token: str, blob: bytes, kit: dict[str, Any] | None = None, stale: tuple[str, ...] = ()
) -> tuple[str, Any, str]:
    """Have one call made; what came of it, as a word and what belongs to it, and the name of who made it.

    ``need`` and the worker's address: there is no guest, and no kit to make one from. ``outcome`` and
    ``died``: bytes as ``call.py`` packs them. ``failed`` and ``lost``: why there is no guest. ``stale``: the
    names of guests that are not to make calls any more.
    """
    from distributed import get_worker

    worker = get_worker()
    key = worker.get_current_task()
    idle = worker.__dict__.setdefault(SHELF, {}).setdefault(token, [])
    guest = _waiting(idle, worker.address, stale)
    if guest is None:
        if kit is None:
            return "need", worker.address, ""
        guest = _invite(worker, kit)
        kind, body = _answer(worker, key, guest.sock, START)
        if kind != READY:
            _see_off(guest)
            return ("failed" if kind == FAILED else "lost"), bytes(body).decode(errors="replace"), ""
    name = _name(worker.address, guest)
    try:
        guest.sock.sendall(struct.pack(FRAME, CALL, len(blob)))
        guest.sock.sendall(blob)
        kind, body = _answer(worker, key, guest.sock, None)
    except OSError:
        kind, body = b"", GONE
    if kind in (OUTCOME, DIED):
        idle.append(guest)
        return ("outcome" if kind == OUTCOME else "died"), bytes(body), name
    _see_off(guest)
    return "lost", bytes(body).decode(errors="replace"), name


def leave(token: str, dask_worker: Any = None) -> None:
    """See off the idle guests of one run; ``Client.run`` gives the worker."""
    for guest in dask_worker.__dict__.get(SHELF, {}).pop(token, []):
        _see_off(guest)
    if not dask_worker.__dict__.get(SHELF, True):
        del dask_worker.__dict__[SHELF]


def _name(address: str, guest: Guest) -> str:
    return f"{address}/{guest.process.pid}"


def _waiting(idle: list[Guest], address: str, stale: tuple[str, ...]) -> Guest | None:
    while idle:
        try:
            guest = idle.pop()
        except IndexError:  # another thread of this worker was quicker
            return None
        fresh = _name(address, guest) not in stale
        if fresh and guest.process.poll() is None and not _readable(guest.sock, 0.0):
            return guest
        _see_off(guest)
    return None


def guest_memory(share: int) -> int:
    """What a call may use of a worker's share, which has to do for the guest itself too."""
    return max(share - OWN_MEMORY, share // 2)


def _invite(worker: Any, kit: dict[str, Any]) -> Guest:
    """Start a guest from what the runner sent."""
    folder = tempfile.mkdtemp(prefix="cs-", dir=worker.local_directory)
    ours, theirs = socket.socketpair()
    limit = getattr(getattr(worker, "memory_manager", None), "memory_limit", None)
    share = int(limit / max(1, worker.state.nthreads)) if limit else None
    memory = guest_memory(share) if share else None
    settings = {"memory": memory, "address": worker.address} | kit["settings"] | {"fd": theirs.fileno()}
    files = kit["files"] | {"pilot.json": json.dumps(settings).encode()}
    try:
        for name, data in files.items():
            file = os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(file, "wb") as opened:
                opened.write(data)
        words = [sys.executable, f"{folder}/parcel.pyz", f"{folder}/pilot.json"]
        process = subprocess.Popen(  # noqa: S603 - the worker's own interpreter and a file just written
            words, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
        )
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        ours.close()
        raise
    finally:
        theirs.close()
    return Guest(process, ours)


def _answer(worker: Any, key: str, sock: Any, limit: float | None) -> tuple[bytes, bytes | bytearray]:
    """The guest's next message; no kind if there is none, or nobody wants it any more."""
    began = time.monotonic()
    while not _readable(sock, LOOK):
        task = worker.state.tasks.get(key)
        if task is None or task.state == "cancelled" or worker.status.name != "running":
            return b"", b"the call was cancelled"
        if limit is not None and time.monotonic() - began > limit:
            return b"", b"the process that makes the calls did not start in time"
    header = _exactly(sock, struct.calcsize(FRAME))
    if header is None:
        return b"", GONE
    kind, size = struct.unpack(FRAME, header)
    body = _exactly(sock, size)
    return (b"", GONE) if body is None else (kind, body)


def _readable(sock: Any, seconds: float) -> bool:
    poller = select.poll()  # numbers above 1024 are usual in a worker
    poller.register(sock, select.POLLIN)
    return bool(poller.poll(seconds * 1000))


def _exactly(sock: Any, size: int) -> bytearray | None:
    data = bytearray(size)
    view, done = memoryview(data), 0
    while done < size:
        try:
            count = sock.recv_into(view[done:])
        except OSError:
            return None
        if not count:
            return None
        done += count
    return data


def _see_off(guest: Guest) -> None:
    """End a guest: it ends its own processes and removes its folders when its socket closes."""
    guest.sock.close()
    try:
        guest.process.wait(15)
    except subprocess.TimeoutExpired:
        guest.process.kill()
        guest.process.wait()
