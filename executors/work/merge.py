"""The merge: stored sums added along the tree, on a worker, into one stored sum.

Where all have the same structure and only add, they are added block by block through a small buffer:
memory does not grow with their number. Otherwise they are added in pairs, depth first.
"""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from executors.errors import DamagedError
from executors.work.coverage import is_leaf, leaves
from executors.work.model import Node, Part, Receipt
from executors.work.packed import Packed

if TYPE_CHECKING:
    from collections.abc import Callable

    from executors.work.coverage import Shape
    from executors.work.model import Analysis
    from executors.work.store import Store
    from executors.work.worker import Place

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
        packed, entries = total(task.shape, place.store, analysis.combine)
        stamp = place.store.put(task.node, task.id, {"entries": entries}, packed.sections())
        parts = (Part(task.node, task.id, stamp.digest, entries, stamp.size),)
    except DamagedPartError as error:
        extra = {"damaged": (error.node, error.identity, str(error))}
    except OSError as error:
        extra = {"put_error": (error.errno, f"{error.strerror}: {error.filename or place.run}")}
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


class DamagedPartError(DamagedError):
    """A stored node that does not match its checksums, by its node and identity."""

    def __init__(self, message: str, node: Node, identity: str) -> None:
        super().__init__(message, node=node, identity=identity)
        self.node, self.identity = node, identity


def load(store: Store, node: Node, identity: str) -> tuple[Packed, int]:
    """A stored sum and its number of events, every byte verified."""
    try:
        header, sections = store.get(node, identity)
        return Packed.from_sections(sections), int(header.about["entries"])
    except (DamagedError, KeyError, ValueError) as error:
        raise DamagedPartError(str(error), node, identity) from error


def total(shape: Shape, store: Store, combine: Combine) -> tuple[Packed, int]:
    """The sum of a shape and its number of events."""
    if shape is None:
        raise ValueError("nothing to add")
    if is_leaf(shape):
        return load(store, *shape)  # type: ignore[arg-type]
    left, right = shape
    one, events = total(left, store, combine)  # type: ignore[arg-type]
    two, more = total(right, store, combine)
    return combine(one, two), events + more


def entries_of(shape: Shape, store: Store) -> int:
    """The number of events of a shape, by the objects' own headers."""
    return sum(int(store.head(node, identity).about["entries"]) for node, identity in leaves(shape))
