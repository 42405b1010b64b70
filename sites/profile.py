"""Profiles from their files: one TOML file a site, which may inherit from another; checked, then frozen.

A wrong key or type is refused with the file, the key and the nearest valid name. Nothing here acts on a
profile, and which folders are looked into is said elsewhere (``find``).
"""

from __future__ import annotations

import os
import re
import reprlib
import stat
import tomllib
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from executors.errors import UnknownNameError, UsageError
from sites.schema import (
    OF_THE_SITE_ALONE,
    Dask,
    Detect,
    Job,
    Limits,
    Network,
    Paths,
    Proxy,
    Schedd,
    SitePorts,
    SiteProfile,
    SiteResources,
    Urls,
    XRootD,
    key_of,
    keys,
    sections,
)
from sites.values import Ports, Scalar

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "BUILT_IN", "FOLDER", "Dask", "Detect", "Job", "Layer", "Limits", "Loaded", "Network", "Paths", "Ports",
    "Proxy", "Scalar", "Schedd", "SitePorts", "SiteProfile", "SiteResources", "Urls", "XRootD", "load",
    "load_site", "site_names",
]  # fmt: skip

FOLDER = Path(__file__).parent
BUILT_IN = "built in"
NAME = re.compile(r"[a-z0-9][a-z0-9_-]*", re.ASCII)
BASE = re.compile(r"_[a-z0-9_-]+", re.ASCII)  # only there to be inherited: no site
LARGEST = 1_000_000


@dataclass(frozen=True, slots=True)
class Layer:
    """One place that profiles come from: a name for people, and the files by the names of their sites."""

    label: str
    files: Mapping[str, Path]
    trusted: bool = True  # installed with the program or a package; else owner and mode are looked at
    misnamed: tuple[Path, ...] = ()  # files that would be profiles if their names could be typed


@dataclass(frozen=True, slots=True)
class Loaded:
    """A profile, and where its values come from."""

    profile: SiteProfile
    origins: Mapping[str, str]  # dotted key → the file that says it; keys that nobody says are missing
    inherits: tuple[str, ...]  # the sites it inherits from, the nearest first
    path: Path
    label: str  # of the layer the file is in
    hides: Path | None = None  # the file of the same name that it stands before


def files_in(folder: Path, suffix: str = ".toml") -> dict[str, Path]:
    """The profiles of one folder by name; a folder that is not there has none."""
    try:
        found = sorted(path for path in folder.iterdir() if path.name.endswith(suffix))
    except OSError:
        return {}
    named = {path.name.removesuffix(suffix): path for path in found}
    return {name: path for name, path in named.items() if NAME.fullmatch(name) or BASE.fullmatch(name)}


def built_in(folder: Path = FOLDER) -> Layer:
    """The profiles that come with the program (or all those of one folder)."""
    return Layer(BUILT_IN, MappingProxyType(files_in(folder)))


def site_names(folder: Path = FOLDER) -> list[str]:
    """The sites of one folder, sorted; by default those that come with the program."""
    return sorted(name for name in files_in(folder) if NAME.fullmatch(name))


@cache
def load_site(name: str, folder: Path = FOLDER) -> SiteProfile:
    """The profile of one site of one folder; UnknownNameError or UsageError say what is wrong and where."""
    return load(name, [built_in(folder)]).profile


def load(name: str, layers: Sequence[Layer]) -> Loaded:
    """The profile of a site from the last layer that has it.

    What it inherits is looked for from the last layer down; a file that inherits its own name means the one
    that it stands before.
    """
    at = _layer_of(name, layers, ())
    raw, origins, chain = _inherited(name, at, layers, ())
    path = layers[at].files[name]
    profile: SiteProfile = _build(SiteProfile, raw, str(path), "", {"name": name})
    below = [layer.files[name] for layer in layers[:at] if name in layer.files]
    return Loaded(profile, origins, chain, path, layers[at].label, below[-1] if below else None)


Step = tuple[str, int]


def _layer_of(name: str, layers: Sequence[Layer], heirs: tuple[Step, ...], below: int | None = None) -> int:
    for at in range((len(layers) if below is None else below) - 1, -1, -1):
        if name in layers[at].files and (heirs or NAME.fullmatch(name)):
            return at
    if heirs and heirs[-1][0] == name:
        path = layers[heirs[-1][1]].files[name]
        raise UsageError(
            f"{path}: it inherits its own name, and no other site {name!r} is there to begin with"
        )
    known = {one for layer in layers for one in layer.files if NAME.fullmatch(one)}
    hint = f"(inherited by the site {heirs[-1][0]!r})" if heirs else ""
    raise UnknownNameError.of("site", name, known, hint)


