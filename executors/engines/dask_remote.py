"""Inside the host of the engine ``dask`` at a batch site: a scheduler that workers of batch jobs connect to.

Each lane owns one of them; who they are is the ``fleet``'s to know, that there are jobs is the crew's care.
What runs on the nodes is in ``dask_pilot`` and ``dask_node``.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import queue
import site as site_module
import sys
import sysconfig
import threading
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import distributed

from executors.batch import parcel
from executors.batch.crew import Crew
from executors.batch.schedulers import scheduler_of
from executors.batch.spec import NOTHING, growing, spec_of
from executors.engines.base import WorkerDied
from executors.engines.call import rebuild_outcome
from executors.engines.dask_call import LostError, outcome_of
from executors.engines.dask_fleet import Fleet, job_of
from executors.engines.dask_parts import CONFIG, QuietScheduler, security
from executors.engines.dask_pilot import worker_memory
from executors.engines.host import MEMORY, on_need, say
from executors.engines.tls import make_certificate
from executors.engines.weight import ADDS_UP
from executors.errors import SiteError
from sites import ports

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from executors.batch.spec import JobSpec
    from executors.engines.dask_fleet import Member
    from executors.engines.pool import Slot
    from sites.profile import SiteProfile

REACH_WAIT = 20.0
KILL_WAIT = 20.0  # seconds until a worker that is to be killed is given up: its node may be gone
TRIES = 20  # for a port that another process took between the look and the binding


class RemoteScheduler(QuietScheduler):
    """A scheduler that tells its fleet who comes and goes, and passes word between pilots and lanes."""

    def __init__(self, *args: Any, fleet: Fleet, **more: Any) -> None:
        super().__init__(*args, **more)
        self._fleet = fleet
        self._orders: dict[str, set[str]] = defaultdict(set)
        self._bells: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.handlers |= {"orders": self.orders, "obituary": self.obituary, "refused": self.refused}
        self.add_plugin(_Gate(fleet))

    async def orders(self, job: str, wait: float) -> list[str]:
        """The workers of a job that are to be killed and still here; waits so long for one more."""
        bell = self._bells[job]
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(bell.wait(), wait)
        bell.clear()
        return sorted(self._orders[job])

    def give_order(self, member: Member) -> None:
        """Have a worker killed by its pilot; from any thread."""
        self.loop.add_callback(self.order, member.job, member.name)

    def order(self, job: str, name: str) -> None:
        """Have a worker of a job killed, or with ``*`` the job ended; in the scheduler's own thread."""
        self._orders[job].add(name)
        self._bells[job].set()

    def obeyed(self, job: str, name: str) -> None:
        """That worker is gone."""
        self._orders[job].discard(name)

    def obituary(self, name: str, why: str, exitcode: int | None, peak: int) -> None:
        """A pilot says how one of its workers ended."""
        self._fleet.buried(name, WorkerDied.of(why, exitcode, peak))

    def refused(self, name: str, error: bytes) -> None:
        """A pilot says that a new worker could not be dressed."""
        cause = rebuild_outcome(error)
        self._fleet.refused(
            f"the workers' initializer raised {type(cause).__name__}: {cause} (worker {name})"
        )


class _Gate(distributed.SchedulerPlugin):  # type: ignore[misc]
    """Tells the fleet who comes and goes; lets in only who can be reached, for results are fetched."""

    name = "fleet"

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._names: dict[str, str] = {}
        self._looking: set[Any] = set()

    def add_worker(self, scheduler: Any, worker: str) -> None:
        self._names[worker] = str(scheduler.workers[worker].name)
        look = asyncio.ensure_future(self._look(scheduler, worker))
        self._looking.add(look)
        look.add_done_callback(self._looking.discard)

    def remove_worker(self, scheduler: Any, worker: str, **_: Any) -> None:
        name = self._names.pop(worker, "")
        scheduler.obeyed(job_of(name), name)
        self._fleet.left(name)

    async def _look(self, scheduler: Any, worker: str) -> None:
        name = self._names[worker]
        try:
            await asyncio.wait_for(scheduler.rpc(worker).identity(), REACH_WAIT)
        except Exception as error:  # noqa: BLE001 - the engine's edge: whatever it is, results cannot be had
            if self._names.get(worker) == name:
                self._fleet.refused(
                    f"the worker {name} has connected, but cannot be reached at {worker} from here "
                    f"({type(error).__name__}): a firewall? ports.worker names the ports that are open"
                )
                scheduler.order(job_of(name), "*")
        else:
            if self._names.get(worker) == name:
                self._fleet.joined(name, worker)


