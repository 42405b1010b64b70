"""Inside the host of the engine ``parsl``: Parsl on this machine; ``parsl_remote`` has it on batch systems.

Parsl runs the tasks and replaces single workers; whatever else goes wrong in it ends the host, which the
runner starts anew. What the runner sees is in ``host``.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import site
import sys
import sysconfig
import threading
import time
from collections import deque
from concurrent.futures import TimeoutError as NotYet
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from parsl.concurrent import ParslPoolExecutor
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.executors.high_throughput.errors import WorkerLost
from parsl.launchers import SimpleLauncher
from parsl.providers import LocalProvider

import executors
from executors.engines.base import WorkerDied
from executors.engines.call import rebuild_outcome
from executors.engines.host import serve_host
from executors.engines.parsl_task import left_file, outcome_file, run_noted
from executors.engines.weight import Kills, Scale, descendants
from executors.errors import EngineError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from executors.engines.pool import Slot

LOOPBACK = "127.0.0.1"
START_LIMIT = 120.0  # seconds to the first answer: cold imports from a slow file system
TAKE_LIMIT = 30.0  # seconds until a free worker must have begun a task; Parsl's queues can lock up for ever
STOPPED_LIMIT = 5.0
DEAD_LIMIT = 15.0  # Parsl says it within its heartbeat of a second, unless the death broke its queues
POLL = 0.5
STALE = 100  # names that travel with each call; those before them have ended long ago


def serve(trunk: socket.socket) -> None:
    """The host's process."""
    serve_host(trunk, _build)


def _build(setup: dict[str, Any]) -> Callable[[int], Slot]:
    if setup["site"].scheduler is not None:
        from executors.engines import parsl_remote

        return parsl_remote.build(setup, _give_up)
    private = Path(setup["private"])
    before = _prepare_environment()
    outfit = private / "outfit"
    outfit.write_bytes(setup["outfit"])
    provider = LocalProvider(init_blocks=1, min_blocks=1, max_blocks=1, launcher=SimpleLauncher())
    executor = HighThroughputExecutor(
        label="htex",
        address=LOOPBACK,
        loopback_address=LOOPBACK,
        provider=provider,
        max_workers_per_node=setup["workers"],
        cores_per_worker=1e-6,  # the number of workers is the caller's to choose, not the machine's
        prefetch_capacity=0,
        heartbeat_period=1,
        heartbeat_threshold=30,
        encrypted=True,
    )
    config = Config(
        executors=[executor],
        run_dir=str(private / "run"),
        strategy="none",
        strategy_period=0.1,  # the first block is asked for at its first turn
        retries=0,
        usage_tracking=0,
        initialize_logging=False,
    )
    pool = ParslPoolExecutor(config)
    for key in (private / "run").rglob("*.key*"):
        key.chmod(0o600)  # Parsl trusts the folder alone
    threading.Thread(target=_watch_interchange, args=(executor,), name="interchange", daemon=True).start()
    common = {"path": setup["path"], "logs": setup["logs"], "outfit": str(outfit), "pythonpath": before}
    weights = Weights(setup["memory"])
    # Workers of a host before this one may still answer: what they write is not for the calls of this one.
    notes = private / f"note-{os.getpid()}-{secrets.token_hex(4)}"
    return lambda index: weights.watch(ParslSlot(pool, Path(f"{notes}-{index}"), common, weights))


def _watch_interchange(executor: HighThroughputExecutor) -> None:
    # Parsl itself would not notice: tasks would wait until their workers miss its heartbeats.
    process = executor.interchange_proc
    if process is not None:
        _give_up(f"its interchange ended with {process.wait()}")


def _prepare_environment() -> str | None:
    # Parsl starts its own programs by name, and they must find this package.
    scripts = [str(Path(sys.executable).parent), sysconfig.get_path("scripts"), f"{site.getuserbase()}/bin"]
    os.environ["PATH"] = os.pathsep.join([*scripts, os.environ.get("PATH", os.defpath)])
    for program in ("interchange.py", "process_worker_pool.py"):
        if shutil.which(program) is None:
            cure = f"{sys.executable} -m pip install --force-reinstall --no-deps parsl"
            raise EngineError(f"Parsl's program {program} is not installed beside {sys.executable}: {cure}")
    root = str(Path(executors.__path__[0]).parent)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([root, before] if before else [root])
    return before


