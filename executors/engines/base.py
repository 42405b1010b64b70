"""What an engine is: one method, what it can do, what it is asked for, and how it says that a worker died.

Only names and plain data live here; nothing that starts a process and no engine's own library may enter.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from executors.errors import ExecutorsError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Executor
    from contextlib import AbstractContextManager
    from pathlib import Path

    from executors.engines.nursery import Spare
    from sites.profile import SiteProfile


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What callers may rely on; the contract tests hold an engine to each."""

    remote: bool = False  # workers may run on other machines
    shares_store: bool = True  # workers see the runner's file system
    isolates: bool = True  # a task that kills its process leaves the runner and the other tasks alone
    exact_blame: bool = True  # only the task that ran on a dead worker fails
    cancels: bool = True  # a future that has not started can be cancelled
    kills: bool = True  # the pool has kill(future, why)
    renews: bool = True  # the pool has renew(future)
    kills_on_memory: bool = False  # Resources.memory is enforced


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What a caller wants of an engine."""

    workers: int = 1  # processes, each with one task at a time; at a batch site: of each job
    jobs: int = 1  # batch jobs; this machine has none
    cores: int = 1  # threads that numeric libraries may use within a task
    memory: int | None = None  # bytes a worker; more and it is killed, where the engine can
    disk: int | None = None  # bytes a worker
    walltime: float | None = None  # seconds a worker may live, for sites that ask
    scratch: Path | None = None  # where a private folder for keys and sockets is made; default: the system's
    log_dir: Path | None = None  # where workers' output goes; without it, it is dropped on leaving
    sole: bool = False  # nobody else uses log_dir: what is noted there of other engines, the dead have left
    env: Mapping[str, str] = field(default_factory=dict)  # added to the workers' environment
    initializer: Callable[..., object] | None = None  # called once in each new worker
    initargs: tuple[Any, ...] = ()
    preload: tuple[str, ...] = ()  # modules imported once and shared by the workers, where the engine can
    tell: Callable[[str, str], None] | None = None  # hears (level, text): what becomes of jobs and workers
    spare: Spare | None = None  # a keeper that was started already
    insecure: bool = False  # talk to a scheduler of others without encryption, if that is all it has

    @property
    def lanes(self) -> int:
        """How many tasks can run at once when every worker is there."""
        return self.workers * self.jobs


REMOVED = "removed"
# What a batch system says of a job that took its worker along; any other reason is said as it is.
FATES = {
    "walltime": "its batch job reached its walltime",
    REMOVED: "its batch job was removed",
    "node": "its node went away",
    "exit": "its batch job ended",
}


class WorkerDied(ExecutorsError):  # noqa: N818 - policies read the name
    """The worker that ran a task is gone; its text and attributes say how it ended."""

    @classmethod
    def of(cls, why: str, exitcode: int | None = None, peak: int = 0) -> WorkerDied:
        """The error for one death: why ("signal", "exit", "memory", ...), exit code, peak bytes."""
        parts = [f"the worker died: {FATES.get(why, why) if exitcode is None else why}"]
        if exitcode is not None:
            parts.append(f"signal {-exitcode}" if exitcode < 0 else f"exit code {exitcode}")
        if peak:
            parts.append(f"peak {peak / 2**20:.0f} MiB")
        return cls(", ".join(parts), why=why, exitcode=exitcode, peak=peak)

    @property
    def why(self) -> str:
        """``signal``, ``exit``, ``memory``, ``stopped``, ``lost``, of FATES, or what ``kill`` was given."""
        return str(self.about.get("why", ""))

    @property
    def exitcode(self) -> int | None:
        """The exit code, negative for a signal, None where nobody could see it."""
        code = self.about.get("exitcode")
        return code if isinstance(code, int) else None

    @property
    def peak(self) -> int:
        """The highest resident memory of the dead worker in bytes, 0 where unknown."""
        return int(self.about.get("peak") or 0)


class RemoteError(ExecutorsError):
    """A task raised (or returned) what cannot be rebuilt here; the text describes it."""


class RemoteTraceback(Exception):  # noqa: N818 - it is a traceback, carried as a cause
    """The worker's traceback, as the cause of the exception that it belongs to."""

    def __str__(self) -> str:
        return "\n" + str(self.args[0]) if self.args else ""


@runtime_checkable
class Engine(Protocol):
    """Opens a site and hands back a ``concurrent.futures.Executor``; it never retries."""

    name: ClassVar[str]
    capabilities: ClassVar[Capabilities]

    def open(self, site: SiteProfile, want: Resources) -> AbstractContextManager[Executor]:
        """Start what is needed; leaving the context ends all of it at once, running tasks included."""
