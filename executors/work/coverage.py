"""What of the tree is done: the stored nodes, each chunk below at most one of them."""

from __future__ import annotations

import bisect
import contextlib
import gc
from typing import TYPE_CHECKING, TypeAlias, cast

from executors.work import tree as arithmetic

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from executors.work.layout import Tree
    from executors.work.model import Node
    from executors.work.plan import Cut

Shape: TypeAlias = "tuple[Node, str] | tuple[Shape, Shape] | None"
"""How stored nodes add up: a stored node with its identity, a pair of shapes, or nothing."""


class Coverage:
    """The stored nodes of a tree and what follows from them: what is missing, what can be merged."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.stored: dict[Node, str] = {}
        self._chunks: dict[Node, int] = {}  # done chunks below each node above (or at) a stored one
        self._pieces: dict[Node, int] = {}  # stored nodes below each such node
        self._size: dict[Node, int] = {}
        self._last: list[Node] = []  # the path asked for last: the next one mostly begins like it

    def size(self, node: Node) -> int:
        """How many chunks lie below a node."""
        found = self._size.get(node)
        if found is None:
            found = self._size[node] = self.tree.size(node)
        return found

    def path(self, node: Node) -> list[Node]:
        """The nodes from the root down to ``node``; empty if it is no node of this tree."""
        known = len(self._last)
        while known and not arithmetic.contains(self._last[known - 1], node):
            known -= 1
        start = self._last[known - 1] if known else self.tree.root
        if start is None:
            return []
        found = [*self._last[: known - 1 if known else 0], *arithmetic.path_to(start, node, self.tree)]
        if not found or found[-1] != node:
            return []
        self._last = found
        return found

    def add(self, node: Node, identity: str) -> bool:
        """Count a stored node, unless any chunk below it is counted already; whether it was counted."""
        path = self.path(node)
        if not path or self._chunks.get(node) or any(above in self.stored for above in path):
            return False
        self._count(path, self.size(node), 1)
        self.stored[node] = identity
        return True

    def recover(self, found: Iterable[tuple[Node, str]]) -> list[tuple[Node, str]]:
        """Count all that was found stored, in one walk; what of it does not count.

        That is what is no node of this tree, or under another identity, or lies below a larger one. Nothing
        may have been counted before.
        """
        with _no_collecting():
            return self._recover([(_order(node), node, identity) for node, identity in found])

    def _recover(self, rows: list[tuple[tuple[int, ...], Node, str]]) -> list[tuple[Node, str]]:
        rows.sort()
        keys = [row[0] for row in rows]
        rejected: list[tuple[Node, str]] = []

        def walk(node: Node, lo: int, hi: int) -> tuple[int, int]:
            """Count rows [lo, hi), which begin within the node; chunks and stored nodes below it."""
            own = _order(node)
            # What begins here and would be before the node is no part of this tree.
            while lo < hi and keys[lo] <= own:
                found, identity = rows[lo][1:]
                lo += 1
                if found == node and self.tree.id(node) == identity:
                    self.stored[node] = identity
                    rejected.extend(row[1:] for row in rows[lo:hi])
                    return self._set(node, self.size(node), 1)
                rejected.append((found, identity))
            kids = self.tree.children(node) if lo < hi else ()
            if not kids:
                rejected.extend(row[1:] for row in rows[lo:hi])
                return 0, 0
            middle = bisect.bisect_left(keys, _order(kids[1])[:3], lo, hi)
            (some, few), (more, others) = walk(kids[0], lo, middle), walk(kids[1], middle, hi)
            return self._set(node, some + more, few + others)

        root = self.tree.root
        if root is None:
            return [row[1:] for row in rows]
        walk(root, 0, len(rows))
        return rejected

    def _set(self, node: Node, chunks: int, pieces: int) -> tuple[int, int]:
        if pieces:
            self._chunks[node], self._pieces[node] = chunks, pieces
        return chunks, pieces

    def whole(self, node: Node | None = None) -> Iterator[Node]:
        """The largest nodes of which every chunk is done, in order: together, all that is done."""
        at = node or self.tree.root
        if at is None or not self._chunks.get(at):
            return
        if self._chunks[at] == self.size(at):
            yield at
            return
        for kid in self.tree.children(at):
            yield from self.whole(kid)

    def remove(self, node: Node) -> None:
        """Forget a stored node: its chunks are to be done again."""
        del self.stored[node]
        self._count(self.path(node), -self.size(node), -1)

    def replace(self, node: Node, identity: str) -> list[tuple[Node, str]]:
        """Put a merged node in the place of those below it; what it replaced."""
        below = [(n, i) for n, i in self.leaves(self.shape(node)) if n != node]
        for piece, _ in below:
            self.remove(piece)
        self.add(node, identity)
        return below

    def _count(self, path: list[Node], chunks: int, pieces: int) -> None:
        for node in path:
            self._chunks[node] = self._chunks.get(node, 0) + chunks
            self._pieces[node] = self._pieces.get(node, 0) + pieces
            if not self._pieces[node]:
                del self._pieces[node], self._chunks[node]

    def done(self, node: Node) -> int:
        """How many chunks below a node are done."""
        if node in self._chunks:
            return self._chunks[node]
        return self.size(node) if any(above in self.stored for above in self.path(node)) else 0

    def pieces(self, node: Node) -> int:
        """How many stored nodes lie below (or at) a node."""
        return self._pieces.get(node, 0)

    def complete(self, node: Node) -> bool:
        """Whether all below a node is done, and all that is planned there is known."""
        return self.done(node) == self.size(node) and not self.tree.unknown(node)

    def highest_complete(self, node: Node, *, within_split: bool = False) -> Node | None:
        """The highest complete node above (or at) a stored one."""
        path = (above for above in self.path(node) if above.first >= 0 or not within_split)
        return next((above for above in path if self.complete(above)), None)

    def missing(self, node: Node) -> Iterator[Node]:
        """The largest nodes below ``node`` of which nothing is done, in order."""
        if node in self.stored or not (self.size(node) or self._uncut(node)):
            return
        done = self._chunks.get(node)
        if not done:
            yield node
            return
        if done == self.size(node) and not self._uncut(node):
            return  # not down to each of a hundred thousand that are done
        for kid in self.tree.children(node):
            yield from self.missing(kid)

    def _uncut(self, node: Node) -> bool:
        return next(self.tree.uncut(node), None) is not None

    def cut(self, split: int, file: int, cuts: tuple[Cut, ...]) -> Node:
        """Fix more ranges of a file; its node, which is another one now."""
        old = self.tree.file_node(split, file)
        above = self.path(old)[:-1]
        inside = list(leaves(self.shape(old)))
        for node, _ in inside:
            self.remove(node)
        self.tree.cut(split, file, cuts)
        new = self.tree.file_node(split, file)
        for node in above:
            if node in self._size:
                self._size[node] += new.hi - old.hi
        self._size.pop(old, None)
        self._last = []
        for node, identity in inside:
            self.add(node, identity)
        return new

    def shape(self, node: Node) -> Shape:
        """How the stored nodes below a node add up."""
        identity = self.stored.get(node)
        if identity is not None:
            return node, identity
        if not self._chunks.get(node):
            return None
        left, right = (self.shape(kid) for kid in self.tree.children(node))
        return (left, right) if left is not None and right is not None else left or right

    def leaves(self, shape: Shape) -> Iterator[tuple[Node, str]]:
        """The stored nodes of a shape, in order."""
        yield from leaves(shape)


@contextlib.contextmanager
def _no_collecting() -> Iterator[None]:
    """Without the garbage collector, which would look at a hundred thousand new tuples again and again."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _order(node: Node) -> tuple[int, ...]:
    """The place of a node's first chunk, and the larger of two that begin there before the smaller."""
    level = 0 if node.first < 0 else 1 if node.hi < 0 else 2
    return node.split, max(node.first, 0), node.lo, level, -node.last, -node.hi


def leaves(shape: Shape) -> Iterator[tuple[Node, str]]:
    """The stored nodes of a shape, in order."""
    if shape is None:
        return
    if is_leaf(shape):
        yield stored(shape)
        return
    for half in halves(shape):
        yield from leaves(half)


def is_leaf(shape: Shape) -> bool:
    """Whether a shape is one stored node."""
    return shape is not None and isinstance(shape[1], str)


def halves(shape: Shape) -> tuple[Shape, Shape]:
    """The two sides of a sum."""
    return cast("tuple[Shape, Shape]", shape)


def stored(shape: Shape) -> tuple[Node, str]:
    """The stored node that a leaf is."""
    return cast("tuple[Node, str]", shape)


def uncovered(node: Node, covered: Iterable[Node], tree: arithmetic.Counts) -> Iterator[Node]:
    """The largest nodes below ``node`` that hold nothing of ``covered``, in order."""
    inside = [c for c in covered if arithmetic.contains(node, c)]
    if not inside:
        yield node
    elif node not in inside:
        for kid in arithmetic.children(node, tree):
            # What covers a kid from above would contain the node, and then nothing is left of it.
            yield from uncovered(kid, inside, tree)
