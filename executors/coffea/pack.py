"""Accumulators to their flat form and back, and the sum of two: what ``coffea.processor.accumulate`` gives.

Histograms, arrays and numbers of equal structure are added as flat arrays. Where structures differ, they
are added leaf by leaf, and each unlike pair of leaves by coffea's own ``add``, so that no rule of addition
is written down here twice. Nothing here knows of files, chunks or stores.

What coffea's addition does is kept even where it surprises: strings concatenate, flags become integers,
``ak.Array`` adds event by event (a ``column_accumulator`` concatenates), None is skipped at the top and
cannot be added further down.

A node of the structure is ``[tag, nodes within, cells, ...]``; its own cells come before those within.
"""

from __future__ import annotations

import copyreg
import json
import reprlib
import sys
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
from coffea.processor.accumulator import add

from executors.coffea import constants, histograms
from executors.errors import AnalysisError, DamagedError, ExecutorsError
from executors.work.packed import BLOB, INT, Packed, Sink, Source, add_into, add_region, same_shape

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

Node: TypeAlias = list[Any]
Path: TypeAlias = tuple[Any, ...]

_RAW = "|u1"  # where the bytes go of what is not added as numbers
_INTS = range(-(1 << 63), 1 << 63)


def pack(value: Any) -> Packed:
    """The flat form of an accumulator; ``AnalysisError`` names the part that cannot be stored."""
    sink = Sink()
    tree = _encode(value, sink, ())
    return sink.finish(tree, additive=_additive(tree))


def unpack(packed: Packed) -> Any:
    """The accumulator, each time a new one: nothing of it shares memory with its flat form."""
    with _sound():
        return _decode(_tree(packed), Source(packed), ())


def combine(left: Packed, right: Packed) -> Packed:
    """The flat form of ``accumulate([left, right])``. ``left`` may be used up."""
    if left.empty or right.empty:
        return right if left.empty else left
    if same_shape(left, right):
        try:
            return add_into(left, right)
        except OverflowError:
            pass  # an integer beyond 64 bits: exact by the longer way
    sink = Sink()
    with _sound():
        tree = _merge((_tree(left), Source(left)), (_tree(right), Source(right)), sink, ())
    return sink.finish(tree, additive=_additive(tree))


def _tree(packed: Packed) -> Node:
    try:
        tree: Node = json.loads(packed.tree)
    except (ValueError, RecursionError) as error:
        raise DamagedError("packed result: the structure cannot be read") from error
    return tree


class _at:  # noqa: N801
    """Whatever fails within, the user's own code included, is said of one place in the accumulator.

    As wide as ``except Exception``, on purpose: what is stored and added here has methods of the user's.
    """

    __slots__ = ("_path", "_what")

    def __init__(self, path: Path, what: str) -> None:
        self._path, self._what = path, what

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, (ExecutorsError, MemoryError)):
            reason = " ".join(str(error).split())[:500] or "no reason given"
            where = place(self._path)
            raise AnalysisError(
                f"{where}: {self._what}: {type(error).__name__}: {reason}", path=where
            ) from error


