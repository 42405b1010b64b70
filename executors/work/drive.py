"""The driver: hands out what is missing, believes only the store, decides about failures, merges.

Works over any ``concurrent.futures.Executor`` and never knows which engine is below. At-least-once
execution, exactly-once accounting: a receipt is a claim, an object in the store is the fact.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import math
import queue
import time
from typing import TYPE_CHECKING, Any

from executors.errors import DamagedError, EngineError
from executors.work import answers, blame, coverage, notes, policy, tree
from executors.work.answers import receipt_of
from executors.work.coverage import Coverage
from executors.work.cutting import Cutting
from executors.work.leaks import Leaks
from executors.work.ledger import Ledger
from executors.work.merge import DamagedPartError, MergeTask, damaged_parts, load, merge, total
from executors.work.merging import Books, Merging, Orders
from executors.work.model import Failure, Kind, Node, Task
from executors.work.policy import Action
from executors.work.sizing import Sizing
from executors.work.terms import MOST_CHUNKS, Assignment, Call, Terms
from executors.work.watch import Watch
from executors.work.worker import SITE_ERRORS, Place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Executor, Future
    from threading import Event

    from executors.work.journal import Journal
    from executors.work.layout import Tree
    from executors.work.merge import Combine
    from executors.work.model import Part, Receipt
    from executors.work.packed import Packed
    from executors.work.ranges import Ranges
    from executors.work.report import Observer


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
        sizing: Sizing | None = None,
        ranges: Ranges | None = None,
    ) -> None:
        self.tree, self.place, self.call, self.pool, self.terms = tree_, place, call, pool, terms
        self.journal, self.observer, self.stop = journal, observer, stop
        self.store = place.store
        self._watch = Watch(place.run / "notes", place.chunk_timeout)
        self.coverage = Coverage(tree_)
        self.ledger = Ledger(tree_)
        self.sizing = sizing or Sizing([d.name for d in tree_.plan.datasets])
        self.cutting = Cutting(self.coverage, self.ledger, self.sizing, terms.slots, ranges)
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
        self._silent_failures = 0  # answers in a row that were no receipts
        self._put_errors = 0  # results in a row that could not be stored
        self._no_shows: dict[Node, int] = {}
        self._needed = terms.slots  # tasks that the pool was last told to be left, at most
        self._taken: dict[Node, int] = {}  # how often a task's machine was taken away
        self._leaks = Leaks(self.sizing.budget)
        self._per_chunk = 0.0  # seconds, smoothed
        self._per_event = 0.0
        self.merging = self._merging()

    def _merging(self) -> Merging:
        orders = Orders(
            self._submit_merge,
            self._halt,
            self._stack.append,
            self._stopping,
            self._stored,
            self._split_done,
        )
        books = Books(self.store, self.coverage, self.ledger, self.journal, self.observer, self.terms)
        return Merging(books, orders)

    # -- what is to be done ------------------------------------------------------------------------

    def resume(self) -> int:
        """Count what the store holds already; how many events that is."""
        for node, identity in self.coverage.recover(self.store.scan()):
            # Of another analysis or plan, or below a sum that holds it already.
            kept = bool(self.coverage.path(node)) and self.merging.keeps(node)
            if not kept or self.tree.id(node) != identity:
                self.store.drop(node, identity)
        for node in self.coverage.whole():
            self.ledger.counted(node, +1)
        self.merging.resumed()
        return self.ledger.events_counted

    def plan_work(self, splits: Iterable[int] | None = None) -> None:
        """Queue what is missing, of all splits or of some."""
        wanted = range(len(self.tree.splits)) if splits is None else splits
        missing = [node for split in wanted for node in self._missing_of(split)]
        self._stack[:] = missing[::-1]

    def _missing_of(self, split: int) -> Iterator[Node]:
        root = self.tree.split_root(split)
        if any(above in self.coverage.stored for above in self.coverage.path(root)):
            return
        yield from self.cutting.missing(root)

    # -- the loop ----------------------------------------------------------------------------------

    def run(self) -> None:
        """Work until nothing is left that can be done, or until stopped."""
        for node in list(self.coverage.stored):
            self.merging.consider(node)
        while not self._stopping():
            self._hand_out()
            self._tell_pool()
            if not self._inflight:
                if not self._later:
                    if self._refilled():
                        continue
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
                if not self._made_again(error, *damaged_parts(shape, self.store)):
                    break
        return None

    def total_of_split(self, split: int, combine: Combine) -> tuple[Packed, int] | None:
        """The same of one split, also where it has been merged into a sum above it but was kept."""
        root = self.tree.split_root(split)
        while self.coverage.done(root):
            above = next((n for n in self.coverage.path(root)[:-1] if n in self.coverage.stored), None)
            try:
                if above is not None:
                    return load(self.store, root, self.tree.id(root))
                return total(self.coverage.shape(root), self.store, combine)
            except DamagedPartError as error:
                # A sum that is in one above it cannot be taken out: the one above is made again as a whole.
                lost = error if above is None else DamagedPartError("", above, self.coverage.stored[above])
                if not self._made_again(lost):
                    break
        return None

    def events_below(self, split: int) -> int:
        """How many events of a split are in stored sums, its own or one above it."""
        root = self.tree.split_root(split)
        if any(above in self.coverage.stored for above in self.coverage.path(root)):
            return self.tree.events(root)
        return sum(self.tree.events(node) for node, _ in coverage.leaves(self.coverage.shape(root)))

    def stopping(self) -> bool:
        """Whether no more work is handed out: a signal came, or the run was halted."""
        return self._stopping()

    def _made_again(self, *errors: DamagedPartError) -> bool:
        for error in {e.node: e for e in errors}.values():
            self.merging.lost_part(error.node, error.identity, str(error))
        self.run()
        return not self._stopping()

    def _split_done(self, split: int) -> None:
        self.on_split(split)

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
        if room := getattr(self.pool, "memory", None):
            self.sizing.given(room)
        while self._later and self._later[0][0] <= now:
            self._stack.append(heapq.heappop(self._later)[2])
        while self._refilled() and len(self._inflight) < self._window() and not self._stopping():
            node = self._next(self._most_chunks())
            if node is not None:
                parts = self.ledger.parts(node)
                self._submit(self.tree.task(node, parts, self.urls), self.coverage.size(node))
            if self.terms.inline:
                self._take_answers(0.0)

    def _refilled(self) -> bool:
        """Whether there is something to hand out, what waited for a canary included."""
        self._stack.extend(reversed(self.cutting.released()))
        return bool(self._stack)

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
        # By events where they are known: a canary's few take no time, and what follows is longer.
        wanted = self.terms.task_seconds / max(self._per_chunk, self._per_event * self.cutting.last)
        slots = self.terms.slots
        fair = self.ledger.chunks_left() / (3 * slots if slots > 1 else 1)  # one worker waits for no other
        return int(max(1, min(wanted, fair, MOST_CHUNKS)))

    def _next(self, most: int) -> Node | None:
        while self._stack:
            node = self._stack.pop()
            if self.cutting.due(node):
                self._stack.extend(reversed(self._cut(node, most)))
                continue
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

    def _cut(self, node: Node, most: int) -> list[Node]:
        try:
            return self.cutting.cut(node, most)
        except OSError as error:
            self._halt(Kind.SITE, f"{error.strerror}: {self.place.run}", type(error).__name__)
            return []

    def _holds_special(self, node: Node) -> bool:
        return self.tree.unknown(node) or self.ledger.special_below(node) or bool(self.coverage.done(node))

    def _submit_merge(self, task: MergeTask) -> None:
        if self._merge_call is not None:
            self.merging.answered(task, self._merge_call(task))
        else:
            self._submit(task, 0)

    def _submit(self, task: Task | MergeTask, chunks: int, reissued: int = 0) -> None:
        try:
            future = self.pool.submit(self.call, task)
        except (RuntimeError, OSError, ValueError, TypeError) as error:
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
            self.merging.answered(task, receipt, error, overdue=overdue is not None)
        elif receipt is not None and self._accept(task, assignment, receipt):
            self._silent_failures = 0
            self._watch_growth(future, receipt)
        elif overdue is None:
            self._no_receipt(task, assignment, error)

    # -- answers -----------------------------------------------------------------------------------

    def _accept(self, task: Task, assignment: Assignment, receipt: Receipt) -> bool:
        """Take over what a receipt proves; False if it proves nothing at all."""
        good = [part for part in receipt.parts if self._verified(task, part)]
        failed = [f for f in receipt.failures if blame.of_task(task, f)]
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
        self._measured(task, receipt)
        self.ledger.took(receipt, task)
        covered = [p.node for p in good] + [blame.chunk_node(task, f.file, f.chunk) for f in failed]
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
            memory=[(r.file, r.chunk, r.entries, r.before, r.peak) for r in receipt.chunks],
            parts=task.slices[0].parts,
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

    def _done(self, node: Node, identity: str) -> None:
        if self.coverage.add(node, identity):
            self.ledger.counted(node, +1)
            self._no_shows.pop(node, None)
            self.merging.stored(node)

    def _learn(self, receipt: Receipt) -> None:
        if receipt.chunks:
            per_chunk = max(1e-6, receipt.seconds / len(receipt.chunks))
            self._per_chunk = 0.7 * self._per_chunk + 0.3 * per_chunk if self._per_chunk else per_chunk
            per_event = receipt.seconds / max(1, sum(r.entries for r in receipt.chunks))
            self._per_event = 0.7 * self._per_event + 0.3 * per_event if self._per_event else per_event

    def _measured(self, task: Task, receipt: Receipt) -> None:
        dataset, parts = self.tree.splits[task.node.split].dataset, task.slices[0].parts
        for record in receipt.chunks:
            self.sizing.took(dataset, -(-record.entries // parts), record.peak, record.before)

    def _watch_growth(self, future: Future[Receipt], receipt: Receipt) -> None:
        """Have a worker replaced that keeps more memory with every task."""
        if not receipt.chunks:
            return
        leak = self._leaks.saw(receipt.host, receipt.pid, min(r.before for r in receipt.chunks))
        if leak is None:
            return
        renew = getattr(self.pool, "renew", None)
        renewed = renew is not None and renew(future)
        self.journal.write(
            "leak", host=leak.host, pid=leak.pid, base=leak.base, now=leak.now, renewed=renewed
        )
        if self._leaks.found == 1:
            tail = "; workers that do so are replaced" if renewed else ""
            self.observer.message("warning", f"{leak}{tail}")

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
        if policy.taken_away(error) and self._taken.get(task.node, 0) < policy.MOST_TAKEN:
            # The site took the machine away: nobody is to blame, unless it happens again and again.
            self._taken[task.node] = self._taken.get(task.node, 0) + 1
            self.journal.write(
                "lost", task=task.id[:16], node=task.node, error=blame.said(error), blamed=False
            )
            self._stack.append(task.node)
            return
        self.journal.write(
            "lost", task=task.id[:16], node=task.node, error=blame.said(error), blamed=bool(words)
        )
        self._silent_failures += 1
        if self._silent_failures > max(20, 4 * self.terms.slots):
            raise EngineError(
                f"{self._silent_failures} tasks in a row came back without a result; the last one: "
                f"{blame.said(error)}"
            ) from error
        if words is not None and blame.of_task(task, failure := blame.blamed(task, words, error)):
            self._silent_failures = 0
            self._failed(task, failure)
            self._requeue(task.node, [blame.chunk_node(task, failure.file, failure.chunk)])
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

    # -- failures ----------------------------------------------------------------------------------

    def _failed(self, task: Task, failure: Failure) -> None:
        """Count one failure of a chunk and do what the policy says."""
        node = blame.chunk_node(task, failure.file, failure.chunk)
        if self.coverage.done(node) or self.ledger.given_up(node):
            return
        history = self.ledger.failed(node, failure)
        count = history.add(failure.kind)
        span = failure.range[1] - failure.range[0]
        if failure.kind is Kind.MEMORY:
            dataset = self.tree.splits[node.split].dataset
            self.sizing.burst(dataset, max(1, span // history.parts), failure.peak)
        room = getattr(self.pool, "memory", None)
        action = policy.decide(failure.kind, history, span, self.terms.limits, room=room)
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
                self.observer.message(
                    "warning",
                    f"{failure.path} [{failure.range[0]}:{failure.range[1]}] is processed in {history.parts} "
                    f"pieces now ({failure.kind}): the last bits of inexact sums may differ there",
                )
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

    # -- late and told -----------------------------------------------------------------------------

    def _reissue_late(self) -> None:
        """When nothing else can be handed out, hand out again what an engine seems to have lost.

        What is overdue takes no room: or an engine that loses as much as it has room for stops the run.
        """
        if self._stopping() or ((self._stack or self._later) and self._has_room()):
            return
        now = time.monotonic()
        waiting = getattr(self.pool, "waiting", None)
        for future, assignment in list(self._inflight.items()):
            if waiting is not None and waiting(future):
                assignment.since = now  # a queue of hours at a batch site is not the task's
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
                self.merging.given_up(assignment.task)

    def _has_room(self) -> bool:
        # Before the first answer a pool may still wait for its machines, and not all can say so.
        blind = not self._per_chunk and not hasattr(self.pool, "waiting")
        return blind or len(self._inflight) < self._window()

    def _end_hung(self) -> None:
        """Have the engine end workers that hang, so that their tasks come back as lost."""
        kill = getattr(self.pool, "kill", None)
        if kill is None or self.place.inline:
            return
        for task, why in self._watch.hung() if self.place.shared else ():
            for future, assignment in (*self._inflight.items(), *self._overdue.items()):
                if assignment.task.id.startswith(task) and kill(future, why):
                    self.journal.write("hung", node=assignment.task.node, why=why)
        self._end_overdue(kill)

    def _end_overdue(self, kill: Callable[[Future[Receipt], str], bool]) -> None:
        """What was handed out again and can bring nothing any more is ended: it may have the last worker."""
        limit, now = self.place.chunk_timeout or math.inf, time.monotonic()
        for future, assignment in list(self._overdue.items()):
            if now - assignment.since > self._patience(assignment) + limit * max(1, assignment.chunks):
                assignment.since = now  # asked again as late as that
                if kill(future, "late"):
                    self.journal.write("hung", node=assignment.task.node, why="late")

    def _patience(self, assignment: Assignment) -> float:
        # Before the first answer nothing is known but that no chunk takes longer than it may.
        usual = 20 * self._per_chunk or self.place.chunk_timeout or 0.0
        return max(self.terms.patience, usual * max(1, assignment.chunks))

    def _tell_pool(self) -> None:
        """Towards the end, let the pool give up machines: those it waits for, those without work."""
        need = getattr(self.pool, "need", None)
        if need is None:
            return
        coming = self._stack or self._later or self.ledger.uncut
        left = max(1, self.ledger.chunks_left() if coming else len(self._inflight))
        if left < 0.8 * self._needed or self._needed < left <= self.terms.slots:
            self._needed = left
            need(left)

    def _tell(self, *, force: bool = False) -> None:
        snapshot = self.ledger.snapshot(len(self._inflight), force=force)
        if snapshot is not None:
            self.observer.progressed(snapshot)


def merge_here(place: Place, analysis: Any) -> Call:
    """A call that merges in the runner's own process, where workers do not see the store."""

    def call(task: Task | MergeTask) -> Receipt:
        if not isinstance(task, MergeTask):
            raise TypeError(task)
        return merge(task, analysis, place)

    return call
