"""The kinds of values a profile holds: each reader takes what a file says and gives what the program uses.

A reader raises ``ValueError`` with what it wants instead. What a value is for is not known here (``schema``).
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.ASCII)
SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd])", re.ASCII)
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
SPANS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

Scalar: TypeAlias = str | int | float | bool
Ports: TypeAlias = tuple[int, int]
T = TypeVar("T")


class Table(Mapping[str, T]):
    """A read-only table that can be pickled and hashed, as every value of a profile can."""

    __slots__ = ("_rows",)

    def __init__(self, rows: Mapping[str, T] | None = None) -> None:
        self._rows = dict(rows or {})

    def __getitem__(self, key: str) -> T:
        return self._rows[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __hash__(self) -> int:
        return hash(frozenset(self._rows.items()))

    def __repr__(self) -> str:
        return repr(self._rows)

    def __reduce__(self) -> tuple[Any, ...]:
        return Table, (self._rows,)


def text(value: object) -> str:
    """A string without control characters."""
    if isinstance(value, str) and value.isprintable():
        return str(value)
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
    match = SIZE.fullmatch(value.lower()) if isinstance(value, str) and len(value) < 40 else None
    found = int(float(match[1]) * (1024 if match[3] else 1000) ** POWERS[match[2]]) if match else 0
    if found < 1:
        raise ValueError('a size such as "2GB" or a number of bytes')
    return found


def span(value: object) -> float:
    """Seconds: a number, or a string as ``"90s"``, ``"8h"`` or ``"1.5d"``."""
    match = SPAN.fullmatch(value) if isinstance(value, str) and len(value) < 40 else None
    if match is not None and float(match[1]) > 0:
        return float(match[1]) * SPANS[match[2]]
    try:
        return number(value)
    except ValueError:
        raise ValueError('a time such as "8h" or a number of seconds') from None


def texts(value: object) -> tuple[str, ...]:
    """A list of strings."""
    if isinstance(value, list | tuple):
        return tuple(text(one) for one in value)
    raise ValueError("a list of strings")


def names(value: object) -> tuple[str, ...]:
    """A list of names of environment variables."""
    read = texts(value)
    for one in read:
        if not VARIABLE.fullmatch(one):
            raise ValueError(f"a list of environment variables (and {one!r} is no name of one)")
    return read


def patterns(value: object) -> tuple[str, ...]:
    """One pattern or a list of them."""
    return (text(value),) if isinstance(value, str) else texts(value)


def ports(value: object) -> Ports:
    """First and last port, or one port alone."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = [value, value]
    if (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(isinstance(one, int) and not isinstance(one, bool) for one in value)
    ):
        first, last = value
        if 1 <= first <= last <= 65535:
            return first, last
    raise ValueError("[first, last], two ports from 1 to 65535")


def scalars(value: object) -> Table[Scalar]:
    """A table of strings, numbers and flags."""
    if isinstance(value, Mapping) and all(isinstance(one, str | int | float) for one in value.values()):
        return Table({_key(key): text(one) if isinstance(one, str) else one for key, one in value.items()})
    raise ValueError("a table of strings, numbers and flags")


def words(value: object) -> Table[str]:
    """A table of strings."""
    if isinstance(value, Mapping):
        return Table({_key(key): text(one) for key, one in value.items()})
    raise ValueError("a table of strings")


def variables(value: object) -> Table[str]:
    """A table of environment variables."""
    table = words(value)
    for key in table:
        if not VARIABLE.fullmatch(key):
            raise ValueError(f"a table of environment variables (and {key!r} is no name of one)")
    return table


def spans(value: object) -> Table[float]:
    """A table of times."""
    if isinstance(value, Mapping):
        return Table({_key(key): span(one) for key, one in value.items()})
    raise ValueError("a table of times")


def choice(*allowed: str) -> Callable[[object], str]:
    """The reader of a value that must be one of a few words."""
    return partial(_choice, allowed)


def _choice(allowed: tuple[str, ...], value: object) -> str:
    if isinstance(value, str) and value in allowed:
        return str(value)
    near = difflib.get_close_matches(value, allowed, 1) if isinstance(value, str) else []
    raise ValueError(f"{', '.join(allowed[:-1])} or {allowed[-1]}" + (f" ({near[0]}?)" if near else ""))


def _key(value: object) -> str:
    if isinstance(value, str) and value.strip() and value.isprintable():
        return str(value)
    raise ValueError("a table whose keys are words")


def from_text(reader: Callable[[object], Any], typed: str) -> object:
    """What a word of the command line stands for where this reader is going to read it."""
    if reader is flag:
        return {"true": True, "yes": True, "false": False, "no": False}.get(typed.lower(), typed)
    if reader is ports:
        parts = re.split(r"[-:,]", typed)
        return [int(one) for one in (parts * 2)[:2]] if all(map(_whole, parts)) and len(parts) < 3 else typed
    if reader in (count, number) or (reader in (size, span) and _whole(typed)):
        return int(typed) if _whole(typed) else _real(typed)
    return [typed] if reader in (texts, names) else typed


def scalar_from_text(typed: str) -> Scalar:
    """A number or flag where the text is one and nothing is lost by saying so, else the text."""
    if typed in ("true", "false"):
        return typed == "true"
    for kind in (int, float):
        try:
            if len(typed) < 20 and str(kind(typed)) == typed and math.isfinite(kind(typed)):
                return kind(typed)
        except ValueError:
            continue
    return typed


def _whole(typed: str) -> bool:
    return typed.isascii() and typed.isdigit() and len(typed) < 20


def _real(typed: str) -> float | str:
    try:
        return float(typed)
    except ValueError:
        return typed


def duration(seconds: float) -> str:
    """A time as profiles spell it."""
    for unit in ("d", "h", "m"):
        if seconds >= SPANS[unit] and (seconds / SPANS[unit] * 10).is_integer():
            return f"{seconds / SPANS[unit]:.12g}{unit}"
    return f"{seconds:.12g}s"


def amount(number_of_bytes: int) -> str:
    """A size as profiles spell it, exact."""
    for unit, base in (("TB", 10**12), ("GiB", 2**30), ("GB", 10**9), ("MiB", 2**20), ("MB", 10**6)):
        if number_of_bytes >= base and (number_of_bytes * 10) % base == 0:
            return f"{number_of_bytes / base:.12g}{unit}"
    return str(number_of_bytes)