class _sound:  # noqa: N801
    """Whatever else fails within is a structure that no packing wrote."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, (ExecutorsError, MemoryError)):
            raise DamagedError(f"packed result: the structure is not one: {error!r}") from error


def place(path: Path) -> str:
    """A place within the accumulator, as one would write it: ``out['dy']['mass']``."""
    return "out" + "".join(f"[{key!r}]" for key in path)


# ---- to nodes -------------------------------------------------------------------------------------------


def _encode(value: Any, sink: Sink, path: Path) -> Node:
    kind = type(value)
    if kind in _ENCODERS:
        try:
            return _ENCODERS[kind](value, sink, path)
        except RecursionError as error:
            raise AnalysisError(f"{place(path[:8])}: cannot be stored: it contains itself") from error
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
    with _at(path, f"cannot be stored: {type(value).__name__}"):
        blob = constants.dumps(value)
        if type(value) not in _READABLE:
            constants.loads(blob)  # better found now than when the last chunk is merged
            _READABLE.add(type(value))
    return ["o", [], [sink.put_blob(blob)]]


_READABLE: set[type] = set()


def _encode_mapping(value: Any, sink: Sink, path: Path, head: Node) -> Node:
    with _at(path, "cannot be stored: a key"):
        keys = [constants.encode(key) for key in value]
    inner = [_encode(item, sink, (*path, key)) for key, item in value.items()]
    return [head[0], inner, [], keys, *head[1:]]


def _encode_factory(tag: str) -> Callable[[Any, Sink, Path], Node]:
    def encode(value: Any, sink: Sink, path: Path) -> Node:
        with _at(path, "cannot be stored: its default_factory"):
            factory = constants.encode(value.default_factory)
        return _encode_mapping(value, sink, path, [tag, factory])

    return encode


def _encode_value(value: Any, sink: Sink, path: Path) -> Node:
    if set(vars(value)) != {"value", "default_factory"}:
        return _encode_opaque(value, sink, path)
    with _at(path, "cannot be stored: its default_factory"):
        factory = constants.encode(value.default_factory)
    return ["v", [_encode(value.value, sink, path)], [], factory]


def _encode_column(value: Any, sink: Sink, path: Path) -> Node:
    return ["C", [_encode(value.value, sink, path)], []]


def _encode_items(tag: str) -> Callable[[Any, Sink, Path], Node]:
    def encode(value: Any, sink: Sink, path: Path) -> Node:
        kinds = set(map(type, value))
        if kinds == {float}:
            return [tag, [], [sink.put("<f8", np.fromiter(value, "<f8", len(value)))], "f"]
        if kinds == {int} and min(value) in _INTS and max(value) in _INTS:
            return [tag, [], [sink.put(INT, np.fromiter(value, "<i8", len(value)))], "i"]
        if kinds == {str}:
            return [tag, [], [], "s", list(value)]
        return [tag, [_encode(item, sink, (*path, i)) for i, item in enumerate(value)], [], ""]

    return encode


def _encode_set(tag: str) -> Callable[[Any, Sink, Path], Node]:
    def encode(value: Any, _sink: Sink, path: Path) -> Node:
        with _at(path, "cannot be stored: an element"):
            return [tag, [], [], [constants.encode(item) for item in constants.in_order(value)]]

    return encode


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


def _numeric(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "biufcm" and dtype.isnative and constants.simple_dtype(dtype)


def _encode_scalar(value: np.generic, sink: Sink, path: Path) -> Node:
    array: Any = np.asarray(value)
    if _numeric(array.dtype) and type(array[()]) is type(value):
        return ["s", [], [sink.put(array.dtype.str, array)]]
    if _flat_bytes(array.dtype) and type(array[()]) is type(value):
        return ["S", [_raw(array, sink)], []]
    return _encode_opaque(value, sink, path)


def _flat_bytes(dtype: np.dtype[Any]) -> bool:
    return constants.simple_dtype(dtype) or dtype.char in "gG"


def _encode_array(value: Any, sink: Sink, path: Path) -> Node:
    dtype = value.dtype
    if value.ndim and _numeric(dtype):
        return ["a", [], [sink.put(dtype.str, value)], list(value.shape)]
    if _flat_bytes(dtype):
        return _raw(value, sink)
    if dtype.names is not None and not dtype.hasobject and _rebuilt(dtype) == dtype:
        fields = [_encode_array(value[name], sink, path) for name in dtype.names]
        return ["R", fields, [], list(value.shape), _description(dtype)]
    return _encode_opaque(value, sink, path)


def _raw(array: Any, sink: Sink) -> Node:
    """An array that is not added as it is: its bytes (a 0-d array becomes a number in a sum, and so on)."""
    data = np.ascontiguousarray(array).reshape(-1).view(_RAW)
    if array.dtype.char in "gG" and np.finfo(array.dtype).nmant == 63:
        data = data.copy()
        data.reshape(-1, np.dtype("g").itemsize)[:, 10:] = 0  # padding, which holds anything
    return ["A", [], [sink.put(_RAW, data)], list(array.shape), array.dtype.str]


def _description(dtype: np.dtype[Any]) -> Any:
    """A structured type in JSON."""
    if dtype.names is None:
        base, shape = dtype.subdtype or (dtype, ())
        return [_description(base), list(shape)] if shape else base.str
    fields = [[n, _description(dtype.fields[n][0]), dtype.fields[n][1]] for n in dtype.names]  # type: ignore[index]
    return {"fields": fields, "size": dtype.itemsize, "align": dtype.isalignedstruct}


def _described(form: Any) -> np.dtype[Any]:
    if isinstance(form, str):
        return np.dtype(form)
    if isinstance(form, list):
        return np.dtype((_described(form[0]), tuple(form[1])))
    names, formats, offsets = zip(*form["fields"], strict=True) if form["fields"] else ((), (), ())
    parts = {
        "names": list(names),
        "formats": [_described(f) for f in formats],
        "offsets": list(offsets),
        "itemsize": form["size"],
    }
    return np.dtype(parts, align=form["align"])  # type: ignore[call-overload,no-any-return]


def _rebuilt(dtype: np.dtype[Any]) -> np.dtype[Any] | None:
    try:
        return _described(_description(dtype))
    except (ValueError, TypeError):
        return None


def _encode_hist(value: Any, sink: Sink, path: Path) -> Node:
    with _at(path, f"cannot be stored: {type(value).__name__}"):
        node = histograms.node(value, sink)
    return node if node is not None else _encode_opaque(value, sink, path)


def _encode_awkward(value: Any, sink: Sink, path: Path) -> Node:
    if value.behavior or dict(value.attrs) or ak.backend(value) != "cpu":
        return _encode_opaque(value, sink, path)
    with _at(path, "cannot be stored: awkward array"):
        form, length, buffers = ak.to_buffers(ak.to_packed(value))
        inner = [_raw(np.asarray(buffer), sink) for buffer in buffers.values()]
    return ["y", inner, [], list(buffers), form.to_json(), length]


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


# ---- what may be added cell by cell ---------------------------------------------------------------------


def _additive(node: Node) -> bool:
    tag, inner = node[0], node[1]
    if tag in "ifcsah":
        return True
    if tag in "dD":
        return all(map(_additive, inner))
    if tag in "Ev":  # coffea begins these sums with the factory's own value
        return all(_additive_from(node[-1], child) for child in inner)
    if tag == "m":  # coffea adds only accumulators in these
        return all(child[0] in "Evm" and _additive(child) for child in inner)
    return False


_INT_FACTORY, _FLOAT_FACTORY = constants.encode(int), constants.encode(float)


def _additive_from(factory: Any, child: Node) -> bool:
    """Whether ``factory() + a + b`` is ``a + b``, class and all."""
    if factory not in (_INT_FACTORY, _FLOAT_FACTORY):
        return False
    kinds = "iufcm" if factory == _INT_FACTORY else "fc"
    if child[0] in "sa":
        return child[2][0][0][1] in kinds
    return child[0] in ("ifch" if factory == _INT_FACTORY else "fch")


# ---- from nodes -----------------------------------------------------------------------------------------


def _decode(node: Node, source: Source, path: Path) -> Any:
    return _DECODERS[node[0]](node, source, path)


def _decode_within(node: Node, source: Source, path: Path) -> list[Any]:
    return [_decode(child, source, path) for child in node[1]]


def _constant(form: Any, path: Path) -> Any:
    with _at(path, "cannot be read back"):
        return constants.decode(form)


def _decode_mapping(node: Node, source: Source, path: Path) -> Any:
    whole = _empty_mapping(node, path)
    for form, child in zip(node[3], node[1], strict=True):
        key = _constant(form, path)
        whole[key] = _decode(child, source, (*path, key))
    return whole


def _empty_mapping(node: Node, path: Path) -> Any:
    kind = _mapping_class(node, path)
    if node[0] in "DE":
        return kind(_constant(node[4], path))
    return kind.__new__(kind)


def _mapping_class(node: Node, path: Path) -> Any:
    if node[0] != "d":
        return {"D": defaultdict, "E": defaultdict_accumulator, "m": dict_accumulator}[node[0]]
    if isinstance(node[4], list):
        return _constant(node[4], path)
    return OrderedDict if node[4] else dict


def _decode_items(kind: Callable[[list[Any]], Any]) -> Callable[[Node, Source, Path], Any]:
    def decode(node: Node, source: Source, path: Path) -> Any:
        if node[3] in ("f", "i"):
            return kind(source.take(*node[2][0]).tolist())
        if node[3] == "s":
            return kind(list(map(sys.intern, node[4])))
        return kind([_decode(child, source, (*path, i)) for i, child in enumerate(node[1])])

    return decode


def _decode_set(kind: Callable[[list[Any]], Any]) -> Callable[[Node, Source, Path], Any]:
    return lambda node, _source, path: kind([_constant(form, path) for form in node[3]])


def _decode_value(node: Node, source: Source, path: Path) -> Any:
    whole = value_accumulator.__new__(value_accumulator)
    (whole.value,) = _decode_within(node, source, path)
    whole.default_factory = _constant(node[3], path)
    return whole


def _decode_raw(node: Node, source: Source, _path: Path) -> Any:
    raw = source.take(*node[2][0])
    return raw.copy().view(np.dtype(node[4])).reshape(node[3])


def _decode_fields(node: Node, source: Source, path: Path) -> Any:
    whole = np.zeros(tuple(node[3]), _described(node[4]))
    for (name, *_), field in zip(node[4]["fields"], _decode_within(node, source, path), strict=True):
        whole[name] = field
    return whole


def _decode_opaque(_node: Node, source: Source, path: Path) -> Any:
    with _at(path, "cannot be read back"):
        return constants.loads(source.take_blob())


def _decode_awkward(node: Node, source: Source, path: Path) -> Any:
    _, _, _, names, form, length = node
    buffers = dict(zip(names, _decode_within(node, source, path), strict=True))
    return ak.from_buffers(ak.forms.from_json(form), length, buffers)


_DECODERS: dict[str, Callable[[Node, Source, Path], Any]] = {
    "k": lambda node, _source, path: _constant(node[3], path),
    "i": lambda node, source, _path: source.take(*node[2][0]).item(),
    "f": lambda node, source, _path: source.take(*node[2][0]).item(),
    "c": lambda node, source, _path: source.take(*node[2][0]).item(),
    "s": lambda node, source, _path: source.take(*node[2][0])[0],
    "S": lambda node, source, path: _decode_within(node, source, path)[0][()],
    "a": lambda node, source, _path: source.take(*node[2][0]).copy().reshape(node[3]),
    "A": _decode_raw,
    "R": _decode_fields,
    "h": lambda node, source, _path: histograms.value_of(node, source),
    "H": lambda node, source, _path: histograms.value_of(node, source),
    "d": _decode_mapping,
    "D": _decode_mapping,
    "E": _decode_mapping,
    "m": _decode_mapping,
    "l": _decode_items(list),
    "t": _decode_items(tuple),
    "L": _decode_items(list_accumulator),
    "e": _decode_set(set),
    "z": _decode_set(frozenset),
    "Z": _decode_set(set_accumulator),
    "v": _decode_value,
    "C": lambda node, source, path: column_accumulator(*_decode_within(node, source, path)),
    "y": _decode_awkward,
    "o": _decode_opaque,
}


# ---- unlike structures ----------------------------------------------------------------------------------

Side: TypeAlias = tuple[Node, Source]


def _merge(left: Side, right: Side, sink: Sink, path: Path) -> Node:
    """Put the sum of two nodes into the sink; its structure."""
    if left[0] == right[0] and left[0][0] in "ifcsah":
        summed = _sum_cells(left, right)
        if summed is not None:
            return [*left[0][:2], [sink.put(name, cells) for name, cells in summed], *left[0][3:]]
    if left[0][0] in "dD" and right[0][0] in "dD":
        head = _common_class(left[0], right[0], path)
        if head is not None:
            return _merge_mappings(left, right, head, sink, path)
    ours, theirs = _decode(*left, path), _decode(*right, path)
    with _at(path, f"cannot be merged: {_side(ours)} with {_side(theirs)}"):
        total = add(ours, theirs)
    return _encode(total, sink, path)


def _sum_cells(left: Side, right: Side) -> list[tuple[str, Any]] | None:
    """The cells of two equal leaves, added; None where only Python's own integers can hold the sum."""
    ours, theirs = left[1].fork(), right[1].fork()
    summed = []
    for name, count in left[0][2]:
        total = ours.take(name, count).copy()
        try:
            add_region(name, total, theirs.take(name, count))
        except OverflowError:
            return None
        summed.append((name, total))
    return summed


