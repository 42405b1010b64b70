"""Workers of batch jobs: who gets which, how a death is told, and the node's side run for real without a queue."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import zipfile
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from executors import contract_tasks as tasks
from executors.engines import host
from executors.engines.base import WorkerDied
from executors.engines.call import (
    CALL,
    DIED,
    READY,
    RENEW,
    pack_call,
    pack_outfit,
    receive,
    send,
    unpack_death,
)
from executors.engines.dask_fleet import REFUSALS, Fleet
from executors.errors import EngineError, SiteError
from sites.profile import Limits, Network, SitePorts, SiteResources, load_site

PATIENCE = 30.0


def wait_for(condition, seconds=PATIENCE):
    limit = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < limit, "it did not come about in time"
        time.sleep(0.02)
    return found


def in_thread(call) -> Future:
    """The Future of a call in a thread of its own."""
    future: Future = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


class Lane(threading.Thread):
    """Somebody who waits for a worker."""

    def __init__(self, fleet: Fleet) -> None:
        super().__init__(daemon=True)
        self.fleet = fleet
        self.member = self.error = None
        self.start()

    def run(self) -> None:
        try:
            self.member = self.fleet.take(self)
        except SiteError as error:
            self.error = error


# -- the fleet alone -------------------------------------------------------------------------------


def test_a_lane_waits_until_a_worker_comes_and_has_it_alone():
    fleet = Fleet()
    lanes = [Lane(fleet) for _ in range(3)]
    for index in range(3):
        fleet.joined(f"7-{index}-0", f"tls://{index}")
    for lane in lanes:
        lane.join(PATIENCE)
    assert {lane.member.name for lane in lanes} == {"7-0-0", "7-1-0", "7-2-0"}


def test_a_worker_that_left_while_nobody_had_it_is_given_to_nobody():
    fleet = Fleet()
    fleet.joined("7-0-0", "tls://a")
    fleet.left("7-0-0")
    lane = Lane(fleet)
    fleet.joined("7-0-1", "tls://b")
    lane.join(PATIENCE)
    assert lane.member.name == "7-0-1"


def test_a_lane_whose_worker_is_gone_makes_its_call_on_one_that_has_nothing_to_do():
    """Near the end nobody replaces a lost worker: a call that waited for another would wait for ever."""
    fleet = Fleet()
    fleet.joined("7-0-0", "tls://a")
    fleet.joined("8-0-0", "tls://b")
    one, two = fleet.take("one"), fleet.take("two")
    fleet.left(one.name)
    assert fleet.engage(one, "one") is two
    waiting = in_thread(lambda: fleet.engage(two, "two"))
    time.sleep(0.05)
    assert not waiting.done()  # the other lane's call is on it
    fleet.disengage(two)
    assert waiting.result(PATIENCE) is two


def test_a_call_without_a_worker_gets_the_next_that_comes_before_lanes_without_a_call():
    fleet = Fleet()
    idle = Lane(fleet)
    wait_for(lambda: fleet._unowned._waiters)
    call = in_thread(lambda: fleet.engage(None, "one"))
    wait_for(lambda: fleet._calls)
    fleet.joined("7-0-0", "tls://a")
    assert call.result(PATIENCE).name == "7-0-0"
    fleet.joined("7-1-0", "tls://b")
    idle.join(PATIENCE)
    assert idle.member.name == "7-1-0"


def test_two_workers_that_come_at_once_wake_both_who_wait():
    fleet = Fleet()
    idle = in_thread(lambda: fleet.take("idle"))
    wait_for(lambda: fleet._unowned._waiters)
    call = in_thread(lambda: fleet.engage(None, "one"))
    wait_for(lambda: fleet._calls)
    before = sys.getswitchinterval()
    sys.setswitchinterval(5.0)  # both have come before either of those who wait is awake
    try:
        fleet.joined("7-0-0", "tls://a")
        fleet.joined("7-1-0", "tls://b")
    finally:
        sys.setswitchinterval(before)
    assert {idle.result(PATIENCE).name, call.result(PATIENCE).name} == {"7-0-0", "7-1-0"}


def lane_of(slot):
    """What the host serves, seen from the runner; the worker is there."""
    ours, theirs = socket.socketpair()
    ours.settimeout(PATIENCE)
    in_thread(lambda: host._serve_lane(theirs, slot))
    assert receive(ours).kind == READY
    return ours


def test_a_worker_that_is_not_to_be_used_again_is_waited_for_by_no_call():
    """When its job is gone and none takes its place, every other worker belongs to some idle lane."""
    from executors.engines.dask_remote import RemoteSlot

    fleet = Fleet()
    one, two = RemoteSlot(None, fleet), RemoteSlot(None, fleet)
    fleet.joined("7-0-0", "tls://a")
    with lane_of(one) as lane:
        fleet.joined("8-0-0", "tls://b")
        two.ready()
        fleet.left("7-0-0")
        send(lane, RENEW, b"7-0-0")
        assert receive(lane).kind == READY


def test_a_call_that_finds_no_worker_any_more_costs_its_lane_alone():
    from executors.engines.dask_remote import RemoteSlot

    fleet = Fleet()
    fleet.joined("7-0-0", "tls://a")
    with lane_of(RemoteSlot(None, fleet)) as lane:
        fleet.left("7-0-0")
        send(lane, CALL, b"")
        wait_for(lambda: fleet._calls)
        fleet.fail(SiteError("the queue is closed"))
        answer = receive(lane)
        assert answer.kind == DIED
        assert "the queue is closed" in str(unpack_death(answer.body))


def test_a_waiting_call_hears_that_no_worker_will_come():
    fleet = Fleet()
    call = in_thread(lambda: fleet.engage(None, "one"))
    wait_for(lambda: fleet._calls)
    fleet.fail(SiteError("the queue is closed"))
    with pytest.raises(SiteError, match="the queue is closed"):
        call.result(PATIENCE)


def test_jobs_with_nothing_to_do_are_given_back_the_idlest_first():
    now = [0.0]
    fleet = Fleet(clock=lambda: now[0])
    for name in ("1-0-0", "1-1-0", "2-0-0", "3-0-0", "4-0-0"):
        fleet.joined(name, "tls://" + name)
        fleet.take(name)
    members = {name: fleet._here[name] for name in fleet._here}
    fleet.engage(members["1-1-0"], "1-1-0")  # half of job 1 is at work
    now[0] = 40.0
    fleet.engage(members["3-0-0"], "3-0-0")
    fleet.disengage(members["3-0-0"])  # a moment ago
    now[0] = 70.0
    assert fleet.rest(0, 60.0) == []
    assert fleet.rest(5, 60.0) == ["2", "4"]
    assert fleet.rest(5, 60.0) == []  # they go already
    now[0] = 100.0
    assert fleet.rest(5, 60.0) == ["3"]
    fleet.disengage(members["1-1-0"])
    now[0] = 160.0
    assert fleet.rest(5, 60.0) == ["1"]


def test_a_call_never_goes_to_a_job_that_is_given_back():
    fleet = Fleet(clock=lambda: 100.0)
    fleet.joined("1-0-0", "tls://a")
    fleet.joined("2-0-0", "tls://b")
    one, two = fleet.take("one"), fleet.take("two")
    assert fleet.rest(1, 0.0) == ["1"]
    assert fleet.engage(one, "one") is two


def test_a_worker_that_another_lane_has_by_now_is_not_retired():
    fleet, killed = Fleet(), []
    fleet.order = killed.append
    fleet.joined("1-0-0", "tls://a")
    member = fleet.take("one")
    assert fleet.engage(None, "two") is member
    fleet.retire(member, "one")
    assert not killed
    fleet.retire(member, "two")
    assert killed == [member]


def test_lanes_hear_why_no_worker_will_come():
    fleet = Fleet()
    lanes = [Lane(fleet) for _ in range(5)]
    fleet.fail(SiteError("the queue is closed"))
    fleet.fail(SiteError("something that follows from it"))
    for lane in [*lanes, Lane(fleet)]:
        lane.join(PATIENCE)
        assert str(lane.error) == "the queue is closed"


@pytest.mark.parametrize(
    ("name", "job"), [("12_3-0-5", "12_3"), ("41.3-1-0", "41.3"), ("99.host-a.site-2-1", "99.host-a.site")]
)
def test_the_name_of_a_worker_says_its_job(name, job):
    fleet, started = Fleet(), []
    fleet.on_started = started.append
    fleet.joined(name, "tls://a")
    fleet.joined(name[:-1] + "9", "tls://b")
    assert started == [job]


def test_the_crew_hears_of_a_job_without_any_worker():
    fleet, heard = Fleet(), []
    fleet.on_started, fleet.on_left = lambda job: heard.append(f"+{job}"), lambda job: heard.append(f"-{job}")
    for name in ("1-0-0", "1-1-0", "2-0-0"):
        fleet.joined(name, "a")
    for name in ("1-0-0", "1-0-0", "1-1-0", "never there"):
        fleet.left(name)
    fleet.joined("1-0-1", "a")
    assert heard == ["+1", "+2", "-1", "+1"]


def test_the_crew_hears_how_many_there_are():
    fleet, counts = Fleet(), []
    fleet.on_count = counts.append
    fleet.joined("1-0-0", "a")
    fleet.joined("1-1-0", "b")
    fleet.left("1-0-0")
    fleet.left("1-0-0")
    fleet.left("never there")
    assert counts == [1, 2, 1]


def test_an_obituary_counts_whether_it_comes_before_or_after_the_connection_is_gone(monkeypatch):
    monkeypatch.setattr("executors.engines.dask_fleet.OBITUARY_WAIT", 30.0)
    for first in ("buried", "left"):
        fleet = Fleet()
        fleet.fate = lambda job, timeout: pytest.fail("the pilot had said it")
        fleet.joined("1-0-0", "a")
        member = fleet.take("lane")
        acts = {
            "buried": lambda: fleet.buried("1-0-0", WorkerDied.of("memory", -9, 5)),
            "left": lambda: fleet.left("1-0-0"),
        }
        acts.pop(first)()
        threading.Timer(0.2, acts.popitem()[1]).start()
        death = fleet.ended(member, "lost")
        assert (death.why, death.exitcode, death.peak) == ("memory", -9, 5), first
        assert not member.usable


@pytest.mark.parametrize(
    ("peaks", "whys"),
    [
        ((5, 9, 3), ("removed", "memory", "removed")),
        ((None, 9, 3), ("removed", "memory", "removed")),
        ((None, None, None), ("memory", "memory", "memory")),
    ],
)
def test_of_a_job_ended_for_memory_only_the_largest_worker_is_blamed(monkeypatch, peaks, whys):
    monkeypatch.setattr("executors.engines.dask_fleet.OBITUARY_WAIT", 0.05)
    fleet = Fleet()
    fleet.fate = lambda job, timeout: "memory" if job == "5" else ""
    fleet.joined("6-0-0", "another job's")
    fleet.buried("6-0-0", WorkerDied.of("removed", -9, 99))
    names = [f"5-{index}-0" for index in range(len(peaks))]
    for name in names:
        fleet.joined(name, name)
    members = [fleet.take("lane") for _ in range(4)][1:]
    for name, peak in zip(names, peaks, strict=True):
        fleet.left(name)
        if peak is not None:
            fleet.buried(name, WorkerDied.of("removed", -9, peak))
    deaths = [fleet.ended(member, "lost") for member in members]
    assert tuple(death.why for death in deaths) == whys
    assert [death.peak for death in deaths] == [peak or 0 for peak in peaks]


@pytest.mark.parametrize(("fate", "why"), [("walltime", "walltime"), ("", "removed")])
def test_why_a_job_was_told_to_go_the_batch_system_knows(fate, why):
    fleet = Fleet()
    fleet.fate = lambda job, timeout: fate
    fleet.joined("5-0-0", "a")
    member = fleet.take("lane")
    fleet.buried("5-0-0", WorkerDied.of("removed", -9, 7))
    assert fleet.ended(member, "lost").why == why


@pytest.mark.parametrize(
    ("fate", "why"), [("memory", "memory"), ("node", "node"), ("", "lost: nobody knows")]
)
def test_without_an_obituary_the_batch_system_is_asked(monkeypatch, fate, why):
    monkeypatch.setattr("executors.engines.dask_fleet.OBITUARY_WAIT", 0.05)
    fleet, asked = Fleet(), []
    fleet.fate = lambda job, timeout: asked.append((job, timeout)) or fate
    fleet.joined("5_1-0-0", "a")
    member = fleet.take("lane")
    fleet.left("5_1-0-0")
    assert fleet.ended(member, "lost: nobody knows").why == why
    assert [job for job, _ in asked] == ["5_1"]


def test_a_worker_that_answered_oddly_is_killed_and_given_to_nobody(monkeypatch):
    monkeypatch.setattr("executors.engines.dask_fleet.OBITUARY_WAIT", 0.05)
    fleet, orders = Fleet(), []
    fleet.order = orders.append
    fleet.joined("5-0-0", "a")
    member = fleet.take("lane")
    fleet.ended(member, "lost")
    assert orders == [member]
    assert not member.usable


def test_an_initializer_that_always_raises_ends_the_run_and_one_that_raises_once_does_not():
    fleet = Fleet()
    lane = Lane(fleet)
    for _ in range(REFUSALS - 1):
        fleet.refused("the workers' initializer raised")
    fleet.joined("1-0-0", "a")
    lane.join(PATIENCE)
    assert lane.member is not None
    fleet.left("1-0-0")
    lane = Lane(fleet)
    for _ in range(REFUSALS):
        fleet.refused("the workers' initializer raised KeyError")
    lane.join(PATIENCE)
    assert isinstance(lane.error, EngineError)
    assert "KeyError" in str(lane.error)


def test_a_thousand_lanes_cost_nothing_to_speak_of():
    fleet = Fleet()
    lanes = [Lane(fleet) for _ in range(1000)]
    began = time.process_time()
    for index in range(1000):
        fleet.joined(f"{index}-0-0", f"tls://{index}")
    for lane in lanes:
        lane.join(PATIENCE)
    assert {lane.member.name for lane in lanes} == {f"{index}-0-0" for index in range(1000)}
    assert time.process_time() - began < 5.0


# -- scheduler and pilot ---------------------------------------------------------------------------


class Site:
    """A scheduler as the host opens it, and jobs that are started by hand."""

    def __init__(self, folder: Path, **words) -> None:
        import distributed

        from executors.engines import dask_remote
        from executors.engines.dask_parts import security
        from executors.engines.tls import make_certificate

        self.folder, self.jobs = folder, []
        (folder / "batch").mkdir(mode=0o700)
        (folder / "logs").mkdir()
        (folder / "scratch").mkdir()
        self.site = replace(
            load_site("local"),
            scheduler="slurm",
            network=Network("loopback"),
            ports=SitePorts(**words.pop("ports", {})),
            limits=Limits(death=words.pop("death", 30.0)),
            resources=SiteResources(memory=800_000_000),
        )
        setup = {
            "site": self.site, "private": str(folder), "logs": str(folder / "logs"), "workers": 2, "memory": None,
            "outfit": pack_outfit(None, ()), "preload": (), "path": sys.path, "python": sys.executable, "jobs": 1,
        } | words  # fmt: skip
        guard = security(*map(str, make_certificate(folder / "batch")))
        self.guard = guard
        self.fleet = Fleet()
        self.cluster = dask_remote.open_scheduler(self.site, guard, self.fleet)
        self.fleet.order = self.cluster.scheduler.give_order
        self.address = self.cluster.scheduler.address
        self.client = distributed.Client(
            self.address, security=guard, set_as_default=False, direct_to_workers=False
        )
        self.files = dask_remote.load(setup, folder / "batch", self.address)
        self.slot = lambda: dask_remote.RemoteSlot(self.client, self.fleet)

    def job(self, number="17") -> subprocess.Popen:
        """One more batch job."""
        env = {"PATH": os.defpath, "SLURM_JOB_ID": number, "TMPDIR": str(self.folder / "scratch")}
        with (self.folder / f"{number}.err").open("wb") as log:
            command = [sys.executable, *map(str, self.files[:2])]
            self.jobs.append(subprocess.Popen(command, env=env, stderr=log, cwd="/"))
        return self.jobs[-1]

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self.client.close()
        with contextlib.suppress(Exception):
            self.cluster.close()
        for job in self.jobs:
            job.kill()
            job.wait()


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.setattr("executors.engines.dask_fleet.OBITUARY_WAIT", 20.0)  # every pilot lives to say it
    made = []

    def make(**words) -> Site:
        made.append(Site(tmp_path, **words))
        return made[0]

    yield make
    for one in made:
        one.close()


def call(slot, fn, *args):
    import pickle

    return pickle.loads(slot.call(pack_call(fn, args, {})))


PATIENT = """
from executors.engines import dask_pilot
dask_pilot.FAREWELL = 20.0
main = dask_pilot.main
"""


def test_a_job_brings_workers_and_leaves_nothing(site, tmp_path):
    here = site()
    with zipfile.ZipFile(here.files[0], "a") as parcel:  # the pilot, with time for its last words
        parcel.writestr("patient.py", PATIENT)
    settings = json.loads(here.files[1].read_text())
    here.files[1].write_text(json.dumps(settings | {"pilot": "patient:main"}))
    job = here.job()
    slots = [here.slot(), here.slot()]
    for slot in slots:
        slot.ready()
    pids = {call(slot, tasks.pid)[1] for slot in slots}
    assert len(pids) == 2
    assert call(slots[0], tasks.length, b"abc") == (True, 3)
    below = tasks.descendants(job.pid)
    # The workers and the courier listen nowhere but where the scheduler is.
    assert {host for host, _ in tasks.listeners(below)} == {"127.0.0.1"}
    assert not any(port == 8787 for _, port in tasks.listeners({psutil.Process()}))
    members = [slot._member for slot in slots]
    began = time.monotonic()
    job.send_signal(signal.SIGTERM)
    assert job.wait(PATIENCE) == 128 + signal.SIGTERM
    assert time.monotonic() - began < 10
    # Told to go, its last words are how large each worker was.
    assert [(one.obituary(5).why, one.peak > 30 << 20) for one in members] == [("removed", True)] * 2
    assert tasks.gone(below, PATIENCE) == set()
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize(("how", "why"), [("kill", "signal"), ("exit", "exit")])
def test_a_death_is_told_exactly_and_the_worker_replaced(site, how, why):
    here = site(workers=1)
    here.job()
    slot = here.slot()
    slot.ready()
    first = call(slot, tasks.pid)[1]
    began = time.monotonic()
    with pytest.raises(WorkerDied) as caught:
        call(slot, tasks.die, how)
    assert caught.value.why == why
    assert caught.value.exitcode == (-9 if how == "kill" else 3)
    assert time.monotonic() - began < 15
    slot.ready()
    assert call(slot, tasks.pid)[1] != first


def test_a_worker_may_die_with_its_result_still_to_be_fetched(site):
    """Dask then waits for the call's being made again, on a worker that is gone."""
    here = site(workers=1)
    here.job()
    slot = here.slot()
    slot.ready()
    pid = call(slot, tasks.pid)[1]
    scheduler = here.cluster.scheduler
    fetch = scheduler.handlers["gather"]

    async def too_late(*args, **words):
        psutil.Process(pid).kill()
        while scheduler.workers:
            await asyncio.sleep(0.01)
        return await fetch(*args, **words)

    scheduler.handlers["gather"] = too_late
    began = time.monotonic()
    with pytest.raises(WorkerDied) as caught:
        call(slot, tasks.length, b"abc")
    assert (caught.value.why, caught.value.exitcode) == ("signal", -9)
    assert time.monotonic() - began < 20
    scheduler.handlers["gather"] = fetch
    slot.ready()
    assert call(slot, tasks.length, b"abc") == (True, 3)


