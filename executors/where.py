"""From settings to an engine at a site: names looked up, what the user asks of the site applied to it.

Nothing is started here, and no engine's own library may enter.
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from executors import words
from executors.options import options
from executors.work import limits
from sites.overrides import TYPED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from executors.engines.base import Engine
    from executors.options import Settings
    from sites.profile import SiteProfile

AUTO = "auto"  # for the number of workers: as many as fit
HERE = 3  # worker processes on this machine where nobody says how many
CARRIERS = ("condor", "existing")  # what brings files to its jobs, or has none of ours
JOBS = 6  # batch jobs, likewise
LAYERS = ("default", "caller", "site", "file", "env", TYPED, "--set")  # of settings, the later counts


@dataclass(frozen=True, slots=True)
class Where:
    """An engine, the site as it is to be used, and how much of it."""

    engine: Engine
    site: SiteProfile
    origins: Mapping[str, str]  # where each of the site's values comes from
    workers: int  # of a job, or of this machine
    jobs: int
    why: str = ""  # why this site, where it was found and not named; why so many workers, likewise
    warnings: tuple[str, ...] = ()

    @property
    def local(self) -> bool:
        """Whether the workers are processes of this machine."""
        return self.site.scheduler is None

    @property
    def inline(self) -> bool:
        """Whether the runner itself does the work."""
        return not self.engine.capabilities.isolates

    @property
    def slots(self) -> int:
        """How many tasks can run at once."""
        return 1 if self.inline else self.workers * self.jobs

    @property
    def shared(self) -> bool:
        """Whether workers see the run's directory."""
        return self.engine.capabilities.shares_store and self.site.shares_store

    def private_base(self, folder: Path) -> Path | None:
        """Where the engine's private folder has to be so that jobs read their files; None: anywhere here."""
        by_path = not self.local and self.site.scheduler not in CARRIERS
        return folder if by_path and self.shared else None

    @property
    def words(self) -> str:
        """How many workers, for people."""
        each = words.number(1 if self.inline else self.workers, "worker")
        return each if self.local else f"at most {words.number(self.jobs, 'job')} of {each}"

    def worker_memory(self, workers: int) -> int | None:
        """What one worker of this machine may use, in bytes; at a batch site the jobs see to it."""
        memory = self.site.resources.memory
        return memory // workers if self.local and memory is not None else None

    def for_chunks(self, chunks: int) -> int:
        """How many jobs are worth having for so much work."""
        return max(1, min(self.jobs, -(-chunks // self.workers)))


def where(settings: Settings, need: int = limits.NEED) -> Where:
    """The engine and the site that the settings name; errors of use say what to type instead.

    ``need`` is what a worker is thought to need of memory, where as many are to be as fit.
    """
    from executors import registry

    if settings.voms:
        # Typed now, so it counts more than what the shell was told earlier: for this process's reads too.
        os.environ["X509_USER_PROXY"] = str(Path(settings.voms).expanduser().absolute())
    placed = registry.place(
        settings.executor,
        overrides=asked_of_site(settings),
        said=said_of_site(settings),
        site_file=settings.site_file,
    )
    site = placed.site
    workers, why, jobs = _workers(settings.workers, site, need), placed.why, 1
    warnings = list(placed.warnings)
    if isinstance(workers, limits.Choice):
        workers, fitting = workers
        if placed.engine.capabilities.isolates:
            why = "; ".join(filter(None, (why, f"-j auto: {words.number(workers, 'worker')}, {fitting}")))
    if site.scheduler is not None:
        asked = site.limits.usual or JOBS
        jobs = min(asked, site.limits.jobs or asked)
        if jobs < asked and settings.scaleout is not None:
            warnings.append(
                f"a run has at most {words.number(jobs, 'job')} at {site.name}, not {asked}; more: "
                f"--site-set limits.jobs={asked}"
            )
    return Where(placed.engine, site, placed.origins, workers, jobs, why, tuple(warnings))


def _workers(asked: int | str | None, site: SiteProfile, need: int) -> int | limits.Choice:
    cores = site.resources.cores
    if site.scheduler is not None:
        return (
            limits.Choice(cores, "one for each core of a job") if asked == AUTO else site.job.workers or cores
        )
    if asked == AUTO:
        return limits.choice(need, promised=site.resources.memory)
    return int(asked or HERE)


def asked_of_site(settings: Settings) -> dict[str, Any]:
    """What the settings say about the site, by the keys of its profile."""
    return {key: value for key, (value, _) in _of_site(settings).items()}


def said_of_site(settings: Settings) -> dict[str, str]:
    """Who says it, by the same keys."""
    return {key: origin for key, (_, origin) in _of_site(settings).items()}


def _of_site(settings: Settings) -> dict[str, tuple[Any, str]]:
    """Values and origins by the keys of a profile; one asked for in two ways is as the later layer says."""
    found: dict[str, tuple[Any, str]] = {}
    for each in options():
        key, value = each.about.get("site"), getattr(settings, each.name)
        if each.name == "workers" and value not in (None, AUTO):
            key = "job.workers"
        if key is None or value in (None, ()):
            continue
        rows = {key: (value, each.name)}
        if each.table:
            rows = {f"{key}.{row}".lstrip("."): (one, f"{each.name}.{row}") for row, one in value.items()}
        for dotted, (one, name) in rows.items():
            origin = settings.origins.get(name, TYPED)
            if dotted not in found or _rank(origin) >= _rank(found[dotted][1]):
                found[dotted] = (list(one) if isinstance(one, tuple) else one, origin)
    return found


def _rank(origin: str) -> int:
    """The later, the more it counts."""
    kinds = [one for one in LAYERS if origin == one or origin.startswith(f"{one} ")]
    return LAYERS.index(kinds[0]) if kinds else 0


def submitted(spot: Where, folder: Path) -> dict[str, str]:
    """What a batch system would be given for each job, by file; a run makes names of its own."""
    from executors.batch.render import render
    from executors.batch.spec import spec_of

    site = spot.site
    if spot.local or site.scheduler == "existing":
        return {}
    if site.dask.cluster is not None and spot.engine.name == "dask":
        return {"job.sub": f"# {site.dask.cluster} (dask.cluster) makes its text when the run begins"}
    words = (site.job.python or sys.executable, "parcel.pyz", "pilot.json")
    private = (spot.private_base(folder) or Path(tempfile.gettempdir())) / "engine"
    spec = spec_of(site, name="cs-user-12345678", command=words, folder=private, logs=folder / "logs")
    return dict(render(str(site.scheduler), spec))
