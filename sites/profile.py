"""SiteProfile: one TOML file as checked, frozen data; inheritance between files.

A wrong key or type is refused with the file, the key and the nearest valid name. Nothing here acts on a
profile: what starts or submits something may not enter.
"""

from __future__ import annotations

import math
import re
import tomllib
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

from executors.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

FOLDER = Path(__file__).parent
NAME = re.compile(r"[a-z0-9][a-z0-9_-]*", re.ASCII)
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.ASCII)
SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd])", re.ASCII)
POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
SPANS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

Scalar: TypeAlias = str | int | float | bool
Ports: TypeAlias = tuple[int, int]


def text(value: object) -> str:
    """A string without control characters."""
    if isinstance(value, str) and value.isprintable():
        return value
    raise ValueError("a string on one line")


def flag(value: object) -> bool:
    """True or false."""
    if isinstance(value, bool):
        return value
    raise ValueError("true or false")


def count(value: object) -> int:
    """A whole number from 1 on."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    raise ValueError("a whole number, 1 or more")


def number(value: object) -> float:
    """A number above 0."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf:
        return float(value)
    raise ValueError("a number above 0")


def size(value: object) -> int:
    """Bytes: a whole number, or a string as ``"2.5GB"`` or ``"4GiB"``."""
    if isinstance(value, int):
        return count(value)
    match = SIZE.fullmatch(value.lower()) if isinstance(value, str) else None
    found = int(float(match[1]) * (1024 if match[3] else 1000) ** POWERS[match[2]]) if match else 0
    if found < 1:
        raise ValueError('a size such as "2GB" or a number of bytes')
    return found


def span(value: object) -> float:
    """Seconds: a number, or a string as ``"90s"``, ``"8h"`` or ``"1.5d"``."""
    match = SPAN.fullmatch(value) if isinstance(value, str) else None
    if match is not None and float(match[1]) > 0:
        return float(match[1]) * SPANS[match[2]]
    try:
        return number(value)
    except ValueError:
        raise ValueError('a time such as "8h" or a number of seconds') from None


def texts(value: object) -> tuple[str, ...]:
    """A list of strings."""
    if isinstance(value, list):
        return tuple(text(one) for one in value)
    raise ValueError("a list of strings")


def patterns(value: object) -> tuple[str, ...]:
    """One pattern or a list of them."""
    return (text(value),) if isinstance(value, str) else texts(value)


def ports(value: object) -> Ports:
    """First and last port."""
    if isinstance(value, list) and len(value) == 2 and all(type(one) is int for one in value):
        first, last = value
        if 1 <= first <= last <= 65535:
            return first, last
    raise ValueError("[first, last], two ports from 1 to 65535")


def scalars(value: object) -> Mapping[str, Scalar]:
    """A table of strings, numbers and flags."""
    if isinstance(value, dict) and all(isinstance(one, str | int | float) for one in value.values()):
        clean = {text(key): text(one) if isinstance(one, str) else one for key, one in value.items()}
        return MappingProxyType(clean)
    raise ValueError("a table of strings, numbers and flags")


def words(value: object) -> Mapping[str, str]:
    """A table of strings."""
    if isinstance(value, dict):
        return MappingProxyType({text(key): text(one) for key, one in value.items()})
    raise ValueError("a table of strings")


def _read(reader: Callable[[object], Any], default: Any = None) -> Any:
    return field(default=default, metadata={"reader": reader})


def _table(reader: Callable[[object], Any]) -> Any:
    return field(default_factory=lambda: MappingProxyType({}), metadata={"reader": reader})


def _section(kind: type) -> Any:
    return field(default_factory=kind, metadata={"section": kind})


@dataclass(frozen=True, slots=True)
class Detect:
    """How the site is recognised: patterns of host names."""

    hostname: tuple[str, ...] = _read(patterns, ())


@dataclass(frozen=True, slots=True)
class SiteResources:
    """What one worker gets where nobody asks for something else."""

    cores: int = _read(count, 1)
    memory: int | None = _read(size)
    disk: int | None = _read(size)
    walltime: float | None = _read(span)