def test_memory_is_watched_and_named(site):
    here = site(workers=2)  # 400 MB each
    here.job()
    slot = here.slot()
    slot.ready()
    with pytest.raises(WorkerDied) as caught:
        call(slot, tasks.eat, 600_000_000, 20)
    assert caught.value.why == "memory"


def test_a_worker_can_be_renewed(site):
    here = site(workers=1)
    here.job()
    slot = here.slot()
    slot.ready()
    first = call(slot, tasks.pid)[1]
    slot.renew("another")
    assert call(slot, tasks.pid)[1] == first
    slot.renew(slot.worker)
    slot.ready()
    assert call(slot, tasks.pid)[1] != first
    assert not psutil.pid_exists(first)


def test_a_task_that_holds_the_interpreter_can_be_killed(site):
    here = site(workers=1)
    here.job()
    slot = here.slot()
    slot.ready()

    def stop():
        wait_for(lambda: slot._member.busy)  # what has no call is not killed
        slot.kill("too long")

    threading.Timer(1.0, stop).start()
    began = time.monotonic()
    with pytest.raises(WorkerDied) as caught:
        call(slot, tasks.hold_gil, 60)
    assert caught.value.why == "killed"
    assert time.monotonic() - began < 10
    slot.ready()
    assert call(slot, tasks.length, b"after") == (True, 5)


