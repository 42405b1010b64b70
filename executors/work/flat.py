"""The sum of stored sums of one structure: block after block, each along the tree, through small buffers.

Memory grows neither with the number of sums nor with their size: a block for each level of the tree.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import numpy as np

from executors.errors import DamagedError
from executors.work.coverage import halves, is_leaf, leaves, stored
from executors.work.packed import Packed, add_region, region_dtype
from executors.work.store import BLOCK, SKELETON, DamagedPartError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    from executors.work.codec import Array, Bytes
    from executors.work.coverage import Shape
    from executors.work.model import Node
    from executors.work.store import Header, Reading, Store

MOST_OPEN = 200  # files at once: many machines allow a process no more than 1,024
HEADERS = 16 << 20  # bytes of headers that are kept, so that they need not be read for each block

Strip: TypeAlias = "Sequence[tuple[int, int]]"
"""Blocks that are added at once: the section of each, and its place there."""


class UnlikeError(Exception):
    """The stored sums are not all of one structure, or do not simply add."""


class Flat:
    """One addition. ``UnlikeError`` and ``OverflowError``, at any time: it must be done otherwise."""

    def __init__(self, shape: Shape, store: Store) -> None:
        self._shape, self._store = shape, store
        self._closing = contextlib.ExitStack()
        self._open: dict[tuple[Node, str], Reading] = {}
        self._headers: dict[tuple[Node, str], Header] = {}
        self._entries: dict[tuple[Node, str], int] = {}
        self._room = HEADERS
        self._free: list[Bytes] = []
        self._strips: list[Strip] = [()]
        self._first: Header | None = None
        part = next(leaves(shape))
        first = self._reading(part)
        try:
            self.skeleton = bytes(first.section(SKELETON))
            self._first = first.header
        finally:
            self._read_done(part, first)
        if not Packed(self.skeleton, {}).additive:
            raise UnlikeError
        self._sections = self._first.sections
        self._regions = [_region(name) for name, _ in self._sections]
        self._strips = list(self._cut()) or [()]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._closing.close()

    @property
    def layout(self) -> list[tuple[str, int]]:
        """The sections of the sum, and their bytes."""
        return [(name, blocks.raw) for name, blocks in self._sections]

    @property
    def entries(self) -> int:
        """The events of the sum, once any of it was made."""
        return sum(self._entries.values())

    def blocks(self) -> Iterator[memoryview]:
        """The blocks of the sum in order, each valid until the next is asked for."""
        for name, blocks in self._sections:
            if name == SKELETON:
                whole = memoryview(self.skeleton)
                yield from (whole[at : at + blocks.size] for at in range(0, blocks.raw, blocks.size))
        for strip in self._strips:
            into = self._take(strip)
            self._add_up(self._shape, strip, into)
            yield from (cells.data for cells in into)
            self._free += into

    def whole(self) -> Packed:
        """The sum in memory."""
        # Not a bytearray: numpy asks for large pages, and it takes half as long to have them all.
        cells = [np.empty(0 if name == SKELETON else raw, np.uint8) for name, raw in self.layout]
        for strip in self._strips:
            into = [cells[at][self._start(at, i) : self._start(at, i + 1)] for at, i in strip]
            self._add_up(self._shape, strip, into)
        sections = {name: found.data for (name, _), found in zip(self._sections, cells, strict=True)}
        return Packed.from_sections({**sections, SKELETON: self.skeleton})

    def _start(self, section: int, index: int) -> int:
        blocks = self._sections[section][1]
        return min(blocks.raw, index * blocks.size)

    def _size(self, place: tuple[int, int]) -> int:
        return self._start(place[0], place[1] + 1) - self._start(*place)

    def _cut(self) -> Iterator[Strip]:
        """All blocks but the skeleton's, in runs of no more than one block's bytes."""
        strip: list[tuple[int, int]] = []
        left = BLOCK
        for section, (name, blocks) in enumerate(self._sections):
            for place in ((section, i) for i in range(len(blocks)) if name != SKELETON):
                if strip and self._size(place) > left:
                    yield strip
                    strip, left = [], BLOCK
                strip.append(place)
                left -= self._size(place)
        if strip:
            yield strip

    # -- adding --------------------------------------------------------------------------------------

    def _add_up(self, at: Shape, strip: Strip, into: Sequence[Bytes]) -> None:
        """Put a strip of the sum of a shape into buffers."""
        if is_leaf(at):
            self._read(stored(at), strip, into)
            return
        left, right = halves(at)
        self._add_up(left, strip, into)
        if is_leaf(right):
            self._read(stored(right), strip, into, add=True)
            return
        other = self._take(strip)
        self._add_up(right, strip, other)
        for (section, _), mine, theirs in zip(strip, into, other, strict=True):
            self._add(section, mine, theirs)
        self._free += other

    def _read(
        self, part: tuple[Node, str], strip: Strip, into: Sequence[Bytes], *, add: bool = False
    ) -> None:
        scratch = self._take(strip) if add else into
        reading = self._reading(part)
        try:
            for place, mine, free in zip(strip, into, scratch, strict=True):
                if add:
                    # What doubles hold exactly adds to doubles as if it were one.
                    adding = "<f8" if self._regions[place[0]][0] == "<f8" else ""
                    self._add(place[0], mine, reading.block(*place, free, adding))
                elif (found := reading.block(*place, free)) is not mine:
                    mine[:] = found
        finally:
            self._read_done(part, reading)
        if add:
            self._free += scratch

    def _add(self, section: int, mine: Bytes, theirs: Array) -> None:
        region, dtype = self._regions[section]
        add_region(region, mine.view(dtype), theirs.view(dtype) if len(theirs) == len(mine) else theirs)

    def _take(self, strip: Strip) -> list[Bytes]:
        return [self._buffer(self._size(place)) for place in strip]

    def _buffer(self, size: int) -> Bytes:
        for index, cells in enumerate(self._free):
            if len(cells) == size:
                return self._free.pop(index)
        self._free.clear()  # of a strip before this one
        return np.empty(size, np.uint8)

    # -- the files -----------------------------------------------------------------------------------

    def _reading(self, part: tuple[Node, str]) -> Reading:
        found = self._open.get(part)
        if found is not None:
            return found
        found = _opened(self._store, part, self._headers.get(part))
        try:
            self._look_at(part, found.header)
        except BaseException:
            found.close()
            raise
        if len(self._strips) > 1 and len(self._open) < MOST_OPEN:
            self._open[part] = found
            self._closing.callback(found.close)
        return found

    def _read_done(self, part: tuple[Node, str], reading: Reading) -> None:
        if self._open.get(part) is not reading:
            reading.close()

    def _look_at(self, part: tuple[Node, str], header: Header) -> None:
        if self._first is not None and header.layout != self._first.layout:
            raise UnlikeError
        try:
            self._entries[part] = int(header.about["entries"])
        except (KeyError, ValueError, TypeError) as error:
            raise DamagedPartError(f"no number of events: {error}", *part) from error
        room = self._room - 2048 - sum(len(blocks.rows) for _, blocks in header.sections)
        if len(self._strips) > 1 and part not in self._headers and room > 0:
            self._headers[part], self._room = header, room


def _region(section: str) -> tuple[str, np.dtype[Any]]:
    name = section.removeprefix("region ")
    return name, region_dtype(name) if name != section else np.dtype(np.uint8)


def _opened(store: Store, part: tuple[Node, str], header: Header | None) -> Reading:
    try:
        return store.reading(*part, header)
    except DamagedPartError:
        raise
    except (DamagedError, KeyError) as error:
        raise DamagedPartError(str(error), *part) from error
