"""The driver: hands out what is missing, believes only the store, decides about failures, merges.

Works over any ``concurrent.futures.Executor`` and never knows which engine is below. At-least-once
execution, exactly-once accounting: a receipt is a claim, an object in the store is the fact.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import queue
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from executors.errors import DamagedError, EngineError
from executors.work import answers, coverage, notes, policy, tree
from executors.work.answers import receipt_of
from executors.work.coverage import Coverage
from executors.work.ledger import Ledger
from executors.work.merge import DamagedPartError, MergeTask, load, merge, total
from executors.work.model import Failure, Kind, Node, Task
from executors.work.policy import Action
from executors.work.watch import Watch
from executors.work.worker import SITE_ERRORS, Place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Executor, Future
    from threading import Event

    from executors.work.journal import Journal
    from executors.work.merge import Combine
    from executors.work.model import Part, Receipt
    from executors.work.packed import Packed
    from executors.work.plan import Tree
    from executors.work.report import Observer

Call: TypeAlias = "Callable[[Task | MergeTask], Receipt]"

FAN_IN = 16
MOST_CHUNKS = 512


@dataclass(frozen=True, slots=True)
class Terms:
    """How a run is driven. Everything here may change from run to run without changing the answer."""

    slots: int = 1  # tasks that the pool can run at once
    inline: bool = False  # the pool runs a task inside submit()
    task_seconds: float = 5.0
    canaries: int = 4  # single chunks handed out before the first success
    limits: policy.Limits = field(default_factory=policy.Limits)
    patience: float = 600.0  # seconds without an answer before an idle pool is given a task again
    reissues: int = 3
    grace: float = 4.0  # seconds that running tasks get to finish after a stop
    merging: bool = True
    keep_splits: bool = False  # split sums stay in the store: they are outputs of their own
    merge_all: bool = True  # merge beyond the splits


@dataclass(slots=True)
class Assignment:
    """A task that was handed out, and what it was for."""

    task: Task | MergeTask
    chunks: int
    since: float
    reissued: int = 0


class Drive:
    """One run of the loop. ``run`` returns when nothing more can be done; the ledger says what is missing."""

    def __init__(
        self,
        tree_: Tree,
        place: Place,
        call: Call,
        pool: Executor,
        terms: Terms,
        *,
        journal: Journal,
        observer: Observer,
        stop: Event,
        urls: dict[str, str] | None = None,
        combine_here: Call | None = None,
    ) -> None:
        self.tree, self.place, self.call, self.pool, self.terms = tree_, place, call, pool, terms
        self.journal, self.observer, self.stop = journal, observer, stop
        self.store = place.store
        self._watch = Watch(place.run / "notes", place.chunk_timeout)
        self.coverage = Coverage(tree_)
        self.ledger = Ledger(tree_)
        self.on_split: Callable[[int], None] = lambda _: None  # told once a split is whole
        self.halted: Failure | None = None  # why no more is handed out: the site, or the analysis
        self.urls = urls or {}
        self._merge_call = combine_here  # merges run here where workers do not see the store
        self._stack: list[Node] = []
        self._later: list[tuple[float, int, Node]] = []
        self._order = itertools.count()
        self._inflight: dict[Future[Receipt], Assignment] = {}
        self._overdue: dict[Future[Receipt], Assignment] = {}  # handed out again; may still bring a result
        self._answers: queue.SimpleQueue[Future[Receipt]] = queue.SimpleQueue()
        self._merging: dict[Node, MergeTask] = {}
        self._silent_failures = 0  # answers in a row that were no receipts
        self._damages = 0
        self._found: set[Node] = set()  # stored by an earlier run, and not yet seen to be damaged
        self._put_errors = 0  # results in a row that could not be stored
        self._no_shows: dict[Node, int] = {}
        self._per_chunk = 0.0  # seconds, smoothed
        self._merge_failures: dict[Node, int] = {}

    # -- what is to be done ------------------------------------------------------------------------

    def resume(self) -> int:
        """Count what the store holds already; how many events that is."""
        found = sorted(self.store.scan(), key=lambda row: -self._size_or_zero(row[0]))
        for node, identity in found:
            known = bool(self.coverage.path(node)) and self.tree.id(node) == identity
            if not (known and self.coverage.add(node, identity)) and not self._kept_split(node, known):
                # Of another analysis or plan, or below a sum that holds it already.
                self.store.drop(node, identity)
        for node in self.coverage.stored:
            self.ledger.counted(node, +1)
        self._found = set(self.coverage.stored)
        return self.ledger.events_counted

    def _size_or_zero(self, node: Node) -> int:
        try:
            return self.coverage.size(node)
        except (IndexError, ValueError):
            return 0

    def _kept_split(self, node: Node, known: bool) -> bool:
        return known and self.terms.keep_splits and node == self.tree.split_root(node.split)

    def plan_work(self, splits: Iterable[int] | None = None) -> None:
        """Queue what is missing, of all splits or of some."""
        wanted = range(len(self.tree.splits)) if splits is None else splits
        missing = [node for split in wanted for node in self._missing_of(split)]
        self._stack = missing[::-1]

    def _missing_of(self, split: int) -> Iterator[Node]:
        root = self.tree.split_root(split)
        if any(above in self.coverage.stored for above in self.coverage.path(root)):
            return
        yield from self.coverage.missing(root)

    # -- the loop ----------------------------------------------------------------------------------

    def run(self) -> None:
        """Work until nothing is left that can be done, or until stopped."""
        if self.terms.merging:
            for node in list(self.coverage.stored):
                self._consider_merge(node)
        while not self._stopping():
            self._hand_out()
            if not self._inflight:
                if not self._later:
                    break
                self.stop.wait(max(0.0, min(self._later[0][0] - time.monotonic(), 0.2)))
                continue
            self._take_answers(0.2)
            self._reissue_late()
            self._end_hung()
        if self._inflight:
            self._drain()
        self._tell(force=True)

    def total(self, combine: Combine, node: Node | None = None) -> tuple[Packed, int] | None:
        """The sum of all that is stored below a node (of the whole plan), and its events; None if nothing is.

        A stored sum that turns out to be damaged is made again first.
        """
        at = node or self.tree.root
        while at is not None and (shape := self.coverage.shape(at)) is not None:
            try:
                return total(shape, self.store, combine)
            except DamagedPartError as error:
                if not self._made_again(error):
                    break
        return None

    def total_of_split(self, split: int, combine: Combine) -> tuple[Packed, int] | None:
        """The same of one split, also where it has been merged into a sum above it but was kept."""
        root = self.tree.split_root(split)
        if self.coverage.shape(root) is None and self.terms.keep_splits:
            try:
                return load(self.store, root, self.tree.id(root))
            except DamagedPartError:
                # What holds it cannot be taken apart: the whole above it is made again from its chunks.
                above = next((n for n in self.coverage.path(root) if n in self.coverage.stored), None)
                if above is None or not self._made_again(
                    DamagedPartError("", above, self.coverage.stored[above])
                ):
                    return None
        return self.total(combine, root)

    def _made_again(self, error: DamagedPartError) -> bool:
        self._lost_part(error.node, error.identity, str(error))
        self.run()
        return not self._stopping()

    def _stopping(self) -> bool:
        return self.stop.is_set() or self.halted is not None

    def _drain(self) -> None:
        """Stop handing out; keep what running tasks still bring in a short time."""
        with contextlib.suppress(OSError):
            self.place.stop.touch()
        for future in (*self._inflight, *self._overdue):
            if future.cancel():
                self._inflight.pop(future, None)
        until = time.monotonic() + self.terms.grace
        while self._inflight and time.monotonic() < until:
            self._take_answers(min(0.2, self.terms.grace))

    def _hand_out(self) -> None:
        now = time.monotonic()
        while self._later and self._later[0][0] <= now:
            self._stack.append(heapq.heappop(self._later)[2])
        while self._stack and len(self._inflight) < self._window() and not self._stopping():
            node = self._next(self._most_chunks())
            if node is not None:
                parts = self.ledger.parts(node)
                self._submit(self.tree.task(node, parts, self.urls), self.coverage.size(node))
            if self.terms.inline:
                self._take_answers(0.0)

    def _window(self) -> int:
        if self.terms.inline:
            return 1
        if not self._per_chunk:
            return max(1, min(self.terms.canaries, 2 * self.terms.slots))
        return max(2, 2 * self.terms.slots)

    def _most_chunks(self) -> int:
        """How many chunks the next task takes: long enough to hide its cost, short at the end."""
        if not self._per_chunk:
            return 1
        wanted = self.terms.task_seconds / self._per_chunk
        left = self.ledger.chunks_planned - self.ledger.chunks_done
        fair = left / (3 * self.terms.slots)
        return int(max(1, min(wanted, fair, MOST_CHUNKS)))

    def _next(self, most: int) -> Node | None:
        while self._stack:
            node = self._stack.pop()
            size = self.coverage.size(node)
            if not size:
                continue
            if size == 1 and node.hi >= 0:
                if not self.ledger.given_up(node) and not self.coverage.done(node):
                    return node
                continue
            if size <= most and node.first >= 0 and not self._holds_special(node):
                return node
            self._stack.extend(reversed(self.tree.children(node)))
        return None

    def _holds_special(self, node: Node) -> bool:
        return self.tree.unknown(node) or self.ledger.special_below(node) or bool(self.coverage.done(node))

    def _submit(self, task: Task | MergeTask, chunks: int, reissued: int = 0) -> None:
        call = self.call
        if isinstance(task, MergeTask) and self._merge_call is not None:
            receipt = self._merge_call(task)
            self._accept_merge(task, receipt)
            return
        try:
            future = self.pool.submit(call, task)
        except RuntimeError as error:
            raise EngineError(f"the engine takes no more work: {error}") from error
        self._inflight[future] = Assignment(task, chunks, time.monotonic(), reissued)
        future.add_done_callback(self._answers.put)

    def _take_answers(self, timeout: float) -> None:
        try:
            future = self._answers.get(timeout=timeout) if timeout else self._answers.get_nowait()
        except queue.Empty:
            self._tell()
            return
        while True:
            self._answered(future)
            try:
                future = self._answers.get_nowait()
            except queue.Empty:
                break
        self._tell()

    def _answered(self, future: Future[Receipt]) -> None:
        overdue = self._overdue.pop(future, None)
        assignment = overdue or self._inflight.pop(future, None)
        if assignment is None:
            return
        error = None if future.cancelled() else future.exception()
        answer = None if future.cancelled() or error is not None else future.result()
        task = assignment.task
        receipt = receipt_of(answer, task.id)
        if isinstance(task, MergeTask):
            self._accept_merge(task, receipt, error, overdue=overdue is not None)
        elif receipt is not None and self._accept(task, assignment, receipt):
            self._silent_failures = 0
        elif overdue is None:
            self._no_receipt(task, assignment, error)

    # -- answers -----------------------------------------------------------------------------------

    def _accept(self, task: Task, assignment: Assignment, receipt: Receipt) -> bool:
        """Take over what a receipt proves; False if it proves nothing at all."""
        good = [part for part in receipt.parts if self._verified(task, part)]
        failed = [f for f in receipt.failures if self._of_task(task, f)]
        if receipt.parts and not good and not failed:
            return False
        for part in good:
            self._done(part.node, part.id)
        for failure in failed:
            self._failed(task, failure)
        if put_error := receipt.extra.get("put_error"):
            failed.extend(self._put_failed(task, put_error, receipt))
        elif not good and not failed:
            return False
        else:
            self._put_errors = 0
        self._learn(receipt)
        self.ledger.took(receipt, task)
        covered = [p.node for p in good] + [self._chunk_node(task, f.file, f.chunk) for f in failed]
        self._requeue(task.node, covered)
        self.journal.write(
            "task",
            task=task.id[:16],
            node=task.node,
            entries=sum(p.entries for p in good),
            failures=len(failed),
            seconds=round(receipt.seconds, 3),
            host=receipt.host,
            pid=receipt.pid,
            waited=round(time.monotonic() - assignment.since - receipt.seconds, 3),
        )
        return True

    def _verified(self, task: Task, part: Part) -> bool:
        """Whether a part is what the plan says it must be, and really is in the store."""
        if not tree.contains(task.node, part.node):
            return False
        if part.id != tree.id_within(part.node, task.slices) or part.entries != self.tree.events(part.node):
            return False
        return self._stored(part.node, part.id, part.digest, part.payload)

    def _stored(
        self, node: Node, identity: str, digest: str | None = None, payload: bytes | None = None
    ) -> bool:
        try:
            if payload is not None:
                self.store.put_bytes(node, identity, payload)
            header = self.store.head(node, identity)
        except DamagedError:
            return False
        except OSError as error:
            self._halt(Kind.SITE, f"{error.strerror}: {self.place.run}", type(error).__name__)
            return False
        return digest in (None, header.stamp.digest) and header.about.get("entries") == self.tree.events(node)

    @staticmethod
    def _of_task(task: Task, failure: Failure) -> bool:
        return any(
            piece.index == failure.file and piece.lo <= failure.chunk < piece.lo + len(piece.ranges)
            for piece in task.slices
        )

    @staticmethod
    def _chunk_node(task: Task, file: int, chunk: int) -> Node:
        return Node(task.node.split, file, file + 1, chunk, chunk + 1)

    def _done(self, node: Node, identity: str) -> None:
        if self.coverage.add(node, identity):
            self.ledger.counted(node, +1)
            self._no_shows.pop(node, None)
            self._tell_split(node)
            if self.terms.merging:
                self._consider_merge(node)

    def _learn(self, receipt: Receipt) -> None:
        if receipt.chunks:
            per_chunk = max(1e-6, receipt.seconds / len(receipt.chunks))
            self._per_chunk = 0.7 * self._per_chunk + 0.3 * per_chunk if self._per_chunk else per_chunk

    def _requeue(self, node: Node, covered: list[Node]) -> None:
        rest = list(coverage.uncovered(node, covered, self.tree))
        self._stack.extend(
            n for n in reversed(rest) if not self.coverage.done(n) or self.coverage.size(n) > 1
        )

    def _no_receipt(self, task: Task, assignment: Assignment, error: BaseException | None) -> None:
        """The engine gave no valid receipt: look into the store, then find out whom to blame."""
        if self._stored(task.node, task.id):
            self._done(task.node, task.id)
            return
        words = notes.collect(self.place.run / "notes", task.id) if self.place.shared else None
        self.journal.write("lost", task=task.id[:16], node=task.node, error=_said(error), blamed=bool(words))
        self._silent_failures += 1
        if self._silent_failures > max(20, 4 * self.terms.slots):
            raise EngineError(
                f"{self._silent_failures} tasks in a row came back without a result; the last one: "
                f"{_said(error)}"
            ) from error
        if words is not None and self._of_task(task, failure := self._blamed(task, words, error)):
            self._silent_failures = 0
            self._failed(task, failure)
            self._requeue(task.node, [self._chunk_node(task, failure.file, failure.chunk)])
            return
        self._unexplained(task, assignment, error)

    def _unexplained(self, task: Task, assignment: Assignment, error: BaseException | None) -> None:
        """Nobody knows where the worker was: smaller tasks tell, and a single chunk is charged in the end."""
        count = self._no_shows[task.node] = self._no_shows.get(task.node, 0) + 1
        kind = policy.classify_engine(error) if error is not None else Kind.LOST
        if assignment.chunks > 1:
            kids = self.tree.children(task.node) if not self.place.shared or count > 2 else (task.node,)
            self._stack.extend(reversed(kids))
            return
        piece = task.slices[0]
        if kind is Kind.MEMORY or not self.place.shared or count > self.terms.limits.lost * 4:
            name = type(error).__name__ if error is not None else "NoReceipt"
            text = answers.words(error)[:500] or "the engine never gave a valid answer"
            self._failed(task, Failure(piece.index, piece.lo, piece.path, piece.ranges[0], kind, name, text))
        else:
            self._stack.append(task.node)

    @staticmethod
    def _blamed(task: Task, words: notes.LastWords, error: BaseException | None) -> Failure:
        piece = next((p for p in task.slices if p.index == words.file), task.slices[0])
        inside = 0 <= words.chunk - piece.lo < len(piece.ranges)
        kind = words.kind
        if kind is Kind.LOST and error is not None:
            kind = policy.classify_engine(error)
        what = (
            "the chunk's time limit ran out"
            if kind is Kind.TIMEOUT
            else f"the worker died: {answers.words(error)[:500]}"
        )
        return Failure(
            file=words.file,
            chunk=words.chunk,
            path=piece.path,
            range=piece.ranges[words.chunk - piece.lo] if inside else (0, 0),
            kind=kind,
            error="TimeoutError" if kind is Kind.TIMEOUT else type(error).__name__ if error else "WorkerLost",
            message=what,
            frames=words.frames,
            host=words.host,
            pid=words.pid,
        )

    # -- failures ----------------------------------------------------------------------------------

    def _failed(self, task: Task, failure: Failure) -> None:
        """Count one failure of a chunk and do what the policy says."""
        node = self._chunk_node(task, failure.file, failure.chunk)
        if self.coverage.done(node) or self.ledger.given_up(node):
            return
        history = self.ledger.failed(node, failure)
        count = history.add(failure.kind)
        span = failure.range[1] - failure.range[0]
        action = policy.decide(failure.kind, history, span, self.terms.limits)
        self.journal.write(
            "failure", node=node, kind=failure.kind, action=action, path=failure.path, range=failure.range,
            error=failure.error, message=failure.message, count=count, host=failure.host,
        )  # fmt: skip
        if action is Action.STOP:
            self._halt_with(failure)
        elif action is Action.QUARANTINE:
            self._give_up(node, failure)
        else:
            if action is Action.SPLIT:
                history.parts *= 2
                history.silent_splits += failure.kind is Kind.LOST
            wait = policy.backoff(count, self.terms.limits) if failure.kind is Kind.PASSING else 0.0
            heapq.heappush(self._later, (time.monotonic() + wait, next(self._order), node))

    def _give_up(self, node: Node, failure: Failure) -> None:
        self.ledger.give_up(node, failure)
        split = self.tree.splits[node.split]
        start, stop = failure.range
        self.observer.message(
            "warning",
            f"given up: {self.tree.plan.datasets[split.dataset].name} {failure.path} [{start}:{stop}] "
            f"({failure.kind}) {failure.error}: {failure.message.splitlines()[0] if failure.message else ''}",
        )
        at_fault = self.ledger.user_failures()
        if failure.kind in (Kind.USER, Kind.TIMEOUT) and policy.stop_for_user(
            at_fault, self.ledger.events_counted > 0, self.terms.limits
        ):
            self._halt_with(failure)

    def _put_failed(self, task: Task, put_error: Any, receipt: Receipt) -> list[Failure]:
        """The store refused a result: stop if that is the site's doing, else charge it as a failed read."""
        number, text = put_error
        self._put_errors += 1
        if number in SITE_ERRORS or self._put_errors > 2 * self.terms.limits.retries:
            self._halt(Kind.SITE, f"results cannot be stored: {text}", "OSError", host=receipt.host)
            return []
        piece = task.slices[0]
        place = (piece.index, piece.lo, piece.path, piece.ranges[0])
        failure = Failure(*place, Kind.PASSING, "OSError", text, host=receipt.host)
        self._failed(task, failure)
        return [failure]

    def _halt(self, kind: Kind, text: str, error: str, host: str = "") -> None:
        self._halt_with(Failure(-1, -1, "", (0, 0), kind, error, text, host=host))

    def _halt_with(self, failure: Failure) -> None:
        if self.halted is None:
            self.halted = failure
            self.journal.write("halt", kind=failure.kind, error=failure.error, message=failure.message)

    # -- merging -----------------------------------------------------------------------------------

    def _consider_merge(self, node: Node) -> None:
        """Merge at the highest complete node above, when enough has come together or all is there.

        A split is merged into one sum before anything above it: it may be an output of its own.
        """
        if node.first >= 0:
            root = self.tree.split_root(node.split)
            if root not in self.coverage.stored and self.coverage.complete(root):
                self._merge_to(root)
                return
        top = self.coverage.highest_complete(node, within_split=not self.terms.merge_all)
        if top is None:
            return
        pieces = self.coverage.pieces(top)
        if pieces > 1 and (pieces >= FAN_IN or top == self.tree.root):
            self._merge_to(top)

    def _merge_to(self, top: Node) -> None:
        if any(tree.contains(top, n) or tree.contains(n, top) for n in self._merging):
            return  # considered again when that merge is done
        shape = self.coverage.shape(top)
        if shape is None:
            return  # all of it is in a sum above
        names = {n for n, _ in coverage.leaves(shape)}
        if top.first < 0 and not all(n.first < 0 or n == self.tree.split_root(n.split) for n in names):
            return  # considered again when each split is one sum
        task = MergeTask(self.tree.id(top), top, shape)
        self._merging[top] = task
        self._submit(task, 0)

    def _tell_split(self, node: Node) -> None:
        """Say so when a stored sum is that of a whole split."""
        if node.first >= 0 and node == self.tree.split_root(node.split):
            self.on_split(node.split)

    def _accept_merge(
        self,
        task: MergeTask,
        receipt: Receipt | None,
        error: BaseException | None = None,
        *,
        overdue: bool = False,
    ) -> None:
        if self._merging.get(task.node) is not task:
            return  # a copy of it was quicker
        part = receipt.parts[0] if receipt is not None and receipt.parts else None
        good = part is not None and part.node == task.node and part.entries == self.tree.events(task.node)
        good = good and self._stored(task.node, task.id, part.digest if part else None)
        if overdue and not good:
            return  # its copy is still to answer
        del self._merging[task.node]
        if good:
            self._merged(task)
            return
        damaged = receipt.extra.get("damaged") if receipt is not None else None
        if damaged and (damaged[0], damaged[1]) in coverage.leaves(task.shape):
            self._lost_part(*damaged)
            return
        if receipt is not None and (put_error := receipt.extra.get("put_error")):
            if put_error[0] in SITE_ERRORS:
                self._halt(
                    Kind.SITE, f"merged results cannot be stored: {put_error[1]}", "OSError", receipt.host
                )
                return
            error = error or OSError(*put_error)
        self._merge_failed(task, error)

    def _merge_failed(self, task: MergeTask, error: BaseException | None) -> None:
        count = self._merge_failures[task.node] = self._merge_failures.get(task.node, 0) + 1
        self.journal.write("merge failed", node=task.node, error=_said(error), count=count)
        if error is not None and getattr(error, "exit_code", None) == 1:
            self._halt(Kind.USER, answers.words(error), type(error).__name__)
        elif count > self.terms.limits.retries:
            raise EngineError(f"merging failed {count} times; the last time: {_said(error)}") from error
        elif not self._stopping():
            self._consider_merge(next(iter(coverage.leaves(task.shape)))[0])

    def _merged(self, task: MergeTask) -> None:
        partly = self.coverage.done(task.node) < self.coverage.size(task.node)
        replaced = self.coverage.replace(task.node, task.id)
        if partly and task.node in self.coverage.stored:
            # A part of it was found damaged meanwhile; this sum was made before, and has it.
            for node, _ in replaced:
                self.ledger.counted(node, -1)
            self.ledger.counted(task.node, +1)
        for node, identity in replaced:
            if not self._kept_split(node, known=True):
                self.store.drop(node, identity)
        self.journal.write("merge", node=task.node)
        self._tell_split(task.node)
        self._consider_merge(task.node)

    def _lost_part(self, node: Node, identity: str, text: str) -> None:
        """A stored sum is damaged: put it aside and do its chunks again."""
        self.observer.message("warning", f"a stored result was damaged and is made again: {text}")
        self.journal.write("damaged", node=node, text=text)
        self.store.set_aside(node, identity)
        # What an earlier run left can only run out; what this one wrote itself must stay as it was.
        self._damages += node not in self._found
        self._found.discard(node)
        if self._damages > max(10, len(self.tree.splits)) and self._damages > self.ledger.chunks_done // 10:
            self._halt(
                Kind.SITE,
                f"what is stored in {self.place.run} does not stay as it was written: {text}",
                "DamagedError",
            )
            return
        if node in self.coverage.stored:
            self.coverage.remove(node)
            self.ledger.counted(node, -1)
            self._stack.append(node)

    # -- late and told -----------------------------------------------------------------------------

    def _reissue_late(self) -> None:
        """When nothing else can be handed out, hand out again what an engine seems to have lost.

        What is overdue takes no room: or an engine that loses as much as it has room for stops the run.
        """
        if self._stopping() or ((self._stack or self._later) and self._has_room()):
            return
        now = time.monotonic()
        for future, assignment in list(self._inflight.items()):
            waited = now - assignment.since
            if waited < self._patience(assignment):
                continue
            self._overdue[future] = self._inflight.pop(future)
            self.journal.write("late", node=assignment.task.node, waited=round(waited, 1))
            if assignment.reissued < self.terms.reissues:
                self._submit(assignment.task, assignment.chunks, assignment.reissued + 1)
            elif isinstance(assignment.task, Task):
                self._no_receipt(assignment.task, assignment, None)
            else:
                self._merging.pop(assignment.task.node, None)
                self._merge_failed(assignment.task, None)

    def _has_room(self) -> bool:
        # Before the first answer the pool may still wait for its machines: that is not being late.
        return not self._per_chunk or len(self._inflight) < self._window()

    def _end_hung(self) -> None:
        """Have the engine end workers that hang, so that their tasks come back as lost."""
        kill = getattr(self.pool, "kill", None)
        if kill is None or not self.place.shared or self.place.inline:
            return
        for task, why in self._watch.hung():
            for future, assignment in list(self._inflight.items()):
                if assignment.task.id.startswith(task) and kill(future, why):
                    self.journal.write("hung", node=assignment.task.node, why=why)

    def _patience(self, assignment: Assignment) -> float:
        return max(self.terms.patience, 20 * self._per_chunk * max(1, assignment.chunks))

    def _tell(self, *, force: bool = False) -> None:
        snapshot = self.ledger.snapshot(len(self._inflight), force=force)
        if snapshot is not None:
            self.observer.progressed(snapshot)


def _said(error: BaseException | None) -> str:
    return "no valid receipt" if error is None else f"{type(error).__name__}: {answers.words(error)[:500]}"


def merge_here(place: Place, analysis: Any) -> Call:
    """A call that merges in the runner's own process, where workers do not see the store."""

    def call(task: Task | MergeTask) -> Receipt:
        if not isinstance(task, MergeTask):
            raise TypeError(task)
        return merge(task, analysis, place)

    return call
