"""Accumulators to their flat form and back, and the sum of two: what ``coffea.processor.accumulate`` gives.

Histograms, arrays and numbers of equal structure are added as flat arrays. Where structures differ, they
are added leaf by leaf, and each unlike pair of leaves by coffea's own ``add``, so that no rule of addition
is written down here twice. Nothing here knows of files, chunks or stores.

What coffea's addition does is kept even where it surprises: strings concatenate, flags become integers,
``ak.Array`` adds event by event (a ``column_accumulator`` concatenates), None is skipped at the top and
cannot be added further down.
"""

from __future__ import annotations

import json
import reprlib
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from coffea.processor.accumulator import add

from executors.coffea import histograms
from executors.coffea.decode import constant, decode, mapping_class
from executors.coffea.encode import Node, additive, encode
from executors.coffea.places import at
from executors.errors import AnalysisError, DamagedError, ExecutorsError
from executors.work.packed import BLOB, FRESH, INT, Packed, Sink, Source, add_into, add_region, same_shape

if TYPE_CHECKING:
    from types import TracebackType

    from executors.coffea.places import Path


def pack(value: Any) -> Packed:
    """The flat form of an accumulator; ``AnalysisError`` names the part that cannot be stored."""
    sink = Sink()
    try:
        tree = encode(value, sink, ())
        return sink.finish(tree, additive=additive(tree))
    except RecursionError as error:
        raise AnalysisError("out: cannot be stored: it contains itself, or is nested too deep") from error


def unpack(packed: Packed) -> Any:
    """The accumulator, each time a new one: nothing of it shares memory with its flat form."""
    with _sound():
        return decode(_tree(packed), Source(packed), ())


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
    return sink.finish(tree, additive=additive(tree))


def _tree(packed: Packed) -> Node:
    try:
        tree: Node = json.loads(packed.tree)
    except (ValueError, RecursionError) as error:
        raise DamagedError("packed result: the structure cannot be read") from error
    return tree


class _sound:  # noqa: N801
    """Whatever else fails within is a structure that no packing wrote."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, (ExecutorsError, MemoryError)):
            raise DamagedError(f"packed result: the structure is not one: {error!r}") from error


Side: TypeAlias = tuple[Node, Source]


def _merge(left: Side, right: Side, sink: Sink, path: Path) -> Node:
    """Put the sum of two nodes into the sink; its structure."""
    if left[0] == right[0] and left[0][0] in "ifcsah" and _sum_cells(left, right, sink):
        return left[0]
    if left[0][0] in "dD" and right[0][0] in "dD":
        head = _common_class(left[0], right[0], path)
        if head is not None:
            return _merge_mappings(left, right, head, sink, path)
    ours, theirs = decode(*left, path), decode(*right, path)
    with at(path, lambda: f"cannot be merged: {_side(ours)} with {_side(theirs)}"):
        total = add(ours, theirs)
    return encode(total, sink, path)


def _sum_cells(left: Side, right: Side, sink: Sink) -> bool:
    """Queue the sum of two equal leaves; False where only Python's own integers can hold it."""
    ours, theirs = left[1].fork(), right[1].fork()
    for name, count in left[0][2]:
        one, two = ours.take(name, count), theirs.take(name, count)
        if name not in (INT, FRESH):
            sink.put_sum(name, one, two)
            continue
        total = one.copy()
        try:
            add_region(name, total, two)
        except OverflowError:
            return False  # a leaf of integers has no other cells, so nothing is queued yet
        sink.put(name, total)
    return True


def _common_class(left: Node, right: Node, path: Path) -> Node | None:
    """The one of two mappings whose class the sum has, as coffea chooses it."""
    ours, theirs = mapping_class(left, path), mapping_class(right, path)
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
        found[constant(form, path)] = (form, (child, source.fork()))
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
    try:
        return f"{type(value).__name__} {reprlib.repr(value)}"
    except ValueError:  # an integer of thousands of digits
        return type(value).__name__
