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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeAlias

import xxhash

from executors.errors import DamagedError, UsageError
from executors.work.model import Node

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from executors.work.codec import Array, Bytes

MAGIC = b"CXSTORE2"
PROLOGUE = struct.Struct("<8sQ20s")  # magic, length and hash of the head
ROW = struct.Struct("<QIB16s")  # where a block is, how long it is there, its form and its hash
BLOCK = 1 << 19
SKELETON = "skeleton"  # the section that objects of one structure have in common
FIRST = 4096  # bytes read at once: more than the head of most objects
SPARE = 40  # bytes kept in a head for a number that is known last
SUFFIX = ".part"
TEMPORARY = ".tmp"
BLOB = "blob "  # so begin the sections that are pickles: reading one runs code
OURS = 0o644  # of files; whatever the umask, nobody else may write what we shall read
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
    form: int
    digest: bytes
    raw: int


@dataclass(frozen=True, slots=True)
class Blocks:
    """The blocks of a section. A row each, as in the file: an object of a gigabyte has a thousand."""

    raw: int  # bytes in memory, of all
    size: int  # of each but the last
    rows: bytes

    def __len__(self) -> int:
        return len(self.rows) // ROW.size

    def __getitem__(self, index: int) -> Block:
        if not 0 <= index < len(self):
            raise IndexError(index)
        offset, stored, form, digest = ROW.unpack_from(self.rows, index * ROW.size)
        return Block(offset, stored, form, digest, min(self.size, self.raw - index * self.size))

    def __iter__(self) -> Iterator[Block]:
        return (self[index] for index in range(len(self)))


@dataclass(frozen=True, slots=True)
class Header:
    """The verified head of an object: what it is, and where its blocks are."""

    about: Mapping[str, Any]
    sections: tuple[tuple[str, Blocks], ...]
    stamp: Stamp
    layout: list[Any]  # equal where names and lengths of all sections are, and the skeleton


def object_name(node: Node, identity: str) -> str:
    """The name of a node's object, below the store's root; the node can be read back from it."""
    return f"{node.split:06d}/{node.first}.{node.last}.{node.lo}.{node.hi}.{identity}{SUFFIX}"


def parse_name(name: str) -> tuple[Node, str] | None:
    """The node and identity a name stands for, or None if it is no object's name."""
    folder, _, file = name.partition("/")
    split = _split_of(folder)
    return None if split is None else _parse_file(split, file)


def _split_of(folder: str) -> int | None:
    if not folder.isdecimal() or f"{int(folder):06d}" != folder:
        return None
    return int(folder)


def _parse_file(split: int, file: str) -> tuple[Node, str] | None:
    fields = file.split(".", 5)
    if len(fields) != 6 or fields[5] != SUFFIX[1:]:
        return None
    try:
        first, last, lo, hi = map(int, fields[:4])
    except ValueError:
        return None
    # Only as it would be written: int() reads " 7", "007" and other alphabets too.
    written = file.startswith(f"{first}.{last}.{lo}.{hi}.")
    return (Node(split, first, last, lo, hi), fields[4]) if written else None


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


def write_whole(path: Path, pieces: Iterable[bytes | memoryview], mode: int = OURS) -> int:
    """Write a file so that its name shows nothing or the whole of it; return its size."""
    with _replacing(path, mode) as fd:
        return sum(_write_all(fd, piece) for piece in pieces)


@contextlib.contextmanager
def _replacing(path: Path, mode: int = OURS) -> Iterator[int]:
    """A file beside the final one that takes its name when all is on disk, and vanishes on any failure."""
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(6)}{TEMPORARY}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        try:
            yield fd
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, path)  # noqa: PTH105 - one system call, the commit itself
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    fsync_folder(path.parent)


def ours(path: str, flags: int) -> int:
    """An opener for files that nobody else may write to, whatever the umask."""
    return os.open(path, flags, OURS)


