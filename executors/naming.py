"""What an executor's name says: engine, engine/site, engine/scheduler/site, engine/auto, or auto.

Names only: no engine is imported, and what is asked of a site is put into its profile in ``registry``.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from executors.errors import UnknownNameError, UsageError
from sites import find, overrides
from sites.detect import detect, full_hostname
from sites.profile import load
from sites.schema import SCHEDULERS

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from sites.profile import SiteProfile

LOCAL: Final = "local"
AUTO: Final = "auto"
FIRST: Final = "futures"  # what plain ``auto`` is where no site is recognised
# Engines whose workers are always of this machine: at a site they use its files and credentials, no jobs.
HERE: Final = ("futures", "iterative")
# Names that other programs have for jobs which work alone, and what serves here.
ALONE: Final[Mapping[str, str]] = MappingProxyType(
    {
        "condor_standalone": "dask/condor, parsl/condor, or the site's own name, such as dask/lxplus",
        "condor/standalone": "dask/condor, parsl/condor, or the site's own name, such as dask/lxplus",
        "condor@lxplus": "dask/lxplus",
        "condor@rubin": "dask/rubin",
    }
)


@dataclass(frozen=True, slots=True)
class Name:
    """The parts of an executor's name, all known and meant for each other."""

    engine: str
    site: str
    scheduler: str | None = None  # where the name says it
    why: str = ""  # why this site, where it was found and not named
    warnings: tuple[str, ...] = ()


def names(engines: Collection[str]) -> list[str]:
    """Every name that can be given, sorted: ``engine``, or ``engine/site`` for engines that sites list."""
    placed: dict[str, list[str]] = {engine: [] for engine in engines}
    among = find.layers()
    for site in find.names(among):
        try:
            profile = load(site, among).profile
        except UsageError:
            continue  # a file that cannot be read is said by ``sites``
        for engine in profile.engines:
            if engine in placed:
                placed[engine].append(site)
    pairs = [f"{engine}/{site}" for engine, at in placed.items() for site in at]
    return sorted([*pairs, *(engine for engine, at in placed.items() if not at or engine in HERE)])


def parts(name: str, engines: Collection[str], site_file: Path | None = None) -> Name:
    """What a name says; errors name what is near."""
    if name in ALONE:
        said = "jobs that work without a runner come with a later part; with one"
        raise UsageError(f"{name!r}: {said}: {ALONE[name]}")
    engine, *rest = name.split("/")
    if name == AUTO or rest[-1:] == [AUTO]:
        return _automatic(name, engines, site_file)
    if engine not in engines or len(rest) > 2:
        return _by_old_name(name, engines, site_file)
    if not rest:
        return Name(engine, LOCAL)
    return _at_site(name, engine, rest, site_file)


def _at_site(name: str, engine: str, rest: list[str], site_file: Path | None) -> Name:
    site, scheduler = rest[-1], rest[0] if len(rest) == 2 else None
    among = find.layers(site_file)
    known = find.names(among)
    if site in SCHEDULERS and scheduler in known and scheduler not in SCHEDULERS:
        raise UsageError(f"{name!r}: the scheduler comes before the site: {engine}/{site}/{scheduler}")
    if site not in known:
        raise find.unknown(site, among, f"(in the executor name {name!r})")
    profile = load(site, among).profile
    _meant(engine, site, profile)
    if scheduler is not None:
        overrides.at_scheduler(profile, scheduler)
    elif site in SCHEDULERS and (found := detect(among=among)) is not None:
        said = f"this machine is at {found.site} ({found.why}): {engine}/{found.site} knows its rules"
        return Name(engine, site, None, "", (said,))
    return Name(engine, site, scheduler)


def _meant(engine: str, site: str, profile: SiteProfile) -> None:
    """Refuse an engine that the site does not list; on this machine every engine runs."""
    if site == LOCAL or engine in profile.engines:
        return
    offered = ", ".join(f"{one}/{site}" for one in profile.engines)
    why = f"; there: {offered}" if offered else f': its profile names none: engines = ["{engine}"]'
    why = f": {profile.unusable}" if profile.unusable else why
    raise UsageError(f"the engine {engine!r} does not run at the site {site!r}{why}", engine=engine)


def _by_old_name(name: str, engines: Collection[str], site_file: Path | None) -> Name:
    """The name as another program spells it, or the error that says what is near."""
    among = find.layers(site_file)
    for site in find.names(among):
        try:
            profile = load(site, among).profile
        except UsageError:
            continue  # a file that cannot be read is said by ``sites``
        if name in profile.old_names:
            engine = name.replace("@", "/").partition("/")[0]
            _meant(engine, site, profile)
            return Name(engine, site)
    raise UnknownNameError.of("executor", name, {*names(engines), *engines, AUTO})


def _automatic(name: str, engines: Collection[str], site_file: Path | None) -> Name:
    """The site that this machine belongs to; this machine alone where nothing is recognised."""
    engine = None if name == AUTO else name.removesuffix(f"/{AUTO}")
    if engine is not None and engine not in engines:
        raise UnknownNameError.of("executor", name, {*(f"{one}/{AUTO}" for one in engines), AUTO})
    among = find.layers(site_file)
    found = detect(among=among)
    if found is None:
        chosen = engine or FIRST
        said = f"no site is known for the host {full_hostname()}: {chosen}/{LOCAL} uses this machine only"
        return Name(chosen, LOCAL, None, "", (said,))
    profile = load(found.site, among).profile
    if engine is None and not profile.engines:
        said = f"this machine is at {found.site} ({found.why}), where no engine runs"
        raise UsageError(f"{said}: {profile.unusable}")
    chosen = engine or profile.engines[0]
    _meant(chosen, found.site, profile)
    also = f"; {' and '.join(found.others)} would fit as well" if found.others else ""
    return Name(chosen, found.site, None, f"{chosen}/{found.site}, as {found.why}{also}")
