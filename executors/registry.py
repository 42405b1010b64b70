"""Names to engines and sites; engines are a table of strings, imported at first use.

What the parts of a name mean is in ``naming``. Third parties add an engine by the entry point group
``coffea_scaleout.engines``. No engine's own library may be imported here.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from executors import naming
from executors.engines.base import Capabilities, Engine
from executors.errors import EngineError, UsageError
from sites import find, overrides
from sites.overrides import require

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sites.profile import SiteProfile

GROUP: Final = "coffea_scaleout.engines"

# Sorted; a test says so.
ENGINES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "dask": "executors.engines.dask:DaskEngine",
        "futures": "executors.engines.futures:FuturesEngine",
        "iterative": "executors.engines.iterative:IterativeEngine",
        "parsl": "executors.engines.parsl:ParslEngine",
    }
)
# What an engine needs beyond this package: module -> the command that installs it.
NEEDS: Final[Mapping[str, Mapping[str, str]]] = MappingProxyType(
    {
        "dask": MappingProxyType({"distributed": "pip install 'distributed>=2026.1.1'"}),
        "parsl": MappingProxyType({"parsl": "pip install 'parsl>=2026.1.5'"}),
    }
)


@dataclass(frozen=True, slots=True)
class Description:
    """What a name stands for, for a person or a program to read."""

    name: str
    summary: str
    engine: str
    site: str
    capabilities: Capabilities
    needs: Mapping[str, str]  # module -> command that installs it; only what is missing
    target: str

    def __str__(self) -> str:
        can = [one for one in Capabilities.__dataclass_fields__ if getattr(self.capabilities, one)]
        lines = [
            f"{self.name}: {self.summary}",
            f"  site: {self.site}",
            f"  can:  {', '.join(can) or 'nothing special'}",
        ]
        lines += [f"  needs {module}: {command}" for module, command in self.needs.items()]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Placed:
    """An executor's name looked up: the engine, the site as it is to be used, and how that came about."""

    name: str  # as it could have been typed: engine/site
    kind: str  # the engine's name
    engine: Engine
    site: SiteProfile
    origins: Mapping[str, str]  # dotted key → where its value comes from
    why: str = ""  # why this site, where it was found and not named
    warnings: tuple[str, ...] = ()


def names() -> list[str]:
    """Every name that can be given, sorted: ``engine``, or ``engine/site`` for engines that sites list."""
    return naming.names(engine_names())


def engine_names() -> list[str]:
    """The engines, built in or of other packages, sorted."""
    return sorted({*ENGINES, *_others()})


def describe(name: str) -> Description:
    """What a name stands for; nothing is started and missing packages are named, not imported."""
    parts = naming.parts(name, engine_names())
    kind = _load(parts.engine)
    summary = (kind.__doc__ or "").strip().partition("\n")[0]
    profile = find.find(parts.site).profile
    at = f" on {profile.description}" if profile.description and "machine" not in summary else ""
    return Description(
        name,
        f"{summary.rstrip('.')}{at}",
        parts.engine,
        parts.site,
        kind.capabilities,
        MappingProxyType(dict(missing_packages(parts.engine))),
        _target(parts.engine),
    )


def resolve(
    name: str, *, overrides: Mapping[str, object] | None = None, site_file: Path | None = None
) -> tuple[Engine, SiteProfile]:
    """The engine and the site of a name, ready to be opened."""
    placed = place(name, overrides=overrides, site_file=site_file)
    return placed.engine, placed.site


def place(
    name: str,
    *,
    overrides: Mapping[str, object] | None = None,
    said: Mapping[str, str] | None = None,
    site_file: Path | None = None,
) -> Placed:
    """The engine and the site of a name with what the user asks of it, and where each value comes from.

    ``overrides`` are dotted keys of the profile; ``said`` tells who asks for which, the command line if not.
    """
    parts = naming.parts(name, engine_names(), site_file)
    for module, command in missing_packages(parts.engine).items():
        raise UsageError(
            f"the engine {parts.engine!r} needs the package {module}: {command}", engine=parts.engine
        )
    found = find.find(parts.site, site_file)
    site, origins = _effective(parts, found.profile, overrides or {}, said)
    if site.scheduler is not None:
        require(site)
    shadow = find.warning(found)
    return Placed(
        f"{parts.engine}/{parts.site}",
        parts.engine,
        _load(parts.engine)(),
        site,
        MappingProxyType({**found.origins, **origins}),
        parts.why,
        (*parts.warnings, *([shadow] if shadow else [])),
    )


