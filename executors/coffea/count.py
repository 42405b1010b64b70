"""How many entries a file's tree has, from headers alone: nothing that grows with its branches is parsed.

Used when the plan is made, for many files in parallel. No cache and no coffea may enter: who calls this
keeps the answers by ``identity``.
"""

from __future__ import annotations

import contextlib
import lzma
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, TypeAlias

import lz4.block
import uproot
import xxhash

from executors.coffea.classify import (
    ChangedFileError,
    InputError,
    MissingTreeError,
    classify,
    local_path,
    remote,
)
from executors.coffea.silent import SilentServers
from executors.coffea.xrootd import forgotten_if_failing
from executors.errors import UsageError
from executors.work.model import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


TTREE = "TTree"
RNTUPLE = "RNTuple"
CLASSES = {"TTree": TTREE, "TNtuple": TTREE, "TNtupleD": TTREE, "ROOT::RNTuple": RNTUPLE}
USUAL = "Events"
# Bytes of a tree's record that are read first; its number of entries lies in the first few hundred. As much
# as a server sends before it waits to hear that the first packets have come.
HEAD = 12 << 10
NEEDED = 8 << 10  # uncompressed bytes that hold the number of entries, however long the tree's title

Identity: TypeAlias = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class Count:
    """What the plan needs to know of one file."""

    entries: int
    uuid: str  # 32 hex digits
    treename: str
    kind: str  # "TTree" or "RNTuple"
    size: int | None = None  # bytes; None for what is not a local file
    mtime_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Uncounted:
    """Why a file could not be counted: ``kind`` tells what may pass from what is bad."""

    kind: Kind
    error: str
    message: str


def identity(path: str) -> Identity | None:
    """What a cached count may be kept by: name, size, time of change; None for remote and missing files."""
    if remote(path):
        return None
    try:
        status = Path(local_path(path)).stat()
    except OSError:
        return None
    return path, status.st_size, status.st_mtime_ns


def count(
    path: str, treename: str | None = None, timeout: float = 60, options: Mapping[str, Any] | None = None
) -> Count:
    """Count one file; raises what ``classify`` understands, or ``UsageError`` if the tree must be named."""
    found = identity(path)
    reader = {"timeout": seconds(timeout), "object_cache": None, "array_cache": None, **(options or {})}
    with forgotten_if_failing(path), uproot.open({path: None}, **reader) as file:
        if found is not None:
            refuse_cut(path, file.file.fEND, found[1])
        name = treename if treename is not None else _only_tree(path, file)
        key = tree_key(path, file, name)
        kind = CLASSES[key.fClassName]
        entries = _ntuple_entries(file, key) if kind == RNTUPLE else _tree_entries(file, key, name)
        _, size, mtime = found or (None, None, None)
        return Count(entries, file.file.uuid.hex, name, kind, size, mtime)


def count_many(
    files: Sequence[tuple[str, str | None]],
    *,
    workers: int = 8,
    timeout: float = 60,
    options: Mapping[str, Any] | None = None,
) -> Iterator[tuple[int, Count | Uncounted]]:
    """Count files in parallel: the index of each and its answer, as soon as it is there.

    A file that fails is an answer too. ``UsageError`` (which tree?) is raised: it is not the file's fault.
    """
    todo: SimpleQueue[int] = SimpleQueue()
    answers: SimpleQueue[tuple[int, Count | Uncounted | UsageError]] = SimpleQueue()
    for index in range(len(files)):
        todo.put(index)
    stop = Event()
    silent = SilentServers()

    def work() -> None:
        with contextlib.suppress(Empty):
            while not stop.is_set():
                index = todo.get_nowait()
                answers.put((index, _attempt(files[index], timeout, options, silent)))

    # Threads, because what takes long is waiting for storage; daemons, because storage may never answer,
    # and whoever interrupts the run need not wait for that.
    for _ in range(min(workers, len(files))):
        Thread(target=work, name="count", daemon=True).start()
    try:
        for _ in range(len(files)):
            index, answer = answers.get()
            if isinstance(answer, UsageError):
                raise answer
            yield index, answer
    finally:
        stop.set()