def test_a_job_that_vanishes_is_asked_about(site, monkeypatch):
    here = site(workers=1)
    monkeypatch.setattr("executors.engines.dask_fleet.OBITUARY_WAIT", 1.5)  # none will be said
    job = here.job("23")
    slot = here.slot()
    slot.ready()
    below = tasks.descendants(job.pid)
    here.fleet.fate = lambda job, timeout: {"23": "removed"}[job]

    def vanish():
        wait_for(lambda: slot._member.busy)
        for one in (psutil.Process(job.pid), *below):
            with contextlib.suppress(psutil.NoSuchProcess):  # without the pilot others go by themselves
                one.kill()

    threading.Timer(0.5, vanish).start()
    with pytest.raises(WorkerDied, match="batch job was removed"):
        call(slot, tasks.interval, 60)


def test_a_job_ends_by_itself_when_the_scheduler_is_gone(site, tmp_path):
    here = site(death=3.0)
    scheduler, waits = here.cluster.scheduler, []
    orders = scheduler.handlers["orders"]

    async def noted(job, wait):
        waits.append(wait)
        return await orders(job, wait)

    scheduler.handlers["orders"] = noted
    job = here.job()
    here.slot().ready()
    below = tasks.descendants(job.pid)
    assert below
    wait_for(lambda: any(waits))  # it waits for orders once it has had a first answer
    here.client.close()
    here.cluster.close()
    assert job.wait(PATIENCE) == 0
    assert tasks.gone(below, PATIENCE) == set()
    assert "is gone" in (tmp_path / "17.err").read_text()