def make_folder(folder: Path) -> None:
    """A folder, and those above it that are missing: durable, and only ours to write to, whatever the umask.

    Who can write in a run's folders can exchange what the next run reads there and what its jobs run.
    """
    if folder.is_dir():
        return
    for one in [folder, *folder.parents][::-1]:
        if not one.is_dir():
            one.mkdir(mode=0o755, exist_ok=True)
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


def _block_digest(data: bytes | memoryview) -> bytes:
    # Against damage, not against forgers: who can write here can write a checksum too. BLAKE2 would take
    # ten times as long as the adding itself.
    return xxhash.xxh3_128_digest(data)


Layout: TypeAlias = "Sequence[tuple[str, int]]"
"""Names of an object's sections, and their bytes in memory."""


class Framing:
    """An object being written: its blocks as they come, and then the head that stands before them."""

    def __init__(self, about: Mapping[str, Any], layout: Layout, skeleton: bytes | memoryview) -> None:
        self._layout, self._size = layout, BLOCK
        self._skeleton = _digest(skeleton).hex()
        self._rows: list[bytes] = []
        blocks = sum(-(-raw // BLOCK) for _, raw in layout)
        self._text = len(self._json(about)) + SPARE
        self.first = PROLOGUE.size + self._text + 1 + blocks * ROW.size
        self._end = self.first

    def block(self, raw: memoryview) -> bytes | memoryview:
        """The next block as it is to be written."""
        from executors.work import codec

        form, stored = codec.encode(raw)
        self._rows.append(ROW.pack(self._end, len(stored), form, _block_digest(stored)))
        self._end += len(stored)
        return stored

    def finish(self, about: Mapping[str, Any]) -> tuple[bytes, Stamp]:
        """All that stands before the first block."""
        head = b"".join([self._json(about).ljust(self._text), b"\n", *self._rows])
        digest = _digest(head, 20)
        prologue = PROLOGUE.pack(MAGIC, len(head), digest)
        if len(prologue) + len(head) != self.first:
            raise ValueError("an object has other sections than were announced")
        return prologue + head, Stamp(digest.hex(), self._end)

    def _json(self, about: Mapping[str, Any]) -> bytes:
        text = {"about": about, "block": self._size, "skeleton": self._skeleton, "sections": self._layout}
        return json.dumps(text, separators=(",", ":")).encode()


def cut(sections: Iterable[tuple[str, memoryview]]) -> Iterator[memoryview]:
    """The blocks of sections that are in memory."""
    for _, data in sections:
        view = memoryview(data).cast("B")
        yield from (view[start : start + BLOCK] for start in range(0, len(view), BLOCK))


def frame(
    about: Mapping[str, Any], sections: Sequence[tuple[str, memoryview]]
) -> tuple[list[bytes | memoryview], Stamp]:
    """The bytes of an object, as pieces to be written one after another, and their stamp."""
    skeleton = next((data for name, data in sections if name == SKELETON), b"")
    framing = Framing(about, [(name, memoryview(data).nbytes) for name, data in sections], skeleton)
    body = [framing.block(block) for block in cut(sections)]
    head, stamp = framing.finish(about)
    return [head, *body], stamp


def read_header(fd: int, name: str) -> Header:
    """Read and verify the head of an open object; every later read is verified against it."""
    size = os.fstat(fd).st_size
    first = os.pread(fd, FIRST, 0)
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
    try:
        about, sections, layout = _parse(head)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedError(f"{name}: not an object of this program", name=name) from error
    last = next((blocks[len(blocks) - 1] for _, blocks in reversed(sections) if len(blocks)), None)
    end = last.offset + last.stored if last is not None else PROLOGUE.size + length
    if end != size:
        raise DamagedError(f"{name}: {size} bytes long where {end} were written", name=name)
    return Header(about, sections, Stamp(digest.hex(), size), layout)


def _parse(head: bytes) -> tuple[dict[str, Any], tuple[tuple[str, Blocks], ...], list[Any]]:
    line, _, rows = head.partition(b"\n")
    content = json.loads(line)
    size = content["block"]
    sections = []
    at = 0
    for name, raw in content["sections"]:
        end = at - (-raw // size) * ROW.size
        sections.append((name, Blocks(raw, size, rows[at:end])))
        at = end
    if at != len(rows):
        raise ValueError("rows missing or too many")
    return dict(content["about"]), tuple(sections), [size, content["skeleton"], content["sections"]]


def read_block(fd: int, block: Block, name: str, scratch: Bytes, adding: str = "") -> Array:
    """One verified block: in ``scratch``, which is as long as it, or in memory of its own.

    ``adding`` names the type of cells to which it is only to be added: then its own may be of a smaller one.
    """
    from executors.work import codec

    try:
        if not block.form:
            got = os.preadv(fd, [scratch.data], block.offset)
            if got == block.stored == len(scratch) and _block_digest(scratch.data) == block.digest:
                return scratch
        else:
            data = os.pread(fd, block.stored, block.offset)
            if len(data) == block.stored and _block_digest(data) == block.digest:
                return codec.decode(block.form, data, scratch, adding)
    except DamagedError as error:
        raise DamagedError(f"{name}: {error}", name=name) from error
    raise DamagedError(f"{name}: bytes at {block.offset} do not match their checksum", name=name)


def read_section(fd: int, blocks: Blocks, name: str) -> memoryview:
    """A whole section, verified; in memory that can be added to in place."""
    import numpy as np

    cells = np.empty(blocks.raw, np.uint8)
    at = 0
    for block in blocks:
        into = cells[at : at + block.raw]
        found = read_block(fd, block, name, into)
        if found is not into:
            into[:] = found
        at += block.raw
    return cells.data


def _verify(fd: int, header: Header, name: str) -> None:
    import numpy as np

    scratch = np.empty(BLOCK, np.uint8)
    for _, blocks in header.sections:
        for block in blocks:
            if block.raw > len(scratch):
                scratch = np.empty(block.raw, np.uint8)
            read_block(fd, block, name, scratch[: block.raw])


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
    name: str

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def block(self, section: int, index: int, scratch: Bytes, adding: str = "") -> Array:
        """One block of a section, counted from 0; as ``read_block``."""
        block = self.header.sections[section][1][index]
        try:
            return read_block(self.fd, block, self.name, scratch, adding)
        except (DamagedError, OSError) as error:
            self._damaged(error)
            raise

    def section(self, name: str) -> memoryview:
        """A whole section; of none, nothing."""
        blocks = next((blocks for section, blocks in self.header.sections if section == name), None)
        try:
            return read_section(self.fd, blocks or Blocks(0, BLOCK, b""), self.name)
        except (DamagedError, OSError) as error:
            self._damaged(error)
            raise

    def _damaged(self, error: DamagedError | OSError) -> None:
        """Say of damage which part it is; of what the disk cannot give back, that it is damage."""
        if isinstance(error, DamagedError):
            raise DamagedPartError(str(error), self.node, self.identity) from error
        if error.errno in NO_FILE:
            text = f"{self.name}: cannot be read ({error.strerror})"
            raise DamagedPartError(text, self.node, self.identity) from error


@dataclass(frozen=True, slots=True)
class Store:
    """A folder of objects. Many may put at once; each put is whole or not there."""

    root: Path

    def put(
        self, node: Node, identity: str, about: Mapping[str, Any], sections: Sequence[tuple[str, memoryview]]
    ) -> Stamp:
        """Store an object durably; when this returns it is there for good."""
        skeleton = next((data for name, data in sections if name == SKELETON), b"")
        layout = [(name, memoryview(data).nbytes) for name, data in sections]
        return self.put_blocks(node, identity, layout, skeleton, cut(sections), lambda: about)

    def put_blocks(  # noqa: PLR0917 - what an object is, its content, and what is said of it
        self,
        node: Node,
        identity: str,
        layout: Layout,
        skeleton: bytes | memoryview,
        blocks: Iterable[memoryview],
        about: Callable[[], Mapping[str, Any]],
    ) -> Stamp:
        """Store an object durably that is never whole in memory; ``about`` is asked again after the last."""
        own = {"id": identity, "node": list(node)}
        framing = Framing({**own, **about()}, layout, skeleton)
        with _replacing(self.path(node, identity)) as fd:
            os.lseek(fd, framing.first, os.SEEK_SET)
            for block in blocks:
                _write_all(fd, framing.block(block))
            head, stamp = framing.finish({**own, **about()})
            os.lseek(fd, 0, os.SEEK_SET)
            _write_all(fd, head)
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

    def get(self, node: Node, identity: str) -> tuple[Header, dict[str, memoryview]]:
        """An object with all its sections, every byte verified."""
        name = object_name(node, identity)
        with self._open(node, identity) as fd:
            header = self._header(fd, node, identity)
            _check_owner(fd, header, f"{self.root}/{name}")
            return header, {section: read_section(fd, blocks, name) for section, blocks in header.sections}

    def reading(self, node: Node, identity: str, header: Header | None = None) -> Reading:
        """An object held open, to be read block by block; ``header`` where it was verified before."""
        name = object_name(node, identity)
        with _as_damage(name):
            fd = _open_again(f"{self.root}/{name}")
            try:
                found = header or self._header(fd, node, identity)
                _check_owner(fd, found, f"{self.root}/{name}")
                return Reading(fd, node, identity, found, name)
            except BaseException:
                os.close(fd)
                raise

    def scan(self) -> Iterator[tuple[Node, str]]:
        """Every object's node and identity, by name only: nothing is opened."""
        for folder in sorted(self._folders()):
            if (split := _split_of(folder)) is None:
                continue
            for entry in sorted(os.listdir(self.root / folder)):  # noqa: PTH208 - names, not paths
                if (parsed := _parse_file(split, entry)) is not None:
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
        name = object_name(node, identity)
        with _as_damage(name):
            fd = _open_again(f"{self.root}/{name}")
            try:
                yield fd
            finally:
                os.close(fd)

    @staticmethod
    def _header(fd: int, node: Node, identity: str) -> Header:
        header = read_header(fd, object_name(node, identity))
        _check_identity(header, node, identity)
        return header


@contextlib.contextmanager
def _as_damage(name: str) -> Iterator[None]:
    """An object that is not there, or cannot be had back from the disk, is a damaged one."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_FILE:
            raise DamagedError(f"{name}: cannot be read ({error.strerror})", name=name) from error
        raise


def _open_again(path: str) -> int:
    # Not blocking: in the place of an object there may be a pipe that nobody writes to.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        return os.open(path, flags)
    except FileNotFoundError:
        # A network file system remembers for a while what was not there; opening the folder asks anew.
        os.close(os.open(path.rpartition("/")[0], os.O_RDONLY | os.O_DIRECTORY))
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
    return os.open(path, flags)


def _check_identity(header: Header, node: Node, identity: str) -> None:
    about = header.about
    if about.get("id") != identity or about.get("node") != list(node):
        name = object_name(node, identity)
        raise DamagedError(f"{name}: holds another object ({about.get('id')})", name=name)


def _check_owner(fd: int, header: Header, path: str) -> None:
    """Refuse an object with code in it that somebody else has put there; numbers may be anybody's."""
    if not any(name.startswith(BLOB) for name, _ in header.sections):
        return
    owner = os.fstat(fd).st_uid
    if owner not in (0, os.geteuid()):
        raise UsageError(
            f"{path} belongs to another user (id {owner}), and reading it would run code that it holds. In a "
            "run of yours: remove it, and the same command makes it anew",
            path=path,
        )


def check_bytes(data: bytes, node: Node, identity: str) -> Stamp:
    """The stamp of an object that came as bytes, every byte of it verified."""
    fd = os.memfd_create("object")
    try:
        _write_all(fd, data)
        name = object_name(node, identity)
        header = read_header(fd, name)
        _check_identity(header, node, identity)
        _verify(fd, header, name)
        return header.stamp
    finally:
        os.close(fd)
