"""Cutting files into ranges while a run goes on, where sizes follow the memory.

What ``sizing`` decides is done here; it is on record before work is handed out for it, and stays as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from executors.work import tree as arithmetic
from executors.work.model import Node
from executors.work.sizing import shared

if TYPE_CHECKING:
    from executors.work.coverage import Coverage
    from executors.work.ledger import Ledger
    from executors.work.ranges import Ranges
    from executors.work.sizing import Sizing

AHEAD = 4  # tasks for each worker are cut at once: what comes later is cut by what is known then


class Cutting:
    """The files of a run that are not cut yet, and the canaries under way."""

    def __init__(
        self, coverage: Coverage, ledger: Ledger, sizing: Sizing, slots: int, ranges: Ranges | None
    ) -> None:
        self.coverage, self.ledger, self.sizing = coverage, ledger, sizing
        self.tree, self.slots, self.ranges = coverage.tree, slots, ranges
        self._trying: set[int] = set()  # datasets of which a canary is out
        self.last = 0  # events of the chunks that were cut last

    def due(self, node: Node) -> bool:
        """Whether events lie below a node of which no range is fixed yet; ranges have nothing left to fix."""
        return node.hi < 0 and next(self.tree.uncut(node), None) is not None

    def missing(self, root: Node) -> list[Node]:
        """What is to be done below a node, in order; a file that is not cut is one node, whatever is done."""
        found = [n for n in self.coverage.missing(root) if n.hi < 0 or not self._uncut(n)]
        ranges = [n for n in found if n.hi < 0]
        files = (whole(split, file) for split, file in self.tree.uncut(root))
        found += [n for n in files if not any(arithmetic.contains(outer, n) for outer in ranges)]
        return sorted(found, key=lambda n: (n.split, n.first, n.lo))

    def cut(self, node: Node, most: int) -> list[Node]:
        """Cut what is below a node; what of it can be handed out, in order. ``most``: chunks of a task."""
        places = list(self.tree.uncut(node))
        lengths = {at: self._length(at) for at in places}
        dataset = self.tree.splits[node.split].dataset
        size = self.sizing.size(dataset, max(lengths.values()))
        if size is None:
            return self._try(node, dataset, max(places, key=lambda at: lengths[at]))
        size = shared(size, self.ledger.events_planned - self.ledger.events_counted, self.slots)
        if len(places) > 1 and sum(lengths.values()) > AHEAD * self.slots * most * size:
            kids = self.tree.children(node)
            return [whole(kid.split, kid.first) if self._uncut(kid) else kid for kid in kids]
        for at in places:
            self._fix(at, self.tree.file(*at).whole, size)
        self.last = min(size, max(lengths.values()))
        return list(self.coverage.missing(self._now(node)))

    def released(self) -> list[Node]:
        """What waited for canaries that have ended, in order."""
        out: list[Node] = []
        for number in sorted(self._trying):
            trial = self.sizing.trials[number]
            canary = trial.canary
            if canary is None or not (self.coverage.done(canary) or self.ledger.given_up(canary)):
                continue
            fit = self.sizing.fit(number)
            trial.failed = fit is None or fit.widest < trial.size
            trial.canary = None
            self._trying.remove(number)
            waiting, trial.waiting = trial.waiting, []
            for node in waiting:
                out += [node] if self.due(node) else self.coverage.missing(self._now(node))
        return out

    def _try(self, node: Node, dataset: int, at: tuple[int, int]) -> list[Node]:
        trial = self.sizing.trials[dataset]
        trial.waiting.append(node)
        if trial.canary is not None:
            return []
        file, size = self.tree.file(*at), self.sizing.canary(dataset)
        first = self.tree.chunks(*at)
        self._fix(at, min(file.whole, file.fixed + size), size)
        trial.canary = self.tree.file_node(*at)._replace(lo=first, hi=first + 1)
        trial.size = self.tree.events(trial.canary)
        self.last = size
        self._trying.add(dataset)
        return [trial.canary]

    def _fix(self, at: tuple[int, int], upto: int, size: int) -> None:
        split, file = self.tree.splits[at[0]], self.tree.file(*at)
        cuts = (*(file.cuts or ()), (upto, size))
        if self.ranges is not None:
            self.ranges.fix(split.dataset, split.first + at[1], cuts)
        before = self.tree.chunks(*at)
        self.coverage.cut(*at, cuts)
        self.ledger.cut(split.dataset, self.tree.chunks(*at) - before, upto - file.fixed)

    def _length(self, at: tuple[int, int]) -> int:
        file = self.tree.file(*at)
        return file.whole - file.fixed

    def _now(self, node: Node) -> Node:
        """A node as it is called after cutting: a file's name says how many chunks it has."""
        return node if node.last - node.first != 1 else self.tree.file_node(node.split, node.first)

    def _uncut(self, node: Node) -> bool:
        return node.hi >= 0 and next(self.tree.uncut(node), None) is not None


def whole(split: int, file: int) -> Node:
    """What a file that is not cut is called, as long as nobody knows how many chunks it has."""
    return Node(split, file, file + 1, 0, -1)