def test_a_job_that_cannot_reach_the_scheduler_says_so(site, tmp_path):
    here = site(death=3.0)
    here.cluster.close()
    job = here.job()
    assert job.wait(PATIENCE) == 3
    said = (tmp_path / "17.err").read_text()
    assert f"the scheduler at {here.address} cannot be reached from" in said
    assert list((tmp_path / "scratch").iterdir()) == []


def _refuse() -> None:
    raise KeyError("no such calibration")


def test_an_initializer_that_raises_is_what_the_run_ends_with(site, tmp_path):
    here = site(outfit=pack_outfit(_refuse, ()), workers=1)
    job = here.job()
    with pytest.raises(EngineError, match="no such calibration"):
        here.slot().ready()
    assert job.wait(PATIENCE) == 4
    assert "no such calibration" in (tmp_path / "17.err").read_text()


def test_a_pilot_killed_at_once_leaves_no_process_and_no_file(site, tmp_path):
    here = site()
    job = here.job()
    here.slot().ready()
    below = tasks.descendants(job.pid)
    job.kill()
    job.wait()
    assert tasks.gone(below, PATIENCE) == set()
    wait_for(lambda: list((tmp_path / "scratch").iterdir()) == [])


def test_workers_use_the_ports_that_the_site_leaves_open(site):
    with contextlib.ExitStack() as stack:
        probe = stack.enter_context(socket.socket())
        probe.bind(("127.0.0.1", 0))
        first = probe.getsockname()[1]
    span = (first, min(first + 20, 65535))
    here = site(ports={"worker": span})
    here.job()
    slots = [here.slot(), here.slot()]
    for slot in slots:
        slot.ready()
    used = {int(slot._member.address.rpartition(":")[2]) for slot in slots}
    assert len(used) == 2
    assert all(span[0] <= port <= span[1] for port in used)