def _attempt(
    file: tuple[str, str | None],
    timeout: float,
    options: Mapping[str, Any] | None,
    silent: SilentServers,
) -> Count | Uncounted | UsageError:
    if (refusal := silent.refusal(file[0])) is not None:
        return Uncounted(Kind.PASSING, TimeoutError.__name__, refusal)
    try:
        found = count(*file, timeout=timeout, options=options)
    except UsageError as error:
        return error
    except Exception as error:  # noqa: BLE001 - garbage in a file raises anything; it is told apart here, once
        bad = Uncounted(classify(error, file[0]), type(error).__name__, str(error).strip())
        silent.heard(file[0], bad.message if bad.kind is Kind.PASSING else None)
        return bad
    silent.heard(file[0], None)
    return found


def seconds(timeout: float) -> int:
    """A time-out as readers want it: XRootD refuses one that is not an integer, and 0 would mean its own."""
    return max(1, math.ceil(timeout))


def refuse_cut(path: str, end: int, size: int) -> None:
    """Refuse a file that is shorter than its own header says: the rest of a transfer is missing."""
    if size < end:
        raise ChangedFileError(f"{path}: cut short: its header says {end} bytes, it has {size}", path=path)


def tree_key(path: str, file: Any, name: str) -> Any:
    """The key of a tree, the highest cycle if there are several; else an error that says what there is."""
    try:
        key = file.key(name)
    except uproot.KeyInFileError as error:
        raise MissingTreeError(
            f"{path}: no tree {name!r}; {_there(trees(file))}", path=path, trees=trees(file)
        ) from error
    if key.fClassName not in CLASSES:
        text = f"{path}: {name!r} is no tree but a {key.fClassName}; {_there(trees(file))}"
        raise MissingTreeError(text, path=path, trees=trees(file))
    return key


def trees(file: Any) -> list[str]:
    """The names of all trees of an open file, those in folders as well."""
    found = file.classnames(recursive=True, cycle=False)
    return [name for name, kind in found.items() if kind in CLASSES]


def _there(names: list[str]) -> str:
    return "it holds " + ", ".join(repr(name) for name in names) if names else "it holds no tree at all"


def _only_tree(path: str, file: Any) -> str:
    names = trees(file)
    if len(names) == 1:
        return names[0]
    if USUAL in names:
        return USUAL
    if not names:
        raise MissingTreeError(f"{path}: it holds no tree at all", path=path, trees=names)
    text = f"{path}: which tree? {_there(names)}: name one with --treename or in the fileset"
    raise UsageError(text, path=path, trees=names)


# --- TTree ----------------------------------------------------------------------------------------


def _tree_entries(file: Any, key: Any, name: str) -> int:
    if key.fClassName != TTREE:  # TNtuple and its kin: rare, small and one layer deeper
        return int(file[name].num_entries)
    entries = _entries_in(_head(file, key))
    if entries is None:  # a layout of before 2004
        return int(file[name].num_entries)
    if entries < 0:
        raise InputError(
            f"{file.file_path}: the tree {name!r} says that it has {entries} entries", path=file.file_path
        )
    return entries


def _head(file: Any, key: Any) -> bytes:
    """The first bytes of an object, uncompressed; only as much is read as that takes."""
    start, stop = key.fSeekKey + key.fKeylen, key.fSeekKey + key.fNbytes
    raw = bytes(file.file.chunk(start, min(stop, start + HEAD)).raw_data)
    if key.fNbytes - key.fKeylen == key.fObjlen:
        return raw
    head = _decompressed(raw, key.fObjlen)
    if len(head) < min(NEEDED, key.fObjlen) and stop > start + HEAD:
        raw = bytes(file.file.chunk(start, stop).raw_data)
        head = _decompressed(raw, key.fObjlen)
    return head


