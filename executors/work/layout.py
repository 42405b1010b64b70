"""The plan laid out as a tree: what each node holds, how much of it, and what identifies it.

The arithmetic of nodes is in ``tree``; here are the files and events below them.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING

from executors.work import tree
from executors.work.model import FileSlice, Node, Task

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from executors.work.plan import Cut, Plan, PlannedFile

WHOLE, UNCOUNTED, UNCUT = range(3)  # what is known of a file: all; not even its entries; not all its ranges


def _state(file: PlannedFile) -> int:
    if file.entries is None:
        return UNCOUNTED
    return UNCUT if file.open else WHOLE


class Tree:
    """The plan as a tree: what each node holds, how much, and what identifies it.

    Where sizes follow the memory, a file's ranges are fixed one after the other while the run goes on.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.splits = plan.splits()
        self._counts = [[f.chunks(plan.chunk) for f in s.files] for s in self.splits]
        self._states = [bytearray(_state(f) for f in s.files) for s in self.splits]
        self._any_open = sum(len(row) - row.count(WHOLE) for row in self._states)
        self._cut: dict[tuple[int, int], PlannedFile] = {}  # files as they are cut now
        self._keys: dict[tuple[int, int], str] = {}
        self._heads: dict[int, bytes] = {}

    def planned(self) -> Plan:
        """The plan with all ranges that have been fixed by now."""
        cut: dict[tuple[int, int], PlannedFile] = {}
        for (number, file), planned in self._cut.items():
            split = self.splits[number]
            cut[split.dataset, split.first + file] = planned
        return self.plan.with_counts(cut) if cut else self.plan

    def cut(self, split: int, file: int, cuts: tuple[Cut, ...]) -> None:
        """Fix more ranges of a file; what was fixed stays as it is."""
        now = replace(self.file(split, file), cuts=cuts)
        self._cut[split, file] = now
        self._counts[split][file] = now.chunks(self.plan.chunk)
        was, state = self._states[split][file], _state(now)
        self._states[split][file] = state
        self._any_open -= was != WHOLE and state == WHOLE

    @property
    def root(self) -> Node | None:
        """The node of the whole plan, or None where nothing is planned."""
        return tree.plan_node(0, len(self.splits), self) if self.splits else None

    def files(self, split: int) -> int:
        """Number of files of a split."""
        return len(self._counts[split])

    def chunks(self, split: int, file: int) -> int:
        """Number of chunks of a file of a split."""
        return self._counts[split][file]

    def split_root(self, split: int) -> Node:
        """The node of one split."""
        return tree.split_node(split, self)

    def file_node(self, split: int, file: int) -> Node:
        """The node of one file."""
        return tree.file_node(split, file, self._counts[split][file])

    def children(self, node: Node) -> tuple[Node, ...]:
        """The two halves of a node, or nothing for a chunk."""
        return tree.children(node, self)

    def file(self, split: int, file: int) -> PlannedFile:
        """A file by its place, as it is cut now."""
        return self._cut.get((split, file)) or self.splits[split].files[file]

    def pieces(self, node: Node) -> Iterator[tuple[int, int, int, int]]:
        """``(split, file, lo, hi)`` for each file below a node that has chunks there."""
        if node.hi >= 0:
            if node.hi > node.lo:
                yield node.split, node.first, node.lo, node.hi
            return
        for split in tree.splits_of(node):
            counts = self._counts[split]
            files = range(len(counts)) if node.first < 0 else range(node.first, node.last)
            yield from ((split, file, 0, counts[file]) for file in files if counts[file])

    def size(self, node: Node) -> int:
        """How many chunks lie below a node."""
        if node.hi >= 0:
            return node.hi - node.lo
        if node.first >= 0:
            return sum(self._counts[node.split][node.first : node.last])
        return sum(sum(self._counts[split]) for split in tree.splits_of(node))

    def events(self, node: Node) -> int:
        """How many events lie in the chunks below a node."""
        total = 0
        for split, file, lo, hi in self.pieces(node):
            planned = self.file(split, file)
            if lo == 0 and hi == self._counts[split][file] and not planned.open:
                total += planned.events(self.plan.chunk)
            else:
                total += sum(stop - start for start, stop in planned.some_ranges(self.plan.chunk, lo, hi))
        return total

    def unknown(self, node: Node) -> bool:
        """Whether it is still to be found out what lies below a node: files not counted, or not cut yet."""
        return bool(self._any_open) and any(any(states) for states in self._below(node))

    def uncut(self, node: Node) -> Iterator[tuple[int, int]]:
        """``(split, file)`` of the files below a node that have events of which no range is fixed yet."""
        if not self._any_open:
            return
        for split in tree.splits_of(node):
            states = self._states[split]
            first, last = (0, len(states)) if node.first < 0 else (node.first, node.last)
            found = states.find(UNCUT, first, last)
            while found >= 0:
                yield split, found
                found = states.find(UNCUT, found + 1, last)

    def _below(self, node: Node) -> Iterator[bytearray]:
        for split in tree.splits_of(node):
            states = self._states[split]
            yield states if node.first < 0 else states[node.first : node.last]

    def key(self, split: int, file: int) -> str:
        """The hash of all that identifies a file's events in this analysis."""
        found = self._keys.get((split, file))
        if found is None:
            planned = self.file(split, file)
            own = json.dumps(
                [planned.path, planned.uuid, planned.treename, planned.entries], ensure_ascii=False
            )
            found = hashlib.blake2b(
                self._head(split) + own.encode("utf-8", "surrogatepass"), digest_size=16
            ).hexdigest()
            self._keys[split, file] = found
        return found

    def _head(self, split: int) -> bytes:
        position = self.splits[split].dataset
        if position not in self._heads:
            dataset = self.plan.datasets[position]
            text = json.dumps(
                [self.plan.fingerprint, dataset.name, dataset.metadata], sort_keys=True, ensure_ascii=False
            )
            self._heads[position] = text.encode("utf-8", "surrogatepass")
        return self._heads[position]

    def id(self, node: Node) -> str:
        """The identity of a node: of the analysis, the files and the ranges below it."""
        return tree.node_id(
            (self.key(split, file), self.file(split, file).some_ranges(self.plan.chunk, lo, hi))
            for split, file, lo, hi in self.pieces(node)
        )

    def task(self, node: Node, parts: int = 1, urls: Mapping[str, str] | None = None) -> Task:
        """The task of a node below one split, as it travels to a worker; ``urls``: what is read elsewhere."""
        split = self.splits[node.split]
        slices = tuple(
            replace(self._slice(node.split, file, lo, hi), parts=parts)
            for _, file, lo, hi in self.pieces(node)
        )
        if urls:
            slices = tuple(replace(piece, url=urls.get(piece.path, "")) for piece in slices)
        return Task(tree.id_within(node, slices), node, self.plan.datasets[split.dataset].name, slices)

    def _slice(self, split: int, file: int, lo: int, hi: int) -> FileSlice:
        planned = self.file(split, file)
        return FileSlice(
            index=file,
            path=planned.path,
            treename=planned.treename or "",
            uuid=planned.uuid or "",
            entries=planned.entries or 0,
            lo=lo,
            ranges=planned.some_ranges(self.plan.chunk, lo, hi),
            key=self.key(split, file),
        )
