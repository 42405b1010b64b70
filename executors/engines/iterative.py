"""The engine ``iterative``: every call runs at once in the caller's own thread. Nothing else."""

from __future__ import annotations

import contextlib
import os
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING, Any, ClassVar

from executors.engines.base import Capabilities, Resources
from executors.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from sites.profile import SiteProfile


class Inline(Executor):
    """An Executor whose ``submit`` returns a future that is done."""

    def __init__(self, memory: int | None = None) -> None:
        self._shut = False
        self.memory = memory  # bytes that a call may use, which nobody enforces here

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call ``fn`` now. A Ctrl-C is the runner's own and goes through; all else is the future's."""
        if self._shut:
            raise RuntimeError("cannot schedule new futures after shutdown")
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        try:
            result = fn(*args, **kwargs)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - the worker's edge, in this process
            future.set_exception(error)
        else:
            future.set_result(result)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002
        """Take no more calls; nothing can be pending."""
        self._shut = True


class IterativeEngine:
    """One call after another in this process: for debugging, and the reference of all others."""

    name: ClassVar[str] = "iterative"
    capabilities: ClassVar[Capabilities] = Capabilities(
        isolates=False, exact_blame=False, cancels=False, kills=False, renews=False
    )

    @contextlib.contextmanager
    def open(self, site: SiteProfile, want: Resources) -> Iterator[Inline]:
        """No process is started; the environment and the initializer are the runner's own."""
        pool = Inline(want.memory)
        with _environment({**site.env, **want.env}):
            try:
                if want.initializer is not None:
                    want.initializer(*want.initargs)
            except Exception as error:
                text = f"the workers' initializer raised {type(error).__name__}: {error}"
                raise EngineError(text) from error
            try:
                yield pool
            finally:
                pool.shutdown()


@contextlib.contextmanager
def _environment(added: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in added}
    os.environ.update(added)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
