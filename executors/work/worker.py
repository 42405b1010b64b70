"""What runs on a worker: read, process, pack, combine along the tree, store, and say so in a receipt.

Knows an ``Analysis`` only by its protocol, and nothing of engines. Every exception of a chunk is
caught, classified and described here, where its cause is still known.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import faulthandler
import io
import json
import os
import signal
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from executors.work import memory, processes, tree
from executors.work.answers import words
from executors.work.model import ChunkRecord, Failure, FileSlice, Kind, Node, Part, Receipt
from executors.work.plan import equal_parts
from executors.work.store import Store, frame, ours

if TYPE_CHECKING:
    from collections.abc import Iterator

    from executors.work.model import Analysis, OpenFile, Range, Task
    from executors.work.packed import Packed

SITE_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM})
USER_FAILURES_A_TASK = 3
PRINTED_A_TASK = 64 << 10
LONG_ENOUGH = 0.2  # seconds of a task: counting a worker's pages one by one takes up to half a millisecond


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where a worker keeps things, and how it behaves. The same for all tasks of a run."""

    run: Path
    shared: bool = True  # workers see the run directory; else the packed bytes ride in the receipt
    chunk_timeout: float | None = None
    inline: bool = False  # the worker is the runner itself: it may print, and must not be ended

    @property
    def store(self) -> Store:
        """The run's store."""
        return Store(self.run / "store")

    @property
    def stop(self) -> Path:
        """A file whose presence asks workers to end their task after the present chunk."""
        return self.run / "notes" / "stop"


class Held(NamedTuple):
    """The sum of a node, in memory; ``packed`` is None where no event lies below."""

    packed: Packed | None
    entries: int


class Note:
    """A small file that says which chunk this process is in, for whoever finds it dead.

    It is what makes blame exact on every engine: a task whose worker died without leaving one never began.
    """

    def __init__(self, folder: Path, task: str) -> None:
        self.path = folder / f"{task[:32]}.{socket.gethostname()}.{os.getpid()}"
        self._file: io.FileIO | None = None
        # Notes only sharpen the blame: a full disk must not fail a task that could still run.
        with contextlib.suppress(OSError):
            self._file = io.FileIO(self.path, "w", opener=ours)

    def chunk(self, file: int, chunk: int, limit: float | None) -> None:
        """Say which chunk comes now, and have the process end itself if it takes too long."""
        if self._file is None:
            return
        line = json.dumps({"file": file, "chunk": chunk, "since": round(time.time(), 1)}) + "\n"
        with contextlib.suppress(OSError):
            self._file.seek(0)
            self._file.truncate()
            self._file.write(line.encode())
        if limit:
            # A C thread of the interpreter: works in a loop that never gives the interpreter back.
            faulthandler.dump_traceback_later(limit, exit=True, file=self._file.fileno())

    def close(self) -> None:
        """The task is over: nothing is left to blame."""
        faulthandler.cancel_dump_traceback_later()
        if self._file is not None:
            self._file.close()
            with contextlib.suppress(OSError):
                self.path.unlink()


class TimeLimitError(Exception):
    """A chunk took longer than it may."""


@contextlib.contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise in the block when its time is over: for a worker that is the runner and cannot be ended."""
    if not seconds or threading.current_thread() is not threading.main_thread():
        yield
        return

    def over(*_: object) -> None:
        raise TimeLimitError(f"the chunk took longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def uprooted() -> bool:
    """Whether this worker's own files are gone: its job is being removed, and no chunk is to blame."""
    mine = [__file__, *filter(None, [tempfile.tempdir])]
    return not all(Path(path).exists() for path in mine)


class Bounded(io.TextIOBase):
    """A text stream that keeps the first bytes written to it and only counts the rest."""

    def __init__(self, most: int) -> None:
        self._kept = io.StringIO()
        self._left = most
        self.dropped = 0

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, text: str) -> int:
        """Keep what still fits."""
        kept = text[: self._left]
        self._kept.write(kept)
        self._left -= len(kept)
        self.dropped += len(text) - len(kept)
        return len(text)

    def text(self) -> str:
        """What was kept, and how much was not."""
        tail = f"\n… {self.dropped} characters more were printed and dropped\n" if self.dropped else ""
        return self._kept.getvalue() + tail


