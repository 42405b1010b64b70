"""What identifies an analysis: its code, its arguments and the versions that shape results, part by part.

Two runs may share results only if their fingerprints are equal; where they differ, the parts say why. Nothing
is imported to find out, coffea least of all.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from executors.canonical import Canonical
from executors.closure import Closure, label
from executors.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_SHAPING = (
    "awkward",
    "awkward-cpp",
    "boost-histogram",
    "coffea",
    "coffea-scaleout",
    "hist",
    "numpy",
    "uproot",
    "vector",
)
_DISTRIBUTIONS = {"sklearn": "scikit-learn", "yaml": "PyYAML", "boost_histogram": "boost-histogram"}


@dataclass(frozen=True)
class Fingerprint:
    """The identity of an analysis. A part that begins with ``#`` is a hash, any other is text to show."""

    digest: str
    parts: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # what could not be counted, or looks odd


def fingerprint(
    processor: Any,
    *,
    schema: str = "NanoAODSchema",
    columns: Iterable[str] = (),
    arguments: Mapping[str, Any] | None = None,
) -> Fingerprint:
    """The fingerprint of a processor (an instance, or a function of the events) and how it is run."""
    closure = Closure()
    canonical = Canonical(closure)
    parts: dict[str, str] = {"schema": schema}
    columns = sorted(columns)
    if columns:
        parts["declared columns"] = canonical.text(columns)
    if ":" in schema:
        closure.add(schema.partition(":")[0])
    try:
        for name, value in (arguments or {}).items():
            parts[f"argument {name}"] = canonical.shown(str(name), value)
        parts |= dict(_of_processor(processor, canonical))
    except RecursionError:
        raise UsageError("the processor holds something that is nested too deeply to be identified") from None
    parts |= canonical.code
    parts |= {f"module {name}": digest for name, digest in closure.modules.items()}
    parts |= dict(versions(closure.libraries))
    text = json.dumps(parts, sort_keys=True)
    notes = [
        f"module {name} was changed after it was imported; what is in memory runs" for name in closure.stale
    ]
    notes += [
        f"of a {kind} only its type and attributes are counted" for kind in sorted(set(canonical.opaque))
    ]
    return Fingerprint(hashlib.blake2b(text.encode(), digest_size=20).hexdigest(), parts, tuple(notes))


def _of_processor(processor: Any, canonical: Canonical) -> Iterator[tuple[str, str]]:
    kind = type(processor)
    yield "processor", _name(processor if hasattr(processor, "__qualname__") else kind)
    inner = getattr(processor, "func", None)
    if inner is not None and hasattr(
        processor, "keywords"
    ):  # functools.partial: a function and its arguments
        yield "function", canonical.text(inner)
        given = {**{str(i): v for i, v in enumerate(processor.args)}, **processor.keywords}
        for name, value in given.items():
            yield f"argument {name}", canonical.shown(str(name), value)
        return
    state = _state(processor)
    if state is None:
        yield "state", canonical.text(processor)
        return
    yield "class", canonical.text(kind)
    for name, value in state.items():
        yield f"attribute {name}", canonical.shown(str(name), value)


def _name(value: Any) -> str:
    return f"{label(getattr(value, '__module__', None) or '')}.{value.__qualname__}"


def _state(processor: Any) -> dict[str, Any] | None:
    """The attributes of a plain object; None for one that says itself how it is kept."""
    kind = type(processor)
    own = [getattr(kind, name) is not getattr(object, name) for name in ("__reduce_ex__", "__reduce__")]
    if any(own) or (callable(processor) and not hasattr(processor, "process")):
        return None
    try:
        state = processor.__getstate__()
    except (TypeError, AttributeError):
        return None
    if isinstance(state, tuple) and len(state) == 2:  # a class with slots
        state = {**(state[0] or {}), **(state[1] or {})}
    return {} if state is None else state if isinstance(state, dict) else None


def versions(libraries: Iterable[str] = ()) -> Iterator[tuple[str, str]]:
    """Python and each installed package that shapes results: the physics stack, and what the code imports."""
    yield "Python", ".".join(map(str, sys.version_info[:2]))
    names = {_DISTRIBUTIONS.get(name, name) for name in libraries}
    for name in sorted({*_SHAPING, *names}):
        if (version := _version(name)) is not None:
            yield name, version


@functools.cache
def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None


def changes(old: Mapping[str, str] | Fingerprint, new: Mapping[str, str] | Fingerprint) -> list[str]:
    """What differs between two fingerprints, in words: what the user changed first, versions last."""
    was = old.parts if isinstance(old, Fingerprint) else old
    now = new.parts if isinstance(new, Fingerprint) else new
    said = [_change(name, was.get(name), now.get(name)) for name in sorted({*was, *now}, key=_rank)]
    return [text for text in said if text]


_FIRST = (
    "processor",
    "module ",
    "class",
    "function",
    "argument ",
    "attribute ",
    "value ",
    "state",
    "schema",
    "declared",
)


def _rank(name: str) -> tuple[int, str]:
    found = next((i for i, start in enumerate(_FIRST) if name.startswith(start)), len(_FIRST))
    return found, name


def _change(name: str, was: str | None, now: str | None) -> str:
    if was == now:
        return ""
    if was is None:
        return f"{name} is new"
    if now is None:
        return f"{name} is gone"
    if was.startswith("#") or now.startswith("#"):
        return f"{name} changed"
    return f"{name} {was} -> {now}"
