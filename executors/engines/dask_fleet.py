"""The workers of batch jobs as the host sees them: who is connected, who has whom, how one ended.

A lane takes one worker for itself and waits without asking; for a call it may use another lane's that has
nothing to do. What the scheduler, a job's pilot and the crew say is told to the fleet. Nothing of Dask may
enter: how a call travels is in ``dask_remote``.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING

from executors.engines.base import REMOVED, WorkerDied
from executors.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable

    from executors.errors import SiteError

OBITUARY_WAIT = 1.5  # seconds; a pilot that lives says within a tenth of one how its worker ended
FATE_WAIT = 30.0  # the batch system is asked as seldom as the site wants it
REFUSALS = 3  # new workers in a row that could not be dressed
KEPT = 2000  # the last of those gone, whose obituaries may still come


def job_of(name: str) -> str:
    """The job of a worker's name, which is job, slot, and how many were in the slot before."""
    return name.rsplit("-", 2)[0]


class Member:
    """One connected worker."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.address = address
        self.job = job_of(name)
        self.doomed = False
        self.owner: object = None  # the lane that has it
        self.busy = False  # with a call
        self.since = 0.0  # when it began to have nothing to do
        self._lock = threading.Lock()
        self._gone = False
        self._death: WorkerDied | None = None
        self._told = threading.Event()
        self._listeners: list[Callable[[], object]] = []

    @property
    def usable(self) -> bool:
        """Whether it is connected and nobody wants it dead."""
        return not self._gone and not self.doomed

    @property
    def gone(self) -> bool:
        """Whether it is no longer connected."""
        return self._gone

    def on_gone(self, call: Callable[[], object]) -> None:
        """Call this once it is gone, at once if it is; only the last caller is kept."""
        with self._lock:
            if not self._gone:
                self._listeners = [call]
                return
        call()

    def left(self) -> None:
        """It is no longer connected."""
        with self._lock:
            self._gone = True
            listeners, self._listeners = self._listeners, []
        for call in listeners:
            call()

    def buried(self, death: WorkerDied) -> None:
        """Its pilot says how it ended."""
        self._death = self._death or death
        self._told.set()

    @property
    def peak(self) -> int:
        """The most memory that it had, if its pilot said that."""
        return 0 if self._death is None else self._death.peak

    def obituary(self, timeout: float) -> WorkerDied | None:
        """How it ended, if its pilot says so within the time."""
        self._told.wait(timeout)
        return self._death


class Fleet:
    """Every worker that is connected; lanes wait here for one of their own."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.on_started: Callable[[str], object] = lambda _: None  # this job has a worker
        self.on_left: Callable[[str], object] = lambda _: None  # this job has none any more
        self.on_heavy: Callable[[str], object] = lambda _: None  # a worker of this job took too much memory
        self.on_count: Callable[[int], object] = lambda _: None  # so many workers are connected
        self.order: Callable[[Member], object] = lambda _: None  # have this worker killed
        self.fate: Callable[[str, float], str] = lambda _, __: ""  # what the batch system knows of a job
        self._clock = clock
        self._lock = threading.Lock()
        self._unowned = threading.Condition(self._lock)  # a lane without any worker waits here
        self._unused = threading.Condition(self._lock)  # a lane with a call, whose worker is gone
        self._calls = 0  # how many wait there
        self._here: dict[str, Member] = {}
        self._past: OrderedDict[str, Member] = OrderedDict()
        self._failure: SiteError | None = None
        self._refusals = 0

    def take(self, lane: object) -> Member:
        """A connected worker for this lane alone; waits until there is one, or raises why none will come."""
        with self._lock:
            while True:
                if self._failure is not None:
                    raise self._failure
                if (member := self._first(free=True)) is not None:
                    member.owner = lane
                    return member
                self._unowned.wait()

    def engage(self, own: Member | None, lane: object) -> Member:
        """A worker for one call of this lane: its own, or else any that has nothing to do.

        Workers may be fewer than lanes: when jobs are given up, or lost near the end and not replaced.
        """
        with self._lock:
            if own is None or not own.usable or own.owner is not lane:
                own = self._other()
            own.owner, own.busy = lane, True
            return own

    def _other(self) -> Member:
        while True:
            if self._failure is not None:
                raise self._failure
            if (member := self._first(free=True) or self._first(free=False)) is not None:
                return member
            self._calls += 1  # who wakes one counts it off: it may take its time to be awake
            self._unused.wait()

    def _wake_call(self) -> bool:
        """Wake one lane that waits with a call, if there is any that was not woken yet."""
        if not self._calls:
            return False
        self._calls -= 1
        self._unused.notify()
        return True

    def _first(self, *, free: bool) -> Member | None:
        """One that can take a call now; ``free``: and that no lane has."""
        here = self._here.values()
        return next((one for one in here if one.usable and not one.busy and not (free and one.owner)), None)

    def disengage(self, member: Member) -> None:
        """The call is over."""
        with self._lock:
            member.busy, member.since = False, self._clock()
            self._wake_call()

    def rest(self, count: int, seconds: float) -> list[str]:
        """At most so many jobs whose workers have had nothing to do for so long; they take no more calls."""
        with self._lock:
            latest = self._clock() - seconds
            jobs: dict[str, list[Member]] = {}
            for member in self._here.values():
                jobs.setdefault(member.job, []).append(member)
            idle = {
                job: max(one.since for one in members)
                for job, members in jobs.items()
                if all(one.usable and not one.busy and one.since <= latest for one in members)
            }
            chosen = sorted(idle, key=lambda job: idle[job])[: max(0, count)]
            for job in chosen:
                for member in jobs[job]:
                    member.doomed = True
            return chosen

    def retire(self, member: Member, lane: object) -> None:
        """Have it replaced, unless it is another lane's by now."""
        with self._lock:
            mine = member.owner is lane
        if mine:
            self.kill(member)

    def kill(self, member: Member) -> None:
        """Have it killed, wherever it is; nobody gets it again."""
        member.doomed = True
        self.order(member)

    def ended(self, member: Member, reason: str) -> WorkerDied:
        """How a worker ended: its pilot knows best, then the batch system, then whoever gave the reason."""
        if member.usable:
            self.kill(member)  # it answered with an error of Dask's own: it cannot be trusted with more
        death = member.obituary(OBITUARY_WAIT)
        if death is not None and death.why != REMOVED:
            return death
        fate = self.fate(member.job, FATE_WAIT)
        death = member.obituary(0.0)
        if death is not None and death.why != REMOVED:
            return death
        if fate == "memory" and not self._is_largest(member):
            fate = REMOVED  # the job was ended for what another took
        peak = 0 if death is None else death.peak
        return WorkerDied.of(fate or (reason if death is None else REMOVED), None, peak)

    def _is_largest(self, member: Member) -> bool:
        """Whether no other worker of its job was larger, as far as the pilot could say it."""
        with self._lock:
            others = [one for one in (*self._here.values(), *self._past.values()) if one.job == member.job]
        return member.peak >= max(one.peak for one in (*others, member))

    def joined(self, name: str, address: str) -> None:
        """A worker has connected."""
        member = Member(name, address)
        with self._lock:
            member.since = self._clock()
            first = not self._has_worker(member.job)
            self._here[name] = member
            self._refusals = 0
            count = len(self._here)
            if not self._wake_call():
                self._unowned.notify()
        if first:
            self.on_started(member.job)
        self.on_count(count)

    def left(self, name: str) -> None:
        """A worker's connection is gone."""
        with self._lock:
            member = self._here.pop(name, None)
            count = len(self._here)
            last = not self._has_worker(job_of(name))
            if member is not None:
                self._past[name] = member
            while len(self._past) > KEPT:
                self._past.popitem(last=False)
        if member is not None:
            member.left()
            if last:
                self.on_left(member.job)
            self.on_count(count)

    def _has_worker(self, job: str) -> bool:
        return any(one.job == job for one in self._here.values())

    def buried(self, name: str, death: WorkerDied) -> None:
        """A pilot says how a worker of its job ended."""
        with self._lock:
            member = self._here.get(name) or self._past.get(name)
        if member is not None:
            member.buried(death)
        if death.why == "memory":
            self.on_heavy(job_of(name))

    def refused(self, text: str) -> None:
        """A new worker could not be dressed; when that is the rule, no worker will ever come."""
        with self._lock:
            self._refusals += 1
            hopeless = self._refusals >= REFUSALS and not self._here
        if hopeless:
            self.fail(EngineError(text))

    def fail(self, failure: SiteError) -> None:
        """No worker will come any more: whoever waits for one hears why."""
        with self._lock:
            self._failure = self._failure or failure
            self._calls = 0
            self._unowned.notify_all()
            self._unused.notify_all()
