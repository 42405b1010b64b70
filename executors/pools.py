"""``executors.open``: any engine at any site as a ``concurrent.futures.Executor``, and nothing more."""

from __future__ import annotations

import contextlib
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from executors import luggage
from executors.options import JOBS, WHERE, options
from executors.settings import resolve
from executors.where import where

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
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


def reading(name: str, **asked: Any) -> tuple[Callable[[str], str] | None, dict[str, str]]:
    """How the site of that name reads an address, if not every one as it is; what XRootD's client is told."""
    from sites.profile import Urls
    from sites.urls import Reading, xrootd_env

    site = where(resolve(executor=name, **asked).settings).site
    read = None if site.urls == Urls() else Reading(site, os.environ).read
    return read, xrootd_env(site.xrootd, {**os.environ, **site.env})


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
    settings = resolve(executor=name, scaleout=jobs, **asked).settings
    spot = where(settings)
    each = 1 if spot.local and workers is None else spot.workers
    if not spot.shared:
        first, args = more.pop("initializer", None), more.pop("initargs", ())
        names, script = luggage.loaded(), luggage.own_script()
        more |= {"initializer": luggage.arrive, "initargs": (luggage.pack(names, script), first, args)}
        if left := luggage.left_behind(names, script):
            warnings.warn(left, UserWarning, stacklevel=3)
    more.setdefault("scratch", spot.private_base(Path(log_dir) if log_dir is not None else Path.cwd()))
    want = Resources(
        workers=each,
        jobs=1 if spot.local else spot.jobs,
        memory=spot.worker_memory(each),
        log_dir=Path(log_dir) if log_dir is not None else None,
        env=dict(env or {}),
        insecure=settings.insecure,
        **more,
    )
    with spot.engine.open(spot.site, want) as pool:
        yield pool
