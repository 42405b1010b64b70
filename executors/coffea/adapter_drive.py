"""Every item to a result or a reason: submission in a window, retries, blame for dead workers, early stop.

Works on any ``concurrent.futures.Executor``. Knows neither coffea's classes nor how results are added up.
"""

from __future__ import annotations

import concurrent.futures
import heapq
import pickle
import queue
import time
import uuid
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import cloudpickle

from executors.coffea.adapter_item import Outcome, Trouble, load, pack_step, run_item
from executors.coffea.adapter_report import Report, item_name, mishap
from executors.errors import AnalysisError, EngineError
from executors.work.model import Kind
from executors.work.policy import Limits, backoff, classify_engine, stop_for_user

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from executors.coffea.adapter_item import Step
    from executors.coffea.adapter_session import Session

CANARIES = 4  # items in flight until one has succeeded: what a bug on the first event may cost
LOST_TOGETHER = 2  # deaths in company after which an item is tried alone
LOST_ALONE = 2  # deaths all alone after which the item itself is the culprit, …
LOST_IN_ALL = (
    4  # … if it has seen so many in all: one worker may be shot by its batch system, but hardly four
)
KILLERS = 3  # culprits in a row, nothing done in between: then it is not the items
UNREADABLE = 20  # bad inputs without one good: the storage is down, not the files
RENEWALS = 3  # pools opened in a row without one result
STRAYS = 20  # answers for another item, of one item: the pool mixes them up now and then, or always
NOT_TRAVELLING = (ImportError, AttributeError, pickle.PickleError)  # the worker cannot even unpickle the call


@dataclass(slots=True)
class Ticket:
    """One item on its way."""

    index: int
    item: Any
    tries: int = 0  # ended badly, by the item's own exception
    together: int = 0  # deaths while others were running
    alone: int = 0
    strays: int = 0  # answers for another item


@dataclass
class Plan:
    """How to drive: all that does not change while driving."""

    items: Sequence[Any]
    step: Step
    limits: Limits
    window: int
    workers: int
    compression: int | None
    done: Callable[[int, Any], None]  # takes the result of an item, None for one that has none
    progressed: Callable[[int], None]
    report: Report = field(default_factory=Report)
    urls: Mapping[str, str] = field(default_factory=dict)  # a file's name → where it is read, if elsewhere