def _common_class(left: Node, right: Node, path: Path) -> Node | None:
    """The one of two mappings whose class the sum has, as coffea chooses it."""
    ours, theirs = _mapping_class(left, path), _mapping_class(right, path)
    if issubclass(theirs, ours):
        return left
    return right if issubclass(ours, theirs) else None


def _merge_mappings(left: Side, right: Side, head: Node, sink: Sink, path: Path) -> Node:
    ours, theirs = _entries(left, path), _entries(right, path)
    keys, inner = [], []
    for key, (form, side) in ours.items():
        other = theirs.pop(key, None)
        keys.append(form)
        inner.append(_merge(side, other[1], sink, (*path, key)) if other else _copy(side, sink))
    for form, side in theirs.values():
        keys.append(form)
        inner.append(_copy(side, sink))
    return [head[0], inner, [], keys, *head[4:]]


def _entries(side: Side, path: Path) -> dict[Any, tuple[Any, Side]]:
    """The entries of a mapping, each with a source that begins at its cells."""
    node, source = side
    found = {}
    for form, child in zip(node[3], node[1], strict=True):
        found[_constant(form, path)] = (form, (child, source.fork()))
        _skip(child, source)
    return found


def _skip(node: Node, source: Source) -> None:
    for name, count in node[2]:
        source.skip(name, count)
    for child in node[1]:
        _skip(child, source)


def _copy(side: Side, sink: Sink) -> Node:
    node, source = side
    for name, count in node[2]:
        if name == BLOB:
            sink.put_blob(source.take_blob())
        else:
            sink.put(name, source.take(name, count))
    for child in node[1]:
        _copy((child, source), sink)
    return node


def _side(value: Any) -> str:
    """One side of a sum that failed, in a few words."""
    if isinstance(value, np.ndarray):
        return f"array of {value.dtype}, shape {value.shape}"
    if type(value) in histograms.CLASSES:
        axes = ", ".join(map(repr, value.axes))
        return f"{type(value).__name__} of {value.storage_type.__name__} over {axes[:300]}"
    return f"{type(value).__name__} {reprlib.repr(value)}"
