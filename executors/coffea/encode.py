"""From an accumulator to the nodes of its structure, and which of them add cell by cell.

A node is ``[tag, nodes within, cells, ...]``; its own cells come before those of the nodes within.
"""

from __future__ import annotations

import copyreg
from collections import OrderedDict, defaultdict
from typing import TYPE_CHECKING, Any, TypeAlias

import awkward as ak
import numpy as np
from coffea.processor import (
    column_accumulator,
    defaultdict_accumulator,
    dict_accumulator,
    list_accumulator,
    set_accumulator,
    value_accumulator,
)

from executors.coffea import arrays, constants, histograms
from executors.coffea.places import at
from executors.work.packed import INT

if TYPE_CHECKING:
    from collections.abc import Callable

    from executors.coffea.places import Path
    from executors.work.packed import Sink

Node: TypeAlias = list[Any]

_INTS = range(-(1 << 63), 1 << 63)


def encode(value: Any, sink: Sink, path: Path) -> Node:
    """The structure of a value, its cells and blobs put into the sink."""
    kind = type(value)
    if kind in _ENCODERS:
        return _ENCODERS[kind](value, sink, path)
    if isinstance(value, np.generic):
        return _encode_scalar(value, sink, path)
    if _plain_subclass(value):
        return _encode_mapping(value, sink, path, ["d", constants.encode(kind)])
    return _encode_opaque(value, sink, path)


def _plain_subclass(value: Any) -> bool:
    """A class of the user's over dict, without state of its own and without its own idea of a sum."""
    if not isinstance(value, dict) or hasattr(type(value), "__add__"):
        return False
    made = value.__reduce_ex__(4)
    return made[:4] == (copyreg.__newobj__, (type(value),), None, None)  # type: ignore[attr-defined]


def _encode_opaque(value: Any, sink: Sink, path: Path) -> Node:
    with at(path, f"cannot be stored: {type(value).__name__}"):
        blob = constants.dumps(value)
        if type(value) not in _READABLE:
            constants.loads(blob)  # better found now than when the last chunk is merged
            _READABLE.add(type(value))
    return ["o", [], [sink.put_blob(blob)]]


_READABLE: set[type] = set()


def _encode_mapping(value: Any, sink: Sink, path: Path, head: Node) -> Node:
    with at(path, "cannot be stored: a key"):
        keys = [constants.encode(key) for key in value]
    inner = [encode(item, sink, (*path, key)) for key, item in value.items()]
    return [head[0], inner, [], keys, *head[1:]]


def _encode_factory(tag: str) -> Callable[[Any, Sink, Path], Node]:
    def make(value: Any, sink: Sink, path: Path) -> Node:
        with at(path, "cannot be stored: its default_factory"):
            factory = constants.encode(value.default_factory)
        return _encode_mapping(value, sink, path, [tag, factory])

    return make


def _encode_value(value: Any, sink: Sink, path: Path) -> Node:
    if set(vars(value)) != {"value", "default_factory"}:
        return _encode_opaque(value, sink, path)
    with at(path, "cannot be stored: its default_factory"):
        factory = constants.encode(value.default_factory)
    return ["v", [encode(value.value, sink, path)], [], factory]


def _encode_column(value: Any, sink: Sink, path: Path) -> Node:
    return ["C", [encode(value.value, sink, path)], []]


def _encode_items(tag: str) -> Callable[[Any, Sink, Path], Node]:
    def make(value: Any, sink: Sink, path: Path) -> Node:
        kinds = set(map(type, value))
        if kinds == {float}:
            return [tag, [], [sink.put("<f8", np.fromiter(value, "<f8", len(value)))], "f"]
        if kinds == {int} and min(value) in _INTS and max(value) in _INTS:
            return [tag, [], [sink.put(INT, np.fromiter(value, "<i8", len(value)))], "i"]
        if kinds == {str}:
            return [tag, [], [], "s", list(value)]
        return [tag, [encode(item, sink, (*path, i)) for i, item in enumerate(value)], [], ""]

    return make


def _encode_set(tag: str) -> Callable[[Any, Sink, Path], Node]:
    def make(value: Any, _sink: Sink, path: Path) -> Node:
        with at(path, "cannot be stored: an element"):
            return [tag, [], [], [constants.encode(item) for item in constants.in_order(value)]]

    return make


def _encode_constant(value: Any, _sink: Sink, _path: Path) -> Node:
    return ["k", [], [], constants.encode(value)]


