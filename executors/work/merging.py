"""When stored sums are merged, and what becomes of a merge: the driver's other half.

Decides over the coverage only; what it wants done it hands to the driver through a few calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from executors.errors import EngineError
from executors.work import answers, coverage, tree
from executors.work.blame import said
from executors.work.merge import MergeTask
from executors.work.model import Kind
from executors.work.policy import MOST_TAKEN, died, taken_away
from executors.work.worker import SITE_ERRORS

if TYPE_CHECKING:
    from collections.abc import Callable

    from executors.work.coverage import Coverage
    from executors.work.journal import Journal
    from executors.work.ledger import Ledger
    from executors.work.model import Node, Receipt
    from executors.work.report import Observer
    from executors.work.store import Store
    from executors.work.terms import Terms

FAN_IN = 16


@dataclass(frozen=True, slots=True)
class Books:
    """What a run knows and keeps: shared by the driver and the merging."""

    store: Store
    coverage: Coverage
    ledger: Ledger
    journal: Journal
    observer: Observer
    terms: Terms


@dataclass(frozen=True, slots=True)
class Orders:
    """What the merging may ask of the driver."""

    hand_out: Callable[[MergeTask], None]
    halt: Callable[[Kind, str, str, str], None]
    again: Callable[[Node], None]  # the chunks below are to be done again
    stopping: Callable[[], bool]
    verified: Callable[[Node, str, str | None], bool]
    split_done: Callable[[int], None]


class Merging:
    """Merges under way, and those to come."""

    def __init__(self, books: Books, orders: Orders) -> None:
        self.books, self.orders = books, orders
        self.tree = books.coverage.tree
        self._under_way: dict[Node, MergeTask] = {}
        self._failures: dict[Node, int] = {}
        self._damages = 0
        self._found: set[Node] = set()  # stored by an earlier run, and not yet seen to be damaged

    def resumed(self) -> None:
        """What is stored now was stored by an earlier run."""
        self._found = set(self.books.coverage.stored)

    def keeps(self, node: Node) -> bool:
        """Whether a sum stays in the store when it has been merged into one above it."""
        return self.books.terms.keep_splits and node == self.tree.split_root(node.split)

    def stored(self, node: Node) -> None:
        """A sum was stored: tell of a whole split, and merge what has come together."""
        self._tell_split(node)
        self.consider(node)

    def consider(self, node: Node) -> None:
        """Merge at the highest complete node above, when enough has come together or all is there.

        A split is merged into one sum before anything above it: it may be an output of its own.
        """
        known, terms = self.books.coverage, self.books.terms
        if not terms.merging:
            return
        if node.first >= 0:
            root = self.tree.split_root(node.split)
            if root not in known.stored and known.complete(root):
                self._merge_to(root)
                return
        top = known.highest_complete(node, within_split=not terms.merge_all)
        if top is None:
            return
        pieces = known.pieces(top)
        if pieces > 1 and (pieces >= FAN_IN or top == self.tree.root):
            self._merge_to(top)

    def _merge_to(self, top: Node) -> None:
        if any(tree.contains(top, n) or tree.contains(n, top) for n in self._under_way):
            return  # considered again when that merge is done
        shape = self.books.coverage.shape(top)
        if shape is None:
            return  # all of it is in a sum above
        names = {n for n, _ in coverage.leaves(shape)}
        if top.first < 0 and not all(n.first < 0 or n == self.tree.split_root(n.split) for n in names):
            return  # considered again when each split is one sum
        task = MergeTask(self.tree.id(top), top, shape)
        self._under_way[top] = task
        self.orders.hand_out(task)

    def _tell_split(self, node: Node) -> None:
        if node.first >= 0 and node == self.tree.split_root(node.split):
            self.orders.split_done(node.split)

    def answered(
        self,
        task: MergeTask,
        receipt: Receipt | None,
        error: BaseException | None = None,
        *,
        overdue: bool = False,
    ) -> None:
        """What came back of a merge."""
        if self._under_way.get(task.node) is not task:
            return  # a copy of it was quicker
        part = receipt.parts[0] if receipt is not None and receipt.parts else None
        good = part is not None and part.node == task.node and part.entries == self.tree.events(task.node)
        good = good and self.orders.verified(task.node, task.id, part.digest if part else None)
        if overdue and not good:
            return  # its copy is still to answer
        del self._under_way[task.node]
        if good:
            self._done(task)
        else:
            self._not_done(task, receipt, error)

    def given_up(self, task: MergeTask) -> None:
        """The engine never answered."""
        self._under_way.pop(task.node, None)
        self._failed(task, None)

    def _not_done(self, task: MergeTask, receipt: Receipt | None, error: BaseException | None) -> None:
        extra: Any = receipt.extra if receipt is not None else {}
        damaged, put_error = extra.get("damaged", ()), extra.get("put_error")
        if damaged and {(node, identity) for node, identity, _ in damaged} <= {*coverage.leaves(task.shape)}:
            for part in damaged:
                self.lost_part(*part)
        elif put_error and put_error[0] in SITE_ERRORS:
            text = f"merged results cannot be stored: {put_error[1]}"
            self.orders.halt(Kind.SITE, text, "OSError", receipt.host if receipt else "")
        else:
            self._failed(task, error or (OSError(*put_error) if put_error else None))

    def _failed(self, task: MergeTask, error: BaseException | None) -> None:
        count = self._failures[task.node] = self._failures.get(task.node, 0) + 1
        self.books.journal.write("merge failed", node=task.node, error=said(error), count=count)
        if error is not None and not died(error) and getattr(error, "exit_code", None) == 1:
            self.orders.halt(Kind.USER, answers.words(error), type(error).__name__, "")
        elif count > (MOST_TAKEN if taken_away(error) else self.books.terms.limits.retries):
            raise EngineError(f"merging failed {count} times; the last time: {said(error)}") from error
        elif not self.orders.stopping():
            self.consider(next(iter(coverage.leaves(task.shape)))[0])

    def _done(self, task: MergeTask) -> None:
        books = self.books
        partly = books.coverage.done(task.node) < books.coverage.size(task.node)
        replaced = books.coverage.replace(task.node, task.id)
        if partly and task.node in books.coverage.stored:
            # A part of it was found damaged meanwhile; this sum was made before, and has it.
            for node, _ in replaced:
                books.ledger.counted(node, -1)
            books.ledger.counted(task.node, +1)
        for node, identity in replaced:
            if not self.keeps(node):
                books.store.drop(node, identity)
        books.journal.write("merge", node=task.node)
        self.stored(task.node)

    def lost_part(self, node: Node, identity: str, text: str) -> None:
        """A stored sum is damaged: put it aside and do its chunks again."""
        books = self.books
        books.observer.message("warning", f"a stored result was damaged and is made again: {text}")
        books.journal.write("damaged", node=node, text=text)
        books.store.set_aside(node, identity)
        # What an earlier run left can only run out; what this one wrote itself must stay as it was.
        self._damages += node not in self._found
        self._found.discard(node)
        too_many = max(10, len(self.tree.splits), books.ledger.chunks_done // 10)
        if self._damages > too_many:
            where = books.store.root.parent
            what = f"what is stored in {where} does not stay as it was written: {text}"
            self.orders.halt(Kind.SITE, what, "DamagedError", "")
        elif node in books.coverage.stored:
            books.coverage.remove(node)
            books.ledger.counted(node, -1)
            self.orders.again(node)