class ParslSlot:
    """One task at a time through Parsl; a note tells which process has taken it."""

    def __init__(self, pool: Any, note: Path, common: dict[str, Any], weights: Weights) -> None:
        self._pool = pool
        self._note = note
        self._common = common
        self._weights = weights
        self.worker = ""
        self.heavy = 0  # bytes that the worker had when it was killed for that
        self._busy = False
        self._ticket = 0
        self._doomed = -1
        self._proven = False

    def ready(self) -> None:
        """Return once a worker has answered."""
        if self._proven:
            return
        if refusal := self._run(b"", START_LIMIT):
            error = rebuild_outcome(refusal)
            raise WorkerDied(f"the workers' initializer raised {type(error).__name__}: {error}") from error
        self._proven = True

    def call(self, blob: bytes) -> bytes | bytearray:
        """The outcome of one call; WorkerDied if its worker was lost."""
        while True:
            try:
                return self._run(blob, TAKE_LIMIT)
            except WorkerDied:
                not_begun = left_file(str(self._note), self._ticket).exists()
                if not not_begun or self._doomed == self._ticket:
                    raise

    def renew(self, worker: str) -> None:
        """Have it end when a call reaches it, which is then made by another."""
        self._weights.stale.append(worker)

    def kill(self, why: str) -> None:  # noqa: ARG002 - the runner remembers why
        """Kill the process that has taken the task, or will take it."""
        self._doomed = self._ticket
        self._kill_doomed()

    def _kill_doomed(self) -> None:
        if self._doomed == self._ticket and (pid := self.taker()) is not None:
            _kill(pid)

    def close(self) -> None:
        """Nothing is held."""

    def _run(self, blob: bytes, limit: float) -> bytes:
        self._busy = True
        try:
            return self._result(blob, limit)
        finally:
            self._busy = False

    def _result(self, blob: bytes, limit: float) -> bytes:
        self._ticket += 1
        self.heavy = 0
        with contextlib.suppress(FileNotFoundError):
            self._note.unlink()
        given = (self._common, str(self._note), self._ticket, blob, tuple(self._weights.stale))
        future = self._pool.submit(run_noted, *given)
        watch = _Watch(limit)
        while True:
            try:
                refusal: bytes = future.result(POLL)
            except NotYet:
                if (outcome := self._outcome()) is not None:
                    self._name_maker()
                    return outcome
                self._kill_doomed()
                watch.look(self.taker())
            except WorkerLost as error:
                raise self._weights.death(self) from error
            except Exception as error:  # noqa: BLE001 - anything else is Parsl's own end
                _give_up(f"{type(error).__name__}: {error}")
            else:
                self._name_maker()
                return refusal or self._outcome() or b""

    def _outcome(self) -> bytes | None:
        path = outcome_file(str(self._note), self._ticket)
        try:
            outcome = path.read_bytes()
        except FileNotFoundError:
            return None
        path.unlink()
        return outcome

    def taker(self) -> int | None:
        """The process that is making a call; none is ended without: it may hold a lock that all share."""
        if not self._busy:
            return None
        with contextlib.suppress(OSError, ValueError):
            ticket, pid, _ = self._note.read_text().split()
            if int(ticket) == self._ticket:
                return int(pid)
        return None

    def _name_maker(self) -> None:
        with contextlib.suppress(OSError, IndexError):
            self.worker = self._note.read_text().split()[2]


class Weights:
    """Keeps every worker within its memory, which Parsl does not; knows of whom the kernel killed for it."""

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._scale, self._kills = Scale(), Kills()
        self._lock = threading.Lock()
        self.stale: deque[str] = deque(maxlen=STALE)  # workers that are to make no more calls
        self._slots: list[ParslSlot] = []
        self._last: dict[ParslSlot, int] = {}
        if limit is not None:
            threading.Thread(target=self._run, args=(limit,), name="weights", daemon=True).start()

    def watch(self, slot: ParslSlot) -> ParslSlot:
        """One more slot whose workers are weighed."""
        self._slots.append(slot)
        return slot

    def death(self, slot: ParslSlot) -> WorkerDied:
        """How the worker ended that Parsl has lost."""
        peak = slot.heavy or self._last.get(slot, 0)
        with self._lock:
            if slot.heavy or self._kills.one_more():
                return WorkerDied.of("memory", -signal.SIGKILL, peak)
        return WorkerDied.of("lost", None, peak)

    def _run(self, limit: int) -> None:
        while True:
            for slot in list(self._slots):
                pid = slot.taker()
                if pid is not None and not slot.heavy:
                    self._look(slot, pid, limit)
            time.sleep(self._scale.pause(len(self._slots)))

    def _look(self, slot: ParslSlot, pid: int, limit: int) -> None:
        weight = self._last[slot] = self._scale.weigh(pid, limit)
        if weight > limit:
            slot.heavy = weight
            for one in (pid, *descendants(pid)):
                _kill(one)


class _Watch:
    """What to make of a task that is not done yet."""

    def __init__(self, limit: float) -> None:
        self._limit = time.monotonic() + limit
        self._state = ""
        self._since = 0.0

    def look(self, pid: int | None) -> None:
        """Return if waiting makes sense; kill a stopped worker, end a stuck Parsl."""
        now = time.monotonic()
        if pid is None:
            if now > self._limit:
                _give_up("no worker took the task in time")
            return
        state = {"T": "stopped", "Z": "dead", "X": "dead"}.get(_state(pid), "fine")
        if state != self._state:
            self._state, self._since = state, now
        elif state == "stopped" and now - self._since > STOPPED_LIMIT:
            _kill(pid)
        elif state == "dead" and now - self._since > DEAD_LIMIT:
            _give_up("a worker is dead and Parsl has not said so")


def _state(pid: int) -> str:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "X"
    return stat.rpartition(")")[2].split()[0].upper()


def _kill(pid: int) -> None:
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGKILL)


def _give_up(why: str) -> NoReturn:
    sys.stderr.write(f"the host of Parsl ends: {why}\n")
    sys.stderr.flush()
    os._exit(75)
