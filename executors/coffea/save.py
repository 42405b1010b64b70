"""The ``.coffea`` files that users get: what ``coffea.util.load`` reads, but whole or not at all.

A pickle in a checksummed lz4 frame. Reading one runs the code in it, so only one's own files are read
unless told otherwise. Nothing of runs, plans or stores is known here.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import secrets
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lz4.frame

from executors.coffea import constants
from executors.errors import DamagedError, UsageError
from executors.work.store import fsync_folder, ours

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

_BLOCK = 1 << 20


def save(value: Any, path: str | os.PathLike[str]) -> str:
    """Write an accumulator under its final name, durably and only when complete; the file's digest.

    Equal values out of ``unpack`` give equal bytes, in every process of the same environment.
    """
    with _replacing(Path(path)) as raw:
        frame = _Frame(raw)
        constants.dump(value, frame)
        return frame.finish()


def load(path: str | os.PathLike[str], *, trust: bool = False) -> Any:
    """Read a ``.coffea`` whose checksum holds. It runs the code within: one's own files only, or trust."""
    with _opened(Path(path), trust=trust) as raw:
        _verify(raw, path)
        raw.seek(0)
        try:
            with lz4.frame.open(raw, "rb") as packed:
                return pickle.load(packed)
        except (pickle.UnpicklingError, EOFError) as error:
            raise DamagedError(f"{path}: not a .coffea file: {error}", path=str(path)) from error


def verify(path: str | os.PathLike[str]) -> None:
    """Check a ``.coffea`` file's checksum without running anything in it; ``DamagedError`` if it fails."""
    with _opened(Path(path), trust=True) as raw:
        _verify(raw, path)


def file_digest(path: str | os.PathLike[str]) -> str:
    """The digest of a file's bytes, as ``save`` gives it."""
    with Path(path).open("rb") as raw:
        return hashlib.file_digest(raw, _summary).hexdigest()


def _summary() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=20)


class _Frame:
    """A checksummed lz4 frame, written once front to back, that knows the digest of what was written."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._summary = _summary()
        # Of the content and of each block: content alone misses damage that unpacks to the same bytes.
        self._codec = lz4.frame.LZ4FrameCompressor(content_checksum=True, block_checksum=True)
        self._emit(self._codec.begin())

    def write(self, data: Any) -> int:
        # In pieces: compressed in one go, a large array would need its size in memory again.
        view = memoryview(data).cast("B")
        for start in range(0, len(view), _BLOCK):
            self._emit(self._codec.compress(view[start : start + _BLOCK]))
        return len(view)

    def finish(self) -> str:
        self._emit(self._codec.flush())
        return self._summary.hexdigest()

    def _emit(self, packed: bytes) -> None:
        self._summary.update(packed)
        self._raw.write(packed)


@contextlib.contextmanager
def _replacing(final: Path) -> Iterator[BinaryIO]:
    """A file beside the final one that takes its name when all is on disk, and vanishes on any failure."""
    partial = final.with_name(f".{final.name[:80]}.{secrets.token_hex(6)}.tmp")
    try:
        with open(partial, "xb", opener=ours) as raw:
            yield raw
            raw.flush()
            os.fsync(raw.fileno())
        partial.replace(final)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    fsync_folder(final.parent)


@contextlib.contextmanager
def _opened(path: Path, *, trust: bool) -> Iterator[BinaryIO]:
    # Without O_NONBLOCK a named pipe in the file's place would hang the open.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _refuse_strangers(path, os.fstat(handle), trust=trust)
    except BaseException:
        os.close(handle)
        raise
    with os.fdopen(handle, "rb") as raw:
        yield raw


def _refuse_strangers(path: Path, about: os.stat_result, *, trust: bool) -> None:
    if not stat.S_ISREG(about.st_mode):
        raise UsageError(f"{path}: not a regular file; a .coffea file is one", path=str(path))
    if about.st_uid != os.geteuid() and not trust:
        raise UsageError(
            f"{path}: belongs to user {about.st_uid}, not to you ({os.geteuid()}), and loading a .coffea "
            "file runs the code in it. If you trust its owner: executors.load(path, trust=True)",
            path=str(path),
        )


def _verify(raw: BinaryIO, path: str | os.PathLike[str]) -> None:
    """Read one whole checksummed frame and nothing behind it."""
    reader = lz4.frame.LZ4FrameDecompressor()
    try:
        # Small blocks: each may unfold to 255 times its size.
        while (block := raw.read(_BLOCK >> 4)) and not reader.eof:
            reader.decompress(block)
    except RuntimeError as error:
        raise DamagedError(f"{path}: damaged: {error}", path=str(path)) from error
    if not reader.eof:
        raise DamagedError(f"{path}: cut short: it ends within its lz4 frame", path=str(path))
    if block or reader.unused_data:
        raise DamagedError(f"{path}: damaged: there is something behind its end", path=str(path))
