"""The merge: stored sums added along the tree, on a worker, into one stored sum.

Where all have the same structure and only add, they are added block by block (see ``flat``), and the sum goes
to the disk as it is made: no output is ever whole in memory. Otherwise they are added in pairs, depth first.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from executors.errors import AnalysisError, DamagedError, ExecutorsError
from executors.work.coverage import halves, is_leaf, leaves, stored
from executors.work.flat import Flat, UnlikeError
from executors.work.model import Node, Part, Receipt
from executors.work.packed import Packed
from executors.work.store import DamagedPartError, frame, read_header, read_section

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from executors.work.coverage import Shape
    from executors.work.model import Analysis
    from executors.work.store import Stamp, Store
    from executors.work.worker import Place

LARGE = 8 << 20  # bytes of a sum that is worth the way to the disk and back

Combine: TypeAlias = "Callable[[Packed, Packed], Packed]"


@dataclass(frozen=True, slots=True)
class MergeTask:
    """One merge: the shape says what is added to what; the sum is stored as ``node``."""

    id: str
    node: Node
    shape: Shape


def merge(task: MergeTask, analysis: Analysis, place: Place) -> Receipt:
    """Do one merge and store the sum; a damaged part is named in the receipt instead."""
    began, cpu = time.monotonic(), time.process_time()
    parts: tuple[Part, ...] = ()
    extra: dict[str, Any] = {}
    try:
        stamp, entries = _store_sum(task, place.store, analysis.combine)
        parts = (Part(task.node, task.id, stamp.digest, entries, stamp.size),)
    except DamagedPartError as error:
        # Found one, all are looked for: or each costs the sum of all the others once more.
        others = (other for other in damaged_parts(task.shape, place.store) if other.node != error.node)
        extra = {"damaged": tuple((e.node, e.identity, str(e)) for e in (error, *others))}
    except OSError as error:
        extra = {"put_error": (error.errno, f"{error.strerror}: {error.filename or place.run}")}
    except (ExecutorsError, MemoryError):
        raise
    except Exception as error:
        # The worker's edge: classes of the user's own are added here.
        raise AnalysisError(f"results cannot be added: {type(error).__name__}: {error}") from error
    return Receipt(
        task=task.id,
        parts=parts,
        failures=(),
        chunks=(),
        host=socket.gethostname(),
        pid=os.getpid(),
        seconds=time.monotonic() - began,
        cpu=time.process_time() - cpu,
        extra=extra,
    )


def _store_sum(task: MergeTask, store: Store, combine: Combine) -> tuple[Stamp, int]:
    if not is_leaf(task.shape):
        with contextlib.suppress(UnlikeError, OverflowError), Flat(task.shape, store) as flat:
            blocks = flat.blocks()
            stamp = store.put_blocks(
                task.node, task.id, flat.layout, flat.skeleton, blocks, lambda: {"entries": flat.entries}
            )
            return stamp, flat.entries
    packed, entries = total(task.shape, store, combine)
    return store.put(task.node, task.id, {"entries": entries}, packed.sections()), entries


def load(store: Store, node: Node, identity: str) -> tuple[Packed, int]:
    """A stored sum and its number of events, every byte verified."""
    try:
        header, sections = store.get(node, identity)
        return Packed.from_sections(sections), int(header.about["entries"])
    except (DamagedError, KeyError, ValueError) as error:
        raise DamagedPartError(str(error), node, identity) from error


def damaged_parts(shape: Shape, store: Store) -> Iterator[DamagedPartError]:
    """The stored sums of a shape that do not match their checksums."""
    for node, identity in leaves(shape):
        try:
            load(store, node, identity)
        except DamagedPartError as error:
            yield error


def total(shape: Shape, store: Store, combine: Combine) -> tuple[Packed, int]:
    """The sum of a shape and its number of events; the same bits whichever way it is made."""
    if shape is None:
        raise ValueError("nothing to add")
    if is_leaf(shape):
        return load(store, *stored(shape))
    with contextlib.suppress(UnlikeError, OverflowError), Flat(shape, store) as flat:
        return flat.whole(), flat.entries
    return _paired_total(shape, store, combine)


def _paired_total(shape: Shape, store: Store, combine: Combine) -> tuple[Packed, int]:
    if is_leaf(shape):
        return load(store, *stored(shape))
    left, right = halves(shape)
    one, events = _paired_total(left, store, combine)
    parked = None if is_leaf(right) else _park(one, store)
    if parked is not None:
        del one
    two, more = _paired_total(right, store, combine)
    return combine(one if parked is None else parked(), two), events + more


def _park(packed: Packed, store: Store) -> Callable[[], Packed] | None:
    """Put a large sum aside on disk while others are made: no more than three are ever held at once."""
    if packed.nbytes < LARGE:
        return None
    pieces, _ = frame({}, packed.sections())
    file = tempfile.TemporaryFile(dir=store.root)  # noqa: SIM115 - closed when it is read back
    for piece in pieces:
        file.write(piece)
    file.flush()

    def fetch() -> Packed:
        with file:
            header = read_header(file.fileno(), "a parked sum")
            sections = {n: read_section(file.fileno(), blocks, n) for n, blocks in header.sections}
            return Packed.from_sections(sections)

    return fetch


__all__ = ["DamagedPartError", "MergeTask", "load", "merge", "total"]
