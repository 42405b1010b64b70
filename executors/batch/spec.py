"""JobSpec: one batch job as typed values, whatever the batch system; made from a site's profile.

Nothing here writes text for a batch system (``render``) or talks to one (``schedulers``).
"""

from __future__ import annotations

import getpass
import math
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

from executors.batch.parcel import JOB_MEMORY
from executors.errors import SiteError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sites.profile import Scalar, SiteProfile

    Describe: TypeAlias = Callable[[SiteProfile, Path, Mapping[str, str]], "JobSpec"]

NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """What one job is. All jobs of an opened engine are equal, so one text serves them all."""

    name: str  # unique for each opened engine: jobs are found and cancelled by it
    command: tuple[
        str, ...
    ]  # what runs on the node, after the setup; a relative path is a file in ``transfer``
    cores: int = 1
    memory: int | None = None  # bytes, of the whole job
    disk: int | None = None  # bytes
    walltime: float | None = None  # seconds
    queue: str | None = None
    account: str | None = None
    image: str | None = None
    queue_directive: str | None = None
    walltime_directive: str | None = None
    account_directive: str | None = None
    image_directive: str | None = None  # these four: "" where the site is not to be told at all
    directives: Mapping[str, Scalar] = field(default_factory=lambda: MappingProxyType({}))
    env: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    setup: tuple[str, ...] = ()  # shell lines that run first: raw, from the profile or --worker-setup alone
    scratch: str | None = None  # TMPDIR of the job: "/scratch/$USER"; variables are the node's
    transfer: tuple[
        Path, ...
    ] = ()  # files that travel to the job's folder, where the batch system carries them
    proxy: Path | None = None  # x509 proxy that the batch system delegates
    submit_options: tuple[str, ...] = ()
    folder: Path = field(default_factory=Path)  # where submit text lies and the job is submitted from
    logs: Path = field(default_factory=Path)  # where the jobs' own output comes back to
    shared: bool = True  # the nodes see ``folder`` and ``logs``


def spec_of(
    site: SiteProfile,
    *,
    name: str,
    command: Sequence[str],
    folder: Path,
    logs: Path,
    env: Mapping[str, str] = NOTHING,
    transfer: Sequence[Path] = (),
    proxy: Path | None = None,
) -> JobSpec:
    """The job that a site's effective profile asks for; ``env`` wins over the profile's own."""
    asked, job = site.resources, site.job
    queue, walltime = _lasting(site)
    return JobSpec(
        name=name,
        command=tuple(command),
        cores=asked.cores,
        memory=asked.memory,
        disk=asked.disk,
        walltime=walltime,
        queue=queue,
        account=job.account,
        image=job.image,
        queue_directive=job.queue_directive,
        walltime_directive=job.walltime_directive,
        account_directive=job.account_directive,
        image_directive=job.image_directive,
        directives=MappingProxyType({key: _filled(one, site) for key, one in site.directives.items()}),
        env=MappingProxyType({**site.env, **env}),
        setup=job.setup,
        scratch=job.scratch,
        transfer=tuple(transfer),
        proxy=proxy if proxy is not None else _proxy(site),
        submit_options=job.submit_options,
        folder=folder,
        logs=logs,
        shared=site.shares_store,
    )


def growing(site: SiteProfile, folder: Path, described: Describe) -> Callable[[int], JobSpec] | None:
    """The same job with more memory, described anew; None where the site gives what it gives.

    In a folder of its own: some batch systems read a job's files when it starts. What it has it is told by
    its environment, since the files that it is sent are the same for all.
    """
    if "resources.memory" in site.fixed:
        return None

    def grown(memory: int) -> JobSpec:
        place = folder / f"memory-{memory}"
        place.mkdir(mode=0o700, exist_ok=True)
        larger = replace(site, resources=replace(site.resources, memory=memory))
        return described(larger, place, {JOB_MEMORY: str(memory)})

    return grown


def _lasting(site: SiteProfile) -> tuple[str | None, float | None]:
    """Queue and walltime, of which a site that has directives for both is told one.

    Where the queue is a name for a time (lxplus: a flavour), a walltime that is not the queue's own was asked
    for.
    """
    queue, walltime = site.job.queue, site.resources.walltime
    if site.job.queue_directive is None or site.job.walltime_directive is None or walltime is None:
        return queue, walltime
    return (queue, None) if queue and site.job.queues.get(queue) == walltime else (None, walltime)


def _filled(given: Scalar, site: SiteProfile) -> Scalar:
    """A directive with what only the run knows; other braces stay, since expressions have them too."""
    if not isinstance(given, str) or "{" not in given:
        return given
    memory = site.resources.memory
    known = {
        "user": getpass.getuser(),
        "uid": str(os.getuid()),
        "cores": str(site.resources.cores),
        "memory_mb": None if memory is None else str(math.ceil(memory / 2**20)),
        "memory_mb_per_core": None
        if memory is None
        else str(math.ceil(memory / 2**20 / site.resources.cores)),
    }
    for name, text in known.items():
        if text is not None:
            given = given.replace(f"{{{name}}}", text)
    return given


def _proxy(site: SiteProfile) -> Path | None:
    """The proxy that goes with the job, where the site wants one; its state is for the preflight to judge."""
    if site.proxy.kind != "x509":
        return None
    from sites.proxies import check_x509, x509_path  # not before a batch job is described: it needs ssl

    path = x509_path(site).absolute()
    if path.is_file():
        return path
    if site.proxy.required:
        found = check_x509(site)
        raise SiteError(f"the site {site.name!r} needs an x509 proxy: {found.says}. To mend it: {found.mend}")
    return None
