"""Values as people type them, turned into the types that were declared for them.

Options, environment variables, TOML keys and ``--wf-arg`` all pass through ``convert``; nothing here knows
what a value is for.
"""

from __future__ import annotations

import collections.abc
import enum
import json
import types
import typing
from pathlib import Path
from typing import Any

TRUE = frozenset({"true", "yes", "on", "1"})
FALSE = frozenset({"false", "no", "off", "0"})
NOTHING = frozenset({"none", "null"})
_SEQUENCES: dict[Any, type] = {
    list: list,
    tuple: tuple,
    set: set,
    frozenset: frozenset,
    collections.abc.Sequence: list,
    collections.abc.Iterable: list,
    collections.abc.Collection: list,
}
_MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)


class Spelled(str):
    """Text from a command line or the environment: its type is not settled by how it is written."""

    __slots__ = ()


class MismatchError(ValueError):
    """A value is not of the declared type; the text says what was expected, as in 'a whole number'."""


def convert(value: Any, kind: Any) -> Any:
    """``value`` as the declared type ``kind``; text that was typed is read, other values are only checked."""
    origin, kinds = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return convert(value, kinds[0])
    if origin in _GENERIC:
        return _GENERIC[origin](value, kinds)
    base = origin or kind
    if base in _SEQUENCES:
        return _sequence(value, _SEQUENCES[base], kinds)
    if base in _MAPPINGS:
        return _mapping(value, kinds)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return _member(value, kind)
    reader = _READERS.get(kind, _anything)
    return reader(value)


def literal(text: str) -> Any:
    """What the text is as JSON, or the text itself where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return str(text)


def plain(value: Any) -> Any:
    """The value without the mark of how it was given."""
    return str(value) if isinstance(value, Spelled) else value


def _anything(value: Any) -> Any:
    return literal(value) if isinstance(value, Spelled) else value


def _nothing(value: Any) -> None:
    if value is None or (isinstance(value, Spelled) and value.strip().lower() in NOTHING):
        return
    raise MismatchError("none")


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, Spelled):
        word = value.strip().lower()
        if word in TRUE or word in FALSE:
            return word in TRUE
    raise MismatchError("true or false")


def _whole(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, Spelled) and value.isascii():
        try:
            return int(value)
        except ValueError:
            pass
    raise MismatchError("a whole number")


def _real(value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if abs(value) < 1e300 or isinstance(value, float) else _too_large()
    if isinstance(value, Spelled) and value.isascii():
        try:
            return float(value)
        except ValueError:
            pass
    raise MismatchError("a number")


def _too_large() -> float:
    raise MismatchError("a number below 1e300")


def _text(value: Any) -> str:
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)  # year = 2022 is as good as year = "2022"
    raise MismatchError("text")


def _path(value: Any) -> Path:
    if isinstance(value, Path):
        return value
    if isinstance(value, str) and value and "\0" not in value:
        return Path(value)
    raise MismatchError("a path")


_READERS: dict[Any, Any] = {
    bool: _boolean,
    int: _whole,
    float: _real,
    str: _text,
    Path: _path,
    None: _nothing,
    type(None): _nothing,
}


def _union(value: Any, kinds: tuple[Any, ...]) -> Any:
    # Text fits everything, so it is tried last; whole numbers before real ones.
    order = {type(None): 0, bool: 1, int: 2, float: 3, str: 9}
    expected = []
    for kind in sorted(kinds, key=lambda k: order.get(k, 5) if isinstance(k, type) else 5):
        try:
            return convert(value, kind)
        except MismatchError as error:
            expected.append(str(error))
    raise MismatchError(" or ".join(word for word in expected if word != "none") or "none")


def _choice(value: Any, choices: tuple[Any, ...]) -> Any:
    for choice in choices:
        same = str(choice) == str(value) if isinstance(value, Spelled) else choice == value
        if same and (isinstance(value, Spelled) or isinstance(choice, bool) == isinstance(value, bool)):
            return choice
    listed = ", ".join(str(choice) for choice in choices)
    raise MismatchError(f"one of {listed}" if len(choices) > 1 else listed)


def _member(value: Any, kind: type[enum.Enum]) -> enum.Enum:
    if isinstance(value, kind):
        return value
    for member in kind:
        if str(value) in (member.name, str(member.value)):
            return member
    raise MismatchError("one of " + ", ".join(member.name for member in kind))


def _sequence(value: Any, build: type, kinds: tuple[Any, ...]) -> Any:
    items = _items(value)
    if build is tuple and kinds and kinds[-1] is not Ellipsis:
        if len(kinds) != len(items):
            raise MismatchError(f"{len(kinds)} values, as in a,b")
        return tuple(_inner(item, kind) for item, kind in zip(items, kinds, strict=True))
    kind = kinds[0] if kinds else Any
    return build(_inner(item, kind) for item in items)


def _items(value: Any) -> list[Any]:
    if isinstance(value, Spelled):
        read = literal(value) if value.lstrip().startswith("[") else None
        if isinstance(read, list):
            return read
        return [Spelled(part.strip()) for part in value.split(",") if part.strip()]
    if isinstance(value, str) or not isinstance(value, list | tuple | set | frozenset):
        raise MismatchError("a list")
    return list(value)


def _inner(item: Any, kind: Any) -> Any:
    try:
        return convert(item, kind)
    except MismatchError as error:
        raise MismatchError(f"a list, each item {error}") from None


def _mapping(value: Any, kinds: tuple[Any, ...]) -> dict[str, Any]:
    if isinstance(value, Spelled):
        value = literal(value)
    if not isinstance(value, dict):
        raise MismatchError('a table, as in {"key": 1}')
    kind = kinds[1] if len(kinds) == 2 else Any
    return {str(key): convert(item, kind) for key, item in value.items()}


_GENERIC: dict[Any, Any] = {typing.Union: _union, types.UnionType: _union, typing.Literal: _choice}