def test_a_worker_that_cannot_be_reached_gets_no_work_and_its_job_ends(site, tmp_path, monkeypatch):
    monkeypatch.setattr("executors.engines.dask_remote.REACH_WAIT", 1.0)
    here = site(workers=1)
    node = tmp_path / "node.py"  # as behind a firewall: what it says of itself leads nowhere
    node.write_text(
        "from executors.engines import dask_node\n"
        "class Far(dask_node.QuietWorker):\n"
        "    def __init__(self, *args, **more): super().__init__(*args, contact_address='tls://127.0.0.1:1', **more)\n"
        "dask_node.QuietWorker = Far\n"
    )
    settings = json.loads(Path(here.files[1]).read_text())
    settings["preload"], settings["path"] = ["node"], [*settings["path"], str(tmp_path)]
    Path(here.files[1]).write_text(json.dumps(settings))
    refused = []
    here.fleet.refused = refused.append
    job = here.job()
    assert job.wait(60) == 6
    assert "cannot be reached at tls://127.0.0.1:1" in refused[0]
    assert "firewall" in (tmp_path / "17.err").read_text()
    assert not here.fleet._here


def test_a_scheduler_takes_the_next_port_of_its_range(site, tmp_path):
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        first = taken.getsockname()[1]
        here = site(ports={"scheduler": (first, min(first + 10, 65535))})
        assert first < int(here.address.rpartition(":")[2]) <= first + 10