@contextlib.contextmanager
def printed(place: Place) -> Iterator[None]:
    """Send what the processor prints to the run's logs, a bounded amount of it."""
    if place.inline:
        yield
        return
    stream = Bounded(PRINTED_A_TASK)
    try:
        with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
            yield
    finally:
        if text := stream.text():
            log = place.run / "logs" / f"printed-{socket.gethostname()}-{os.getpid()}.log"
            # Theirs alone to read: people print what they are looking for, tokens included.
            with (
                contextlib.suppress(OSError),
                open(log, "a", encoding="utf-8", errors="replace", opener=_private) as out,
            ):
                if out.tell() < PRINTED_A_TASK * 64:
                    out.write(text)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def perform(task: Task, analysis: Analysis, place: Place) -> Receipt:
    """Do one task: whatever happens to its chunks is in the receipt."""
    began, cpu = time.monotonic(), time.process_time()
    note = Note(place.run / "notes", task.id) if place.shared else None
    work = _Work(task, analysis, place, note)
    try:
        with printed(place):
            work.run()
    finally:
        if note is not None:
            note.close()
    seconds = time.monotonic() - began
    return Receipt(
        task=task.id,
        parts=tuple(work.parts),
        failures=tuple(work.failures),
        chunks=tuple(work.records),
        host=socket.gethostname(),
        pid=os.getpid(),
        seconds=seconds,
        cpu=time.process_time() - cpu,
        extra=({"put_error": work.put_error} if work.put_error else {}) | _shares(seconds),
    )


def _shares(seconds: float) -> dict[str, int]:
    """What the worker has for itself alone, and with shared pages divided, where looking costs nothing."""
    pages = processes.rollup() if seconds >= LONG_ENOUGH else None
    return {} if pages is None else {"pss": pages.pss, "uss": pages.uss}