def look_up(
    name: str, asked: Mapping[str, object], said: Mapping[str, str], site_file: Path | None = None
) -> tuple[SiteProfile, Mapping[str, str]]:
    """The site of a name with what is asked of it, and where its values come from; for looking only.

    The engine is not loaded, and what the site requires may be missing.
    """
    parts = naming.parts(name, engine_names(), site_file)
    found = find.find(parts.site, site_file)
    site, origins = _effective(parts, found.profile, asked, said)
    return site, {**found.origins, **origins}


def _effective(
    parts: naming.Name, profile: SiteProfile, asked: Mapping[str, object], said: Mapping[str, str] | None
) -> tuple[SiteProfile, dict[str, str]]:
    """The profile as this engine is to use it."""
    if parts.scheduler is not None:
        profile = overrides.at_scheduler(profile, parts.scheduler)
    if parts.engine in naming.HERE and profile.scheduler is not None:
        profile = overrides.here(profile)
    site, origins = overrides.as_used(profile, asked, said, os.environ)
    if site.scheduler == "existing" and parts.engine != "dask" and parts.engine in ENGINES:
        raise UsageError(f"a scheduler that runs already is Dask's: the engine is dask, not {parts.engine}")
    by_name = {"scheduler": "the executor's name"} if parts.scheduler is not None else {}
    return site, {**by_name, **origins}


def split(name: str) -> tuple[str, str]:
    """Engine and site of a name, both known and meant for each other."""
    parts = naming.parts(name, engine_names())
    return parts.engine, parts.site


def missing_packages(engine: str) -> Mapping[str, str]:
    """What an engine needs and is not installed: module → the command that installs it."""
    needs = NEEDS.get(engine, {})
    return {module: command for module, command in needs.items() if not _installed(module)}


def _others() -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        if point.name not in ENGINES:  # a built-in name cannot be taken over
            found.setdefault(point.name, point)
    return found


def _target(engine: str) -> str:
    return ENGINES[engine] if engine in ENGINES else _others()[engine].value


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _load(engine: str) -> type[Engine]:
    target = _target(engine)
    owner = "" if engine in ENGINES else f" (entry point {GROUP!r} of another package)"
    module, _, attribute = target.partition(":")
    try:
        kind = getattr(importlib.import_module(module), attribute.strip())
    except ModuleNotFoundError as error:
        text = f"the engine {engine!r}{owner} is registered as {target!r}, which is not there: {error}"
        raise EngineError(text, engine=engine) from error
    except AttributeError as error:
        text = f"the engine {engine!r}{owner} is registered as {target!r}: {error}"
        raise EngineError(text, engine=engine) from error
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        text = f"the engine {engine!r}{owner} cannot be imported from {target!r}: {what}"
        raise EngineError(text, engine=engine) from error
    _require_engine(kind, engine, f"{target!r}{owner}")
    checked: type[Engine] = kind
    return checked


def _require_engine(kind: object, engine: str, where: str) -> None:
    if not isinstance(kind, type):
        raise EngineError(f"the engine {engine!r} must be a class, but {where} is {kind!r}", engine=engine)
    lacks = [one for one in ("name", "capabilities", "open") if not hasattr(kind, one)]
    if lacks:
        text = f"the engine {engine!r} is not one: {where} has no {' and no '.join(lacks)}"
        raise EngineError(text, engine=engine)
    if not isinstance(getattr(kind, "capabilities", None), Capabilities):
        text = f"the engine {engine!r} is not one: the capabilities of {where} are not a Capabilities"
        raise EngineError(text, engine=engine)