def test_a_port_that_was_taken_in_the_last_moment_is_passed_over(site, monkeypatch):
    from sites import ports

    right, asked = ports.pick, []
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        first = taken.getsockname()[1]
        monkeypatch.setattr(
            ports,
            "pick",
            lambda span, host, *, skip=(), **_: (
                asked.append(set(skip)) or (right(None, host) if skip else first)
            ),
        )
        assert site().address != f"tls://127.0.0.1:{first}"
    assert asked == [set(), {first}]


@pytest.mark.parametrize("how", ["plain", "without a certificate", "with another"])
def test_who_has_no_key_gets_nothing(site, tmp_path, how):
    from executors.engines.tls import make_certificate

    here = site()
    here.job()
    slot = here.slot()
    slot.ready()
    for address in (here.address, slot._member.address):
        port = int(address.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
            plain.settimeout(10)
            line = plain
            try:
                if how != "plain":
                    context = ssl.create_default_context(cafile=str(tmp_path / "batch/certificate.pem"))
                    context.check_hostname = False
                    if how == "with another":
                        context.load_cert_chain(*map(str, make_certificate(tmp_path / f"other-{port}")))
                    line = context.wrap_socket(plain)
                line.sendall(b"GET / HTTP/1.0\r\n\r\n" * 10)
                answer = line.recv(100)
            except (ssl.SSLError, ConnectionError):
                answer = b""
            if how == "plain":  # an alert of TLS at most
                assert answer[:1] in (b"", b"\x15")
            else:
                assert answer == b""


def test_keys_are_private_wherever_they_lie(site, tmp_path):
    old = os.umask(0)
    try:
        here = site()
        job = here.job()
    finally:
        os.umask(old)
    here.slot().ready()
    folders = [tmp_path / "batch", *(tmp_path / "scratch").iterdir()]
    assert all(one.stat().st_mode & 0o77 == 0 for one in folders)
    private = [
        one for folder in folders for one in folder.rglob("*") if one.suffix in (".pem", ".pickle", ".json")
    ]
    assert len(private) >= 6
    assert not [one for one in private if one.name != "certificate.pem" and one.stat().st_mode & 0o77]
    words = b"".join(
        Path(f"/proc/{one.pid}/cmdline").read_bytes()
        for one in (psutil.Process(job.pid), *tasks.descendants(job.pid))
    )
    assert b"PRIVATE KEY" not in words
    assert "PRIVATE KEY" not in json.dumps(psutil.Process(job.pid).environ())