def _encode_int(value: int, sink: Sink, path: Path) -> Node:
    if value not in _INTS:
        return _encode_constant(value, sink, path)
    return ["i", [], [sink.put(INT, np.array([value], "<i8"))]]


def _encode_float(value: float, sink: Sink, _path: Path) -> Node:
    return ["f", [], [sink.put("<f8", np.array([value], "<f8"))]]


def _encode_complex(value: complex, sink: Sink, _path: Path) -> Node:
    return ["c", [], [sink.put("<c16", np.array([value], "<c16"))]]


def _encode_scalar(value: np.generic, sink: Sink, path: Path) -> Node:
    array: Any = np.asarray(value)
    if arrays.numeric(array.dtype) and type(array[()]) is type(value):
        return ["s", [], [sink.put(array.dtype.str, array)]]
    if arrays.flat_bytes(array.dtype) and type(array[()]) is type(value):
        return ["S", [arrays.raw(array, sink)], []]
    return _encode_opaque(value, sink, path)


def _encode_hist(value: Any, sink: Sink, path: Path) -> Node:
    with at(path, f"cannot be stored: {type(value).__name__}"):
        node = histograms.node(value, sink)
    return node if node is not None else _encode_opaque(value, sink, path)


def _encode_array(value: Any, sink: Sink, path: Path) -> Node:
    node = arrays.node(value, sink)
    return node if node is not None else _encode_opaque(value, sink, path)


def _encode_awkward(value: Any, sink: Sink, path: Path) -> Node:
    with at(path, "cannot be stored: awkward array"):
        if ak.backend(value) != "cpu" or not all(name.startswith("@") for name in value.attrs):
            return _encode_opaque(value, sink, path)
        # A behavior is a table of code, tens of kilobytes for NanoEvents: kept only where a name in the
        # array's structure refers to it. Attributes with an @ are those that awkward itself never stores.
        form, length, buffers = ak.to_buffers(ak.to_packed(ak.materialize(value)))
        text = form.to_json()
        if value.behavior and any(name in text for name in ('"__record__"', '"__list__"')):
            return _encode_opaque(value, sink, path)
        inner = [arrays.raw(np.asarray(buffer), sink) for buffer in buffers.values()]
    return ["y", inner, [], list(buffers), text, length]


_ENCODERS: dict[type, Callable[[Any, Sink, Path], Node]] = {
    type(None): _encode_constant,
    bool: _encode_constant,
    str: _encode_constant,
    bytes: _encode_constant,
    int: _encode_int,
    float: _encode_float,
    complex: _encode_complex,
    dict: lambda value, sink, path: _encode_mapping(value, sink, path, ["d", None]),
    OrderedDict: lambda value, sink, path: _encode_mapping(value, sink, path, ["d", "OrderedDict"]),
    dict_accumulator: lambda value, sink, path: _encode_mapping(value, sink, path, ["m"]),
    defaultdict: _encode_factory("D"),
    defaultdict_accumulator: _encode_factory("E"),
    value_accumulator: _encode_value,
    column_accumulator: _encode_column,
    list: _encode_items("l"),
    tuple: _encode_items("t"),
    list_accumulator: _encode_items("L"),
    set: _encode_set("e"),
    frozenset: _encode_set("z"),
    set_accumulator: _encode_set("Z"),
    np.ndarray: _encode_array,
    ak.Array: _encode_awkward,
    **dict.fromkeys(histograms.CLASSES, _encode_hist),
}


def additive(node: Node) -> bool:
    """Whether the sum of two values of this structure is the sum of their cells."""
    tag, inner = node[0], node[1]
    if tag in "ifcsah":
        return True
    if tag in "dD":
        return all(map(additive, inner))
    if tag in "Ev":  # coffea begins these sums with the factory's own value
        return all(__additive_from(node[-1], child) for child in inner)
    if tag == "m":  # coffea adds only accumulators in these
        return all(child[0] in "Evm" and additive(child) for child in inner)
    return False


_INT_FACTORY, _FLOAT_FACTORY = constants.encode(int), constants.encode(float)


def __additive_from(factory: Any, child: Node) -> bool:
    """Whether ``factory() + a + b`` is ``a + b``, class and all."""
    if factory not in (_INT_FACTORY, _FLOAT_FACTORY):
        return False
    kinds = "iufcm" if factory == _INT_FACTORY else "fc"
    if child[0] in "sa":
        return child[2][0][0][1] in kinds
    return child[0] in ("ifch" if factory == _INT_FACTORY else "fch")
