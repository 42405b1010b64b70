"""The nouns that travel: nodes, tasks, receipts, failures. Plain frozen data, picklable, small."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from executors.work.packed import Packed


class Kind(enum.StrEnum):
    """What a failure is; decided once, on the worker where possible (see ``policy``)."""

    PASSING = "input, passing"  # connection, time-out: the same read may work later
    BAD = "input, bad"  # garbage, missing file or tree, changed file: reading again does not help
    MEMORY = "memory"
    LOST = "worker lost"
    USER = "user code"
    TIMEOUT = "time limit"  # the chunk's own limit ran out: an endless loop or a hung read
    SITE = "site"  # no space, quota, credentials: stop handing out work


class Node(NamedTuple):
    """A node of the fixed tree, at one of three levels.

    Chunks ``[lo, hi)`` of one file; files ``[first, last)`` of one split (``lo, hi = 0, -1``: however many
    chunks they have); or splits ``[split, last)`` of the plan (``first = -1``).
    """

    split: int
    first: int
    last: int
    lo: int
    hi: int


Range: TypeAlias = tuple[int, int]


@dataclass(frozen=True, slots=True)
class FileSlice:
    """Consecutive chunks of one file, as a worker needs them: where it is and which entries."""

    index: int  # of the file within its split
    path: str  # the name that the plan and all records give it
    treename: str
    uuid: str  # 32 hex digits; the worker refuses a file with another
    entries: int  # of the whole file; the worker refuses a file with another number
    lo: int  # index of the first chunk within the file
    ranges: tuple[Range, ...]  # entry ranges, one a chunk
    key: str = ""  # hash over all that identifies the file in this analysis; ids are made of it
    parts: int = 1  # each chunk is processed in so many pieces, to halve what it needs of memory
    url: str = ""  # as this site reads it, where that differs from its name

    @property
    def address(self) -> str:
        """What to open."""
        return self.url or self.path


@dataclass(frozen=True, slots=True)
class Task:
    """One call on one worker: all chunks of one node."""

    id: str  # of the node: a hash over what it will hold
    node: Node
    dataset: str
    slices: tuple[FileSlice, ...]


@dataclass(frozen=True, slots=True)
class ChunkRecord:
    """What one chunk took: a line of the ledger."""

    file: int
    chunk: int
    entries: int
    seconds: float
    peak: int = 0  # bytes of resident memory at the highest, children included; 0 where unknown
    bytes_read: int = 0
    before: int = 0  # bytes of resident memory when it began
    children: int = 0  # the part of the peak that was other processes', started by the processor
    mapped: int = 0  # the part of the peak that was pages of files: what it could not do without is the rest


@dataclass(frozen=True, slots=True)
class Part:
    """A node whose partial result is stored, or rides along where workers do not see the store."""

    node: Node
    id: str
    digest: str
    entries: int
    size: int
    payload: bytes | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """A chunk that did not make it, described in plain data on the worker."""

    file: int
    chunk: int
    path: str
    range: Range
    kind: Kind
    error: str  # the exception's type name
    message: str
    frames: tuple[str, ...] = ()  # the user's own frames, innermost last
    host: str = ""
    pid: int = 0
    peak: int = 0  # bytes of resident memory at the highest until it failed; 0 where unknown


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a worker says of one task. A claim only: the driver checks it against the store."""

    task: str
    parts: tuple[Part, ...]
    failures: tuple[Failure, ...]
    chunks: tuple[ChunkRecord, ...]
    host: str = ""
    pid: int = 0
    seconds: float = 0.0
    cpu: float = 0.0
    extra: Mapping[str, Any] = field(default_factory=dict)


class OpenFile(Protocol):
    """One input file held open by a worker while it processes several ranges of it."""

    def process(self, start: int, stop: int) -> Any:
        """The accumulator of entries ``start`` to ``stop``."""

    @property
    def bytes_read(self) -> int:
        """Bytes read from the file so far."""


class Analysis(Protocol):
    """What a worker runs: knows files and physics, nothing of tasks, stores or engines.

    The one implementation over coffea is ``executors.coffea.analysis.CoffeaAnalysis``; tests bring their own.
    """

    def open(self, dataset: str, piece: FileSlice) -> AbstractContextManager[OpenFile]:
        """Open one file, refusing one that is not the planned one."""

    def pack(self, value: Any) -> Packed:
        """The flat form of one accumulator."""

    def combine(self, left: Packed, right: Packed) -> Packed:
        """The sum of two; ``left`` may be used up. The order is the caller's promise."""

    def classify(self, error: BaseException) -> Kind:
        """What kind of failure an exception from ``open``, ``process`` or ``pack`` is."""

    def frames(self, error: BaseException) -> tuple[str, ...]:
        """The user's own frames of an exception, for a person to read."""


Perform: TypeAlias = "Callable[[Task], Receipt]"
