"""A process beside somebody else's worker that makes the calls of one lane: started from the parcel.

It has a keeper and a worker process of its own, answers on the socket that it was started with, and ends
when that closes or nothing came for a while. No engine's library may enter: it serves any.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import queue
import shutil
import socket
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from executors.engines.base import WorkerDied
from executors.engines.call import CALL, DIED, FAILED, KILL, OUTCOME, READY, pack_death, receive, send
from executors.engines.futures import WorkerSlot
from executors.engines.nursery import Nursery

if TYPE_CHECKING:
    from executors.engines.call import Frame


def main(settings: dict[str, Any]) -> int:
    """Serve until nobody is there; 0, or 1 if no call could ever be made."""
    sock = socket.socket(fileno=settings["fd"])
    sock.set_inheritable(False)
    files, local = Path(settings["files"]), Path(settings["local"])
    _settle_in(settings)
    outfit = (files / settings["outfit"]).read_bytes()
    shutil.rmtree(files, ignore_errors=True)  # made for this process alone
    if complaint := misfit(settings["needs"]):
        return _refuse(sock, f"the Dask worker at {settings['address']} {complaint}")
    nursery = Nursery(
        local, env=settings["env"], memory=settings["memory"], preload=tuple(settings["preload"]), sweep=local
    )
    try:
        slot = WorkerSlot(nursery, 0, outfit)
        try:
            slot.ready()
        except WorkerDied as death:
            return _refuse(sock, f"on the Dask worker at {settings['address']}: {death}")
        send(sock, READY)
        _serve(sock, slot, settings["idle"])
    except OSError:  # the worker is gone: nobody is left to be told
        return 0
    finally:
        nursery.close()
    return 0


def _settle_in(settings: dict[str, Any]) -> None:
    """The runner's folder and its own modules, where they are said because this machine sees them."""
    if settings.get("cwd"):
        with contextlib.suppress(OSError):
            os.chdir(settings["cwd"])
    new = [one for one in settings.get("path", ()) if one not in sys.path and Path(one).exists()]
    sys.path[1:1] = new  # after this parcel, before what the interpreter has installed


def misfit(needs: dict[str, str]) -> str:
    """What this interpreter lacks of what the runner has: both versions by name, "" if nothing."""
    here = {"python": platform.python_version().rpartition(".")[0]}
    for name in needs:
        if name != "python":
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                here[name] = importlib.metadata.version(name)
    wrong = [
        f"{name} {here.get(name, '(absent)')} where the runner has {want}"
        for name, want in needs.items()
        if here.get(name) != want
    ]
    if not wrong:
        return ""
    return (
        f"has {', '.join(wrong)} (its Python is {sys.executable}): install the same versions here and there"
    )


def _refuse(sock: socket.socket, text: str) -> int:
    with contextlib.suppress(OSError):
        send(sock, FAILED, text.encode())
    return 1


def _serve(sock: socket.socket, slot: WorkerSlot, idle: float) -> None:
    frames: queue.SimpleQueue[Frame | None] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(sock, slot, frames), daemon=True).start()
    while True:
        try:
            frame = frames.get(timeout=idle)
        except queue.Empty:
            return
        if frame is None:
            return
        try:
            outcome = slot.call(bytes(frame.body))
        except WorkerDied as death:
            send(sock, DIED, pack_death(death))
        else:
            send(sock, OUTCOME, outcome)


def _listen(sock: socket.socket, slot: WorkerSlot, frames: queue.SimpleQueue[Frame | None]) -> None:
    while (frame := receive(sock)) is not None:
        if frame.kind == CALL:
            frames.put(frame)
        elif frame.kind == KILL:
            slot.kill("killed")
    frames.put(None)
    slot.kill("nobody wants the answer any more")
