"""The store: whole objects, moved into place, each byte covered by a checksum. What is here is done.

An object is a few named sections (bytes) under a name that holds its node and its identity. The store
knows nothing of histograms or chunks. Nothing that is torn, flipped, swapped or foreign is ever given out.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import secrets
import struct
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from executors.errors import DamagedError
from executors.work.model import Node

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

MAGIC = b"CXSTORE1"
PROLOGUE = struct.Struct("<8sQ20s")
BLOCK = 1 << 20
LEVEL = 1
SUFFIX = ".part"
TEMPORARY = ".tmp"
NO_FILE = frozenset(  # an object is not there or cannot be had back; all else says that something is short
    {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ESPIPE, errno.EIO}
)


class Stamp(NamedTuple):
    """What a finished write can be recognised by."""

    digest: str
    size: int


class Block(NamedTuple):
    """One compressed run of bytes: where it is in the file, how long it is there and in memory."""

    offset: int
    stored: int
    raw: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Header:
    """The verified head of an object: what it is, and where its blocks are."""

    about: Mapping[str, Any]
    sections: tuple[tuple[str, tuple[Block, ...]], ...]
    stamp: Stamp


def object_name(node: Node, identity: str) -> str:
    """The name of a node's object, below the store's root; the node can be read back from it."""
    return f"{node.split:06d}/{node.first}.{node.last}.{node.lo}.{node.hi}.{identity}{SUFFIX}"


def parse_name(name: str) -> tuple[Node, str] | None:
    """The node and identity a name stands for, or None if it is no object's name."""
    folder, _, file = name.partition("/")
    fields = file.removesuffix(SUFFIX).split(".")
    if not file.endswith(SUFFIX) or len(fields) != 5 or not folder.isdecimal():
        return None
    try:
        node = Node(int(folder), *(int(f) for f in fields[:4]))
    except ValueError:
        return None
    return (node, fields[4]) if object_name(node, fields[4]) == name else None


def fsync_folder(folder: Path) -> None:
    """Make a rename in the folder durable; file systems that cannot are let be."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return
    try:
        os.fsync(fd)
    except OSError as error:
        # Some network file systems refuse to flush a folder; a full disk or a broken one must be heard.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EBADF):
            raise
    finally:
        os.close(fd)


def write_whole(path: Path, pieces: Sequence[bytes | memoryview]) -> int:
    """Write a file so that its name shows nothing or the whole of it; return its size."""
    _make_folder(path.parent)
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(6)}{TEMPORARY}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        try:
            size = sum(_write_all(fd, piece) for piece in pieces)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, path)  # noqa: PTH105 - one system call, the commit itself
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    fsync_folder(path.parent)
    return size


def _make_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    folder.mkdir(parents=True, exist_ok=True)
    # A durable file in a folder that a power cut takes away is none.
    fsync_folder(folder.parent)


def sweep(folder: Path, name: str = "") -> None:
    """Remove what interrupted writes have left in a folder; those of one file's name, or all."""
    for path in folder.glob(f".{glob.escape(name[:40])}*{TEMPORARY}"):
        with contextlib.suppress(OSError):
            path.unlink()


def _write_all(fd: int, data: bytes | memoryview) -> int:
    view = memoryview(data).cast("B")
    done = 0
    while done < len(view):
        done += os.write(fd, view[done : done + (64 << 20)])
    return done


def _digest(data: bytes | memoryview, size: int = 16) -> bytes:
    return hashlib.blake2b(data, digest_size=size).digest()


def frame(
    about: Mapping[str, Any], sections: Sequence[tuple[str, memoryview]]
) -> tuple[list[bytes | memoryview], Stamp]:
    """The bytes of an object, as pieces to be written one after another, and their stamp."""
    body: list[bytes | memoryview] = []
    table: list[Any] = []
    for name, data in sections:
        view = memoryview(data).cast("B")
        blocks: list[Any] = []
        for start in range(0, len(view), BLOCK):
            raw = view[start : start + BLOCK]
            packed = zstd.compress(raw, LEVEL)
            stored: bytes | memoryview = packed if len(packed) < len(raw) else raw
            body.append(stored)
            blocks.append([len(stored), len(raw), _digest(stored).hex()])
        table.append([name, blocks])
    head = json.dumps({"about": about, "sections": table}, separators=(",", ":")).encode()
    digest = _digest(head, 20)
    pieces: list[bytes | memoryview] = [PROLOGUE.pack(MAGIC, len(head), digest), head, *body]
    return pieces, Stamp(digest.hex(), sum(len(p) for p in pieces))