def _decompressed(raw: bytes, most: int) -> bytes:
    """As much of the first compressed block as the bytes at hand give, at least ``NEEDED`` if they can."""
    # Two letters, a method, then compressed and uncompressed size of the block in three bytes each.
    packed, unpacked = int.from_bytes(raw[3:6], "little"), int.from_bytes(raw[6:9], "little")
    body, want = raw[9 : 9 + packed], min(NEEDED, most, unpacked)
    if raw[:2] == b"ZL":
        return zlib.decompressobj().decompress(body, want)
    if raw[:2] == b"XZ":
        return lzma.LZMADecompressor().decompress(body, want)
    if raw[:2] == b"ZS":
        return _zstd(body, want)
    if raw[:2] == b"L4":  # a block without end marks: all of it or nothing, and it is fast
        return b"" if len(body) < packed else lz4.block.decompress(body[8:], uncompressed_size=unpacked)
    raise InputError(f"a tree's record begins with {raw[:2]!r}, which is no compression that ROOT writes")


def _zstd(body: bytes, want: int) -> bytes:
    try:
        from compression.zstd import ZstdDecompressor  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        from backports.zstd import ZstdDecompressor
    return bytes(ZstdDecompressor().decompress(body, want))


def _entries_in(head: bytes) -> int | None:
    """``fEntries`` of a streamed TTree: behind four base objects, each of which says how long it is."""
    length, version = struct.unpack_from(">IH", head)
    if not length & 0x40000000 or version < 16:
        return None
    place = 6
    for _ in range(4):  # TNamed, TAttLine, TAttFill, TAttMarker
        (length,) = struct.unpack_from(">I", head, place)
        if not length & 0x40000000:
            return None
        place += 4 + (length & 0x3FFFFFFF)
    return int(struct.unpack_from(">q", head, place)[0])


# --- RNTuple --------------------------------------------------------------------------------------


def _ntuple_entries(file: Any, key: Any) -> int:
    """The sum of the spans of all cluster groups, out of the footer."""
    start = key.fSeekKey + key.fKeylen
    anchor = bytes(file.file.chunk(start, key.fSeekKey + key.fNbytes).raw_data)
    if key.fNbytes - key.fKeylen != key.fObjlen:
        anchor = _decompressed(anchor, key.fObjlen)
    # Length and class version, four version numbers, header (3), then where the footer is and two lengths.
    seek, stored, length = struct.unpack_from(">QQQ", anchor, 6 + 8 + 24)
    footer = bytes(file.file.chunk(seek, seek + stored).raw_data)
    if stored != length:
        footer = _whole(footer, length)
    if xxhash.xxh3_64_intdigest(footer[:-8]) != struct.unpack("<Q", footer[-8:])[0]:
        raise InputError(
            f"{file.file_path}: the RNTuple's footer is damaged: its checksum is wrong", path=file.file_path
        )
    return sum(_spans(footer))


def _whole(raw: bytes, length: int) -> bytes:
    """All blocks of a compressed record."""
    out = b""
    while len(out) < length:
        packed, unpacked = int.from_bytes(raw[3:6], "little"), int.from_bytes(raw[6:9], "little")
        body = raw[9 : 9 + packed]
        if raw[:2] == b"ZL":
            out += zlib.decompress(body)
        elif raw[:2] == b"XZ":
            out += lzma.decompress(body)
        elif raw[:2] == b"ZS":
            out += _zstd(body, unpacked)
        elif raw[:2] == b"L4":
            out += lz4.block.decompress(body[8:], uncompressed_size=unpacked)
        else:
            raise InputError(
                f"an RNTuple's footer holds {raw[:2]!r}, which is no compression that ROOT writes"
            )
        raw = raw[9 + packed :]
    return out


def _spans(footer: bytes) -> Iterator[int]:
    place = 8  # the envelope's type and length
    while (
        struct.unpack_from("<q", footer, place)[0] < 0
    ):  # feature flags: the highest bit says that more follow
        place += 8
    place += 16  # the last flags, the header's checksum
    place += abs(struct.unpack_from("<q", footer, place)[0])  # the schema's extension says how long it is
    size, groups = struct.unpack_from("<qI", footer, place)
    if size >= 0:
        raise InputError("an RNTuple's footer has no list of cluster groups where it should be")
    place += 12
    for _ in range(groups):
        (length,) = struct.unpack_from("<q", footer, place)
        yield int(struct.unpack_from("<Q", footer, place + 16)[0])  # behind the length and the first entry
        place += length
