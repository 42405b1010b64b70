"""The Executor that every engine with workers hands out: one lane per worker, one task at a time in each.

A lane is a thread that sends a call through its slot and waits for the outcome, so a death concerns exactly
the future that is in the lane. How a slot reaches its worker is the engine's business and may not enter.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import weakref
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING, Any, Protocol

from executors.engines.base import WorkerDied
from executors.engines.call import pack_call, settle
from executors.errors import EngineError, SiteError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CRASH_LIMIT = 3  # new workers in a row, in the whole pool, that did not live to their first task
TAKEN_AWAY = ("removed", "node", "walltime")  # by the batch system, for its own reasons: no failed start


class Slot(Protocol):
    """The way to one worker, which it starts and replaces."""

    worker: str  # a name for the worker that made the last call, another for each that was ever there

    def ready(self) -> None:
        """Return once the worker can take a call; WorkerDied or EngineError if it cannot be had."""

    def call(self, blob: bytes) -> bytes | bytearray:
        """The outcome of one call; WorkerDied if the worker did not live to give it."""

    def kill(self, why: str) -> None:
        """Kill the worker; the call that it runs ends with WorkerDied."""

    def renew(self, worker: str) -> None:
        """Have the worker of this name, if it is still there, replaced before it makes another call."""

    def close(self) -> None:
        """Let go of what the slot holds; called when nothing runs in it."""


class Pool(Executor):
    """A ``concurrent.futures.Executor`` over slots."""

    def __init__(
        self,
        slots: Sequence[Slot],
        close: Callable[[], None],
        need: Callable[[int], object] | None = None,
        memory: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._close_engine = close
        self._need = need
        self._memory = memory
        self._queue: queue.SimpleQueue[tuple[Future[Any], bytes] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._shut = False
        self._closing = False
        self._broken: SiteError | UsageError | None = None
        self._failed_starts = 0
        self._last_death = ""  # of what was the last that did not start
        self._started = threading.Event()
        self._lanes = [_Lane(self, slot, index) for index, slot in enumerate(slots)]
        for lane in self._lanes:
            lane.start()

    def wait_ready(self) -> None:
        """Return when the first worker is ready; the error that says why if none can be."""
        self._started.wait()
        if self._broken is not None:
            raise self._broken

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run ``fn(*args, **kwargs)`` on a worker; what cannot be pickled fails its own future."""
        future: Future[Any] = Future()
        try:
            blob = pack_call(fn, args, kwargs)
        except Exception as error:  # noqa: BLE001 - whatever an argument's own pickling raises
            self._refuse_closed()
            future.set_running_or_notify_cancel()
            future.set_exception(error)
            return future
        with self._lock:
            self._refuse_closed()
            self._queue.put((future, blob))
        return future

    def _refuse_closed(self) -> None:
        if self._broken is not None:
            raise self._broken
        if self._shut:
            raise RuntimeError("cannot schedule new futures after shutdown")

    def need(self, tasks: int) -> None:
        """Say that no more than so many tasks are left: jobs that still wait in a queue can be given up."""
        if self._need is not None and not self._closing:
            self._need(tasks)

    def waiting(self, future: Future[Any]) -> bool:
        """Whether a future still waits for a worker to be free."""
        return not future.running() and not future.done()

    def kill(self, future: Future[Any], why: str) -> bool:
        """Kill the worker that runs this future, which then ends with WorkerDied; False if none runs it."""
        return any(lane.kill(future, why) for lane in self._lanes)

    def renew(self, future: Future[Any]) -> bool:
        """Have the worker that made this future's result replaced before its next call, as one that leaks.

        What it does now it still finishes. False if no worker made the result.
        """
        return any(lane.renew(future) for lane in self._lanes)

    @property
    def memory(self) -> int | None:
        """The bytes that a worker may use, of the newest jobs where there are jobs; None: nobody knows."""
        return self._memory()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; what was submitted still runs, unless it is to be cancelled."""
        with self._lock:
            self._shut = True
            dropped = self._drain() if cancel_futures else []
            for _ in self._lanes:
                self._queue.put(None)
        for future in dropped:  # outside the lock: their callbacks may submit
            future.cancel()
            future.set_running_or_notify_cancel()
        if wait:
            for lane in self._lanes:
                if lane is not threading.current_thread():
                    lane.join()

    def close(self) -> None:
        """End at once: pending futures are cancelled, running ones end with WorkerDied."""
        self._closing = True
        self.shutdown(wait=False, cancel_futures=True)
        self._close_engine()
        for lane in self._lanes:
            if lane is not threading.current_thread():
                lane.join(10)

    def _drain(self) -> list[Future[Any]]:
        pending = []
        with contextlib.suppress(queue.Empty):
            while True:
                if (job := self._queue.get_nowait()) is not None:
                    pending.append(job[0])
        return pending

    def started(self) -> None:
        """A worker became ready."""
        self._failed_starts = 0
        self._started.set()

    def not_started(self, error: BaseException) -> None:
        """A new worker did not; too many of them in a row end the pool."""
        if isinstance(error, WorkerDied) and error.why in TAKEN_AWAY:
            return
        of = str(getattr(error, "about", {}).get("of", ""))
        with self._lock:
            if of and of == self._last_death:  # of many workers at once
                return
            self._last_death = of
            self._failed_starts += 1
            if not isinstance(error, SiteError | UsageError):
                if self._failed_starts < CRASH_LIMIT:
                    return
                text = f"{self._failed_starts} new workers in a row did not start; the last: {error}"
                error, cause = EngineError(text), error
                error.__cause__ = cause
            self._broken = self._broken or error
            dropped = self._drain()
            for _ in self._lanes:
                self._queue.put(None)
        for future in dropped:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
        self._started.set()

    def take(self) -> tuple[Future[Any], bytes] | None:
        """The next call for a lane; None when the lane is to end."""
        return self._queue.get()

    @property
    def ending(self) -> bool:
        """Whether no worker needs to be replaced any more."""
        return self._closing or self._broken is not None

    def refuse(self, future: Future[Any]) -> None:
        """Settle a future for which there is no worker any more."""
        if future.set_running_or_notify_cancel():
            future.set_exception(self._broken or WorkerDied.of("the pool was closed"))


class _Lane(threading.Thread):
    def __init__(self, pool: Pool, slot: Slot, index: int) -> None:
        super().__init__(name=f"lane-{index}", daemon=True)
        self._pool = pool
        self._slot = slot
        self._lock = threading.Lock()
        self._current: Future[Any] | None = None
        self._made: weakref.WeakKeyDictionary[Future[Any], str] = weakref.WeakKeyDictionary()
        self._stale: queue.SimpleQueue[str] = queue.SimpleQueue()

    def run(self) -> None:
        try:
            while self._ready() and (job := self._pool.take()) is not None:
                if self._renewed():
                    self._work(*job)
                else:
                    self._pool.refuse(job[0])
                del job
        finally:
            self._slot.close()

    def _ready(self) -> bool:
        while not self._pool.ending:
            try:
                self._slot.ready()
            except Exception as error:  # noqa: BLE001 - whatever it is, the pool must know or futures hang
                self._pool.not_started(error)
            else:
                self._pool.started()
                return True
        return False

    def _renewed(self) -> bool:
        """Replace the workers that are not to be used again; False if there will be no others."""
        if self._stale.empty():
            return True
        with contextlib.suppress(queue.Empty):
            while True:
                self._slot.renew(self._stale.get_nowait())
        return self._ready()

    def _work(self, future: Future[Any], blob: bytes) -> None:
        if not future.set_running_or_notify_cancel():
            return
        with self._lock:
            self._current = future
        try:
            outcome = self._slot.call(blob)
            self._made[future] = self._slot.worker
        except Exception as error:  # noqa: BLE001 - the lane must live; the future tells
            self._done()
            future.set_exception(error)
        else:
            self._done()
            settle(future, outcome)

    def _done(self) -> None:
        with self._lock:
            self._current = None

    def renew(self, future: Future[Any]) -> bool:
        worker = self._made.pop(future, "")
        if worker:
            self._stale.put(worker)
        return bool(worker)

    def kill(self, future: Future[Any], why: str) -> bool:
        with self._lock:
            if self._current is not future:
                return False
            self._slot.kill(why)
            return True