def read_header(fd: int, name: str) -> Header:
    """Read and verify the head of an open object; every later read is verified against it."""
    size = os.fstat(fd).st_size
    first = os.pread(fd, 4096, 0)
    if len(first) < PROLOGUE.size:
        raise DamagedError(f"{name}: {size} bytes are too few for a stored object", name=name)
    magic, length, digest = PROLOGUE.unpack_from(first)
    if magic != MAGIC or length > size - PROLOGUE.size:
        raise DamagedError(f"{name}: not a stored object, or cut short", name=name)
    head = first[PROLOGUE.size : PROLOGUE.size + length]
    if len(head) < length:
        head += os.pread(fd, length - len(head), PROLOGUE.size + len(head))
    if _digest(head, 20) != digest:
        raise DamagedError(f"{name}: its header does not match its checksum", name=name)
    offset = PROLOGUE.size + length
    sections = []
    try:
        content = json.loads(head)
        about = dict(content["about"])
        for section, rows in content["sections"]:
            blocks = []
            for stored, raw, checksum in rows:
                blocks.append(Block(offset, stored, raw, bytes.fromhex(checksum)))
                offset += stored
            sections.append((section, tuple(blocks)))
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"{name}: not an object of this program", name=name) from error
    if offset != size:
        raise DamagedError(f"{name}: {size} bytes long where {offset} were written", name=name)
    return Header(about, tuple(sections), Stamp(digest.hex(), size))


def read_block(fd: int, block: Block, name: str) -> bytes:
    """One verified block, decompressed."""
    data = os.pread(fd, block.stored, block.offset)
    if len(data) != block.stored or _digest(data) != block.digest:
        raise DamagedError(f"{name}: bytes at {block.offset} do not match their checksum", name=name)
    return data if block.stored == block.raw else zstd.decompress(data)


def read_section(fd: int, blocks: Sequence[Block], name: str) -> bytearray:
    """A whole section, verified; in memory that can be added to in place."""
    whole = bytearray(sum(block.raw for block in blocks))
    at = 0
    for block in blocks:
        data = read_block(fd, block, name)
        if len(data) != block.raw:
            raise DamagedError(f"{name}: bytes at {block.offset} are not as many as were written", name=name)
        whole[at : at + block.raw] = data
        at += block.raw
    return whole


class DamagedPartError(DamagedError):
    """A stored node that does not match its checksums, by its node and identity."""

    def __init__(self, message: str, node: Node, identity: str) -> None:
        super().__init__(message, node=node, identity=identity)
        self.node, self.identity = node, identity


@dataclass(frozen=True, slots=True)
class Reading:
    """An object that is open: its blocks one by one, each verified as it is read."""

    fd: int
    node: Node
    identity: str
    header: Header

    def layout(self) -> list[tuple[str, list[int], list[bytes]]]:
        """What objects of one structure share: names, lengths, and the same skeleton."""
        return [
            (name, [b.raw for b in blocks], [b.digest for b in blocks] if name == "skeleton" else [])
            for name, blocks in self.header.sections
        ]

    def block(self, section: str, index: int) -> bytes:
        """One block of a section."""
        blocks = next(blocks for name, blocks in self.header.sections if name == section)
        try:
            return read_block(self.fd, blocks[index], object_name(self.node, self.identity))
        except DamagedError as error:
            raise DamagedPartError(str(error), self.node, self.identity) from error

    def section(self, name: str) -> bytes:
        """A whole section."""
        count = next((len(blocks) for section, blocks in self.header.sections if section == name), 0)
        return b"".join(self.block(name, i) for i in range(count))


