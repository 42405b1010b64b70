"""The pool under a drop-in executor: opened at first use, kept between calls, closed once and for all.

Knows how pools begin and end; nothing of items, retries or results.
"""

from __future__ import annotations

import atexit
import contextlib
import inspect
import threading
import weakref
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING, Any, TypeAlias

from executors.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

Pool: TypeAlias = "Executor | Callable[..., Executor] | None"


class _Opened:
    """What is open now; apart from the session, so that the session can be collected and this closed."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.stack = contextlib.ExitStack()
        self.pool: Executor | None = None
        self.generation = 0
        self.exact = False

    def close(self) -> None:
        with self.lock:
            atexit.unregister(self.close)
            self.pool = None
            stack, self.stack = self.stack, contextlib.ExitStack()
            stack.close()


class Session:
    """One engine opened lazily; shared by an executor and all the copies made of it."""

    def __init__(
        self,
        engine: str,
        workers: int,
        pool: Pool = None,
        jobs: int = 1,
        site: Mapping[str, Any] | None = None,
    ) -> None:
        self.key = (engine, workers, pool, jobs, dict(site or {}))
        self._opened = _Opened()
        # Not atexit of weakref's: it runs after those of the engines, which then are half gone.
        weakref.finalize(self, self._opened.close).atexit = False

    @property
    def is_open(self) -> bool:
        """Whether there is a pool now."""
        return self._opened.pool is not None

    @property
    def exact(self) -> bool:
        """Whether a dead worker fails only what ran on it, so that the blame is certain."""
        return self._opened.exact

    @property
    def replaceable(self) -> bool:
        """Whether a broken pool can be opened anew: not one that the user made."""
        return not isinstance(self.key[2], Executor)

    def pool(self) -> tuple[Executor, int]:
        """The pool, opened if need be, and its generation."""
        opened = self._opened
        with opened.lock:
            if opened.pool is None:
                opening, opened.exact = _open(*self.key)
                opened.pool = opened.stack.enter_context(opening)
                opened.generation += 1
                atexit.register(opened.close)
            return opened.pool, opened.generation

    def kill(self, future: Future[Any], why: str) -> bool:
        """End the worker that is on a future, where the pool can do that; False where it cannot."""
        end = getattr(self._opened.pool, "kill", None)
        return bool(end(future, why)) if callable(end) else False

    def need(self, calls: int) -> None:
        """Let the pool know that no more calls than these are to come, where it can give up machines."""
        tell = getattr(self._opened.pool, "need", None)
        if callable(tell):
            tell(calls)

    def renew(self, generation: int, why: BaseException) -> None:
        """Close the pool of that generation because it is broken; the next use opens another."""
        if not self.replaceable:
            raise EngineError(
                f"the pool given is broken ({type(why).__name__}: {why}) and only its maker can mend it; "
                "give for_coffea an engine's name, or a class as pool="
            ) from why
        with self._opened.lock:
            if generation == self._opened.generation:
                self.close()

    def close(self) -> None:
        """Close the pool if one is open; workers in the middle of an item are ended."""
        self._opened.close()

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy elsewhere opens its own: neither workers nor locks travel.
        return (Session, (*self.key[:2], None if not self.replaceable else self.key[2], *self.key[3:]))


def _open(
    engine: str, workers: int, pool: Pool, jobs: int, site: Mapping[str, Any]
) -> tuple[AbstractContextManager[Executor], bool]:
    if isinstance(pool, Executor):
        return contextlib.nullcontext(pool), False
    if pool is not None:
        return _made(pool, workers), False
    from executors.pools import exact_blame
    from executors.pools import open as open_pool

    return open_pool(engine, workers=workers, jobs=jobs, **site), exact_blame(engine, **site)


@contextlib.contextmanager
def _made(make: Callable[..., Executor], workers: int) -> Iterator[Executor]:
    pool = make(max_workers=workers)
    try:
        yield pool
    finally:
        _end(pool)


def _end(pool: Any) -> None:
    # A plain shutdown waits for what is running, which after Ctrl-C nobody wants.
    processes = list((vars(pool).get("_processes") or {}).values())
    known = inspect.signature(pool.shutdown).parameters
    how = {name: True for name in ("cancel_futures", "kill_workers") if name in known}
    pool.shutdown(wait=False, **how)
    if "kill_workers" not in known:
        for process in processes:
            process.kill()
    for process in processes:
        process.join(5)