class Drive:
    """One call: hands out the items and settles each of them."""

    def __init__(self, plan: Plan, session: Session) -> None:
        self.plan = plan
        self.session = session
        self.failures: list[tuple[Ticket, Trouble, BaseException | None]] = []
        self.stopped = ""  # why, if items were left that could have been run
        self.most_in_flight = 0
        self._step = pack_step(plan.step)
        self._token = uuid.uuid4().hex
        self._name = "preprocessing" if plan.step.metadata else "processing"
        self._fresh = 0
        self._again: deque[Ticket] = deque()
        self._later: list[tuple[float, int, Ticket]] = []
        self._suspects: deque[Ticket] = deque()
        self._flying: dict[concurrent.futures.Future[Outcome], tuple[Ticket, int]] = {}
        self._landed: queue.SimpleQueue[concurrent.futures.Future[Outcome]] = queue.SimpleQueue()
        self._alone = False
        self._settled = self._succeeded = self._killers = self._renewals = 0
        self._needed = 0  # calls that the pool was last told to be left

    def run(self) -> None:
        """Settle every item, or as many as make sense; leaves nothing queued in the pool."""
        try:
            while not self.stopped and self._settled < len(self.plan.items):
                self._hand_out()
                self._tell_pool()
                self._take_in()
            self._finish()
        except BaseException:
            # Ctrl-C and the like: whoever waits wants the prompt now, not after the running items.
            if not self._recall() and self.session.replaceable:
                self.session.close()
            raise
        finally:
            self._recall()
            self.plan.report.not_run += len(self.plan.items) - self._settled

    def _finish(self) -> None:
        """After an early stop: keep what has come; wait for what runs unless the analysis is at fault."""
        wait = bool(self.stopped) and any(trouble.kind is Kind.SITE for _, trouble, _ in self.failures)
        for future in list(self._flying):
            if future.cancel():
                del self._flying[future]
        while self._flying and (wait or not self._landed.empty()):
            self._take_in()

    def _recall(self) -> bool:
        """Take back what is in the pool; whether nothing of it runs on."""
        running = [future for future in self._flying if not future.cancel() and not future.done()]
        self._flying.clear()
        ended = [self.session.kill(future, "its call has ended") for future in running]
        return all(ended)

    def _tell_pool(self) -> None:
        """Let the pool give up machines that will have nothing to do; after preprocessing comes the work."""
        left = len(self.plan.items) - self._settled
        if not self.plan.step.metadata and (not self._needed or left < 0.8 * self._needed):
            self._needed = left
            self.session.need(left)

    # --- handing out

    @property
    def _room(self) -> int:
        if self._suspects or self._alone:
            return 0
        if self._succeeded or self.plan.step.metadata:
            return self.plan.window
        return min(self.plan.window, max(1, min(self.plan.workers, CANARIES)))

    def _hand_out(self) -> None:
        if self._suspects and not self._flying:
            self._alone = self._submit(self._suspects[0])
            if self._alone:
                self._suspects.popleft()
            return
        while len(self._flying) < self._room:
            ticket = self._next()
            if ticket is None:
                return
            if not self._submit(ticket):
                self._again.appendleft(ticket)
                return
            if not self._landed.empty():
                return  # an engine that works inline has already answered

    def _next(self) -> Ticket | None:
        if self._later and self._later[0][0] <= time.monotonic():
            return heapq.heappop(self._later)[2]
        if self._again:
            return self._again.popleft()
        if self._fresh < len(self.plan.items):
            self._fresh += 1
            return Ticket(self._fresh - 1, self.plan.items[self._fresh - 1])
        return None

    def _submit(self, ticket: Ticket) -> bool:
        try:
            item = cloudpickle.dumps(ticket.item)
        except Exception as error:
            raise AnalysisError(f"{item_name(ticket.item)} cannot be sent to a worker: {error}") from error
        url = self.plan.urls.get(getattr(ticket.item, "filename", "")) if self.plan.urls else None
        where = {"url": url} if url else {}
        pool, generation = self.session.pool()
        try:
            future = pool.submit(
                run_item, self._step, item, self._token, ticket.index, self.plan.compression, **where
            )
        except (RuntimeError, OSError, concurrent.futures.BrokenExecutor) as error:
            self._renew(generation, error)
            return False
        self._renewals = 0
        self._flying[future] = (ticket, generation)
        self.most_in_flight = max(self.most_in_flight, len(self._flying))
        future.add_done_callback(self._landed.put)
        return True

    def _renew(self, generation: int, why: BaseException) -> None:
        self._renewals += 1
        if self._renewals > RENEWALS:
            raise EngineError(
                f"the pool broke {self._renewals} times in a row before it took an item; "
                f"the last time with {type(why).__name__}: {why}"
            ) from why
        self.session.renew(generation, why)
        for future, (ticket, born) in list(self._flying.items()):
            if born == generation and not future.done():
                # Its pool is gone: it may never be answered.
                del self._flying[future]
                self._lost(ticket, why)

    # --- taking in

    def _take_in(self) -> None:
        try:
            future = self._landed.get(timeout=self._patience())
        except queue.Empty:
            return
        while True:
            flown = self._flying.pop(future, None)
            if flown is not None:
                self._settle(flown[0], future)
            try:
                future = self._landed.get_nowait()
            except queue.Empty:
                return

    def _patience(self) -> float:
        if not self._flying and (self._again or self._suspects or self._fresh < len(self.plan.items)):
            return 0.001
        if self._later and len(self._flying) < self._room:
            return min(1.0, max(0.001, self._later[0][0] - time.monotonic()))
        return 1.0

    def _settle(self, ticket: Ticket, future: concurrent.futures.Future[Outcome]) -> None:
        self._alone, alone = False, self._alone
        try:
            outcome = future.result()
        except KeyboardInterrupt:
            raise
        except NOT_TRAVELLING as error:
            raise EngineError(
                f"a worker cannot load what it is sent ({type(error).__name__}: {error}); "
                "is the same environment installed where the workers run?"
            ) from error
        except (Exception, concurrent.futures.CancelledError) as error:  # noqa: BLE001  any class an engine has for a lost worker
            self._lost(ticket, error, alone)
            return
        if (outcome.token, outcome.index) != (self._token, ticket.index):
            self._strayed(ticket, alone)
        elif outcome.trouble is not None:
            self._troubled(ticket, outcome.trouble)
        elif outcome.payload is not None:
            self._done(ticket, outcome.payload)

    def _strayed(self, ticket: Ticket, alone: bool) -> None:
        ticket.strays += 1
        if ticket.strays <= STRAYS:
            self._again.append(ticket)
        else:
            self._lost(ticket, EngineError("the pool answers with the results of other items"), alone)

    def _done(self, ticket: Ticket, payload: bytes) -> None:
        try:
            value = load(payload)
        except Exception as error:
            name = item_name(ticket.item)
            raise AnalysisError(f"the result of {name} cannot be unpickled here: {error}") from error
        self._succeeded += 1
        self._killers = 0
        if value is None:
            nothing = Trouble(Kind.BAD, "NoResult", "the function returned None", skippable=True)
            self.plan.report.skipped.append(mishap(self._name, ticket.item, nothing, ticket.tries + 1))
        else:
            self.plan.report.done += 1
        self._close(ticket, value)

    def _close(self, ticket: Ticket, value: Any) -> None:
        self._settled += 1
        self.plan.done(ticket.index, value)
        self.plan.progressed(self._settled)

    def _troubled(self, ticket: Ticket, trouble: Trouble) -> None:
        ticket.tries += 1
        if self.plan.step.owned and ticket.tries <= tries_again(trouble.kind, self.plan.limits):
            self.plan.report.retried.append(mishap(self._name, ticket.item, trouble, ticket.tries))
            if trouble.kind is Kind.MEMORY:
                self._suspects.append(ticket)  # all the memory there is, once
                return
            spread = 1 + 0.5 * (ticket.index * 0.618034 % 1)  # not all of them at the same moment
            when = time.monotonic() + spread * backoff(ticket.tries, self.plan.limits)
            heapq.heappush(self._later, (when, ticket.index, ticket))
        elif trouble.skippable and not self.plan.step.defer:
            self.plan.report.skipped.append(mishap(self._name, ticket.item, trouble, ticket.tries))
            self._close(ticket, None)
        else:
            self._fail(ticket, trouble)

    def _fail(self, ticket: Ticket, trouble: Trouble, error: BaseException | None = None) -> None:
        attempts = max(1, ticket.tries + ticket.together + ticket.alone)
        self.plan.report.failed.append(mishap(self._name, ticket.item, trouble, attempts))
        self.failures.append((ticket, trouble, error))
        self._close(ticket, None)
        self.stopped = self.stopped or self._why_stop(trouble.kind)

    def _why_stop(self, kind: Kind) -> str:
        failed = len(self.failures)
        users = sum(t.kind is Kind.USER for _, t, _ in self.failures)
        if kind is Kind.USER and stop_for_user(users, self._succeeded > 0, self.plan.limits):
            return f"the analysis raised on {users} of the first {self._settled} items"
        if kind is Kind.SITE:
            return "the site cannot go on"
        if kind is Kind.LOST and self._killers >= KILLERS:
            return f"{self._killers} items in a row killed every worker they ran on: hardly the items"
        if not self._succeeded and failed >= UNREADABLE:
            return f"none of the first {self._settled} items could be read"
        return ""

    def _lost(self, ticket: Ticket, error: BaseException, alone: bool = False) -> None:
        # Where one death fails all that was running, whose fault it was shows only in a run alone.
        alone = alone or self.session.exact
        ticket.alone += alone
        ticket.together += not alone
        deaths = ticket.alone + ticket.together
        kind = classify_engine(error)
        memory = kind is Kind.MEMORY or getattr(error, "why", "") == "memory"
        trouble = Trouble(kind, type(error).__name__, str(error)[:500], links=())
        if ticket.alone >= LOST_ALONE and deaths >= LOST_IN_ALL:
            self._killers += 1
            text = (
                f"kills its worker: {deaths} died of it, {ticket.alone} with nothing else running ({error})"
            )
            self._fail(ticket, Trouble(Kind.LOST, type(error).__name__, text[:1000]), error)
            return
        self.plan.report.retried.append(mishap(self._name, ticket.item, trouble, deaths))
        if memory or ticket.together >= LOST_TOGETHER:
            self._suspects.append(ticket)
        else:
            self._again.append(ticket)


def tries_again(kind: Kind, limits: Limits) -> int:
    """How many more times an item is tried after its own exception of a kind."""
    if kind in {Kind.USER, Kind.SITE}:
        return 0
    if kind is Kind.PASSING:
        return limits.retries
    # A second opinion: reading again rarely helps, but one worker's word is not enough.
    return min(1, limits.retries)
