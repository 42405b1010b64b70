"""Opening an engine that lives in a host: folders, nursery, host, pool. No engine's own part may enter."""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import resource
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from executors.engines.base import WorkerDied
from executors.engines.call import pack_outfit
from executors.engines.host import Host, HostSlot
from executors.engines.nursery import Nursery, Spare, thread_limits
from executors.engines.places import Places
from executors.engines.pool import Pool
from executors.errors import EngineError
from sites import clusters

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

    from executors.engines.base import Resources
    from sites.profile import SiteProfile

# What the host of an engine imports: half a second, and more from a slow file system.
HOSTS = {
    "dask": ("executors.engines.dask_host", "executors.engines.dask_remote"),
    "parsl": ("executors.engines.parsl_host", "executors.engines.parsl_remote"),
}
EXISTING = "existing"  # a scheduler that runs already, and that we neither start nor end
FILES_A_LANE = 4  # the lane, and in the host its worker, its job and a spare
FILES_BESIDE = 512
GOODBYE = 10.0  # seconds


@contextlib.contextmanager
def spare_for(engine: str, site: SiteProfile) -> Iterator[Spare | None]:
    """A keeper that imports what this engine's host needs, until the engine has taken it or this ends."""
    modules = HOSTS.get(engine, ())
    if not modules:
        yield None
        return
    spare = Spare(modules if site.scheduler not in (None, EXISTING) else modules[:1])
    try:
        yield spare
    finally:
        spare.close()


@contextlib.contextmanager
def open_hosted(name: str, target: str, site: SiteProfile, want: Resources) -> Iterator[Pool]:
    """A pool whose workers are behind a host process that runs ``target``; leaving ends everything."""
    batch = site.scheduler not in (None, EXISTING)
    with contextlib.ExitStack() as stack:
        places = stack.enter_context(Places(name, want, site.paths.logs if batch else ()))
        given = {**site.env, **want.env}
        env = given | thread_limits(want.cores, given)
        job = _job_name()
        _allow_files(want.lanes)
        site, sent = _sent_to(_settled(site, want), places, want) if batch else (site, {})
        if batch:
            stack.enter_context(_noted(site, want, job, places))
        nursery = Nursery(
            places.logs,
            env=want.env if batch else env,
            sweep=places.private,
            farewell=_farewell(site, job) if batch else (),
            spare=want.spare,
        )
        setup = _setup(places, want) | {"site": site, "name": job, "env": env} | sent
        host = Host(nursery, f"{name}-host", target, setup, want.tell)
        try:
            if site.scheduler is not None:
                _start(host)
            theirs = site.scheduler == EXISTING or (batch and site.dask.cluster is not None)
            end = partial(_take_leave, host, nursery) if theirs else nursery.close
            slots = [HostSlot(host, index) for index in range(want.lanes)]
            pool = Pool(slots, end, host.need, lambda: host.memory if batch else want.memory)
        except BaseException:
            nursery.close()
            raise
        try:
            if site.scheduler is None:
                pool.wait_ready()
            yield pool
        finally:
            pool.close()
            host.close()


def _take_leave(host: Host, nursery: Nursery) -> None:
    """Let the host fetch back what it has sent to machines of others; then end it."""
    host.leave(GOODBYE)
    nursery.close()


def _noted(site: SiteProfile, want: Resources, job: str, places: Places) -> AbstractContextManager[None]:
    """What the dead have left is removed, and what we would leave is written down."""
    from executors.engines import leftovers

    if want.sole and want.log_dir is not None:
        leftovers.remove(places.logs, want.scratch, want.tell or (lambda _level, _text: None))
    return leftovers.noted(want.log_dir and places.logs, site, job, places.private)


def _farewell(site: SiteProfile, job: str) -> Sequence[Sequence[str]]:
    from executors.batch.schedulers import scheduler_of

    return [scheduler_of(str(site.scheduler), site.job.submit_options).cancel_argv(job)]


def _settled(site: SiteProfile, want: Resources) -> SiteProfile:
    """The site with the class that submits its jobs, if another's is to and can."""
    site, why = clusters.settled(site)
    if why and want.tell is not None:
        want.tell("warning", why)
    return site


def _sent_to(site: SiteProfile, places: Places, want: Resources) -> tuple[SiteProfile, dict[str, Any]]:
    """The site with the server that its jobs go to, and how they get their Python: chosen once for all."""
    from executors.batch.environment import ship
    from executors.batch.schedd import chosen

    tell = want.tell or (lambda _level, _text: None)
    site = chosen(site, tell)
    shipped = ship(site, places.private, tell)
    return site, {"python": shipped.python, "environment": shipped.archive}


def _start(host: Host) -> None:
    # Machines come when the site gives them, so only what can be known at once is waited for.
    try:
        host.start()
    except WorkerDied as death:
        raise EngineError(str(death)) from death


def _job_name() -> str:
    """A name for the jobs of one opened engine, by which nothing else is ever found."""
    user = re.sub(r"[^a-z0-9]", "", getpass.getuser().lower())[:16] or "user"
    return f"cs-{user}-{os.urandom(4).hex()}"


def _allow_files(lanes: int) -> None:
    """Each lane has a socket; the usual limit of 1024 open files is meant to be raised by who needs more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = FILES_A_LANE * lanes + FILES_BESIDE
    if soft == resource.RLIM_INFINITY or soft >= need:
        return
    most = need if hard == resource.RLIM_INFINITY else min(need, hard)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < need:
        raise EngineError(
            f"{lanes} workers need {need} open files and this shell allows {most}: fewer workers "
            "(-s, -j), or a higher limit: ulimit -Hn"
        )


def _setup(places: Places, want: Resources) -> dict[str, Any]:
    return {
        "workers": want.workers,
        "jobs": want.jobs,
        "memory": want.memory,
        "private": str(places.private),
        "logs": str(places.logs),
        "outfit": pack_outfit(want.initializer, want.initargs),
        "preload": want.preload,
        "path": [entry or str(Path.cwd()) for entry in sys.path],
        "python": sys.executable,
        "insecure": want.insecure,
    }
