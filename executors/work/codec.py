"""How a block of bytes is kept: numbers narrowed where that loses no bit, then compressed where that pays.

Counts, and sums of counts, fill eight bytes with what one or two can hold. Narrowed, they are read many
times faster than any general codec unpacks them, and are smaller. Nothing here knows of files or objects.
"""

from __future__ import annotations

import struct
import sys
from typing import TYPE_CHECKING, Any, TypeAlias

import lz4.block
import numpy as np

from executors.errors import DamagedError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes: TypeAlias = NDArray[np.uint8]
    Array: TypeAlias = NDArray[Any]

LEVEL = 1
TINY = 256  # bytes that no codec makes smaller

PLAIN, LZ4, ZSTD = 0, 1, 2
SPARSE = 128  # only the words that are not zero, and where they are
FEW = 8  # one word in so many, at most
# What words of eight bytes may be written as; the place in the table is part of the format.
NARROW: tuple[tuple[str, str] | None, ...] = (
    None,
    ("<f8", "|u1"),
    ("<f8", "<u2"),
    ("<f8", "<f4"),
    ("<i8", "|u1"),
    ("<i8", "<u2"),
    ("<i8", "<i4"),
)
_GAPS = ("|u1", "<u2", "<u4")
_WHERE = struct.Struct("<IB")  # how many words, and the type of the gaps between them
_TRIED = tuple((number, pair) for number, pair in enumerate(NARROW) if pair is not None)
_SAMPLE = 512  # words looked at before a whole block is tried

# LZ4 unpacks three to five times as fast as zstd; zstd must be worth that.
_ZSTD_PAYS = 0.75
_PACKING_PAYS = 0.9


def encode(raw: memoryview) -> tuple[int, bytes | memoryview]:
    """The form in which a block is kept, and its bytes in that form."""
    sparse = _sparse(raw)
    number, body = (
        (0, raw) if len(raw) % 8 or len(raw) <= TINY else _narrowed(raw if sparse is None else sparse[1])
    )
    if sparse is not None:
        body = memoryview(sparse[0] + bytes(body))
    codec, packed = _compressed(body, small=sparse is not None or number != 0)
    return (SPARSE if sparse is not None else 0) | codec << 4 | number, packed


def decode(form: int, stored: bytes | memoryview, scratch: Bytes, adding: str = "") -> Array:
    """The block again, as many bytes as ``scratch`` has: in ``scratch``, or in memory of its own.

    ``adding`` names the type of words to which they are only to be added: then they may be of a smaller one.
    """
    number, codec = form & 15, form >> 4 & 7
    if number >= len(NARROW) or codec > ZSTD:
        raise DamagedError(f"a block is kept in a form that is not known here ({form})")
    pair = NARROW[number]
    try:
        if form & SPARSE:
            return _spread(_unpacked(codec, stored, len(scratch)), pair, scratch)
        size = len(scratch) if pair is None else len(scratch) // 8 * np.dtype(pair[1]).itemsize
        body = np.frombuffer(_unpacked(codec, stored, size), np.uint8)
        if len(body) != size:
            raise DamagedError("a block does not have as many bytes as were written")
        if pair is None:
            return body
        if pair[0] == adding:
            return body.view(pair[1])
        scratch.view(pair[0])[:] = body.view(pair[1])
    except (lz4.block.LZ4BlockError, zstd.ZstdError, struct.error, ValueError, IndexError) as error:
        raise DamagedError(f"a block cannot be unpacked: {error}") from error
    return scratch


def _sparse(raw: memoryview) -> tuple[bytes, memoryview] | None:
    """Where a block's few words are that are not zero, and these words; None where they are not few."""
    if len(raw) % 8 or len(raw) <= TINY:
        return None
    words = np.frombuffer(raw, "<i8")
    few = len(words) // FEW
    sample = words[:: max(1, len(words) // _SAMPLE)]
    if np.count_nonzero(sample) > 2 * len(sample) // FEW or np.count_nonzero(words) > few:
        return None
    places = np.flatnonzero(words)
    gaps = np.diff(places, prepend=0)
    kind = next(number for number, name in enumerate(_GAPS) if gaps.max(initial=0) <= np.iinfo(name).max)
    return _WHERE.pack(len(places), kind) + gaps.astype(_GAPS[kind]).tobytes(), _bytes(words[places])


def _spread(body: bytes, pair: tuple[str, str] | None, scratch: Bytes) -> Bytes:
    """The inverse of ``_sparse``, in ``scratch``."""
    wide, small = pair if pair is not None else ("<i8", "<i8")
    count, kind = _WHERE.unpack_from(body)
    gaps = np.frombuffer(body, _GAPS[kind], count, _WHERE.size)
    values = np.frombuffer(body, small, count, _WHERE.size + gaps.nbytes)
    scratch.fill(0)
    scratch.view(wide)[np.cumsum(gaps, dtype=np.int64)] = values
    return scratch


def _narrowed(raw: memoryview) -> tuple[int, memoryview]:
    for number, (wide, small) in _TRIED:
        words = np.frombuffer(raw, wide)
        sample = words[:: max(1, len(words) // _SAMPLE)]
        if _cast(sample, small) is not None and (found := _cast(words, small)) is not None:
            return number, _bytes(found)
    return 0, raw


def _bytes(array: Array) -> memoryview:
    return array.view(np.uint8).data


def _cast(words: Array, small: str) -> Array | None:
    """The words in a smaller type, if not one bit is lost (of zeros' signs and NaNs neither)."""
    with np.errstate(all="ignore"):
        found = words.astype(small)
        same = found.astype(words.dtype).view("<i8") == words.view("<i8")
    return found if bool(same.all()) else None


def _compressed(body: memoryview, *, small: bool) -> tuple[int, bytes | memoryview]:
    if len(body) <= TINY:
        return PLAIN, body
    quick = lz4.block.compress(body, store_size=False)
    if len(quick) > _PACKING_PAYS * len(body) and not small and not _worth(body):
        return PLAIN, body
    best = zstd.compress(body, LEVEL)
    if len(best) < _ZSTD_PAYS * min(len(quick), len(body)):
        return ZSTD, best
    return (LZ4, quick) if len(quick) < _PACKING_PAYS * len(body) else (PLAIN, body)


def _worth(body: memoryview) -> bool:
    """Whether zstd makes something of a sample of what LZ4 could not pack."""
    middle = len(body) // 2
    sample = body[middle : middle + (16 << 10)]
    return len(zstd.compress(sample, LEVEL)) < _ZSTD_PAYS * len(sample)


def _unpacked(codec: int, stored: bytes | memoryview, most: int) -> Any:
    if codec == LZ4:
        return lz4.block.decompress(stored, uncompressed_size=most)
    return zstd.decompress(stored) if codec == ZSTD else stored
