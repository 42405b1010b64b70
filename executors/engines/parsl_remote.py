"""The engine ``parsl`` on a batch system, inside its host: jobs, managers that connect, a lane for each task.

Jobs come and go by the crew, and Parsl never learns of them. A lane has room for one task wherever a worker
is free; where it runs, Parsl alone knows. How Parsl is opened is in ``parsl_exchange``, what runs on a node
in ``parsl_pilot``.
"""

from __future__ import annotations

import contextlib
import json
import os
import site as python_site
import sys
import sysconfig
import threading
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parsl.executors.high_throughput.errors import (
    CommandClientBadError,
    CommandClientTimeoutError,
    ManagerLost,
    VersionMismatch,
    WorkerLost,
)

from executors.batch import parcel
from executors.batch.crew import Crew
from executors.batch.schedulers import scheduler_of
from executors.batch.spec import NOTHING, growing, spec_of
from executors.engines.base import WorkerDied
from executors.engines.call import DIED, FAILED, OUTCOME, rebuild_outcome, unpack_death
from executors.engines.host import MEMORY, on_need, say
from executors.engines.parsl_exchange import HEARTBEAT, Exchange
from executors.engines.parsl_node import call_memory
from executors.engines.weight import ADDS_UP
from executors.errors import EngineError, SiteError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from concurrent.futures import Future

    from executors.batch.spec import Describe, JobSpec
    from executors.engines.pool import Slot
    from sites.profile import SiteProfile

CARRIED = ("condor",)  # batch systems that bring files to the job's folder, whether or not it is shared
SIGNS = 3  # a job waits for that many signs of life of the runner at least
STALE = 100  # names that travel with each call; those before them have ended long ago
FATE_WAIT = 20.0  # seconds for the batch system to say what became of a job
QUICK, SLOW = 0.5, 2.0  # seconds between looks at the managers: while some are awaited, and otherwise


def build(setup: dict[str, Any], give_up: Callable[[str], object]) -> Callable[[int], Slot]:
    """Hand out lanes on the workers of batch jobs; ``give_up`` ends the host."""
    berths = open_berths(setup, give_up)
    return lambda _: RemoteParslSlot(berths)


