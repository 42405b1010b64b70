"""Names to engines and sites: ``engine`` or ``engine/site``; a table of strings, imported at first use.

Third parties add an engine by the entry point group ``coffea_scaleout.engines``. No engine's own library may
be imported here.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from executors.engines.base import Capabilities, Engine
from executors.errors import EngineError, UnknownNameError, UsageError
from sites.profile import load_site, site_names

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sites.profile import SiteProfile

GROUP: Final = "coffea_scaleout.engines"
LOCAL: Final = "local"

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


def names() -> list[str]:
    """Every name that can be given, sorted: ``engine``, or ``engine/site`` for engines that sites list."""
    placed = {engine: [] for engine in engine_names()}  # type: dict[str, list[str]]
    for site in site_names():
        for engine in load_site(site).engines:
            placed.setdefault(engine, []).append(site)
    known = set(engine_names())
    pairs = [f"{engine}/{site}" for engine, at in placed.items() if engine in known for site in at]
    return sorted(pairs + [engine for engine, at in placed.items() if not at])


def engine_names() -> list[str]:
    """The engines, built in or of other packages, sorted."""
    return sorted({*ENGINES, *_others()})


def describe(name: str) -> Description:
    """What a name stands for; nothing is started and missing packages are named, not imported."""
    engine, site = split(name)
    kind = _load(engine)
    missing = {module: cure for module, cure in NEEDS.get(engine, {}).items() if not _installed(module)}
    summary = (kind.__doc__ or "").strip().partition("\n")[0]
    profile = load_site(site)
    at = f" on {profile.description}" if profile.description and "machine" not in summary else ""
    return Description(
        name,
        f"{summary.rstrip('.')}{at}",
        engine,
        site,
        kind.capabilities,
        MappingProxyType(missing),
        _target(engine),
    )


def resolve(name: str) -> tuple[Engine, SiteProfile]:
    """The engine and the site of a name, ready to be opened."""
    engine, site = split(name)
    for module, command in NEEDS.get(engine, {}).items():
        if not _installed(module):
            raise UsageError(f"the engine {engine!r} needs the package {module}: {command}", engine=engine)
    return _load(engine)(), load_site(site)


def split(name: str) -> tuple[str, str]:
    """Engine and site of a name, both known and meant for each other."""
    engine, slash, site = name.partition("/")
    if engine not in engine_names():
        raise UnknownNameError.of("executor", name, {*names(), *engine_names()})
    if not slash:
        return engine, LOCAL
    if site not in site_names():
        raise UnknownNameError.of("site", site, site_names(), f"(in the executor name {name!r})")
    if site != LOCAL and engine not in load_site(site).engines:
        offered = ", ".join(f"{one}/{site}" for one in load_site(site).engines) or "none"
        raise UsageError(f"the engine {engine!r} does not run at the site {site!r}; there: {offered}")
    return engine, site


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
