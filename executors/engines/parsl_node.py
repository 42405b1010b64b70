"""A batch job of the engine ``parsl`` on its node: Parsl's manager as a child, watched until either ends.

It leaves no process and no file behind, whatever ends it. What a worker does with a task is in
``parsl_task``; neither Parsl nor anything of the runner's side may enter.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import socket
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from executors.engines.call import CALL, READY, receive, send
from executors.engines.nursery import Nursery
from executors.engines.parsl_task import BROKEN, WORKER_FILE
from executors.engines.weight import group_limit, least, share

if TYPE_CHECKING:
    from collections.abc import Iterator

    from executors.engines.nursery import Child

PROGRAM = "parsl.executors.high_throughput.process_worker_pool"
KEYS = ("client.key_secret", "server.key_secret")
LOOK = 1.0
SETTLED = 5.0  # seconds after which a child of the manager is one of its workers or services
LEAVING = 5.0
SHORT = 70  # characters; multiprocessing's sockets lie below TMPDIR, and a socket's path has 107
OWN_MEMORY = 140 << 20  # of the pilot, the manager and what each of them starts, as measured
WORKER_MEMORY = 65 << 20  # of a worker of Parsl and its keeper, which make no calls themselves
ADDED_UP = 150 << 20  # of the modules that a keeper and its process share, counted twice
TAIL = 4000
LOST = 75  # EX_TEMPFAIL of sysexits.h


def serve(settings: dict[str, Any]) -> int:
    """Run the manager until it ends, the runner is gone or the job is told to leave; the job's exit code."""
    local = Path(settings["local"])
    words = _words(settings, local)
    nursery = Nursery(local, sweep=local)
    try:
        child = nursery.spawn("executors.engines.parsl_node:become_manager", "manager.out")
        with contextlib.suppress(OSError):
            send(child.sock, CALL, pickle.dumps((words, _manager_env(settings, local))))
        why = _watch(child, settings, local / BROKEN)
        if not why and (death := child.death(LEAVING)) is not None and death.exitcode != 0:
            why = f"Parsl's manager ended: {death}"
        logs = _logs(local) if why else ""
    finally:
        # Also when the batch system says to go: whatever was started here must be gone before this process.
        nursery.close()
    return _leave(why, logs) if why else 0


def _words(settings: dict[str, Any], local: Path) -> list[str]:
    """The manager's command line: what Parsl gave, and what only the node knows; the last word counts."""
    keys = _take_keys(
        Path(settings["keys"] or settings["files"]), local / "keys", own=settings["keys"] is None
    )
    here = {
        "cert_dir": str(keys),
        "logdir": str(local / "parsl"),
        "block_id": settings["job"],
        "uid": f"{settings['job']}-{os.urandom(4).hex()}",  # of this start: a job may be started again
        "hb_threshold": str(max(1, int(settings["death"]))),
    }
    own = [word for name, value in here.items() for word in (f"--{name}", value)]
    return [sys.executable, "-P", "-m", PROGRAM, *settings["manager"], *own]


