"""The roster: every job of a crew as it was last seen, and what the ended ones died of.

A table with rules, fed with states and moments: it asks nothing, waits for nothing and tells nobody.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from executors.batch.schedulers import JobState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from executors.batch.schedulers import Fate

BLIND = 30.0  # seconds in which a job that was just submitted may be missing from the queue


@dataclass(slots=True)
class Job:
    """One job as it is known now."""

    state: JobState
    born: float
    started: bool = False  # a worker of it was seen
    dropped: bool = False  # removed by us: its end is no news
    missed: int = 0  # looks in a row that did not show it
    hopeless: int = 0  # looks in a row that said it never starts
    ran: float | None = None  # since when it was seen running
    memory: int | None = None  # bytes that it asked for

    @property
    def ids(self) -> tuple[str, str]:
        """Its own name for itself, and the batch system's."""
        return self.state.alias, self.state.id


class Roster:
    """The jobs of one name. Not locked: the crew does that."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self._past: dict[str, JobState] = {}
        self._alias: dict[str, str] = {}
        self._starts: set[str] = set()
        self._left: dict[str, float] = {}
        self._evicted: set[str] = set()

    def add(self, ids: Iterable[str], now: float, memory: int | None = None) -> None:
        """Jobs that were submitted."""
        for one in ids:
            self.jobs.setdefault(one, Job(JobState(one, "pending", "submitted"), now)).memory = memory

    def start(self, job_id: str) -> None:
        """A worker of this job was seen; it may be known here later than that."""
        self._starts.add(job_id)
        self._left.pop(job_id, None)
        job = self.find(job_id)
        if job is not None:
            job.started = True
            self._evicted.discard(job.state.id)

    def leave(self, job_id: str, now: float) -> None:
        """The last worker of this job is gone; the job may be known here later than that."""
        self._left.setdefault(job_id, now)

    def find(self, job_id: str) -> Job | None:
        """The job of this id or alias, while it is in the queue."""
        return self.jobs.get(self._alias.get(job_id, job_id))

    def learn(self, states: Iterable[JobState], now: float) -> list[Job]:
        """Take in what one look showed; the jobs that ended or were held since, for ``settle``."""
        return [job for state in states if (job := self._learn(state, now)) is not None]

    def _learn(self, state: JobState, now: float) -> Job | None:
        job = self.jobs.get(state.id)
        if job is None:
            # Of a host before this one, and no matter now: it was removed before anything was submitted here.
            if state.id in self._past or state.ended or state.phase == "ending":
                return None
            # Of a submission whose answer never came: it is ours by its name.
            job = self.jobs[state.id] = Job(state, now)
        if state.alias:
            self._alias[state.alias] = state.id
        job.started = job.started or not self._starts.isdisjoint((state.id, state.alias))
        if state.phase == "gone":
            job.missed += 1
            if job.missed < 2 or now - job.born < BLIND:
                return None
        self._enter(job, state, now)
        return job if state.ended or (state.phase == "held" and not job.dropped) else None

    def _enter(self, job: Job, state: JobState, now: float) -> None:
        was, job.state = job.state.phase, state
        job.missed = 0
        job.hopeless = job.hopeless + 1 if state.hopeless else 0
        if was == "running" and state.phase == "pending":
            self._evicted.add(state.id)  # it lost its node and waits for another
        if state.phase != "running":
            job.ran = None
        elif job.ran is None:
            job.ran = now

    def settle(self, job: Job) -> None:
        """Keep what a job that ended or is held died of, for whoever asks."""
        self._past[job.state.id] = job.state
        if job.state.ended:
            self.jobs.pop(job.state.id, None)
            for one in job.ids:
                self._left.pop(one, None)

    def fate(self, job_id: str) -> Fate | None:
        """What became of a job; None: nothing yet."""
        one = self._alias.get(job_id, job_id)
        if one in self._past:
            return self._past[one].fate
        job = self.jobs.get(one)
        if job is None:
            return None
        return job.state.fate or ("removed" if one in self._evicted else None)

    def state(self, job_id: str) -> JobState | None:
        """The last that is known of a job."""
        one = self._alias.get(job_id, job_id)
        job = self.jobs.get(one)
        return job.state if job is not None else self._past.get(one)

    @property
    def live(self) -> int:
        """How many run or will by themselves."""
        return sum(1 for job in self.jobs.values() if job.state.live and not job.dropped)

    @property
    def waiting(self) -> bool:
        """Whether some have shown no worker yet."""
        return any(not job.started for job in self.jobs.values())

    def trying(self) -> list[Job]:
        """Those that run and have shown no worker yet."""
        return [
            job for job in self.jobs.values() if job.ran is not None and not job.started and not job.dropped
        ]

    def shells(self, left: float, never: float) -> list[str]:
        """Those said to run whose workers left before the one moment, or had not come by the other."""
        return [
            job.state.id
            for job in self.jobs.values()
            if job.ran is not None and not job.dropped and self._is_shell(job, job.ran, left, never)
        ]

    def _is_shell(self, job: Job, ran: float, left: float, never: float) -> bool:
        since = next((self._left[one] for one in job.ids if one in self._left), None)
        if since is not None and since >= ran:
            return since < left
        # None has come since it runs: it is new, or it was given another node.
        return ran < never and (since is not None or not job.started)

    def pending(self) -> list[Job]:
        """Those that wait in the queue, the oldest first."""
        return sorted(
            (job for job in self.jobs.values() if job.state.phase == "pending"), key=lambda job: job.born
        )

    def stuck(self) -> str:
        """Why no job ever starts, where the batch system says so twice of all."""
        jobs = list(self.jobs.values())
        return jobs[0].state.says if jobs and all(job.hopeless >= 2 for job in jobs) else ""

    def surplus(self, count: int, *, waiting: bool = False) -> list[str]:
        """Jobs to give up when there are ``count`` too many: those that lose least, or only waiting ones."""
        live = [job for job in self.jobs.values() if job.state.live and not job.dropped]
        if waiting:
            live = [job for job in live if job.state.phase == "pending"]
        live.sort(key=lambda job: (job.state.phase == "running", job.started, -job.born))
        return [job.state.id for job in live[: max(0, count)]]

    def drop(self, ids: Iterable[str]) -> list[str]:
        """Mark jobs as removed by us; those that are there."""
        found = [one for one in ids if one in self.jobs]
        for one in found:
            self.jobs[one].dropped = True
        return found

    def line(self) -> str:
        """The queue in a few words; "" for an empty one."""
        parts = []
        for phase in ("running", "pending", "held", "ending"):
            states = [job.state for job in self.jobs.values() if job.state.phase == phase]
            reason = Counter(one.reason for one in states if one.reason).most_common(1)
            if states:
                parts.append(f"{len(states)} {phase}" + (f" ({reason[0][0]})" if reason else ""))
        return ", ".join(parts)
