"""``executors.open``: any engine at any site as a ``concurrent.futures.Executor``, and nothing more."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from executors import luggage
from executors.options import JOBS, WHERE, options
from executors.settings import resolve
from executors.where import where

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from concurrent.futures import Executor


def site_options() -> set[str]:
    """The options of the command that say something about a site or its jobs."""
    about = {each.name for each in options() if each.about["group"] in (WHERE, JOBS)}
    return about - {"executor", "workers", "scaleout", "check"}


def default_workers(name: str, **asked: Any) -> int | None:
    """How many workers a job has where nobody says; None on this machine. Errors of use are raised."""
    spot = where(resolve(executor=name, **asked).settings)
    return None if spot.local else spot.workers


def exact_blame(name: str, **asked: Any) -> bool:
    """Whether a dead worker fails only the task that ran on it."""
    return where(resolve(executor=name, **asked).settings).engine.capabilities.exact_blame


@contextlib.contextmanager
def open(  # noqa: A001 - the verb users know: executors.open(name)
    name: str,
    *,
    workers: int | Literal["auto"] | None = None,
    jobs: int = 1,
    memory: int | str | None = None,
    log_dir: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    **more: Any,
) -> Iterator[Executor]:
    """Open an engine (``"futures"``, ``"dask/slurm"``, …); leaving the block ends its workers and jobs.

    ``workers`` are those of this machine (default 1; ``"auto"``: as many as cores and memory allow), or of
    each of the ``jobs`` of a batch site (default: its cores); ``memory`` likewise. What the command says
    about a site are keywords too (``queue="long"``).
    Where workers do not see this machine's files, the project's modules imported so far are sent to them.
    A task whose worker dies fails with an exception; nothing is retried here.
    """
    from executors.engines.base import Resources

    about = site_options()
    asked = {key: more.pop(key) for key in list(more) if key in about}
    if memory is not None:
        asked["memory"] = f"{memory}B" if isinstance(memory, int) else memory
    if workers is not None:
        asked["workers"] = workers
    spot = where(resolve(executor=name, scaleout=jobs, **asked).settings)
    each = 1 if spot.local and workers is None else spot.workers
    if not spot.shared:
        first, args = more.pop("initializer", None), more.pop("initargs", ())
        more |= {"initializer": luggage.arrive, "initargs": (luggage.pack(luggage.loaded()), first, args)}
    more.setdefault("scratch", spot.private_base(Path(log_dir) if log_dir is not None else Path.cwd()))
    want = Resources(
        workers=each,
        jobs=1 if spot.local else spot.jobs,
        memory=spot.worker_memory(each),
        log_dir=Path(log_dir) if log_dir is not None else None,
        env=dict(env or {}),
        **more,
    )
    with spot.engine.open(spot.site, want) as pool:
        yield pool
