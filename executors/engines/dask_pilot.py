"""What a batch job of the engine ``dask`` runs on its node: a keeper with the job's workers, and a courier.

The pilot starts workers, starts them again when they die, says how they ended, and leaves nothing behind
when the scheduler is gone or the batch system asks it to go. It lives on any node, whatever is installed
there: Dask is imported by what the keeper forks, not here.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import socket
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from executors.engines.base import REMOVED, WorkerDied
from executors.engines.call import CALL, DIED, FAILED, KILL, OUTCOME, READY, rebuild_outcome, receive, send
from executors.engines.nursery import WORKER_SCORE, Nursery
from executors.engines.weight import group_limit, least, share

if TYPE_CHECKING:
    from executors.engines.call import Frame
    from executors.engines.nursery import Child

NODE = "executors.engines.dask_node"
TRAVELLED = ("certificate", "key", "outfit")  # settings that name files which came with the job
START_LIMIT = 3  # new workers of one slot in a row that did not come to work
PAUSE = 2.0
DEATH_WAIT = 5.0
OWN_MEMORY = 100 << 20  # of the pilot, the keeper and the courier, beside what workers share with them
ADDED_UP = 300 << 20  # the same, each counted whole
MAPPED = 40 << 20  # of files that a worker has mapped
FAREWELL = 1.5  # seconds, of the few that a batch system leaves between its two signals
LAST_WORDS = 3.0  # seconds that a job which ends by itself waits until all is said
UNREACHED, NOT_STARTED, NO_COURIER, UNREACHABLE = 3, 4, 5, 6  # exit codes, for the job's record
GIST = 2000  # bytes
FEW = 8  # lines


def main(settings: dict[str, Any]) -> int:
    """Run the job's workers until the scheduler is gone; 0 if it was ever there."""
    pilot = Pilot(settings)
    try:
        return pilot.run()
    finally:
        pilot.close()


def worker_memory(
    job: int | None, workers: int, most: int | None = None, *, added_up: bool = False
) -> int | None:
    """What each worker may use in a job that has so much, and at the most.

    ``added_up``: what several processes share counts for each.
    """
    own, each = (ADDED_UP, MAPPED) if added_up else (OWN_MEMORY, 0)
    return least(most, share(job, workers, own, each))