class _Work:
    """One task being done: walks the node depth first, keeps sums in memory, stores what is complete."""

    def __init__(self, task: Task, analysis: Analysis, place: Place, note: Note | None) -> None:
        self.task, self.analysis, self.place, self.note = task, analysis, place, note
        self.parts: list[Part] = []
        self.failures: list[Failure] = []
        self.records: list[ChunkRecord] = []
        self.put_error: tuple[int | None, str] | None = None
        self._slices = {piece.index: piece for piece in task.slices}
        self._open: tuple[int, OpenFile] | None = None
        self._files = contextlib.ExitStack()

    def files(self, split: int) -> int:
        """Counts protocol: never asked, a task lies below one split."""
        raise LookupError(split)

    def chunks(self, split: int, file: int) -> int:
        """Counts protocol: the chunks of a file that this task holds."""
        piece = self._slices.get(file)
        return len(piece.ranges) if piece is not None and split == self.task.node.split else 0

    def run(self) -> None:
        """Do the whole node and store its sum, or the sums of what is complete below it."""
        try:
            whole = self._sum(self.task.node)
        finally:
            self._close_file()
        if whole is not None:
            self._store(self.task.node, whole)

    def _sum(self, node: Node) -> Held | None:
        kids = tree.children(node, self)
        if not kids:
            return self._leaf(node) if node.hi > node.lo else Held(None, 0)
        left, right = self._sum(kids[0]), self._sum(kids[1])
        if left is not None and right is not None:
            both = self._combine(node, left, right)
            if both is not None:
                return both
        for kid, held in zip(kids, (left, right), strict=True):
            if held is not None:
                self._store(kid, held)
        return None

    def _combine(self, node: Node, left: Held, right: Held) -> Held | None:
        if left.packed is None or right.packed is None:
            return Held(left.packed or right.packed, left.entries + right.entries)
        try:
            return Held(self.analysis.combine(left.packed, right.packed), left.entries + right.entries)
        except Exception as error:  # noqa: BLE001 - the worker's edge: user classes are added here
            piece, lo, _ = next(iter(tree.slices_of(node, self.task.slices)))
            self._fail(piece, lo, piece.ranges[lo - piece.lo], error)
            return None

    def _leaf(self, node: Node) -> Held | None:
        piece = self._slices[node.first]
        span = piece.ranges[node.lo - piece.lo]
        if self._hopeless():
            return None
        if self.note is not None:
            limit = None if self.place.inline else self.place.chunk_timeout
            self.note.chunk(piece.index, node.lo, limit)
        began = time.monotonic()
        measured = memory.meter().span(self.task.dataset, (span[1] - span[0]) // piece.parts)
        try:
            with measured, time_limit(self.place.chunk_timeout if self.place.inline else None):
                file = self._file(piece)
                before = file.bytes_read
                packed = self._process(file, span, piece.parts)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the worker's edge: this is the user's code
            self._close_file()
            self._fail(piece, node.lo, span, error, measured.use.peak)
            return None
        self.records.append(
            ChunkRecord(
                piece.index,
                node.lo,
                span[1] - span[0],
                time.monotonic() - began,
                measured.use.peak,
                file.bytes_read - before,
                measured.use.before,
                measured.use.children,
                measured.use.mapped,
            )
        )
        return Held(packed, span[1] - span[0])

    def _process(self, file: OpenFile, span: Range, parts: int) -> Packed:
        pieces = list(equal_parts(*span, max(1, -(-(span[1] - span[0]) // parts))))

        def total(lo: int, hi: int) -> Packed:
            if hi - lo == 1:
                return self.analysis.pack(file.process(*pieces[lo]))
            mid = tree.middle(lo, hi)
            return self.analysis.combine(total(lo, mid), total(mid, hi))

        return total(0, len(pieces))

    def _hopeless(self) -> bool:
        """Whether to leave the rest undone: it only repeats the user's mistake, or the run is stopping."""
        if self.place.shared and self.place.stop.exists():
            return True
        return sum(f.kind in (Kind.USER, Kind.SITE) for f in self.failures) >= USER_FAILURES_A_TASK

    def _file(self, piece: FileSlice) -> OpenFile:
        if self._open is not None and self._open[0] == piece.index:
            return self._open[1]
        self._close_file()
        file = self._files.enter_context(self.analysis.open(self.task.dataset, piece))
        self._open = (piece.index, file)
        return file

    def _close_file(self) -> None:
        self._open = None
        files, self._files = self._files, contextlib.ExitStack()
        # A file that fails to close has given what it had: the data were checked when they were read.
        with contextlib.suppress(Exception):
            files.close()

    def _kind(self, error: BaseException) -> Kind:
        if isinstance(error, TimeLimitError):
            return Kind.TIMEOUT
        return Kind.LOST if uprooted() else self.analysis.classify(error)

    def _fail(self, piece: FileSlice, chunk: int, span: Range, error: BaseException, peak: int = 0) -> None:
        self.failures.append(
            Failure(
                file=piece.index,
                chunk=chunk,
                path=piece.path,
                range=span,
                kind=self._kind(error),
                error=type(error).__name__,
                message=words(error),
                frames=self.analysis.frames(error),
                host=socket.gethostname(),
                pid=os.getpid(),
                peak=peak,
            )
        )

    def _store(self, node: Node, held: Held) -> None:
        if held.packed is None:
            return
        identity = tree.id_within(node, self.task.slices)
        about = {"entries": held.entries, "dataset": self.task.dataset}
        sections = held.packed.sections()
        try:
            if self.place.shared:
                stamp = self.place.store.put(node, identity, about, sections)
                payload = None
            else:
                pieces, stamp = frame({**about, "id": identity, "node": list(node)}, sections)
                payload = b"".join(pieces)
        except OSError as error:
            self.put_error = (error.errno, f"{error.strerror}: {error.filename or self.place.run}")
            return
        self.parts.append(Part(node, identity, stamp.digest, held.entries, stamp.size, payload))
