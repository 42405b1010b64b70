"""The crew: keeps the wanted number of equal jobs in a batch system's queue, and says what became of each.

One thread submits, looks and removes, paced by the site's limits. What a worker does or how it is connected
is the engine's; how a batch system is asked is the scheduler's.
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from executors.batch.growth import OUTGROWN, Growth
from executors.batch.joblogs import last_lines
from executors.batch.leaving import leave, remove
from executors.batch.pace import Pace
from executors.batch.reasons import fate_of_log
from executors.batch.roster import Roster
from executors.batch.schedulers import SubmissionError
from executors.errors import EngineError, SiteError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from executors.batch.roster import Job
    from executors.batch.schedulers import Fate, JobState, Scheduler
    from executors.batch.spec import JobSpec
    from sites.profile import Limits

FAILED_STARTS = 3  # in a row, without a worker of any job between: then it is not the node
SETTLE = 120.0  # seconds that jobs still running get to show a worker after others failed
FRESH = 20.0  # seconds after something happened in which the queue is worth a quick look
EXPLAIN = 60.0  # seconds of waiting, and the batch system is asked for its reasons
SILENT = 300.0  # a job runs so long without any worker, and it is said
GONE = 30.0  # seconds beyond the patience of a worker: one that lives has come back, or its job has ended
LEAVE = 20.0  # seconds that close() waits for an empty queue
LONG = 3600.0
BACKOFF = 300.0  # seconds, the longest pause after refusals or failed starts
SUBMITTING = "submitting"  # a file that is there while a command submits: the keeper looks for it
DEAF = 3  # looks in a row without an answer, and it is said


class Crew:
    """Jobs of one opened engine; ``tell(level, text)`` and ``on_failure`` are called from its own thread."""

    def __init__(
        self,
        scheduler: Scheduler,
        spec: JobSpec,
        limits: Limits,
        tell: Callable[[str, str], None],
        *,
        grow: Callable[[int], JobSpec] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``grow``: the same job with so much memory, where it can have more."""
        self.failure: SiteError | None = None  # why it makes no sense to go on
        self.on_failure: Callable[[SiteError], None] = lambda _: None
        # Of jobs whose workers have had nothing to do for long, at most so many, which take no more calls.
        self.idle: Callable[[int, float], list[str]] = lambda _, __: []
        self._scheduler, self._name, self._limits = scheduler, spec.name, limits
        self._tell, self._clock = tell, clock
        self._logs = spec.logs
        self._growth = Growth(spec, limits.memory, grow)
        self._lock = threading.RLock()
        self._news = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None
        self._roster = Roster()
        self._pace = Pace(limits.polls_per_minute)
        self._wanted = self._connected = 0
        self._needed: int | None = None  # fewer than wanted, when there is not so much left to do
        self._poked = self._closing = False
        self._must_look = False  # a submission's end is unknown: its jobs may be in the queue
        self._curious = 0  # how many wait for a fate
        self._looks = self._unanswered = self._refusals = self._failed_starts = self._bad_looks = 0
        self._fresh_until = self._next_submission = self._next_answer = self._failing_since = 0.0
        self._submitted, self._next_reasons = -LONG, -LONG
        self._without = clock()  # since when no worker is connected
        self._last: dict[str, str] = {}  # what was last said of: failure, refusal, silence, status
        self._told: set[str] = set()
        self._resting: set[str] = set()  # jobs that the engine uses no more, by the ids that they know

    def want(self, jobs: int) -> None:
        """Keep so many jobs in the queue from now on, within the site's limit."""
        most = self._limits.jobs
        if most is not None and jobs > most:
            self._once("warning", f"this site takes {most} jobs of one run at a time, not {jobs}")
            jobs = most
        with self._lock:
            if not self._wanted:
                self._without = self._clock()
            self._wanted = max(0, jobs)
            if self._thread is None and jobs > 0 and not self._closing:
                self._start()
            self._poke()

    def need(self, jobs: int) -> None:
        """No more than so many have anything to do: no others are submitted, none wait in the queue.

        Those that run go once their workers have had nothing to do for as long as the site's profile says.
        """
        with self._lock:
            if jobs != self._needed:
                self._needed = max(1, jobs)
                self._poke()

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="crew", daemon=True)
        self._thread.start()

    def seen(self, workers: int) -> None:
        """So many workers are connected now."""
        with self._lock:
            if not workers and self._connected:
                self._without = self._clock()
            if workers < self._connected:
                self._fresh_until = self._clock() + FRESH
                self._poke()
            self._connected = workers

    def started(self, job_id: str) -> None:
        """A worker of this job, by the id that the job knows, has connected: its start did not fail."""
        with self._lock:
            self._roster.start(job_id)
            self._failed_starts = self._bad_looks = 0
            self._without = self._clock()

    def left(self, job_id: str) -> None:
        """The last worker of this job is no longer connected; ``started`` says when one is again."""
        with self._lock:
            self._roster.leave(job_id, self._clock())

    def outgrown(self, job_id: str) -> None:
        """A worker of this job needed more memory than is its own."""
        with self._lock:
            job = self._roster.find(job_id)
        if job is not None:
            self._ask_for_more(job.memory, f"a worker of {job.state.id}")

    def _ask_for_more(self, had: int | None, what: str, *, enough: int = OUTGROWN) -> None:
        """Have the next jobs ask for more, if this one had what they would ask for now."""
        with self._lock:
            text = self._growth.outgrown(had, what, enough=enough)
        if text:
            self._once("warning", text)

    def fate(self, job_id: str, timeout: float) -> Fate:
        """What the batch system says became of a job; "" if it runs on, or nothing is known in time."""
        deadline = time.monotonic() + timeout
        with self._lock:
            self._curious += 1
            asked = self._looks
            self._poke()
            while (known := self._roster.fate(job_id)) is None and not self._runs_on(job_id, asked):
                left = deadline - time.monotonic()
                if left <= 0 or self._closing or self.failure is not None or self._thread is None:
                    break
                self._news.wait(left)
            self._curious -= 1
            return known or ""

    def _runs_on(self, job_id: str, asked: int) -> bool:
        # The first look may have begun before the question, the second may come a moment too early.
        job = self._roster.find(job_id)
        return self._looks >= asked + 3 and (job is None or job.state.phase == "running")

    def state(self, job_id: str) -> JobState | None:
        """The last that is known of a job, with the whole sentence for people."""
        with self._lock:
            return self._roster.state(job_id)

    def status(self) -> str:
        """The queue in one short line."""
        with self._lock:
            line = self._roster.line() or "no jobs in the queue"
            if self._failed_starts >= FAILED_STARTS:  # else a long pause between tries looks like sleep
                line = f"{line}, jobs gave no worker again and again"
            return f"{line}, the batch system does not answer" if self._unanswered >= DEAF else line

    def close(self) -> None:
        """Remove every job; returns when the queue shows none, at the latest after some 20 seconds."""
        with self._lock:
            self._closing = True
            self._poke()
            thread = self._thread
        if thread is None or thread is threading.current_thread():
            return
        thread.join(LEAVE + 5.0)
        if (
            thread.is_alive()
        ):  # a command hangs; what it still submits is removed by its own thread, or by name
            remove(self._scheduler, self._name, self._once)

    # The thread.

    def _run(self) -> None:
        try:
            while not self._closing:
                pause = self._turn()
                with self._lock:
                    self._news.wait_for(lambda: self._closing or self._poked, pause)
                    self._poked = False
        except Exception as error:  # noqa: BLE001 - the engine's edge: a dead thread would be a run that waits for ever
            self._fail(EngineError(f"the crew of batch jobs broke: {type(error).__name__}: {error}"))
        with self._lock:
            self._news.wait_for(lambda: self._closing)
        leave(self._scheduler, self._name, LEAVE, self._once)

    def _turn(self) -> float:
        """Whatever is due now; seconds until the next thing is."""
        if self.failure is not None:
            return LONG
        if self._look_due() <= self._clock():
            self._look()
        missing = self._missing()
        if missing > 0 and self._may_submit() <= self._clock():
            self._submit(min(missing, self._limits.jobs_per_submission))
        elif missing < 0:
            self._let_go(-missing)
        if self._resting:
            self._give_back()
        self._give_up_shells()
        self._consider()
        self._say_status()
        return self._pause()

    def _pause(self) -> float:
        due = [self._look_due(), self._clock() + LONG]
        if self._wanted and not self._connected:
            due.append(self._without + self._limits.start)
        missing = self._missing()
        if missing > 0:
            due.append(self._may_submit())
        elif missing < 0:
            due.append(self._clock() + self._limits.idle / 4)
        return max(0.05, min(due) - self._clock())

    def _let_go(self, count: int) -> None:
        """Give up jobs that are too many: any that were wanted no more, else those that lose nothing."""
        with self._lock:
            too_many = self._roster.live > self._wanted
            surplus = self._roster.surplus(count, waiting=not too_many)
        self._drop(surplus)
        if too_many or len(surplus) == count:
            return
        self._resting.update(self.idle(count - len(surplus), self._limits.idle))

    def _give_back(self) -> None:
        """Remove the jobs that rest, once a look has told which they are."""
        with self._lock:
            found = {name: job.state.id for name in self._resting if (job := self._roster.find(name))}
            self._resting.difference_update(found)
        if found:
            jobs = "1 job has" if len(found) == 1 else f"{len(found)} jobs have"
            self._tell("info", f"{jobs} nothing left to do and will be removed")
            self._drop(found.values())

    def _give_up_shells(self) -> None:
        """Replace jobs of which only the batch system's entry is left: a broken node is noticed late."""
        if self._unanswered:  # what is known of the queue is old
            return
        with self._lock:
            now = self._clock()
            shells = self._roster.shells(now - self._limits.death - GONE, now - self._limits.start)
        if shells:
            more = f" and {len(shells) - 1} more" if len(shells) > 1 else ""
            text = f"job {shells[0]}{more} should run, but has no worker any more"
            self._once("warning", f"{text}: it is replaced while it is wanted", key="shell")
            self._drop(shells)

    def _missing(self) -> int:
        with self._lock:
            target = self._wanted if self._needed is None else min(self._wanted, self._needed)
            missing = target - self._roster.live
            failing = self._failed_starts >= FAILED_STARTS and not self._connected
            return min(0, missing) if failing else missing

    def _may_submit(self) -> float:
        return self._clock() + LONG if self._must_look else self._next_submission

    # Looking.

    def _look_due(self) -> float:
        with self._lock:
            now = self._clock()
            if not self._roster.jobs and not self._must_look:
                return now + LONG
            news = self._curious > 0 or now < self._fresh_until
            due = self._pace.next(now, news=news, waiting=self._must_look or self._roster.waiting)
            return max(due, self._next_answer, self._submitted + min(2.0, self._pace.period))

    def _look(self) -> None:
        with self._lock:
            ids = list(self._roster.jobs)
        self._pace.mark(self._clock())
        try:
            states = self._scheduler.query(self._name, ids)
        except SiteError as error:
            self._unheard(error)
            return
        with self._lock:
            now, failed = self._clock(), self._failed_starts
            self._unanswered, self._next_answer, self._must_look = 0, 0.0, False
            changed = self._roster.learn(states.values(), now)
        self._fetch([job.state.id for job in changed if not job.started and not job.dropped])
        held = [job.state.id for job in changed if self._settle(job)]
        with self._lock:
            if self._failed_starts > failed:
                self._bad_looks += 1
                pause = min(BACKOFF, 2.0 ** min(self._bad_looks, 10))
                self._next_submission = max(self._next_submission, now + pause)
            self._looks += 1
            self._news.notify_all()
        self._drop(held)

    def _fetch(self, ids: list[str]) -> None:
        try:
            self._scheduler.fetch(ids)
        except SiteError as error:
            self._once("warning", f"logs of jobs could not be fetched: {error.message}", key="fetch")

    def _unheard(self, error: SiteError) -> None:
        self._unanswered += 1
        pause = min(BACKOFF, self._pace.period * 2 ** min(self._unanswered - 1, 10))
        self._next_answer = self._clock() + pause
        self._last["silence"] = error.message
        if self._unanswered == DEAF:
            self._tell("warning", f"the batch system does not answer, asking on: {error.message}")

    def _settle(self, job: Job) -> bool:
        """Write down and tell what ended a job; True if it is held and has to go."""
        state = job.state
        file, lines = "", list[str]()
        if not job.dropped and (not job.started or state.fate in ("", "exit")):
            file, lines = last_lines(self._logs, job.ids)
        meaning = fate_of_log(lines)
        if meaning is not None:
            state = job.state = replace(
                state, fate=meaning.fate, reason=meaning.words, says=meaning.sentence()
            )
        with self._lock:
            self._roster.settle(job)
        if job.dropped:
            return False
        if state.fate == "memory":
            self._ask_for_more(job.memory, state.id, enough=1)
        text = f"{_end(job)}; it is replaced while it is wanted"
        if not job.started:
            self._failed_start(job, file, lines)
        elif state.phase == "held" or state.fate in ("memory", "walltime"):
            level = "info" if state.fate == "walltime" else "warning"
            self._once(level, text, key=f"{state.phase} {state.reason} {state.fate}")
        else:
            self._tell("debug", text)
        return state.phase == "held"

    def _failed_start(self, job: Job, file: str, lines: list[str]) -> None:
        with self._lock:
            if not self._failed_starts:
                self._failing_since = self._clock()
            self._failed_starts += 1
        log = f"; {file} ends:" + "".join(f"\n    {line}" for line in lines) if lines else ""
        self._last["failure"] = f"{_end(job)}{log}"
        text = f"no worker came from a job: {self._last['failure']}"
        self._once("warning", text, key=f"start {job.state.phase} {job.state.reason}")

    # Submitting and removing.

    def _submit(self, count: int) -> None:
        with self._lock:
            spec = self._growth.spec
        mark = spec.folder / SUBMITTING
        try:
            mark.touch()
            ids = self._scheduler.submit(spec, count)
        except OSError as error:
            self._fail(SiteError(f"{mark.parent}: {error.strerror}: jobs cannot be submitted from there"))
            return
        except SiteError as error:
            self._refused(error)
            return
        except UsageError as error:  # a value that may not go into the text
            self._fail(SiteError(error.message))
            return
        finally:
            mark.unlink(missing_ok=True)
        if not ids:
            self._refused(SubmissionError("the batch system took jobs and named none", transient=True))
            return
        with self._lock:
            now = self._clock()
            self._roster.add(ids, now, spec.memory)
            self._refusals = 0
            self._last.pop("refusal", None)
            self._next_submission = max(
                self._next_submission, now + 1.0 / self._limits.submissions_per_second
            )
            if now > self._fresh_until:  # the first of several: the look is not put off by the next ones
                self._submitted = now
            self._fresh_until = now + FRESH

    def _refused(self, error: SiteError) -> None:
        with self._lock:
            alone = not self._connected and not self._roster.live
        transient = isinstance(error, SubmissionError) and error.transient
        if not transient and alone:  # with jobs at work it may be a limit, and the run goes on with them
            self._fail(error)
            return
        with self._lock:
            self._refusals += 1
            self._must_look = True  # it may have been taken all the same
            self._next_submission = self._clock() + min(BACKOFF, 5.0 * 2 ** min(self._refusals - 1, 10))
        self._last["refusal"] = error.message
        self._once("warning", f"{error.message}; trying again")

    def _drop(self, ids: Iterable[str]) -> None:
        with self._lock:
            found = self._roster.drop(ids)
        if found:
            try:
                self._scheduler.cancel(found)
            except SiteError as error:  # they are removed by name when the crew leaves
                self._once("warning", f"jobs could not be removed: {error.message}")

    # Giving up.

    def _consider(self) -> None:
        """End it where going on makes no sense; say what is strange."""
        if self.failure is not None or not self._wanted:
            return
        with self._lock:
            waited, stuck, trying = self._clock() - self._without, self._roster.stuck(), self._roster.trying()
        if self._connected:
            self._say_silent(trying)
            return
        if self._failed_starts >= FAILED_STARTS and (
            not trying or self._clock() - self._failing_since > SETTLE
        ):
            last = self._last.get("failure", "")
            self._fail(SiteError(f"{self._failed_starts} jobs in a row gave no worker; the last: {last}"))
        elif stuck:
            self._fail(SiteError(f"the jobs never start: {stuck}"))
        elif waited >= self._limits.start:
            self._fail(SiteError(f"no worker came within {waited:.0f} s: {self._situation()}"))
        else:
            self._say_waiting()
            self._say_silent(trying)

    def _situation(self) -> str:
        """Everything that is known of why there is no worker."""
        with self._lock:
            pending = self._roster.pending()
        why = self._why(pending)
        silence = self._last.get("silence", "") if self._unanswered else ""
        said = [one.state.says for one in pending[:1]]
        parts = [
            self.status(),
            *said,
            why,
            self._last.get("refusal", ""),
            self._last.get("failure", ""),
            silence,
        ]
        return (
            "; ".join(dict.fromkeys(part for part in parts if part)) + " (--start-timeout: how long to wait)"
        )

    def _why(self, pending: list[Job]) -> str:
        try:
            return self._scheduler.why_pending([one.state.id for one in pending]) if pending else ""
        except SiteError:
            return ""

    def _say_waiting(self) -> None:
        """Once in a while, what the batch system itself says of jobs of which none runs."""
        with self._lock:
            pending = self._roster.pending()
            idle = len(pending) == self._roster.live
        now, patience = self._clock(), min(EXPLAIN, self._limits.start / 4)
        if pending and idle and now - pending[0].born > patience and now >= self._next_reasons:
            self._next_reasons = now + 10 * EXPLAIN
            parts = (pending[0].state.says, self._why(pending))
            why = "; ".join(dict.fromkeys(part for part in parts if part))
            self._tell("info", f"the jobs wait in the queue: {why or 'no reason is given'}")

    def _say_silent(self, trying: list[Job]) -> None:
        limit = min(SILENT, self._limits.start / 2)
        for job in trying:
            if job.ran is not None and self._clock() - job.ran > limit:
                file, lines = last_lines(self._logs, job.ids)
                log = f"; {file} ends: {' | '.join(lines)}" if lines else ""
                text = f"job {job.state.id} runs for {limit:.0f} s and none of its workers has come{log}"
                self._once("warning", f"{text} (can its node connect to this machine?)", key="silent")
                return

    def _fail(self, error: SiteError) -> None:
        with self._lock:
            if self.failure is not None:
                return
            self.failure = error
            self._news.notify_all()
        self.on_failure(error)

    # Telling.

    def _say_status(self) -> None:
        line = self.status()
        if line != self._last.get("status"):
            self._last["status"] = line
            self._tell("status", line)

    def _once(self, level: str, text: str, key: str = "") -> None:
        if (key or text) not in self._told:
            self._told.add(key or text)
            self._tell(level, text)

    def _poke(self) -> None:
        self._poked = True
        self._news.notify_all()


def _end(job: Job) -> str:
    """How a job ended, in a clause."""
    state = job.state
    if state.phase == "held":
        return f"job {state.id} is {state.says or f'held: {state.reason}'}"
    if state.phase == "gone":
        return f"job {state.id} left the queue, and nothing is known of its end"
    return f"job {state.id} ended: {state.says or state.reason or 'by itself'}"
