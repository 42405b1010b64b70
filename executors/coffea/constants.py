"""Constants in JSON: keys, names, axis parameters, classes, whatever a sum does not add up.

The exact class of each survives. What JSON has no form for is held by reference or as a pickle in
base64, so decoding belongs to our own results only. No accumulator is walked here (see ``pack``).
"""

from __future__ import annotations

import base64
import io
import json
import pickle
import struct
import sys
import types
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast

import cloudpickle
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_PLAIN = (str, int, bytes)
_INT_DIGITS = 1 << 63  # beyond, decimal text is slow, and Python refuses it from 4,300 digits on


class Writable(Protocol):
    """What a pickle can be written to."""

    def write(self, data: Any, /) -> Any:
        """Take bytes, or a buffer of them."""


class _SteadyPickler(pickle._Pickler):  # noqa: SLF001 - the one in Python
    """A cloudpickle whose bytes depend on the values alone.

    The usual one writes sets in the order of their hashes, which differ between processes, and equal
    strings once or twice, as they happen to be one object or two. Only the pickler in Python can be
    told otherwise; it is slower, and made for what is written once.
    """

    dispatch_table = cloudpickle.Pickler.dispatch_table
    # Not a copy of the usual one: dill, which Parsl imports, puts functions of its own there, and then
    # what can be stored, and as which bytes, would depend on what else was imported, and when.
    dispatch: ClassVar[dict[Any, Any]] = {
        kind: getattr(pickle._Pickler, name)  # noqa: SLF001
        for name, kinds in {
            "save_none": (type(None),),
            "save_bool": (bool,),
            "save_long": (int,),
            "save_float": (float,),
            "save_bytes": (bytes,),
            "save_bytearray": (bytearray,),
            "save_str": (str,),
            "save_tuple": (tuple,),
            "save_list": (list,),
            "save_dict": (dict,),
            "save_set": (set,),
            "save_frozenset": (frozenset,),
            "save_global": (types.FunctionType,),
            "save_type": (type,),
        }.items()
        for kind in kinds
    }

    def __init__(self, file: Writable) -> None:
        super().__init__(file, protocol=5)
        self._cloud = cloudpickle.Pickler(io.BytesIO(), protocol=5)
        self._texts: dict[str, str] = {}

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if type(obj) is str:
            obj = self._texts.setdefault(obj, obj)
        super().save(obj, save_persistent_id)  # type: ignore[misc]

    def save_picklebuffer(self, obj: pickle.PickleBuffer) -> None:
        # As the usual one, but a large array is written from where it is, not copied and kept.
        with obj.raw() as view:
            code = pickle.BINBYTES8 if view.readonly else pickle.BYTEARRAY8
            self._write_large_bytes(code + struct.pack("<Q", view.nbytes), view)  # type: ignore[attr-defined]

    dispatch[pickle.PickleBuffer] = save_picklebuffer

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, (set, frozenset)) and type(obj).__reduce__ in _SET_REDUCE:
            kind, (items,), attributes = cast("tuple[Any, Any, Any]", obj.__reduce__())
            return kind, (in_order(items),), attributes
        if isinstance(obj, BaseException):  # Dask, and Parsl, have other ways to write them: with tracebacks
            return obj.__reduce_ex__(5)
        return self._cloud.reducer_override(obj)


_SET_REDUCE = (set.__reduce__, frozenset.__reduce__)


def dump(value: Any, file: Writable) -> None:
    """Write a pickle that ``pickle.load`` reads; equal values give equal bytes in every process."""
    _SteadyPickler(file).dump(value)


def dumps(value: Any) -> bytes:
    """The bytes of ``dump``."""
    file = io.BytesIO()
    dump(value, file)
    return file.getvalue()


def loads(blob: bytes) -> Any:
    """The object of ``dumps``; runs code, so for our own results only."""
    return pickle.loads(blob)


def simple_dtype(dtype: np.dtype[Any]) -> bool:
    """Whether a type is all in its ``str``, and its values all in their bytes."""
    if dtype.char in "gG":  # long doubles: some of their bytes are padding, and hold anything
        return False
    plain = dtype.names is None and dtype.subdtype is None and not dtype.metadata and dtype.itemsize > 0
    return plain and dtype.kind in "biufcmMSUV"


def in_order(items: Iterable[Any]) -> list[Any]:
    """A set's items in an order that does not depend on hashes."""
    found = list(items)
    kinds = {type(item) for item in found}
    if kinds == {tuple}:
        rows = {tuple(map(type, item)) for item in found}
        natural = len(rows) == 1 and all(kind in _PLAIN for kind in next(iter(rows)))
    else:
        natural = len(kinds) <= 1 and all(kind in _PLAIN for kind in kinds)
    return sorted(found, key=None if natural else _text)


def _text(item: Any) -> str:
    return json.dumps(encode(item), separators=(",", ":"))


def encode(value: Any) -> Any:
    """The JSON of a constant: itself if plain, else ``[tag, ...]``."""
    kind = type(value)
    if value is None or kind is str or kind is bool or kind is float:
        return value
    if kind is int and -_INT_DIGITS <= value < _INT_DIGITS:
        return value
    if kind in _ENCODERS:
        return _ENCODERS[kind](value)
    if isinstance(value, np.generic) and simple_dtype(value.dtype):
        return ["s", value.dtype.str, _base64(value.tobytes())]
    return ["p", _base64(dumps(value))]


def decode(form: Any) -> Any:
    """The inverse of ``encode``. Equal strings become one object: keys and names recur by the hundred."""
    if type(form) is str:
        return sys.intern(form)
    return _DECODERS[form[0]](*form[1:]) if type(form) is list else form


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")


def _array(value: np.ndarray[Any, Any]) -> list[Any]:
    if simple_dtype(value.dtype):
        return ["n", value.dtype.str, list(value.shape), _base64(value.tobytes())]
    return ["p", _base64(dumps(value))]


def _read_array(dtype: str, shape: list[int], data: str) -> Any:
    return np.frombuffer(bytearray(base64.b64decode(data)), dtype=np.dtype(dtype)).reshape(shape)


def _read_scalar(dtype: str, data: str) -> Any:
    raw = base64.b64decode(data)
    kind = np.dtype(dtype)
    return np.frombuffer(raw, dtype=kind)[0] if raw else kind.type()


def _each(tag: str) -> Callable[[Any], list[Any]]:
    return lambda value: [tag, *map(encode, value)]


_ENCODERS: dict[type, Callable[[Any], list[Any]]] = {
    int: lambda value: ["x", hex(value)],
    complex: lambda value: ["c", value.real, value.imag],
    bytes: lambda value: ["b", _base64(value)],
    list: _each("l"),
    tuple: _each("t"),
    dict: lambda value: ["d", *([encode(k), encode(v)] for k, v in value.items())],
    set: lambda value: ["e", *map(encode, in_order(value))],
    frozenset: lambda value: ["z", *map(encode, in_order(value))],
    np.ndarray: _array,
}

_DECODERS: dict[str, Callable[..., Any]] = {
    "x": lambda text: int(text, 16),
    "c": complex,
    "b": base64.b64decode,
    "l": lambda *items: [decode(item) for item in items],
    "t": lambda *items: tuple([decode(item) for item in items]),
    "d": lambda *items: {decode(key): decode(value) for key, value in items},
    "e": lambda *items: {decode(item) for item in items},
    "z": lambda *items: frozenset([decode(item) for item in items]),
    "n": _read_array,
    "s": _read_scalar,
    "p": lambda data: loads(base64.b64decode(data)),
}
