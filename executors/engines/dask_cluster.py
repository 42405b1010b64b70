"""Inside the host of the engine ``dask``: a cluster class of others, as dask-jobqueue's, submits the jobs.

Scheduler and key are ours, the jobs and their workers theirs, so calls are made as on any foreign worker
(``dask_foreign``). Such classes notice neither held jobs nor refused ones: a watch asks the batch system.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import dask

from executors.batch.crew import FAILED_STARTS
from executors.batch.joblogs import last_lines
from executors.batch.reasons import is_transient, refusal_advice
from executors.batch.schedulers import Answer, CommandError, clean, refused, scheduler_of
from executors.engines import dask_lodging
from executors.engines.dask_class import UnnumberedError, listen_to, made
from executors.engines.dask_foreign import Foreign
from executors.engines.dask_lodging import guest_memory
from executors.engines.dask_parts import CONFIG
from executors.engines.dask_remote import own_path
from executors.engines.host import MEMORY, on_need, say
from executors.errors import EngineError, ExecutorsError, SiteError

if TYPE_CHECKING:
    from collections.abc import Callable

    from executors.batch.schedulers import JobState
    from executors.engines.pool import Slot
    from sites.profile import SiteProfile

ANSWER = 60.0  # seconds that the cluster's own thread may take
BACKOFF = 60.0
CLOSE_WAIT = 8.0
# Dask's own: a call whose worker was lost with its job is made again, and nobody is blamed.
SETTINGS = {key: value for key, value in CONFIG.items() if key != "distributed.scheduler.allowed-failures"}


def build(setup: dict[str, Any]) -> Callable[[int], Slot]:
    """Make the cluster that the site names, and watch over its jobs."""
    return Hired(setup)


class Hired(Foreign):
    """The cluster, a client of its scheduler, and the watch."""

    def __init__(self, setup: dict[str, Any]) -> None:
        site: SiteProfile = setup["site"]
        self._site, self._name, self._logs = site, str(setup["name"]), Path(setup["logs"])
        self._wanted = self._needed = _allowed(site, setup["jobs"])
        self._workers = self._bad = 0
        self._started: set[str] = set()  # jobs of which a worker has come
        self._shown: set[str] = set()  # jobs that the batch system knew
        self._said = self._last = ""  # of the jobs; of the last that was not taken
        self._pause = 0.0
        self._refused: dict[str, SiteError] = {}
        self._bell, self._closing = threading.Event(), threading.Event()
        self._asked = scheduler_of(str(site.scheduler), site.job.submit_options)
        dask.config.set(SETTINGS)
        self._cluster, guard = made(site, setup, _folder(setup, self._asked.cancel_named))
        listen_to(self._cluster, self._not_taken)
        super().__init__(setup, self._cluster.scheduler_address, guard)
        # The scheduler, here, unpickles calls and pickles them again, for workers without any module of ours.
        cloudpickle.register_pickle_by_value(dask_lodging)
        if site.shares_store:
            self.kit["settings"] |= {"path": own_path(setup["path"]), "cwd": str(Path.cwd())}
        per_job = setup["workers"]
        if setup["memory"] or site.resources.memory:
            memory = setup["memory"] or guest_memory(site.resources.memory // per_job)
            say(MEMORY, str(memory))
        on_need(lambda tasks: self._need(-(-tasks // per_job)))
        say("info", f"the scheduler is at {self.address}; {site.dask.cluster} submits {self._wanted} jobs")
        threading.Thread(target=self._run, name="jobs", daemon=True).start()

    # -- what Foreign asks ---------------------------------------------------------------------------

    def counted(self, threads: int) -> None:
        """So many workers are connected."""
        self._workers = threads
        self._bell.set()

    def silence(self) -> str:
        """Why no worker came, as far as the batch system told."""
        said = "; ".join(filter(None, (self._said, self._last)))
        told = f": {said}" if said else ""
        return f"no worker came within {self._patience:.0f} s (--start-timeout){told}"

    def leave(self) -> None:
        """Have the class remove its jobs; what it leaves, the runner's keeper removes by name."""
        self._closing.set()
        self._bell.set()
        with contextlib.suppress(Exception):
            self.client.close(timeout=1)
        with contextlib.suppress(Exception):  # after a refusal it asserts what does not hold
            self._cluster.close(timeout=CLOSE_WAIT)

    # -- the watch -----------------------------------------------------------------------------------

    def _need(self, jobs: int) -> None:
        self._needed = max(1, jobs)

    def _stop(self, error: SiteError) -> None:
        self.failure = self.failure or error
        self._bell.set()

    def _not_taken(self, job: Any, error: BaseException) -> None:
        """A submission of the class failed; called in the cluster's own thread."""
        said = clean(str(error).rpartition("stderr:\n")[2] or type(error).__name__)
        transient = is_transient(said) or isinstance(error, UnnumberedError)
        found = refused(Answer(1, "", said), str(self._site.dask.cluster), transient, refusal_advice(said))
        self._refused[str(job.name)], self._last = found, found.message
        if not transient:
            self._stop(found)

    def _run(self) -> None:
        every = 60.0 / self._site.limits.polls_per_minute
        silent_since = time.monotonic()
        try:
            self._grow()
            while not self._closing.is_set() and self.failure is None:
                self._bell.wait(max(every, self._pause))
                self._bell.clear()
                if self._workers:
                    silent_since = time.monotonic()
                self._look()
                if time.monotonic() - silent_since > self._patience:
                    self.fail(self.silence())
                self._closing.wait(1.0)  # many may come and go at once
        except ExecutorsError as error:
            self._stop(error if isinstance(error, SiteError) else EngineError(error.message))
        except Exception as error:  # noqa: BLE001 - the engine's edge: lanes would wait for ever for its thread
            self._stop(
                EngineError(f"{self._site.dask.cluster} failed: {type(error).__name__}: {clean(str(error))}")
            )

    def _look(self) -> None:
        """Ask once for all jobs; let go of those that are over, and have others in their place."""
        ids = self._cluster.sync(self._ids, callback_timeout=ANSWER)
        try:
            states = self._asked.query(self._name, list(ids.values()))
        except CommandError as error:
            self._tell(f"{self._workers} workers; {error.message}")
            return
        found = {name: states[one] for name, one in ids.items() if one in states}
        self._report(found)
        self._shown |= {state.id for state in found.values() if state.phase != "gone"}
        lost = [name for name, state in found.items() if self._over(state)]
        again = list(self._refused)
        vain = [name for name in lost if found[name].id not in self._started]
        self._fetch([found[name].id for name in vain if found[name].ended])
        self._judge(found, vain)
        self._pause = BACKOFF if again else 0.0
        for name in again:
            say("warning", self._refused.pop(name).message)
        if lost or again:
            self._cluster.sync(self._let_go, [*lost, *again], callback_timeout=ANSWER)
        self._grow()

    def _fetch(self, ids: list[str]) -> None:
        """Logs of spooled jobs, which stay with the batch system until they are asked for."""
        try:
            self._asked.fetch(ids)
        except CommandError as error:
            say("warning", f"logs of jobs could not be fetched: {error.message}")

    def _over(self, state: JobState) -> bool:
        """Whether another job has to take its place."""
        # A class may have chosen another HTCondor server, where its jobs wait unseen by us.
        unseen = self._asked.name == "condor" and state.id not in self._shown
        return state.phase == "held" or (state.ended and not (state.phase == "gone" and unseen))

    def _judge(self, found: dict[str, JobState], lost: list[str]) -> None:
        """Raise when jobs end or are held one after the other, and no worker comes of any."""
        if not lost or self._workers:
            return
        self._bad += len(lost)
        state = found[lost[0]]
        if self._bad < FAILED_STARTS and not all(one.phase == "held" for one in found.values()):
            return
        name, lines = last_lines(self._logs, [state.id, state.alias])
        tail = f"; {name} ends: {' | '.join(lines)}" if lines else ""
        what = "held" if state.phase == "held" else "ended before a worker came"
        raise EngineError(f"{len(lost)} of {len(found)} jobs {what}: {state.says or state.reason}{tail}")

    def _report(self, found: dict[str, JobState]) -> None:
        hopeless = [one for one in found.values() if one.hopeless]
        if hopeless and len(hopeless) == len(found) and not self._workers:
            raise EngineError(f"the jobs never start: {hopeless[0].says or hopeless[0].reason}")
        parts = []
        for phase in ("running", "pending", "held"):
            those = [one for one in found.values() if one.phase == phase]
            why = next((one.says if phase == "held" else one.reason for one in those), "")
            if those:
                parts.append(f"{len(those)} {phase}{f' ({why})' if why and phase != 'running' else ''}")
        self._tell(f"{self._workers} workers; {', '.join(parts) or 'no jobs in the queue'}")

    def _tell(self, text: str) -> None:
        if text != self._said:
            self._said = text
            say("status", text)

    def _grow(self) -> None:
        """Have as many jobs as wanted, no faster than the site allows; those that were lost come again."""
        rate = self._site.limits.submissions_per_second
        step, cluster = max(1, int(rate)), self._cluster
        while self.failure is None and not self._closing.is_set():
            have = len(cluster.worker_spec)
            now = max(have, min(self._wanted, self._needed, have + step))
            if "jobs" in inspect.signature(cluster.scale).parameters:
                cluster.scale(jobs=now)
            else:
                cluster.scale(now)
            if now >= min(self._wanted, self._needed):
                return
            self._closing.wait(step / rate)

    async def _ids(self) -> dict[str, str]:
        """The jobs that there are, by the names of their workers; notes those of which a worker has come."""
        jobs = {name: getattr(job, "job_id", None) for name, job in self._cluster.workers.items()}
        ids = {str(name): self._id(str(one)) for name, one in jobs.items() if one}
        theirs = getattr(getattr(self._cluster, "scheduler", None), "workers", {}).values()
        there = [str(worker.name) for worker in theirs]
        come = {ids[name] for name in ids if any(one == name or one.startswith(f"{name}-") for one in there)}
        if come - self._started:
            self._bad = 0
        self._started |= come
        return ids

    def _id(self, given: str) -> str:
        """As HTCondor is asked: some classes keep the number of a cluster of one job."""
        return f"{given}.0" if self._asked.name == "condor" and given.isdecimal() else given

    async def _let_go(self, names: list[str]) -> None:
        """Remove and forget jobs, so that the next ``scale`` has others: it may give them the same names."""
        for name in names:
            self._cluster.worker_spec.pop(name, None)
            job = self._cluster.workers.pop(name, None)
            if job is not None:
                with contextlib.suppress(Exception):  # it is gone already, or was never there
                    await job.close()


def _allowed(site: SiteProfile, jobs: int) -> int:
    most = site.limits.jobs
    if most is None or jobs <= most:
        return int(jobs)
    say("warning", f"this site takes {most} jobs of one run at a time, not {jobs}")
    return most


def _folder(setup: dict[str, Any], cancel: Callable[[str], None]) -> Path:
    private = Path(setup["private"])
    folder = private / f"batch-{os.getpid()}"
    if any(private.glob("batch-*")):  # of a host before this one: its jobs connect to nothing
        with contextlib.suppress(SiteError):
            cancel(setup["name"])
    folder.mkdir(mode=0o700)
    return folder