def open_berths(setup: dict[str, Any], give_up: Callable[[str], object]) -> Berths:
    """Open Parsl and have jobs submitted."""
    site, private = setup["site"], Path(setup["private"])
    scheduler = scheduler_of(site.scheduler, site.job.submit_options)
    folder = private / f"parsl-{os.getpid()}"
    if any(private.glob("parsl-*")):  # of a host before this one: its jobs connect to nothing
        with contextlib.suppress(SiteError):
            scheduler.cancel_named(setup["name"])
    exchange = Exchange(site, setup["workers"], folder)
    described = _job(setup, exchange, folder)
    place = folder / "job"
    crew = Crew(
        scheduler, described(site, place, NOTHING), site.limits, say, grow=growing(site, place, described)
    )
    berths = Berths(exchange, crew, lanes=setup["workers"] * setup["jobs"], give_up=give_up)
    crew.on_failure, crew.idle = lambda _: berths.wake(), berths.idle
    berths.start()
    on_need(lambda tasks: crew.need(-(-tasks // setup["workers"])))
    crew.want(setup["jobs"])
    jobs = f"{setup['jobs']} jobs named {setup['name']}"
    say("info", f"Parsl listens at {exchange.address}:{exchange.port}; {jobs}")
    return berths


def _job(setup: dict[str, Any], exchange: Exchange, folder: Path) -> Describe:
    """What describes a job: the parcel, its settings and keys, all in one new folder."""
    site, place = setup["site"], folder / "job"
    carried = site.scheduler in CARRIED
    keys = exchange.worker_keys(place)
    outfit, pilot = place / "outfit", place / "pilot.json"
    outfit.write_bytes(setup["outfit"])
    archive = parcel.build(place)
    shipped = filter(None, [setup.get("environment")])
    pilot.write_text(json.dumps(_pilot(setup, exchange, None if carried else place)), encoding="utf-8")
    files = (archive, pilot, outfit, *keys, *shipped)
    names = [path.name if carried else str(path) for path in files[:2]]

    def described(site: SiteProfile, folder: Path, more: Mapping[str, str]) -> JobSpec:
        memory = call_memory(_job_memory(site, setup), setup["workers"], added_up=site.scheduler in ADDS_UP)
        if memory is not None:
            say(MEMORY, str(memory))
        return spec_of(
            site,
            name=setup["name"],
            command=(site.job.python or setup["python"], *names),
            folder=folder,
            logs=Path(setup["logs"]),
            env={**setup["env"], **more},
            transfer=files if carried else (),
        )

    return described


def _job_memory(site: SiteProfile, setup: dict[str, Any]) -> int | None:
    return site.resources.memory or (setup["memory"] or 0) * setup["workers"] or None


def _pilot(setup: dict[str, Any], exchange: Exchange, place: Path | None) -> dict[str, Any]:
    site, shipped = setup["site"], setup.get("environment")
    return {
        "pilot": "executors.engines.parsl_pilot:main",
        "environment": shipped and (shipped.name if place is None else str(shipped)),
        "scratch": site.job.scratch,
        "versions": exchange.versions(),
        "manager": exchange.manager_words(),
        "address": exchange.address,
        "port": exchange.port,
        "death": max(site.limits.death, SIGNS * HEARTBEAT),
        "workers": setup["workers"],
        "memory": _job_memory(site, setup),
        "added_up": site.scheduler in ADDS_UP,
        "preload": list(setup["preload"]),
        "path": list(project_path(setup["path"])) if site.shares_store else [],
        "logs": setup["logs"] if site.shares_store else None,
        "keys": None if place is None else str(place),
        "outfit": None if place is None else str(place / "outfit"),
    }


def project_path(entries: Sequence[str]) -> Iterator[str]:
    """The runner's import path without what belongs to its interpreter: a node's Python has its own."""
    own = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib")}
    homes = tuple({sys.prefix, sys.base_prefix, sys.exec_prefix, python_site.getuserbase()})
    for entry in entries:
        path = Path(entry)
        theirs = path.name in ("site-packages", "dist-packages", "lib-dynload") or path.suffix == ".zip"
        if entry not in own and not (theirs and any(path.is_relative_to(home) for home in homes)):
            yield entry


class Berths:
    """Room for tasks: as much as the connected managers have workers. Lanes wait here for theirs."""

    def __init__(
        self, exchange: Exchange, crew: Crew, *, lanes: int, give_up: Callable[[str], object]
    ) -> None:
        self._exchange = exchange
        self._crew = crew
        self._lanes = lanes
        self.stale: deque[str] = deque(maxlen=STALE)  # processes that are to make no more calls
        self._end = give_up
        self._changed = threading.Condition()
        self._workers = self._capacity = self._taken = 0
        self._known: set[str] = set()
        self._failure: SiteError | None = None
        self._closed = threading.Event()
        self._waiting: set[threading.Event] = set()

    def start(self) -> None:
        """Begin to look at the managers."""
        for target in (self._watch_managers, self._watch_interchange):
            threading.Thread(target=target, name=target.__name__, daemon=True).start()

    @property
    def failure(self) -> SiteError | None:
        """Why there will be no more workers, once that is known."""
        return self._failure or self._crew.failure

    def take(self) -> None:
        """Room for one task; waits until a worker is free, or raises why none will come."""
        with self._changed:
            while self._taken >= self._capacity:
                if self.failure is not None:
                    raise self.failure
                self._changed.wait()
            self._taken += 1

    def give(self) -> None:
        """The room is another's."""
        with self._changed:
            self._taken -= 1
            self._changed.notify()

    def wake(self) -> None:
        """Everybody who waits has something to hear."""
        with self._changed:
            self._changed.notify_all()
            for event in self._waiting:
                event.set()

    def run(self, blob: bytes, awake: threading.Event, stop: Callable[[], bool]) -> Future[Any]:
        """Have a call made, and return it when it is done, was stopped or cannot be done any more."""
        future = self._exchange.submit(blob, tuple(self.stale))
        future.add_done_callback(lambda _: awake.set())
        with self._changed:
            self._waiting.add(awake)
        while not (future.done() or stop() or self.failure is not None):
            awake.wait()
            awake.clear()
        with self._changed:
            self._waiting.discard(awake)
        return future

    def lost(self, error: ManagerLost) -> WorkerDied:
        """How a job ended whose manager is no longer heard."""
        job = error.manager_id.decode(errors="replace").rpartition("-")[0]
        unknown = f"lost: job {job} is not heard any more"
        return WorkerDied.of(self._crew.fate(job, FATE_WAIT) or unknown)

    def idle(self, count: int, seconds: float) -> list[str]:
        """At most so many jobs that have had nothing to do for so long; they are given no more tasks."""
        with contextlib.suppress(CommandClientTimeoutError, CommandClientBadError):  # the watch notices it
            managers = self._exchange.managers()
            quiet = [one for one in managers if not one["tasks"] and one["idle_duration"] >= seconds]
            quiet.sort(key=lambda one: -float(one["idle_duration"]))
            for one in quiet[: max(0, count)]:
                self._exchange.hold(one["manager"])
            # A task may have come between; then the job is held, and goes when it has nothing to do again.
            free = {one["manager"] for one in self._exchange.managers() if not one["tasks"]}
            return [str(one["block_id"]) for one in quiet[: max(0, count)] if one["manager"] in free]
        return []

    def outgrown(self, job: str) -> None:
        """A process of this job needed more memory than is its own."""
        self._crew.outgrown(job)

    def _watch_managers(self) -> None:
        while self.failure is None and not self._closed.is_set():
            try:
                self._look(self._exchange.managers())
            except (CommandClientTimeoutError, CommandClientBadError):
                self._give_up("its interchange does not answer")
            except Exception as error:  # noqa: BLE001 - the engine's edge: lanes would wait for ever
                self._give_up(f"its managers cannot be read: {type(error).__name__}: {error}")
            self._closed.wait(QUICK if self._capacity < self._lanes else SLOW)

    def _look(self, managers: list[dict[str, Any]]) -> None:
        jobs = {str(one["block_id"]) for one in managers}
        for job in jobs - self._known:
            self._crew.started(job)
        for job in self._known - jobs:
            self._crew.left(job)
        self._known = jobs
        workers = sum(one["worker_count"] for one in managers)
        if workers != self._workers:  # of those that take no more tasks, too: the crew waits for their end
            self._workers = workers
            self._crew.seen(workers)
        capacity = sum(one["worker_count"] for one in managers if one["active"] and not one["draining"])
        if capacity != self._capacity:
            with self._changed:
                self._capacity = capacity
                self._changed.notify_all()

    def _watch_interchange(self) -> None:
        # Parsl itself would not notice: tasks would wait for ever.
        code = self._exchange.wait()
        self._closed.wait(QUICK)  # its last words may be on their way
        why = self._exchange.failure
        if isinstance(why, VersionMismatch):
            text = f"the workers' Python or Parsl is not the runner's: {why} (job.python)"
            self._failure = EngineError(text)
            self.wake()
        else:
            self._give_up(f"its interchange ended with {code}")

    def _give_up(self, why: str) -> None:
        if not self._closed.is_set():
            self._crew.close()
            self._end(f"{why}\n{self._exchange.last_words()}".strip())

    def close(self) -> None:
        """Remove the jobs and end Parsl's part here."""
        self._closed.set()
        self._crew.close()
        self._exchange.close()


class RemoteParslSlot:
    """One task at a time on whichever worker is free."""

    def __init__(self, berths: Berths) -> None:
        self._berths = berths
        self._awake = threading.Event()
        self.worker = ""
        self._placed = False
        self._killed = False

    def ready(self) -> None:
        """Wait for room, and until a worker has answered; the failure of the site's jobs if none will."""
        self._killed = False
        if self._placed:
            return
        self._berths.take()
        self._placed = True
        try:
            self.call(b"")
        except WorkerDied:
            self._leave()
            raise

    def call(self, blob: bytes) -> bytes | bytearray:
        """The outcome of one call; WorkerDied if its worker was lost."""
        try:
            future = self._berths.run(blob, self._awake, lambda: self._killed)
        except Exception as error:
            # Parsl takes no more calls: whoever watches it ends the host, or knows why no workers come.
            raise WorkerDied.of(f"lost: {type(error).__name__}: {error}") from error
        if not future.done():
            # It cannot be stopped from here: its room is free when it has ended.
            self._placed = False
            future.add_done_callback(lambda _: self._berths.give())
            raise WorkerDied.of("killed" if self._killed else "lost: no more workers can be had")
        try:
            kind, body, name = self._answer(future)
        except WorkerDied:
            self._leave()
            raise
        if kind == DIED:
            death = unpack_death(body)  # of a process that its worker replaces: the room is the same
            if death.why == "memory":
                self._berths.outgrown(name.partition("/")[0])
            raise death
        if kind == FAILED:
            self._leave()
            raise WorkerDied.of(str(rebuild_outcome(body)))
        self.worker = name
        return body if kind == OUTCOME else b""

    def _answer(self, future: Future[Any]) -> tuple[bytes, bytes | bytearray, str]:
        try:
            kind, body, name = future.result()
        except ManagerLost as error:
            raise self._berths.lost(error) from error
        except WorkerLost as error:
            raise WorkerDied.of("lost") from error
        except Exception as error:
            raise WorkerDied.of(f"lost: {type(error).__name__}: {error}") from error
        return kind, body, name

    def _leave(self) -> None:
        if self._placed:
            self._placed = False
            self._berths.give()

    def renew(self, worker: str) -> None:
        """Have that process replaced by whichever call comes to it next."""
        self._berths.stale.append(worker)

    def kill(self, why: str) -> None:  # noqa: ARG002 - the runner remembers why
        """Wait for the task no longer; the worker's own limits end it."""
        self._killed = True
        self._awake.set()

    def close(self) -> None:
        """Give the room back."""
        self._leave()