@dataclass(frozen=True, slots=True)
class SitePorts:
    """Port ranges that the site's firewall leaves open; None: any."""

    scheduler: Ports | None = _read(ports)
    worker: Ports | None = _read(ports)


@dataclass(frozen=True, slots=True)
class Urls:
    """How files are reached from here: allowed schemes, and prefixes that are replaced by others."""

    schemes: tuple[str, ...] = _read(texts, ("file", "root", "xroot", "http", "https"))
    rewrite: Mapping[str, str] = _table(words)


@dataclass(frozen=True, slots=True)
class Proxy:
    """Which credential the site wants, where it must lie, and how long it must last."""

    kind: str | None = _read(text)
    path: str | None = _read(text)
    lifetime: float | None = _read(span)


@dataclass(frozen=True, slots=True)
class Limits:
    """Courtesy as data."""

    jobs: int | None = _read(count)
    submissions_per_second: float | None = _read(number)
    polls_per_minute: float | None = _read(number)


@dataclass(frozen=True, slots=True)
class SiteProfile:
    """One site. Every field can be set in its TOML file; the rest comes from what it inherits."""

    name: str
    description: str = _read(text, "")
    scheduler: str | None = _read(text)
    engines: tuple[str, ...] = _read(texts, ())
    shares_store: bool = _read(flag, default=True)
    detect: Detect = _section(Detect)
    resources: SiteResources = _section(SiteResources)
    ports: SitePorts = _section(SitePorts)
    directives: Mapping[str, Scalar] = _table(scalars)
    urls: Urls = _section(Urls)
    proxy: Proxy = _section(Proxy)
    limits: Limits = _section(Limits)
    env: Mapping[str, str] = _table(words)


def site_names(folder: Path = FOLDER) -> list[str]:
    """The sites that can be loaded, sorted."""
    return sorted(path.stem for path in folder.glob("*.toml") if NAME.fullmatch(path.stem))


@cache
def load_site(name: str, folder: Path = FOLDER) -> SiteProfile:
    """The profile of one site; UnknownNameError or UsageError say what is wrong and where."""
    raw = _inherited(name, folder, ())
    profile: SiteProfile = _build(SiteProfile, raw, f"{folder / name}.toml", "", {"name": name})
    return profile


def _inherited(name: str, folder: Path, heirs: tuple[str, ...]) -> dict[str, Any]:
    known = site_names(folder)
    if name not in known:
        hint = f"(inherited by the site {heirs[-1]!r})" if heirs else ""
        raise UnknownNameError.of("site", name, known, hint)
    if name in heirs:
        raise UsageError(f"the sites inherit each other in a circle: {' -> '.join((*heirs, name))}")
    path = folder / f"{name}.toml"
    own = _parse(path)
    base = own.pop("inherits", None)
    _check(own, path)
    if base is None:
        return own
    if not isinstance(base, str):
        raise UsageError(f"{path}: inherits must be the name of a site, not {base!r}")
    return _merged(_inherited(base, folder, (*heirs, name)), own)


def _check(own: dict[str, Any], path: Path) -> None:
    """Read a file on its own, so that an error names the file that it is in."""
    _build(SiteProfile, own, str(path), "", {"name": path.stem})


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error


def _merged(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in own.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _build(kind: type[Any], raw: dict[str, Any], where: str, prefix: str, given: dict[str, Any]) -> Any:
    known = {one.name: one for one in fields(kind) if one.metadata}
    values = dict(given)
    for key, value in raw.items():
        if key not in known:
            near = [f"{prefix}{one}" for one in (known if prefix else {*known, "inherits"})]
            raise UnknownNameError.of(f"key in {where}:", f"{prefix}{key}", near)
        values[key] = _value(known[key].metadata, value, where, f"{prefix}{key}")
    return kind(**values)


def _value(rule: Mapping[str, Any], value: object, where: str, key: str) -> Any:
    if "section" in rule:
        if not isinstance(value, dict):
            raise UsageError(f"{where}: {key} must be a table ([{key}]), not {value!r}")
        return _build(rule["section"], value, where, f"{key}.", {})
    try:
        return rule["reader"](value)
    except ValueError as error:
        raise UsageError(f"{where}: {key} must be {error}, not {value!r}") from None
