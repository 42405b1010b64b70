"""The flat form of an accumulator: a structure in JSON, numbers in one array per type, and blobs.

Two partial results of the same structure are merged by adding a few flat arrays, whatever number of
histograms they hold. This room knows numbers and bytes only: no histogram library, no coffea, and
nothing in it may ever unpickle: the blobs are carried, never opened.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from executors.errors import DamagedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Array: TypeAlias = NDArray[Any]

INT = "int"  # Python's integers: 64 bits here, and never a wrapped sum
FRESH = "fresh"  # flags that any addition clears (a histogram never added to another knows its variances)
BLOB = "blob"  # counted like a region in the structure, but held as separate bytes

_SPECIAL: dict[str, np.dtype[Any]] = {INT: np.dtype("<i8"), FRESH: np.dtype("|u1")}
_ADDITIVE_KINDS = "biufcm"
_HEAD_LIMIT = 1 << 20
_MOST_CELLS = 1 << 48


def region_dtype(name: str) -> np.dtype[Any]:
    """The numpy type of a region's cells; ``DamagedError`` for a name no region can have."""
    if name in _SPECIAL:
        return _SPECIAL[name]
    try:
        dtype: np.dtype[Any] = np.dtype(name)
    except (TypeError, ValueError, SyntaxError) as error:
        raise DamagedError(f"packed result: {name!r} is not the name of a region") from error
    if dtype.str != name or dtype.kind not in _ADDITIVE_KINDS or dtype.itemsize == 0:
        raise DamagedError(f"packed result: {name!r} is not the name of a region")
    return dtype


@dataclass(slots=True)
class Packed:
    """One accumulator, flat. Two with the same skeleton differ only in their regions and blobs.

    The skeleton is two lines of JSON: a head (whether all is additive, the cells of each region, the
    number of blobs), which is all that storing and adding need, and the tree, which only packing reads.
    """

    skeleton: bytes
    regions: dict[str, Array]
    opaque: tuple[bytes, ...] = ()

    @property
    def additive(self) -> bool:
        """Whether the sum with an equal skeleton is the sum of the regions, cell by cell."""
        return self.skeleton.startswith(b'{"additive":true,')

    @property
    def empty(self) -> bool:
        """Whether this is the identity: the flat form of None, which sums skip."""
        return self.skeleton == EMPTY.skeleton

    @property
    def tree(self) -> bytes:
        """The structure: the skeleton's second line."""
        return self.skeleton.partition(b"\n")[2]

    @property
    def nbytes(self) -> int:
        """Bytes of everything held."""
        flat = sum(array.nbytes for array in self.regions.values())
        return len(self.skeleton) + flat + sum(map(len, self.opaque))

    def sections(self) -> list[tuple[str, memoryview]]:
        """Names and raw bytes, in a fixed order, without a copy."""
        flat = [(f"region {name}", _raw(self.regions[name])) for name in sorted(self.regions)]
        blobs = [(f"blob {i}", memoryview(blob)) for i, blob in enumerate(self.opaque)]
        return [("skeleton", memoryview(self.skeleton)), *flat, *blobs]

    @classmethod
    def from_sections(cls, sections: Mapping[str, Any]) -> Packed:
        """The inverse of ``sections``, without a copy; ``DamagedError`` if they do not fit together."""
        if "skeleton" not in sections:
            raise DamagedError("packed result: there is no skeleton")
        skeleton = bytes(sections["skeleton"])
        sizes, blobs = _read_head(skeleton)
        expected = {"skeleton", *(f"region {n}" for n in sizes), *(f"blob {i}" for i in range(blobs))}
        if expected != set(sections):
            odd = sorted(expected ^ set(sections))[:3]
            raise DamagedError(f"packed result: parts missing or too many: {', '.join(map(repr, odd))}")
        regions = {name: _region(name, sections[f"region {name}"], count) for name, count in sizes.items()}
        return cls(skeleton, regions, tuple(bytes(sections[f"blob {i}"]) for i in range(blobs)))

    def digest(self) -> str:
        """The digest of the result: the same wherever and in however many parts it was made."""
        summary = hashlib.blake2b(digest_size=20)
        for name, raw in self.sections():
            summary.update(f"{name}\0{raw.nbytes}\0".encode())
            summary.update(raw)
        return summary.hexdigest()


def _raw(array: Array) -> memoryview:
    # Through bytes: the buffer protocol knows no time differences.
    return memoryview(np.ascontiguousarray(array).view(np.uint8).data)


