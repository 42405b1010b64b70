"""The engine ``futures``: worker processes on this machine, one per slot, forked by a keeper.

Blame is exact, a dead worker is replaced in milliseconds, and user scripts are never imported again by the
workers. What a worker runs is in ``call``; how it is kept is in ``keeper``.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, ClassVar

from executors.engines.base import Capabilities, Resources, WorkerDied
from executors.engines.call import CALL, FAILED, OUTCOME, READY, pack_outfit, rebuild_outcome, receive, send
from executors.engines.nursery import WORKER_SCORE, Child, Nursery, thread_limits
from executors.engines.places import Places
from executors.engines.pool import Pool

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sites.profile import SiteProfile

DEATH_WAIT = 5.0
RENEWED = "another took its place"


class WorkerSlot:
    """A worker process of its own behind a socket."""

    target: ClassVar[str] = "executors.engines.call:serve"

    def __init__(self, nursery: Nursery, index: int, outfit: bytes) -> None:
        self._nursery = nursery
        self._log = f"worker-{index}.log"
        self._outfit = outfit
        self._child: Child | None = None
        self._doomed = ""  # why the worker was killed, until it is buried
        self._lock = threading.Lock()
        self.worker = ""
        self.greeting: bytes | bytearray = b""  # what the worker said of itself when it was ready

    def ready(self) -> None:
        """Start a worker unless a good one is there; WorkerDied if it ends before it is ready."""
        if self._child is not None:
            if self._child.alive and not self._doomed:
                return
            self._bury()
        child = self._nursery.spawn(self.target, self._log, WORKER_SCORE)
        with self._lock:
            self._child = child
            if self._doomed:  # the kill came while there was no worker
                self._nursery.kill(child, self._doomed)
        with contextlib.suppress(OSError):
            send(child.sock, CALL, self._outfit)
        frame = receive(child.sock)
        if frame is not None and frame.kind == READY:
            self.greeting = frame.body
            self.worker = str(child.ticket)
            return
        death = self._bury()
        if frame is not None and frame.kind == FAILED:
            error = rebuild_outcome(frame.body)
            raise WorkerDied(f"the workers' initializer raised {type(error).__name__}: {error}") from error
        raise death

    def call(self, blob: bytes) -> bytes | bytearray:
        """The outcome of one call; WorkerDied says how the worker ended otherwise."""
        self.ready()
        child = self._child
        if child is None:
            raise WorkerDied.of("lost")
        with contextlib.suppress(OSError):
            send(child.sock, CALL, blob)
        frame = receive(child.sock)
        if frame is not None and frame.kind == OUTCOME:
            return frame.body
        raise self._bury()

    def kill(self, why: str) -> None:
        """Kill the worker; whatever it answers now, it takes no other call."""
        with self._lock:
            self._doomed = why or "killed"
            if self._child is not None:
                self._nursery.kill(self._child, self._doomed)

    def renew(self, worker: str) -> None:
        """Let the worker go if it is the one of this name; another is started when one is needed."""
        child = self._child
        if child is not None and worker == self.worker:
            self._nursery.kill(child, RENEWED)
            self._bury()

    def _bury(self, unless: str = "it closed its connection") -> WorkerDied:
        with self._lock:
            child, self._child, self._doomed = self._child, None, ""
        if child is None:
            return WorkerDied.of("lost")
        death = child.death(DEATH_WAIT)
        if death is None:  # it closed its socket but lives on
            self._nursery.kill(child, unless)
            death = child.death(DEATH_WAIT)
        child.sock.close()
        return death or WorkerDied.of("lost")

    def close(self) -> None:
        """Let the worker go: it ends when its socket closes."""
        with self._lock:
            if self._child is not None:
                self._child.sock.close()
                self._child = None


class FuturesEngine:
    """Processes on this machine."""

    name: ClassVar[str] = "futures"
    capabilities: ClassVar[Capabilities] = Capabilities(kills_on_memory=True)

    @contextlib.contextmanager
    def open(self, site: SiteProfile, want: Resources) -> Iterator[Pool]:
        """One worker process per slot; leaving ends them all at once."""
        with Places(self.name, want) as places:
            given = {**site.env, **want.env}
            nursery = Nursery(
                places.logs,
                env=given | thread_limits(want.cores, given),
                memory=want.memory,
                preload=want.preload,
                sweep=places.private,
            )
            outfit = pack_outfit(want.initializer, want.initargs)
            slots = [WorkerSlot(nursery, i, outfit) for i in range(want.workers)]
            pool = Pool(slots, nursery.close, memory=lambda: want.memory)
            try:
                pool.wait_ready()
                yield pool
            finally:
                pool.close()