class Pilot:
    """The workers of one job."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._local = Path(settings["local"])
        self._job = str(settings["job"])
        self._common = _unpacked(settings, self._local)
        self._logs = _log_folder(settings, self._local)
        _settle_in(settings)
        self._nursery = Nursery(
            self._local,
            memory=worker_memory(
                least(settings["memory"], group_limit()),
                settings["workers"],
                settings["most"],
                added_up=settings["added_up"],
            ),
            preload=(NODE, *settings["preload"]),
            sweep=self._local,
        )
        self._courier = self._nursery.spawn(f"{NODE}:carry", "courier.log")
        self._lock = threading.Lock()
        self._news = threading.Condition(self._lock)
        self._unsaid = 0  # words that the courier has not brought yet
        self._workers: dict[str, Child] = {}
        self._over = threading.Event()
        self._leaving = threading.Event()
        self._contact = False  # without it, no worker can come to work, and the courier says how long to try
        self._code = 0

    def run(self) -> int:
        """Return the job's exit code when it is over."""
        _write(
            f"job {self._job} on {socket.gethostname()}: Python {sys.version.split()[0]}, {sys.executable}"
        )
        self._tell({"job": self._job} | self._common)
        threading.Thread(target=self._mind_courier, daemon=True).start()
        for index in range(self._settings["workers"]):
            threading.Thread(target=self._mind_slot, args=(index,), daemon=True).start()
        self._over.wait()
        with self._news:
            self._news.wait_for(lambda: not self._unsaid, LAST_WORDS)
        return self._code

    def close(self) -> None:
        """End every process of the job."""
        try:
            if not self._over.is_set():  # somebody says that the job has to go
                self._say_farewell()
        finally:
            self._over.set()
            self._nursery.close()

    def _say_farewell(self) -> None:
        """End the workers and say how large each was: of a job ended for memory, that names the culprit."""
        self._leaving.set()
        with self._lock:
            workers = list(self._workers.values())
        for child in workers:
            self._nursery.kill(child, REMOVED)
        with self._news:
            self._news.wait_for(lambda: not self._workers and not self._unsaid, FAREWELL)

    def _end(self, code: int, text: str) -> None:
        with self._lock:
            if not self._over.is_set():
                self._code = code
                _write(text)
                self._over.set()

    def _tell(self, words: dict[str, Any]) -> None:
        with self._lock, contextlib.suppress(OSError):  # a courier that is gone is noticed elsewhere
            self._unsaid += "op" in words
            send(self._courier.sock, CALL, pickle.dumps(words))

    def _mind_courier(self) -> None:
        met, why = False, ""
        while (frame := receive(self._courier.sock)) is not None:
            text = frame.body.decode(errors="replace")
            if frame.kind in (READY, DIED):  # the courier reached the scheduler, or lost it
                self._contact = frame.kind == READY
                met = met or self._contact
            elif frame.kind == OUTCOME:
                with self._news:
                    self._unsaid -= 1
                    self._news.notify_all()
            elif frame.kind == KILL and text == "*":
                here = socket.gethostname()
                self._end(
                    UNREACHABLE, f"the runner cannot connect to workers here on {here}: is it a firewall?"
                )
            elif frame.kind == KILL:
                self._kill(text)
            elif frame.kind == FAILED:
                why = text
        scheduler = self._settings["scheduler"]
        if met and why:
            self._end(0, f"the scheduler at {scheduler} is gone ({why}): the job ends")
        elif why:
            patience = self._settings["patience"]
            here = socket.gethostname()
            self._end(
                UNREACHED,
                f"the scheduler at {scheduler} cannot be reached from {here} within {patience:.0f} s: {why}",
            )
        else:
            gist = _gist(self._local / "courier.log")
            self._end(NO_COURIER, f"the connection with the scheduler ended unexpectedly\n{gist}")

    def _kill(self, name: str) -> None:
        with self._lock:
            child = self._workers.get(name)
        if child is not None:
            self._nursery.kill(child, "killed")

    def _mind_slot(self, index: int) -> None:
        failed = serial = 0
        while not (self._over.is_set() or self._leaving.is_set()):
            name = f"{self._job}-{index}-{serial}"
            serial += 1
            began = time.monotonic()
            worked = self._one_worker(name, self._logs / f"worker-{_slug(self._job)}-{index}.log")
            failed = 0 if worked or not self._contact else failed + 1
            if failed >= START_LIMIT:
                self._end(NOT_STARTED, f"{failed} new workers in a row did not come to work: the job ends")
            elif not worked and time.monotonic() - began < PAUSE:
                self._over.wait(PAUSE)

    def _one_worker(self, name: str, log: Path) -> bool:
        """Start a worker and see it to its end; whether it was ready for tasks in between."""
        before = log.stat().st_size if log.exists() else 0
        child = self._nursery.spawn(f"{NODE}:work", str(log), WORKER_SCORE)
        with self._lock:
            self._workers[name] = child
        with contextlib.suppress(OSError):
            send(child.sock, CALL, pickle.dumps({"name": name} | self._common))
        frame = receive(child.sock)
        worked = frame is not None and frame.kind == READY
        if worked:
            receive(child.sock)  # says nothing more: returns when the worker has ended
        death = self._death(child)
        child.sock.close()
        if not self._over.is_set():
            self._tell_death(name, frame, death, _gist(log, before))
        with self._news:
            del self._workers[name]
            self._news.notify_all()
        return worked

    def _tell_death(self, name: str, frame: Frame | None, death: WorkerDied, gist: str) -> None:
        if frame is not None and frame.kind == FAILED:
            error = rebuild_outcome(frame.body)
            _write(f"worker {name}: its initializer raised {type(error).__name__}: {error}")
            self._tell({"op": "refused", "name": name, "error": bytes(frame.body)})
        else:
            _write(f"worker {name}: {death}\n{gist}")
            words = {"why": death.why, "exitcode": death.exitcode, "peak": death.peak}
            self._tell({"op": "obituary", "name": name, **words})

    def _death(self, child: Child) -> WorkerDied:
        death = child.death(DEATH_WAIT)
        if death is None:  # it closed its socket and lives on
            self._nursery.kill(child, "it closed its connection")
            death = child.death(DEATH_WAIT)
        if death is None or (death.why == "exit" and not death.exitcode):
            return WorkerDied.of("lost: its connection broke")
        return death


def _unpacked(settings: dict[str, Any], local: Path) -> dict[str, Any]:
    """What each process of the job is told; the files that came with it are in the job's private folder."""
    files = Path(settings["files"])
    places = {}
    for name in TRAVELLED:
        source, target = files / settings[name], local / settings[name]
        with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as copy:
            copy.write(source.read_bytes())
        if settings["carried"]:  # a copy of this job's own, which others may be able to read
            source.unlink()
        places[name] = str(target)
    return {
        "scheduler": settings["scheduler"],
        "keys": (places["certificate"], places["key"]),
        "outfit": places["outfit"],
        "patience": settings["patience"],
        "ports": settings["ports"],
        "local": str(local),
    }


def _settle_in(settings: dict[str, Any]) -> None:
    """The runner's folder and its own modules, where this node sees them."""
    if settings["cwd"]:
        with contextlib.suppress(OSError):
            os.chdir(settings["cwd"])
    new = [entry for entry in settings["path"] if entry not in sys.path and Path(entry).exists()]
    sys.path[1:1] = new  # after this parcel, before what the interpreter has installed


def _log_folder(settings: dict[str, Any], local: Path) -> Path:
    logs = Path(settings["logs"]) if settings["logs"] else local
    return logs if os.access(logs, os.W_OK | os.X_OK) else local


def _slug(job: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]", "_", job)


def _gist(path: Path, since: int = 0) -> str:
    """The first and last lines of a log's new part, indented, for the job's own output."""
    try:
        with path.open("rb") as log:
            log.seek(since)
            head = log.read(GIST)
            log.seek(max(log.tell(), log.seek(0, os.SEEK_END) - GIST))
            tail = log.read()
    except OSError:
        return ""
    lines = (head + tail).decode(errors="replace").splitlines()
    if len(lines) > 2 * FEW:
        lines = [*lines[:FEW], "...", *lines[-FEW:]]
    return "\n".join(f"  {line}" for line in lines)


def _write(text: str) -> None:
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text.rstrip()}\n")
        sys.stderr.flush()
