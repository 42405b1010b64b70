"""The fixed tree over the plan: which node has which children, and what identifies a node.

Pure arithmetic. Because every sum is made along this one tree, the answer does not depend on which
worker did what, in which order, in tasks of which size.
"""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING, Protocol

from executors.work.model import Node

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from executors.work.model import FileSlice, Range


def middle(lo: int, hi: int) -> int:
    """Where ``[lo, hi)`` is cut: after the largest power of two smaller than its length."""
    return lo + (1 << ((hi - lo - 1).bit_length() - 1))


class Counts(Protocol):
    """How many files a split has, and how many chunks a file has."""

    def files(self, split: int) -> int:
        """Number of files of a split."""

    def chunks(self, split: int, file: int) -> int:
        """Number of chunks of a file; 0 for an empty one."""


def file_node(split: int, file: int, chunks: int) -> Node:
    """The node of one whole file."""
    return Node(split, file, file + 1, 0, chunks)


def split_node(split: int, counts: Counts) -> Node:
    """The node of one whole split."""
    return _files(split, 0, counts.files(split), counts)


def plan_node(lo: int, hi: int, counts: Counts) -> Node:
    """The node of splits ``[lo, hi)``: one split is just that split's node."""
    return split_node(lo, counts) if hi - lo == 1 else Node(lo, -1, hi, 0, -1)


def _files(split: int, first: int, last: int, counts: Counts) -> Node:
    if last - first == 1:
        return file_node(split, first, counts.chunks(split, first))
    return Node(split, first, last, 0, -1)


def children(node: Node, counts: Counts) -> tuple[Node, ...]:
    """The two halves of a node, or nothing for one chunk (or for an empty file)."""
    if node.first < 0:
        mid = middle(node.split, node.last)
        return plan_node(node.split, mid, counts), plan_node(mid, node.last, counts)
    if node.hi < 0:
        if node.last - node.first < 1:
            return ()
        mid = middle(node.first, node.last)
        return _files(node.split, node.first, mid, counts), _files(node.split, mid, node.last, counts)
    if node.hi - node.lo < 2:
        return ()
    mid = middle(node.lo, node.hi)
    split, first, last, lo, hi = node
    return Node(split, first, last, lo, mid), Node(split, first, last, mid, hi)


def splits_of(node: Node) -> range:
    """The splits a node reaches over."""
    return range(node.split, node.last) if node.first < 0 else range(node.split, node.split + 1)


def contains(outer: Node, inner: Node) -> bool:
    """Whether ``inner`` is ``outer`` or lies below it."""
    if outer.first < 0:
        return outer.split <= inner.split and splits_of(inner).stop <= outer.last
    if inner.first < 0 or inner.split != outer.split:
        return False
    if outer.hi < 0:
        return outer.first <= inner.first and inner.last <= outer.last
    return inner.hi >= 0 and inner.first == outer.first and outer.lo <= inner.lo and inner.hi <= outer.hi


def path_to(root: Node, target: Node, counts: Counts) -> Iterator[Node]:
    """The nodes from ``root`` down to ``target``, both included; nothing if it is not below."""
    node = root
    while contains(node, target):
        yield node
        if node == target:
            return
        below = next((kid for kid in children(node, counts) if contains(kid, target)), None)
        if below is None:
            return  # a range that is no node of this tree
        node = below


def node_id(parts: Iterable[tuple[str, Sequence[Range]]]) -> str:
    """The identity of a node: a hash over the keys of its files and the entry ranges taken of each."""
    digest = hashlib.blake2b(digest_size=20)
    for key, ranges in parts:
        digest.update(key.encode())
        digest.update(struct.pack("<q", len(ranges)))
        for start, stop in ranges:
            digest.update(struct.pack("<qq", start, stop))
    return digest.hexdigest()


def slices_of(node: Node, slices: Collection[FileSlice]) -> Iterator[tuple[FileSlice, int, int]]:
    """Of a task's slices those below a node, each with the chunks ``[lo, hi)`` (as the file counts them)."""
    for piece in slices:
        if node.hi >= 0:
            if piece.index == node.first:
                yield piece, node.lo, node.hi
        elif node.first <= piece.index < node.last:
            yield piece, piece.lo, piece.lo + len(piece.ranges)


def id_within(node: Node, slices: Collection[FileSlice]) -> str:
    """The identity of a node below a task, from what the task carries."""
    return node_id(
        (piece.key, piece.ranges[lo - piece.lo : hi - piece.lo])
        for piece, lo, hi in slices_of(node, slices)
        if hi > lo
    )