def _read_head(skeleton: bytes) -> tuple[dict[str, int], int]:
    line, newline, _ = skeleton.partition(b"\n")
    if not newline or len(line) > _HEAD_LIMIT:
        raise DamagedError("packed result: the skeleton has no head")
    try:
        head = json.loads(line)
        additive, sizes, blobs = head["additive"], head["cells"], head["blobs"]
        # Exactly the head that would be written: `additive` is later read off its first bytes.
        sound = _head(additive, sizes, blobs) == line and type(additive) is bool and type(blobs) is int
        sound = sound and 0 <= blobs < 1 << 32
        sound = sound and all(type(n) is int and 0 < n < _MOST_CELLS for n in sizes.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError("packed result: the skeleton's head cannot be read") from error
    if not sound or (additive and blobs):
        raise DamagedError("packed result: the skeleton's head cannot be right")
    return sizes, blobs


def _head(additive: bool, sizes: Mapping[str, int], blobs: int) -> bytes:
    head = {"additive": additive, "cells": dict(sorted(sizes.items())), "blobs": blobs}
    return json.dumps(head, separators=(",", ":")).encode()


def _region(name: str, raw: Any, count: int) -> Array:
    dtype = region_dtype(name)
    data = memoryview(raw).cast("B")
    if data.nbytes != count * dtype.itemsize:
        raise DamagedError(f"packed result: region {name!r} has {data.nbytes} bytes, {count} cells expected")
    return np.frombuffer(data, dtype=dtype)


def same_shape(left: Packed, right: Packed) -> bool:
    """Whether the two can be added region by region."""
    return left.additive and left.skeleton == right.skeleton


def add_region(name: str, left: Array, right: Array) -> None:
    """Add a region, or the same block of it, into ``left``, with the rules of its kind.

    ``OverflowError``, and nothing is changed, where a sum of Python's integers leaves 64 bits.
    """
    if name == FRESH:
        left.fill(0)
        return
    if name == INT:
        total = left + right
        # Two of one sign with a sum of the other: the only way a sum can leave 64 bits.
        if bool((((left ^ total) & (right ^ total)) < 0).any()):
            raise OverflowError("a sum of integers is beyond 64 bits")
        left[...] = total
        return
    with np.errstate(all="ignore"):
        np.add(left, right, out=left)


def add_into(left: Packed, right: Packed) -> Packed:
    """Add ``right`` into ``left``'s own arrays (copied first where they are read-only).

    Only for two of the ``same_shape``. ``OverflowError``, with ``left`` unchanged, as ``add_region``.
    """
    if not same_shape(left, right):
        raise ValueError("only results of the same shape can be added as flat arrays")
    for name in sorted(left.regions, key=lambda n: n != INT):  # the one that can fail goes first
        mine = left.regions[name]
        if not mine.flags.writeable:
            mine = mine.copy()
        add_region(name, mine, right.regions[name])
        left.regions[name] = mine
    return left


class Sink:
    """Collects cells and blobs in the order of the tree, and makes the ``Packed`` of them."""

    __slots__ = ("_blobs", "_cells")

    def __init__(self) -> None:
        self._cells: dict[str, list[Array | tuple[Array, Array]]] = {}
        self._blobs: list[bytes] = []

    def put(self, name: str, array: Array) -> list[Any]:
        """Queue an array's cells, in C order; the array is copied only by ``finish``."""
        if array.size:
            self._cells.setdefault(name, []).append(array)
        return [name, array.size]

    def put_sum(self, name: str, left: Array, right: Array) -> None:
        """Queue the sum of two runs of cells of a numpy type; it is made in place, by ``finish``."""
        if left.size:
            self._cells.setdefault(name, []).append((left, right))

    def put_blob(self, blob: bytes) -> list[Any]:
        """Queue a blob."""
        self._blobs.append(blob)
        return [BLOB, 1]

    def finish(self, tree: Any, *, additive: bool) -> Packed:
        """The whole, each number copied once into its region."""
        regions = {name: _joined(name, self._cells[name]) for name in sorted(self._cells)}
        head = _head(additive, {n: a.size for n, a in regions.items()}, len(self._blobs))
        body = json.dumps(tree, separators=(",", ":"), check_circular=False).encode()
        return Packed(head + b"\n" + body, regions, tuple(self._blobs))


def _joined(name: str, queued: list[Array | tuple[Array, Array]]) -> Array:
    pairs = [item if isinstance(item, tuple) else (item, None) for item in queued]
    whole = np.empty(sum(array.size for array, _ in pairs), region_dtype(name))
    at = 0
    for array, other in pairs:
        # By shape, so that strided and transposed arrays need no copy in between.
        cells = whole[at : at + array.size].reshape(array.shape)
        if other is None:
            cells[...] = array
        else:
            with np.errstate(all="ignore"):
                np.add(array, other, out=cells)
        at += array.size
    return whole


class Source:
    """Hands out cells and blobs of a ``Packed`` in the order in which they were put."""

    __slots__ = ("_at", "_packed")

    def __init__(self, packed: Packed, at: dict[str, int] | None = None) -> None:
        self._packed = packed
        self._at = at if at is not None else {}

    def fork(self) -> Source:
        """Another reader that starts where this one is."""
        return Source(self._packed, dict(self._at))

    def skip(self, name: str, count: int) -> int:
        """Pass over cells (or blobs); where they began."""
        start = self._at.get(name, 0)
        self._at[name] = start + count
        return start

    def take(self, name: str, count: int) -> Array:
        """The next cells of a region, not copied."""
        start = self.skip(name, count)
        if not count:
            return np.empty(0, region_dtype(name))
        cells = self._packed.regions[name][start : start + count]
        if cells.size != count:
            raise DamagedError(f"packed result: region {name!r} ends early")
        return cells

    def take_blob(self) -> bytes:
        """The next blob."""
        return self._packed.opaque[self.skip(BLOB, 1)]


EMPTY = Sink().finish(["k", [], [], None], additive=False)