def _inherited(
    name: str, at: int, layers: Sequence[Layer], heirs: tuple[Step, ...]
) -> tuple[dict[str, Any], dict[str, str], tuple[str, ...]]:
    """What a file and all it inherits say, with the origin of each key."""
    layer = layers[at]
    path = layer.files[name]
    own = _parse(path, trusted=layer.trusted)
    base = own.pop("inherits", None)
    _check(own, path)
    origins = dict.fromkeys(_said(own, ""), _label(path, layer))
    if base is None:
        return own, origins, ()
    if not isinstance(base, str):
        raise UsageError(f"{path}: inherits must be the name of a site, not {reprlib.repr(base)}")
    here = (*heirs, (name, at))
    below = _layer_of(base, layers, here, at if base == name else None)
    if (base, below) in here:
        circle = " -> ".join([*(one for one, _ in here), base])
        raise UsageError(f"the sites inherit each other in a circle: {circle}")
    said, from_there, chain = _inherited(base, below, layers, here)
    if base != name:
        said = {key: value for key, value in said.items() if key not in OF_THE_SITE_ALONE}
        alone = tuple(f"{key}." for key in OF_THE_SITE_ALONE)
        from_there = {key: o for key, o in from_there.items() if not f"{key}.".startswith(alone)}
    doubts = [key for key in said.get("unverified", []) if not any(_covers(key, one) for one in origins)]
    merged = _merged(said, own)
    if "unverified" in merged:
        merged["unverified"] = list(dict.fromkeys([*doubts, *own.get("unverified", [])]))
    return merged, {**from_there, **origins}, (base, *chain)


def _covers(key: str, other: str) -> bool:
    return key == other or other.startswith(f"{key}.")


def _said(raw: Mapping[str, Any], prefix: str) -> list[str]:
    """The dotted keys that a file gives a value, rows of tables one by one."""
    found: list[str] = []
    for key, value in raw.items():
        deeper = isinstance(value, dict)
        found += _said(value, f"{prefix}{key}.") if deeper else [f"{prefix}{key}"]
    return found


def _label(path: Path, layer: Layer) -> str:
    if layer.label == BUILT_IN:
        return f"sites/{path.name}"
    with_home = os.path.expanduser("~")  # noqa: PTH111 - Path.home() raises where there is none
    text = str(path)
    return f"~{text[len(with_home) :]}" if text.startswith(f"{with_home}/") else text


def _check(own: dict[str, Any], path: Path) -> None:
    """Read a file on its own, so that an error names the file that it is in."""
    profile: SiteProfile = _build(SiteProfile, own, str(path), "", {"name": path.stem})
    for field in ("fixed", "unverified", "job.required"):
        section, _, last = field.rpartition(".")
        for key in getattr(getattr(profile, section) if section else profile, last):
            if key_of(key) is None and key not in sections():
                raise UnknownNameError.of(f"key in {path}: {field}:", key, [*keys(), *sections()])


def _parse(path: Path, *, trusted: bool) -> dict[str, Any]:
    try:
        raw = path.read_bytes() if trusted else _read_own(path)
        return tomllib.loads(raw.decode("utf-8-sig"))
    except RecursionError:
        raise UsageError(f"{path} is not TOML that can be read: nested too deeply") from None
    except ValueError as error:
        raise UsageError(f"{path} is not TOML: {error}") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error


def _read_own(path: Path) -> bytes:
    """The content of a file that nobody but the user (or root) can have written: its lines run on workers."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(handle, "rb") as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise UsageError(f"{path} is no ordinary file; a site's profile must be one")
        if about.st_uid not in (0, os.geteuid()):
            raise UsageError(
                f"{path} belongs to another user (id {about.st_uid}), whose commands it would run on your "
                f"workers. Read it, then use a copy of your own: cp {path} ~/.config/coffea-scaleout/sites/"
            )
        if about.st_mode & 0o022:
            raise UsageError(
                f"{path} can be written by others, whose commands it would run on your workers. "
                f"Look at what it says, then: chmod go-w {path}"
            )
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise UsageError(f"{path}: over 1 MB: this is not a site's profile")
    return content


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
            raise UnknownNameError.of(f"key in {where}:", f"{prefix}{key}"[:100], near)
        values[key] = _value(known[key], value, where, f"{prefix}{key}")
    return kind(**values)


def _value(field: Any, value: object, where: str, key: str) -> Any:
    rule = field.metadata
    if "section" in rule:
        if not isinstance(value, dict):
            raise UsageError(f"{where}: {key} must be a table ([{key}]), not {reprlib.repr(value)}")
        return _build(rule["section"], value, where, f"{key}.", {})
    if value == "" and field.default is None:
        return None  # how a file takes back what it inherits
    try:
        return rule["reader"](value)
    except ValueError as error:
        raise UsageError(f"{where}: {key} must be {error}, not {reprlib.repr(value)}") from None
