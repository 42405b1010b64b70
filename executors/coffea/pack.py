"""Accumulators to their flat form and back, and the sum of two: what ``coffea.processor.accumulate`` gives.

Histograms, arrays and numbers of equal structure are added as flat arrays. Where structures differ, they
are added leaf by leaf, and each unlike pair of leaves by coffea's own ``add``, so that no rule of addition
is written down here twice. Nothing here knows of files, chunks or stores.

What coffea's addition does is kept even where it surprises: strings concatenate, flags become integers,
``ak.Array`` adds event by event (a ``column_accumulator`` concatenates), None is skipped at the top and
cannot be added further down.
"""

from __future__ import annotations

import functools
import json
import reprlib
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

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
    from executors.work.packed import Array


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
    elif left.skeleton == right.skeleton and (alike := _combine_alike(left, right)) is not None:
        return alike
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
    return _sum_values(left, right, sink, path)


def _sum_values(left: Side, right: Side, sink: Sink, path: Path) -> Node:
    """Put the sum that coffea's own ``add`` gives into the sink; its structure."""
    ours, theirs = decode(*left, path), decode(*right, path)
    with at(path, lambda: f"cannot be merged: {_side(ours)} with {_side(theirs)}"):
        total = add(ours, theirs)
    return encode(total, sink, path)


class Odd(NamedTuple):
    """A part of a structure that does not simply add, and where its cells begin."""

    node: Node
    path: Path
    start: dict[str, int]


@functools.lru_cache(maxsize=4)
def _odd_parts(skeleton: bytes) -> tuple[Odd, ...]:
    """The parts of a structure that do not simply add: found once, and the same for a million chunks."""
    found: list[Odd] = []
    start: dict[str, int] = {}
    source = Source(Packed(skeleton, {}), start)

    def walk(node: Node, path: Path) -> None:
        if node[0] in "dD":
            for form, child in zip(node[3], node[1], strict=True):
                walk(child, (*path, constant(form, path)))
            return
        if node[0] not in "ifcsah":
            found.append(Odd(node, path, dict(start)))
        _skip(node, source)

    walk(_tree(Packed(skeleton, {})), ())
    return tuple(found)


def _combine_alike(left: Packed, right: Packed) -> Packed | None:
    """The sum of two of one structure of which parts do not simply add; None where its structure is another.

    All cells are added at once, and those of the few odd parts are then put in their places.
    """
    if left.opaque or right.opaque:
        return None
    try:
        regions = {name: _region_sum(name, mine, right.regions[name]) for name, mine in left.regions.items()}
    except OverflowError:
        return None
    with _sound():
        for node, path, start in _odd_parts(left.skeleton):
            sink = Sink()
            sides = [(node, Source(side, dict(start))) for side in (left, right)]
            if _sum_values(sides[0], sides[1], sink, path) != node:
                return None
            for name, cells in sink.finish(node, additive=False).regions.items():
                first = start.get(name, 0)
                regions[name][first : first + len(cells)] = cells
    return Packed(left.skeleton, regions)


def _region_sum(name: str, left: Array, right: Array) -> Array:
    total = left.copy()
    add_region(name, total, right)
    return total


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