@dataclass(frozen=True, slots=True)
class Store:
    """A folder of objects. Many may put at once; each put is whole or not there."""

    root: Path

    def put(
        self, node: Node, identity: str, about: Mapping[str, Any], sections: Sequence[tuple[str, memoryview]]
    ) -> Stamp:
        """Store an object durably; when this returns it is there for good."""
        pieces, stamp = frame({**about, "id": identity, "node": list(node)}, sections)
        write_whole(self.path(node, identity), pieces)
        return stamp

    def put_bytes(self, node: Node, identity: str, data: bytes) -> Stamp:
        """Store an object that came as bytes, after the same checks as any read."""
        stamp = check_bytes(data, node, identity)
        write_whole(self.path(node, identity), [data])
        return stamp

    def path(self, node: Node, identity: str) -> Path:
        """Where an object lies."""
        return self.root / object_name(node, identity)

    def head(self, node: Node, identity: str) -> Header:
        """The verified header of an object: that it is there, whole in length, and the right one."""
        with self._open(node, identity) as fd:
            return self._header(fd, node, identity)

    def get(self, node: Node, identity: str) -> tuple[Header, dict[str, bytearray]]:
        """An object with all its sections, every byte verified."""
        name = object_name(node, identity)
        with self._open(node, identity) as fd:
            header = self._header(fd, node, identity)
            return header, {section: read_section(fd, blocks, name) for section, blocks in header.sections}

    @contextlib.contextmanager
    def reading(self, node: Node, identity: str) -> Iterator[Reading]:
        """An object held open, to be read block by block."""
        with self._open(node, identity) as fd:
            yield Reading(fd, node, identity, self._header(fd, node, identity))

    def scan(self) -> Iterator[tuple[Node, str]]:
        """Every object's node and identity, by name only: nothing is opened."""
        for folder in sorted(self._folders()):
            for entry in sorted(os.listdir(self.root / folder)):  # noqa: PTH208 - names, not paths
                parsed = parse_name(f"{folder}/{entry}")
                if parsed is not None:
                    yield parsed

    def drop(self, node: Node, identity: str) -> None:
        """Remove an object that is no longer needed; not being there is fine."""
        path = self.path(node, identity)
        try:
            path.unlink()
        except FileNotFoundError:
            return
        except OSError:
            if not path.is_dir():
                raise
            self.set_aside(node, identity)

    def set_aside(self, node: Node, identity: str) -> None:
        """Move a damaged object out of the way, kept for whoever wants to look at it."""
        source = self.path(node, identity)
        target = self.root.parent / "damaged" / source.name
        target.parent.mkdir(exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            source.replace(target)

    def sweep(self) -> None:
        """Remove what interrupted writes have left."""
        for folder in self._folders():
            sweep(self.root / folder)

    def _folders(self) -> list[str]:
        try:
            return [e.name for e in os.scandir(self.root) if e.name.isdecimal() and e.is_dir()]
        except FileNotFoundError:
            return []

    @contextlib.contextmanager
    def _open(self, node: Node, identity: str) -> Iterator[int]:
        path = self.path(node, identity)
        try:
            fd = _open_again(path)
            try:
                yield fd
            finally:
                os.close(fd)
        except OSError as error:
            if error.errno in NO_FILE:
                raise DamagedError(
                    f"{path.name}: cannot be read ({error.strerror})", name=path.name
                ) from error
            raise

    @staticmethod
    def _header(fd: int, node: Node, identity: str) -> Header:
        header = read_header(fd, object_name(node, identity))
        _check_identity(header, node, identity)
        return header


def _open_again(path: Path) -> int:
    # Not blocking: in the place of an object there may be a pipe that nobody writes to.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        return os.open(path, flags)
    except FileNotFoundError:
        # A network file system remembers for a while what was not there; opening the folder asks anew.
        os.close(os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY))
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
    return os.open(path, flags)


def _check_identity(header: Header, node: Node, identity: str) -> None:
    about = header.about
    if about.get("id") != identity or about.get("node") != list(node):
        name = object_name(node, identity)
        raise DamagedError(f"{name}: holds another object ({about.get('id')})", name=name)


def check_bytes(data: bytes, node: Node, identity: str) -> Stamp:
    """The stamp of an object that came as bytes, every byte of it verified."""
    fd = os.memfd_create("object")
    try:
        _write_all(fd, data)
        name = object_name(node, identity)
        header = read_header(fd, name)
        _check_identity(header, node, identity)
        for _, blocks in header.sections:
            for block in blocks:
                read_block(fd, block, name)
        return header.stamp
    finally:
        os.close(fd)
