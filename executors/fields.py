"""The fields of a fileset, checked one at a time: each gives the value in its one form or a ``FilesetError``.

``where`` is the place in the fileset, for the message. How fields make up a fileset is for ``fileset``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias
from uuid import UUID

from executors.errors import FilesetError

Steps: TypeAlias = tuple[tuple[int, int], ...]

# What coffea itself puts into events.metadata, and the names it refuses besides.
RESERVED = frozenset(
    (
        "dataset",
        "filename",
        "treename",
        "metadata",
        "entrystart",
        "entrystop",
        "fileuuid",
        "numentries",
        "uuid",
        "clusters",
        "preload",
    )
)
_MOST_METADATA = 100_000  # values of one dataset; YAML can make a few bytes look like billions


def as_table(value: Any) -> dict[Any, Any] | None:
    """The mapping that a value is, coffea's pydantic models included; None for anything else."""
    if isinstance(value, dict):
        return value
    dump = getattr(value, "model_dump", None)
    if callable(dump) and not isinstance(value, type):
        dumped = dump()
        return dumped if isinstance(dumped, dict) else None
    return dict(value.items()) if isinstance(value, Mapping) else None


def kind(value: Any) -> str:
    """What a value is, in a word or two."""
    names = {
        str: "text",
        list: "a list",
        int: "a number",
        float: "a number",
        bool: "a truth value",
        dict: "a table",
    }
    return "nothing" if value is None else names.get(type(value), f"a {type(value).__name__}")


def treename(value: Any, where: str) -> str | None:
    """The name of a tree, or None where none is given."""
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip():
        raise FilesetError(f"{where}: a tree's name must be text, not {brief(value)}")
    clean(value, where)
    return value


def counts(value: Any) -> bool:
    """Whether a value can be a number of events."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62


def steps(value: Any, entries: int | None, where: str) -> Steps | None:
    """Entry ranges: pairs in order that do not overlap, or the offsets between them."""
    if value is None:
        return None
    if not isinstance(value, list | tuple) or not value:
        raise FilesetError(f"{where}: steps must be a list of [start, stop], not {brief(value)}")
    if all(counts(item) for item in value) and len(value) > 1:  # offsets: [0, 100, 200]
        value = list(itertools.pairwise(value))
    last = 0
    for step in value:
        if not isinstance(step, list | tuple) or len(step) != 2 or not all(counts(bound) for bound in step):
            raise FilesetError(f"{where}: a step must be [start, stop], not {brief(step)}")
        if not last <= step[0] <= step[1]:
            raise FilesetError(f"{where}: step {brief(list(step))} goes back, or overlaps the one before")
        last = step[1]
    if entries is not None and last > entries:
        raise FilesetError(f"{where}: step {brief(list(value[-1]))} goes beyond its {entries} entries")
    return tuple((step[0], step[1]) for step in value)


def uuid(value: Any, where: str) -> str | None:
    """A file's uuid as 32 hex digits, however it is written."""
    if value is None:
        return None
    try:
        if not isinstance(value, str | UUID):
            raise ValueError(value)  # noqa: TRY004, TRY301 - one message for all that is no uuid
        return UUID(str(value)).hex
    except ValueError:
        raise FilesetError(f"{where}: not a uuid: {brief(value)}") from None


def metadata(value: Any, where: str) -> dict[str, Any]:
    """A dataset's metadata, as JSON keeps it; the names that coffea fills in itself are refused."""
    if value is None:
        return {}
    content = as_table(value)
    if content is None:
        raise FilesetError(f"{where}: metadata must be a table, not {kind(value)}")
    reserved = sorted(RESERVED & {key for key in content if isinstance(key, str)})
    if reserved:
        raise FilesetError(
            f"{where}: metadata may not be called {reserved[0]!r}: coffea fills that in; rename it"
        )
    budget = [_MOST_METADATA]
    return {
        key: _json_value(item, f"{where}, metadata {key!r}", budget)
        for key, item in _text_keys(content, where)
    }


def _text_keys(content: Mapping[Any, Any], where: str) -> Iterator[tuple[str, Any]]:
    for key, item in content.items():
        if not isinstance(key, str):
            raise FilesetError(f"{where}: the metadata key {key!r} must be text: put it in quotes")
        yield key, item


def _json_value(value: Any, where: str, budget: list[int], depth: int = 0) -> Any:
    """The value as JSON would keep it: a plan is read back from a file and must mean the same."""
    budget[0] -= 1
    if budget[0] < 0 or depth > 50:
        raise FilesetError(f"{where}: too much, or nested too deeply")
    if not isinstance(value, str | int | float | bool | list | tuple | dict | None) and hasattr(
        value, "item"
    ):
        value = value.item() if getattr(value, "ndim", 0) == 0 else value.tolist()
    if isinstance(value, float) and (value != value or abs(value) == float("inf")):  # noqa: PLR0124
        raise FilesetError(f"{where}: {value} is not a number that JSON can keep")
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, list | tuple):
        return [_json_value(item, where, budget, depth + 1) for item in value]
    content = as_table(value)
    if content is None:
        raise FilesetError(
            f"{where}: {kind(value)} cannot be kept: put it in quotes, or make it text or numbers"
        )
    return {key: _json_value(item, where, budget, depth + 1) for key, item in _text_keys(content, where)}


def brief(value: Any) -> str:
    """A value, shortened for a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def clean(text: str, where: str) -> None:
    """Refuse text that cannot stand in a name: control characters, half characters."""
    if text.isprintable():  # nearly always, and there may be a hundred thousand names
        return
    if any(ord(char) < 32 or ord(char) == 127 for char in text):
        raise FilesetError(f"{where}: control characters in {brief(text)}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise FilesetError(f"{where}: {brief(text)} is not text (a lone surrogate)") from None
