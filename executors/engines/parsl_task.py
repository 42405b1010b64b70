"""What a Parsl worker runs: the same call as on every engine.

On this machine the worker itself makes it, after a note of who has taken it. On a batch node it keeps a
process of its own that does, so that a death is seen at once and by its cause, and never breaks the queues
that Parsl's workers share. It is imported on each worker, so neither Parsl nor anything heavy may enter.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

from executors.engines.base import WorkerDied
from executors.engines.call import DIED, FAILED, OUTCOME, READY, pack_death, pack_error, put_on, run
from executors.engines.futures import WorkerSlot
from executors.engines.nursery import WORKER_SCORE, Nursery
from executors.errors import EngineError

WORKER_FILE = "EXECUTORS_PARSL_WORKER"  # the variable by which a job's pilot tells its workers what they are
BROKEN = "broken"  # the file by which they tell it that this node is no place for them
FALSE_STARTS = 3  # processes in a row that did not live to a first call: not this node

_name: list[str] = []  # of this process, once it is ready for calls
_kept: list[KeptSlot] = []


def run_noted(
    common: dict[str, Any], note: str, ticket: int, blob: bytes, stale: tuple[str, ...] = ()
) -> bytes:
    """Make a call and leave its outcome beside the note; returns the outcome of an initializer that raised.

    Parsl hands results to a thread of the worker: a next task that kills the worker would take the result of
    this one along. What is in a file by then is safe. ``stale``: the names of processes that are to end
    instead of making a call; the mark that they leave says that the call was not begun.
    """
    Path(note).write_text(f"{ticket} {os.getpid()} {_name[0] if _name else '-'}", encoding="ascii")
    if _name and _name[0] in stale:
        left_file(note, ticket).touch()
        os._exit(0)  # Parsl replaces a worker only when it is lost with a task
    if not _name:
        try:
            _dress(common)
        except BaseException as error:  # noqa: BLE001 - the worker's edge: the runner must learn why
            return pack_error(error)
        _name.append(f"{os.getpid()}-{os.urandom(4).hex()}")
        Path(note).write_text(f"{ticket} {os.getpid()} {_name[0]}", encoding="ascii")
    if blob:
        outcome = outcome_file(note, ticket)
        half = outcome.with_suffix(".part")
        half.write_bytes(run(blob))
        half.replace(outcome)
    return b""


def outcome_file(note: str, ticket: int) -> Path:
    """Where the outcome of one call is."""
    return Path(f"{note}-{ticket}.out")


def left_file(note: str, ticket: int) -> Path:
    """What is there when a worker has ended instead of making the call."""
    return Path(f"{note}-{ticket}.left")


def _dress(common: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # the kernel takes a worker before what serves all of them
        Path("/proc/self/oom_score_adj").write_text(str(WORKER_SCORE))
    log = Path(common["logs"]) / f"worker-{os.environ.get('PARSL_WORKER_RANK', os.getpid())}.log"
    out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.close(out)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    faulthandler.enable(file=2)
    sys.path[:] = common["path"]
    os.environ.pop("PYTHONPATH", None)
    if common["pythonpath"] is not None:
        os.environ["PYTHONPATH"] = common["pythonpath"]
    put_on(Path(common["outfit"]).read_bytes())


def run_kept(blob: bytes, stale: tuple[str, ...] = ()) -> tuple[bytes, bytes | bytearray, str]:
    """On a batch node: make a call in the process that this worker keeps, an empty one only to have it there.

    The answer is the outcome, or how the process died, or why a new one refused to start; and its name.
    ``stale``: the names of processes that are not to make calls any more.
    """
    if not _kept:
        _kept.append(_first_slot())
    slot = _kept[0]
    try:
        if slot.name in stale:
            slot.renew(slot.worker)
        slot.ready()
        return (OUTCOME, slot.call(blob), slot.name) if blob else (READY, b"", slot.name)
    except WorkerDied as death:
        # Only a death has a cause; what the initializer raised has a text.
        return (DIED, pack_death(death), slot.name) if death.why else (FAILED, pack_error(death), "")


class KeptSlot(WorkerSlot):
    """The process that a worker keeps; where none can live, the job is given back."""

    def __init__(self, settings: dict[str, Any]) -> None:
        local, rank = Path(settings["local"]), os.environ.get("PARSL_WORKER_RANK", "0")
        nursery = Nursery(local, memory=settings["memory"], preload=tuple(settings["preload"]))
        super().__init__(nursery, 0, Path(settings["outfit"]).read_bytes())
        self._log = str(Path(settings["logs"]) / f"worker-{settings['job']}-{rank}.log")
        self._here = f"{settings['job']}/{socket.gethostname()}-{os.getpid()}"
        self._broken = local / BROKEN
        self._false_starts = 0

    @property
    def name(self) -> str:
        """Of the process, unlike that of any other on any node; it begins with its job."""
        return f"{self._here}-{self.worker}"

    def ready(self) -> None:
        """Start the process unless it is there."""
        try:
            super().ready()
        except WorkerDied as death:
            self._false_starts += 1 if death.why else 0
            if self._false_starts >= FALSE_STARTS:
                self._broken.write_text(f"{self._false_starts} processes in a row did not start: {death}")
            raise
        self._false_starts = 0


def _first_slot() -> KeptSlot:
    settings = json.loads(Path(os.environ[WORKER_FILE]).read_text(encoding="utf-8"))
    for name, value in settings[
        "env"
    ].items():  # as the job has it: the pilot's own is not the tasks' business
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    sys.path[:] = settings["path"]
    try:
        return KeptSlot(settings)
    except (OSError, EngineError) as error:
        (Path(settings["local"]) / BROKEN).write_text(f"no process can be kept: {error}")
        raise