def _take_keys(source: Path, target: Path, *, own: bool) -> Path:
    """The keys in a folder that is private for certain; what came along with the job is not kept twice."""
    target.mkdir(mode=0o700)
    for name in KEYS:
        with os.fdopen(os.open(target / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write((source / name).read_bytes())
        if own:
            (source / name).unlink()
    return target


def _manager_env(settings: dict[str, Any], local: Path) -> dict[str, str]:
    """The manager's environment, and beside it a file from which its workers learn what they are."""
    code, before = str(local / "code"), dict(os.environ)
    env = {"PYTHONPATH": os.pathsep.join([code, *filter(None, [before.get("PYTHONPATH")])]), "SPT_NOENV": "1"}
    if len(str(local)) <= SHORT:
        env["TMPDIR"] = str(local)
    place = local / "worker.json"
    env[WORKER_FILE] = str(place)
    worker = {
        "env": {name: before.get(name) for name in env if name != WORKER_FILE},
        "path": [code, *settings["path"], *(entry for entry in sys.path if entry and entry != code)],
        "local": str(local),
        "logs": _log_folder(settings["logs"], local),
        "job": settings["job"],
        "memory": call_memory(
            least(settings["memory"], group_limit()), settings["workers"], added_up=settings["added_up"]
        ),
        "preload": settings["preload"],
        "outfit": settings["outfit"] or str(Path(settings["files"]) / "outfit"),
    }
    place.write_text(json.dumps(worker), encoding="utf-8")
    return {"PATH": os.defpath, "HOME": str(local)} | before | env


def _log_folder(asked: str | None, local: Path) -> str:
    return asked if asked and os.access(asked, os.W_OK) else str(local)


def call_memory(job: int | None, workers: int, *, added_up: bool = False) -> int | None:
    """What a process that makes calls may use in a job that has so much.

    ``added_up``: what several processes share counts for each.
    """
    return share(job, workers, OWN_MEMORY, WORKER_MEMORY + (ADDED_UP if added_up else 0))


def become_manager(sock: socket.socket) -> NoReturn:
    """In the child: say who it is, and become the manager's program."""
    first = receive(sock)
    if first is None:
        sys.exit(0)
    words, env = pickle.loads(first.body)
    send(sock, READY, str(os.getpid()).encode())
    os.execve(words[0], words, env)  # noqa: S606 - our own interpreter and words


def _watch(child: Child, settings: dict[str, Any], broken: Path) -> str:
    """Wait for the manager's end, which needs no words, or until there is a reason to end it."""
    ended = threading.Event()
    frame = receive(child.sock)
    child.on_death(ended.set)
    brood = Brood(int(frame.body) if frame is not None else 0)
    line = Line(settings["address"], settings["port"], settings["death"])
    while not ended.wait(LOOK):
        if broken.exists():
            return broken.read_text(errors="replace")
        if brood.lost():
            # Parsl's workers share locks: one that dies with a lock in its hands stops all others for ever.
            return "" if ended.wait(LEAVING) else "a process of Parsl's manager died"
        if line.dead():
            return f"the runner at {settings['address']} has not answered for {settings['death']:.0f} s"
    return ""


class Brood:
    """The manager's own children, none of which may end before it."""

    def __init__(self, parent: int) -> None:
        self._parent = parent
        self._since: dict[int, float] = {}

    def lost(self) -> bool:
        """Whether one that had settled is gone or dead."""
        now, alive = time.monotonic(), set(_living_children(self._parent))
        lost = [pid for pid, since in self._since.items() if pid not in alive and now - since > SETTLED]
        self._since = {pid: self._since.get(pid, now) for pid in alive}
        return bool(lost)


def _living_children(parent: int) -> Iterator[int]:
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{parent}/task").iterdir():
            for pid in (task / "children").read_text().split():
                if _state(pid) not in "ZX":
                    yield int(pid)


def _state(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        return "X"


class Line:
    """Whether the runner's machine still listens; Parsl's own heartbeat has been seen to miss that."""

    def __init__(self, address: str, port: int, patience: float) -> None:
        self._there = (address, port)
        self._patience = patience
        self._pause = max(LOOK, patience / 4)
        self._heard = self._asked = time.monotonic()

    def dead(self) -> bool:
        """Whether it has been silent for too long."""
        now = time.monotonic()
        if now - self._asked >= self._pause:
            self._asked = now
            with contextlib.suppress(OSError), socket.create_connection(self._there, timeout=LOOK):
                self._heard = now
        return now - self._heard > self._patience


def _leave(why: str, logs: str) -> int:
    sys.stderr.write(f"{logs}coffea-scaleout: the job ends: {why}\n")
    sys.stderr.flush()
    return LOST


def _logs(local: Path) -> str:
    """The end of each log that would vanish with the job's own folder."""
    parts = []
    for path in sorted(
        [*local.glob("*.out"), *local.glob("worker-*.log"), *local.glob("parsl/**/manager.log")]
    ):
        text = path.read_text(errors="replace")[-TAIL:].strip()
        if text:
            parts.append(f"--- {path.relative_to(local)}\n{text}\n")
    return "".join(parts)