def build(setup: dict[str, Any]) -> Callable[[int], Slot]:
    """A scheduler, and a crew that sees to the jobs; the slots wait for workers."""
    site: SiteProfile = setup["site"]
    private = Path(setup["private"])
    folder = private / f"batch-{os.getpid()}"
    if any(private.glob("batch-*")):  # of a host before this one: its jobs connect to nothing
        with contextlib.suppress(SiteError):
            scheduler_of(str(site.scheduler), site.job.submit_options).cancel_named(setup["name"])
    folder.mkdir(mode=0o700)
    certificate, key = make_certificate(folder)
    guard = security(str(certificate), str(key))
    dask.config.set(CONFIG | {"temporary-directory": setup["private"]})
    fleet = Fleet()
    cluster = open_scheduler(site, guard, fleet)
    client = distributed.Client(
        cluster.scheduler.address, security=guard, set_as_default=False, direct_to_workers=False
    )
    crew = _crew(setup, folder, cluster.scheduler.address)
    fleet.order, fleet.fate = cluster.scheduler.give_order, crew.fate
    aside = _aside()
    fleet.on_started, fleet.on_left = partial(aside, crew.started), partial(aside, crew.left)
    fleet.on_count, fleet.on_heavy = partial(aside, crew.seen), partial(aside, crew.outgrown)
    crew.on_failure, crew.idle = fleet.fail, fleet.rest
    on_need(lambda tasks: crew.need(-(-tasks // setup["workers"])))
    crew.want(setup["jobs"])
    say(
        "info", f"the scheduler is at {cluster.scheduler.address}; {setup['jobs']} jobs named {setup['name']}"
    )
    return lambda _: RemoteSlot(client, fleet)


def _aside() -> Callable[[Callable[[Any], object], Any], None]:
    """Tell this one that, in a thread of its own: the scheduler must not wait for what the crew asks."""
    words: queue.SimpleQueue[tuple[Callable[[Any], object], Any]] = queue.SimpleQueue()

    def pass_on() -> None:
        while True:
            tell, what = words.get()
            tell(what)

    threading.Thread(target=pass_on, daemon=True).start()
    return lambda tell, what: words.put((tell, what))


def open_scheduler(site: SiteProfile, guard: Any, fleet: Fleet) -> Any:
    """A scheduler on the one address and a port that the site names; SiteError says who holds the port."""
    host = ports.address(site.network.address)
    taken: set[int] = set()
    while True:
        port = ports.pick(site.ports.scheduler, host, skip=taken, hint=site.ports.hint or "")
        options = {"host": host, "port": port, "protocol": "tls", "dashboard": False, "security": guard}
        try:
            return distributed.SpecCluster(
                workers={},
                scheduler={"cls": RemoteScheduler, "options": options | {"fleet": fleet}},
                security=guard,
                silence_logs=False,
            )
        except (OSError, RuntimeError) as error:
            if not in_use(error) or len(taken) >= TRIES:
                raise
            taken.add(port)


def in_use(error: BaseException | None) -> bool:
    """Whether an error comes from a port that somebody else has."""
    while error is not None:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            return True
        error = error.__cause__ or error.__context__
    return False


def _crew(setup: dict[str, Any], folder: Path, address: str) -> Crew:
    site: SiteProfile = setup["site"]
    travels = carried(site)
    files = load(setup, folder, address)
    names = [file.name if travels else str(file) for file in files[:2]]

    def described(site: SiteProfile, folder: Path, more: Mapping[str, str] = NOTHING) -> JobSpec:
        added_up = site.scheduler in ADDS_UP
        memory = worker_memory(site.resources.memory, setup["workers"], setup["memory"], added_up=added_up)
        if memory is not None:
            say(MEMORY, str(memory))
        return spec_of(
            site,
            name=setup["name"],
            command=(site.job.python or setup["python"], *names),
            env={**setup["env"], **more},
            transfer=files if travels else (),
            folder=folder,
            logs=Path(setup["logs"]),
        )

    scheduler = scheduler_of(str(site.scheduler), site.job.submit_options)
    grow = growing(site, folder, described)
    return Crew(scheduler, described(site, folder), site.limits, say, grow=grow)


def carried(site: SiteProfile) -> bool:
    """Whether the batch system brings a job's files to it; else it reads them where they lie."""
    return site.scheduler == "condor" or not site.shares_store


def load(setup: dict[str, Any], folder: Path, address: str) -> tuple[Path, ...]:
    """What a job needs, written into its folder: parcel and settings first, then what the settings name."""
    site: SiteProfile = setup["site"]
    outfit, settings = folder / "outfit.pickle", folder / "pilot.json"
    outfit.write_bytes(setup["outfit"])
    shared, travels = site.shares_store, carried(site)
    shipped: Path | None = setup.get("environment")
    words = {
        "pilot": "executors.engines.dask_pilot:main",
        "scheduler": address,
        "workers": setup["workers"],
        "memory": site.resources.memory,
        "most": setup["memory"],
        "added_up": site.scheduler in ADDS_UP,
        "patience": site.limits.death,
        "ports": f"{site.ports.worker[0]}:{site.ports.worker[1]}" if site.ports.worker else None,
        "scratch": site.job.scratch,
        "preload": list(setup["preload"]),
        "path": own_path(setup["path"]) if shared else [],
        "logs": setup["logs"] if shared else "",
        "cwd": str(Path.cwd()) if shared else "",
        "carried": travels,
        "certificate": "certificate.pem",
        "key": "key.pem",
        "outfit": outfit.name,
        "environment": shipped and (shipped.name if travels else str(shipped)),
    }
    settings.write_text(json.dumps(words, indent=1), encoding="utf-8")
    for file in (outfit, settings):
        file.chmod(0o600)
    keys = (folder / "certificate.pem", folder / "key.pem")
    return parcel.build(folder), settings, outfit, *keys, *([shipped] if shipped else ())


def own_path(path: list[str]) -> list[str]:
    """Where the runner looks for the user's modules: all that its interpreter does not bring along itself."""
    installed = {sysconfig.get_path(one) for one in ("stdlib", "platstdlib", "purelib", "platlib")}
    installed |= {*site_module.getsitepackages(), site_module.getusersitepackages()}
    library = sysconfig.get_path("stdlib")
    beside = {
        f"{library}/lib-dynload",
        f"{Path(library).parent}/python{sys.version_info[0]}{sys.version_info[1]}.zip",
    }
    return [entry for entry in path if entry not in installed | beside]


class RemoteSlot:
    """A worker of a batch job, owned by one lane until it is gone."""

    def __init__(self, client: Any, fleet: Fleet) -> None:
        self._client = client
        self._fleet = fleet
        self._member: Member | None = None
        self._awake = threading.Event()
        self._has_call = False
        self.worker = ""

    def ready(self) -> None:
        """Return when a worker is there; the crew's error if none will come."""
        if self._has_call:
            self._has_call = False
        elif self._member is None or not self._member.usable:
            self._member = self._fleet.take(self)

    def call(self, blob: bytes) -> bytes | bytearray:
        """The outcome of one call, on this slot's own worker while there is one."""
        member = self._member = self._fleet.engage(self._member, self)
        try:
            return self._call(member, blob)
        finally:
            self._fleet.disengage(member)

    def _call(self, member: Member, blob: bytes) -> bytes:
        member.on_gone(self._awake.set)
        try:
            outcome = outcome_of(
                self._client,
                member.address,
                blob,
                awake=self._awake,
                alive=lambda: not member.gone,
                patience=lambda: KILL_WAIT if member.doomed else None,
            )
        except LostError as lost:
            self._member = None
            raise self._fleet.ended(member, str(lost)) from lost
        self.worker = member.name
        return outcome

    def renew(self, worker: str) -> None:
        """Have the worker killed by its pilot, which starts another."""
        self._has_call = True  # a call follows, for which any worker is good: none of its own may ever come
        member = self._member
        if member is not None and member.name == worker:
            self._member = None
            self._fleet.retire(member, self)

    def kill(self, why: str) -> None:  # noqa: ARG002 - the runner remembers why
        """Have the worker killed by its pilot."""
        member = self._member
        if member is not None and member.busy and member.owner is self:
            self._fleet.kill(member)
            self._awake.set()  # it is waited for no longer than a kill may take

    def close(self) -> None:
        """Nothing is held."""
