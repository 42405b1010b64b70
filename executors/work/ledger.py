"""The ledger: which events are counted, which are given up and why, and what it all took."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

from executors.work import tree as arithmetic
from executors.work.model import Failure, Kind, Node, Receipt, Task
from executors.work.policy import History
from executors.work.report import DatasetCount, Snapshot
from executors.work.sizing import FEW

if TYPE_CHECKING:
    from executors.work.layout import Tree


class Ledger:
    """The running account of one plan, by dataset."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.began = time.monotonic()
        datasets = tree.plan.datasets
        chunk = tree.plan.chunk
        self._dataset = [split.dataset for split in tree.splits]
        self._planned = [sum(f.events(chunk) for f in d.files) for d in datasets]
        self._chunks = [sum(f.chunks(chunk) for f in d.files) for d in datasets]
        self._uncut = sum(f.whole - f.fixed for d in datasets for f in d.files)  # events
        self._events_done = [0] * len(datasets)
        self._chunks_done = [0] * len(datasets)
        self._failures = [0] * len(datasets)
        self.lost: dict[Node, Failure] = {}  # chunks given up
        self._histories: dict[Node, History] = {}
        self._special: set[Node] = set()  # what has such a chunk below it
        self._unknown = [Counter(f"{f.error}" for f in d.files if f.entries is None) for d in datasets]
        self.peak: list[int] = [0] * len(datasets)
        self.peak_at: list[Node | None] = [None] * len(datasets)  # the chunk that needed so much
        self.bytes_read = 0
        self.cpu = 0.0
        self.resumed_events = 0
        self._told = 0.0
        self._recent: list[tuple[float, int]] = []

    @property
    def events_planned(self) -> int:
        """Events in the plan, as far as they are known."""
        return sum(self._planned)

    @property
    def events_counted(self) -> int:
        """Events in stored sums."""
        return sum(self._events_done)

    @property
    def chunks_planned(self) -> int:
        """Chunks in the plan."""
        return sum(self._chunks)

    @property
    def chunks_done(self) -> int:
        """Chunks in stored sums."""
        return sum(self._chunks_done)

    def cut(self, dataset: int, chunks: int, events: int) -> None:
        """So many more chunks are fixed, of so many events."""
        self._chunks[dataset] += chunks
        self._uncut -= events

    @property
    def uncut(self) -> int:
        """Events that are not in any chunk yet."""
        return self._uncut

    def chunks_left(self) -> int:
        """Chunks still to be done; where they are not cut yet, rather too many than too few."""
        planned = self.chunks_planned
        left = planned - self.chunks_done
        if not self._uncut:
            return left
        mean = (self.events_planned - self._uncut) // planned if planned else FEW
        return left + -(-self._uncut // max(1, min(mean, FEW)))

    @property
    def complete(self) -> bool:
        """Whether all is known and counted."""
        return self.events_counted == self.events_planned and not self.unknown_files()

    def unknown_files(self) -> int:
        """How many files nobody could count."""
        return sum(errors.total() for errors in self._unknown)

    def counted(self, node: Node, sign: int) -> None:
        """A node's sum has been stored (+1), or has turned out to be damaged (-1)."""
        for split in arithmetic.splits_of(node):
            part = node if node.first >= 0 else self.tree.split_root(split)
            dataset = self._dataset[split]
            self._events_done[dataset] += sign * self.tree.events(part)
            self._chunks_done[dataset] += sign * self.tree.size(part)

    def resumed(self) -> None:
        """What is counted now was counted by an earlier run."""
        self.resumed_events = self.events_counted

    def failed(self, node: Node, failure: Failure) -> History:  # noqa: ARG002 - the signature says what is recorded
        """Count a failure of a chunk; its history."""
        self._failures[self._dataset[node.split]] += 1
        root = self.tree.root
        if node not in self._histories and root is not None:
            self._special.update(arithmetic.path_to(root, node, self.tree))
        return self._histories.setdefault(node, History())

    def parts(self, node: Node) -> int:
        """In how many pieces a chunk is to be processed; 1 for all but those that failed for memory."""
        history = self._histories.get(node)
        return history.parts if history is not None else 1

    def halved(self) -> list[tuple[Node, int]]:
        """The chunks that are processed in pieces, and in how many."""
        return sorted((node, h.parts) for node, h in self._histories.items() if h.parts > 1)

    def special_below(self, node: Node) -> bool:
        """Whether a chunk below a node has failed before: such chunks run alone."""
        return node in self._special

    def give_up(self, node: Node, failure: Failure) -> None:
        """A chunk will not be counted in this run."""
        self.lost[node] = failure

    def given_up(self, node: Node) -> bool:
        """Whether a chunk was given up."""
        return node in self.lost

    def user_failures(self) -> int:
        """On how many distinct chunks the analysis itself failed."""
        return sum(f.kind in (Kind.USER, Kind.TIMEOUT) for f in self.lost.values())

    def took(self, receipt: Receipt, task: Task) -> None:
        """Add up what a task took."""
        dataset = self._dataset[task.node.split]
        self.cpu += receipt.cpu
        for record in receipt.chunks:
            self.bytes_read += record.bytes_read
            if record.peak > self.peak[dataset]:
                self.peak[dataset] = record.peak
                place = record.file, record.file + 1, record.chunk, record.chunk + 1
                self.peak_at[dataset] = Node(task.node.split, *place)

    def rows(self) -> tuple[DatasetCount, ...]:
        """The account, a row a dataset."""
        reasons: list[Counter[str]] = [Counter() for _ in self._planned]
        missing = [0] * len(self._planned)
        for node, failure in self.lost.items():
            dataset, events = self._dataset[node.split], self.tree.events(node)
            missing[dataset] += events
            reasons[dataset][f"{failure.kind}: {failure.error}"] += events
        for i, errors in enumerate(self._unknown):
            for error, files in errors.items():
                reasons[i][f"not opened: {(error or 'unknown').partition(':')[0]}"] += files
        return tuple(
            DatasetCount(
                name=d.name,
                files=len(d.files),
                events_planned=self._planned[i],
                events_counted=self._events_done[i],
                events_missing=missing[i],
                reasons=tuple(r for r, _ in reasons[i].most_common(5)),
                chunks_planned=self._chunks[i],
                chunks_done=self._chunks_done[i],
                failures=self._failures[i],
                files_unopened=sum(f.entries is None for f in d.files),
            )
            for i, d in enumerate(self.tree.plan.datasets)
        )

    def snapshot(self, in_flight: int, *, force: bool = False) -> Snapshot | None:
        """The state now; None if the last one was given a moment ago."""
        now = time.monotonic()
        if not force and now - self._told < 0.25:
            return None
        self._told = now
        self._recent = [*(r for r in self._recent if now - r[0] < 30), (now, self.events_counted)]
        (then, before), (_, counted) = self._recent[0], self._recent[-1]
        since, base = (then, before) if now - then > 2 else (self.began, self.resumed_events)
        rate = max(0, counted - base) / (now - since) if now > since else 0.0
        return Snapshot(self.rows(), now - self.began, in_flight, self.bytes_read, rate, self.resumed_events)
