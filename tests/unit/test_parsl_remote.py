"""The engine parsl on batch systems: lanes and managers, keys, and whole jobs without a batch system."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import psutil
import pytest
import zmq
from parsl import curvezmq
from parsl.executors.high_throughput.errors import (
    CommandClientTimeoutError,
    ManagerLost,
    VersionMismatch,
    WorkerLost,
)

from executors import contract_tasks as tasks
from executors.batch.schedulers import JobState, write_text
from executors.engines import parsl_exchange, parsl_node, parsl_pilot, parsl_remote, parsl_task
from executors.engines.base import Resources, WorkerDied
from executors.engines.call import (
    DIED,
    FAILED,
    OUTCOME,
    READY,
    pack_call,
    pack_death,
    pack_error,
    pack_outfit,
)
from executors.engines.parsl import ParslEngine
from executors.errors import EngineError, SiteError, UsageError
from sites.profile import Limits, Network, SitePorts, SiteProfile, SiteResources

PATIENCE = 30.0


def until(true, limit=PATIENCE, what="nothing came of it"):
    deadline = time.monotonic() + limit
    while not (value := true()):
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
    return value


# Lanes and room, without Parsl.


class FakeExchange:
    """Keeps every call; managers are what a test says."""

    def __init__(self):
        self.calls, self.there, self.failure, self.closed = [], [], None, threading.Event()
        self.code, self.error = 0, None

    def submit(self, blob, stale=()):
        self.stale = stale
        if self.error is not None:
            raise self.error
        self.calls.append((blob, Future()))
        return self.calls[-1][1]

    def managers(self):
        if isinstance(self.there, Exception):
            raise self.there
        return self.there

    def hold(self, name):
        self.there = [one | {"active": one["active"] and one["manager"] != name} for one in self.there]
        self.on_hold(name)

    on_hold = staticmethod(lambda name: None)

    def last_words(self):
        return "its log"

    def wait(self):
        self.closed.wait()
        return self.code

    def close(self):
        self.closed.set()


class FakeCrew:
    def __init__(self):
        self.failure, self.jobs, self.counts, self.asked, self.closed = None, [], [], [], 0
        self.gone = []

    def started(self, job):
        self.jobs.append(job)

    def left(self, job):
        self.gone.append(job)

    def seen(self, workers):
        self.counts.append(workers)

    def outgrown(self, job):
        self.heavy = job

    def fate(self, job, timeout):
        assert timeout > 0
        self.asked.append(job)
        return {"7.0": "memory", "8.0": "walltime"}.get(job, "")

    def close(self):
        self.closed += 1


def manager(job="7.0", workers=1, **more):
    return {"block_id": job, "worker_count": workers, "active": True, "draining": False} | more


@pytest.fixture
def room(monkeypatch):
    """Berths over fakes, with quick looks; ended at the end."""
    monkeypatch.setattr(parsl_remote, "QUICK", 0.01)
    monkeypatch.setattr(parsl_remote, "SLOW", 0.01)
    ends: list[str] = []
    berths = parsl_remote.Berths(FakeExchange(), FakeCrew(), lanes=4, give_up=ends.append)
    berths.ends = ends
    berths.start()
    yield berths
    berths.close()


def in_thread(call):
    """The Future of a call in a thread of its own."""
    future: Future = Future()

    def run():
        try:
            future.set_result(call())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def answer(room, value, index=-1):
    until(lambda: room._exchange.calls)
    room._exchange.calls[index][1].set_result((*value, "7.0-n1-99-1"))


def placed(room):
    """A slot that has a worker."""
    before = len(room._exchange.calls)
    slot = parsl_remote.RemoteParslSlot(room)
    ready = in_thread(slot.ready)
    until(lambda: len(room._exchange.calls) > before)
    answer(room, (READY, b""))
    ready.result(PATIENCE)
    return slot


def test_jobs_whose_managers_have_nothing_to_do_are_held_and_given_back(room):
    exchange = room._exchange
    idle = {"1.0": 70.0, "2.0": 90.0, "3.0": 20.0, "4.0": 0.0, "5.0": 80.0}
    exchange.there = [
        manager(job, manager=f"{job}-n1", tasks=int(job == "4.0"), idle_duration=since)
        for job, since in idle.items()
    ]

    def begin(name):  # a task comes to one of them in the last moment
        if name == "5.0-n1":
            exchange.there = [one | {"tasks": int(one["manager"] == name)} for one in exchange.there]

    exchange.on_hold = begin
    assert room.idle(0, 60.0) == []
    assert room.idle(2, 60.0) == ["2.0"]
    assert [one["block_id"] for one in exchange.there if not one["active"]] == ["2.0", "5.0"]
    exchange.there = CommandClientTimeoutError()
    assert room.idle(2, 60.0) == []


def test_a_lane_waits_for_a_manager_and_then_for_an_answer(room):
    slot = parsl_remote.RemoteParslSlot(room)
    ready = in_thread(slot.ready)
    time.sleep(0.1)
    assert not ready.done()
    assert not room._exchange.calls
    room._exchange.there = [manager()]
    answer(room, (READY, b""))
    ready.result(PATIENCE)
    assert room._crew.jobs == ["7.0"]
    assert room._crew.counts[-1] == 1
    call = in_thread(lambda: slot.call(b"blob"))
    until(lambda: len(room._exchange.calls) == 2)
    assert room._exchange.calls[1][0] == b"blob"
    answer(room, (OUTCOME, b"done"))
    assert call.result(PATIENCE) == b"done"


def test_there_are_no_more_lanes_than_workers(room):
    room._exchange.there = [manager(workers=2), manager("8.0", workers=3, draining=True)]
    slots = [parsl_remote.RemoteParslSlot(room) for _ in range(4)]
    readies = [in_thread(slot.ready) for slot in slots]
    until(lambda: len(room._exchange.calls) == 2)
    time.sleep(0.1)
    assert len(room._exchange.calls) == 2
    answer(room, (READY, b""), 0)
    first = until(lambda: next((slot for slot, one in zip(slots, readies, strict=True) if one.done()), None))
    first.close()  # its room goes to the next lane
    until(lambda: len(room._exchange.calls) == 3)


def test_the_crew_hears_of_the_end_of_workers_that_took_no_more_tasks(room):
    """Every job drains before its walltime; counted for ever, they would keep the crew from giving up."""
    room._exchange.there = [manager(workers=2)]
    until(lambda: room._crew.counts == [2])
    room._exchange.there = [manager(workers=2, draining=True)]
    until(lambda: room._capacity == 0)
    assert room._crew.counts == [2]
    room._exchange.there = []
    until(lambda: room._crew.counts == [2, 0])
    assert room._crew.gone == room._crew.jobs


def test_the_failure_of_the_jobs_reaches_every_lane(room):
    room._exchange.there = [manager()]
    busy = placed(room)
    call = in_thread(lambda: busy.call(b"x"))
    waiting = in_thread(parsl_remote.RemoteParslSlot(room).ready)
    until(lambda: len(room._exchange.calls) == 2)
    room._crew.failure = SiteError("no job was taken: bad partition")
    room.wake()
    with pytest.raises(WorkerDied, match="no more workers"):
        call.result(PATIENCE)
    for again in (waiting, in_thread(busy.ready)):
        with pytest.raises(SiteError, match="bad partition"):
            again.result(PATIENCE)


@pytest.mark.parametrize(
    ("error", "why", "asked"),
    [
        (ManagerLost(b"7.0-ab12", "n1"), "memory", ["7.0"]),
        (ManagerLost(b"8.0-ab12", "n1"), "walltime", ["8.0"]),
        (ManagerLost(b"9_1-ab12", "n1"), "lost: job 9_1 is not heard any more", ["9_1"]),
        (WorkerLost(0, "n1"), "lost", []),
        (OSError(28, "No space left on device"), "lost: OSError: [Errno 28] No space left on device", []),
    ],
)
def test_how_a_lost_worker_is_told(room, error, why, asked):
    room._exchange.there = [manager(workers=1)]
    slot = placed(room)
    call = in_thread(lambda: slot.call(b"x"))
    until(lambda: len(room._exchange.calls) == 2)
    room._exchange.calls[1][1].set_exception(error)
    with pytest.raises(WorkerDied) as death:
        call.result(PATIENCE)
    assert death.value.why == why
    assert room._crew.asked == asked
    placed(room)  # the room is free again
    assert not room.ends


def test_the_death_of_a_kept_process_is_told_whole(room):
    room._exchange.there = [manager()]
    slot = placed(room)
    call = in_thread(lambda: slot.call(b"x"))
    until(lambda: len(room._exchange.calls) == 2)
    answer(room, (DIED, pack_death(WorkerDied.of("memory", -9, 5 << 20))))
    with pytest.raises(WorkerDied) as death:
        call.result(PATIENCE)
    assert (death.value.why, death.value.exitcode, death.value.peak) == ("memory", -9, 5 << 20)
    slot.ready()  # its worker has another process by then
    assert len(room._exchange.calls) == 2


def test_a_refused_initializer_is_a_failed_start(room):
    room._exchange.there = [manager()]
    slot = parsl_remote.RemoteParslSlot(room)
    for number in (1, 2):
        ready = in_thread(slot.ready)
        until(lambda number=number: len(room._exchange.calls) == number)
        answer(room, (FAILED, pack_error(WorkerDied("the workers' initializer raised ValueError: no"))))
        with pytest.raises(WorkerDied, match="initializer raised ValueError: no"):
            ready.result(PATIENCE)


def test_an_initializer_that_refuses_later_costs_the_room(room):
    room._exchange.there = [manager()]
    slot = placed(room)
    call = in_thread(lambda: slot.call(b"x"))
    until(lambda: len(room._exchange.calls) == 2)
    answer(room, (FAILED, pack_error(WorkerDied("the workers' initializer raised OSError: gone"))))
    with pytest.raises(WorkerDied, match="initializer raised OSError: gone"):
        call.result(PATIENCE)
    in_thread(slot.ready)
    until(lambda: len(room._exchange.calls) == 3, what="a worker has to prove itself again")


def test_a_killed_lane_waits_no_longer_and_its_room_is_free_when_the_task_ends(room):
    room._exchange.there = [manager()]
    slot = placed(room)
    call = in_thread(lambda: slot.call(b"for ever"))
    until(lambda: len(room._exchange.calls) == 2)
    slot.kill("too long")
    with pytest.raises(WorkerDied, match="killed"):
        call.result(PATIENCE)
    again = in_thread(slot.ready)
    time.sleep(0.1)
    assert len(room._exchange.calls) == 2, "the worker is still busy with the task nobody waits for"
    answer(room, (OUTCOME, b"late"), 1)
    until(lambda: len(room._exchange.calls) == 3)
    answer(room, (READY, b""))
    again.result(PATIENCE)


def test_an_interchange_that_ends_or_is_silent_ends_the_host_and_its_jobs(room):
    room._exchange.code = -9
    room._exchange.closed.set()
    until(lambda: room.ends)
    assert room.ends == ["its interchange ended with -9\nits log"]
    assert room._crew.closed == 1


def test_managers_that_cannot_be_read_end_the_host(room):
    room._exchange.there = [{"block_id": "1"}]
    until(lambda: room.ends)
    assert "KeyError" in room.ends[0]


def test_a_version_that_does_not_fit_is_said_and_not_tried_again(room):
    room._exchange.failure = VersionMismatch("py.v=3.11 parsl.v=1", "py.v=3.12 parsl.v=1")
    waiting = in_thread(parsl_remote.RemoteParslSlot(room).ready)
    room._exchange.closed.set()
    with pytest.raises(EngineError, match=r"py\.v=3\.12.*job\.python"):
        waiting.result(PATIENCE)
    assert not room.ends


def test_a_call_that_parsl_does_not_take_is_a_lost_worker(room):
    room._exchange.there = [manager()]
    slot = placed(room)
    room._exchange.error = RuntimeError("bad state")
    with pytest.raises(WorkerDied, match="bad state"):
        slot.call(b"x")


def test_what_the_runner_imports_goes_to_the_nodes_but_not_its_interpreter():
    own = [
        str(Path(threading.__file__).parent),
        f"{sys.prefix}/lib/python3.11/site-packages",
        "/home/me/project",
    ]
    foreign = ["/cvmfs/views/python/site-packages", "/home/me/lib.zip"]
    assert list(parsl_remote.project_path([*own, *foreign])) == ["/home/me/project", *foreign]


def test_a_site_with_a_scheduler_of_its_own_is_not_for_parsl():
    site = SiteProfile(name="casa", scheduler="existing")
    with pytest.raises(UsageError, match="dask/casa"), ParslEngine().open(site, Resources()):
        pass


# Parsl's executor: where it listens, what its keys open.


@pytest.fixture
def umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def exchange(tmp_path, umask):
    opened = parsl_exchange.Exchange(
        SiteProfile(name="here", network=Network("loopback"), resources=SiteResources(walltime=3600.0)),
        2,
        tmp_path / "parsl",
    )
    yield opened
    opened.close()


def listening(process):
    return {one.laddr for one in process.net_connections("inet") if one.status == psutil.CONN_LISTEN}


@pytest.fixture
def before():
    """What this process listens on already; its other children may be batch systems of other tests."""
    return listening(psutil.Process())


def probe(context, exchange, limit):
    with context.socket(zmq.DEALER) as sock:
        sock.setsockopt(zmq.LINGER, 0)
        sock.setsockopt(zmq.SNDTIMEO, 2000)
        sock.connect(f"tcp://{exchange.address}:{exchange.port}")
        try:
            sock.send(pickle.dumps({"type": "connection_probe"}))
        except zmq.Again:  # already turned away: then there is nobody to send to, for ever
            return False
        return bool(sock.poll(limit * 1000))


def test_who_has_the_keys_gets_an_answer_and_nobody_else(before, exchange, tmp_path):
    keys = exchange.worker_keys(tmp_path / "keys")
    served = psutil.Process(exchange._executor.interchange_proc.pid)
    there = [
        listening(psutil.Process()) - before,
        *map(listening, (served, *served.children(recursive=True))),
    ]
    addresses = set().union(*there)
    assert {address.ip for address in addresses} <= {"127.0.0.1", "::ffff:127.0.0.1"}
    assert exchange.port in {address.port for address in addresses}
    assert probe(curvezmq.ClientContext(tmp_path / "keys"), exchange, 10)
    with zmq.Context() as plain:
        assert not probe(plain, exchange, 0.5)
    other = curvezmq.create_certificates(tmp_path)
    (Path(other) / "server.key_secret").write_bytes(keys[1].read_bytes())
    assert not probe(curvezmq.ClientContext(other), exchange, 0.5), "a key of another's making"


def test_keys_are_for_this_user_alone_and_the_interchanges_own_stays_here(exchange, tmp_path):
    keys = exchange.worker_keys(tmp_path / "keys")
    made = tmp_path / "parsl"
    private = [made, *made.rglob("*.key*"), tmp_path / "keys", *keys]
    assert len(private) >= 7
    for path in private:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    server = next(made.rglob("server.key_secret")).read_text()
    secret = parsl_exchange.SECRET.search(server)
    public = next(line for line in server.splitlines() if "public-key" in line)
    assert secret is not None
    shipped = "".join(path.read_text() for path in keys)
    assert secret.group() not in shipped
    assert public in shipped


def test_a_job_takes_no_task_that_its_walltime_would_end(exchange):
    assert parsl_exchange._drain(None) is None
    assert parsl_exchange._drain(60.0) == 48
    assert parsl_exchange._drain(8 * 3600.0) == 8 * 3600 - 600
    assert f"--drain_period={3600 - 600}" in " ".join(exchange.manager_words())


def test_a_port_that_is_taken_is_named_with_its_holder(tmp_path, umask):
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        site = SiteProfile(
            name="here", network=Network("loopback"), ports=SitePorts((port, port), hint="ssh other")
        )
        with pytest.raises(SiteError, match=f"{port} is taken.*; ssh other"):
            parsl_exchange.Exchange(site, 1, tmp_path / "parsl")


def test_an_interchange_that_cannot_start_is_told_at_once(tmp_path, umask, monkeypatch):
    monkeypatch.setattr(parsl_exchange, "INTERCHANGE", "no.such.module")
    begun = time.monotonic()
    with pytest.raises(EngineError, match="did not start at 127.0.0.1: it ended with 1"):
        parsl_exchange.Exchange(SiteProfile(name="here", network=Network("loopback")), 1, tmp_path / "parsl")
    assert time.monotonic() - begun < 10


# On the node.


def test_a_python_that_cannot_serve_says_what_it_lacks(monkeypatch):
    fits = parsl_pilot._versions()
    assert parsl_pilot.unfit(fits) == ""
    assert "parsl 2" in parsl_pilot.unfit(fits | {"parsl": "2020.1.1"})
    assert "runner 3.1)" not in parsl_pilot.unfit(fits | {"python": "3.1"})
    assert "the runner 3.1" in parsl_pilot.unfit(fits | {"python": "3.1"})
    monkeypatch.setattr(parsl_pilot, "NEEDED", ("parsl", "no_such_module"))
    assert "lacks no_such_module" in parsl_pilot.unfit(fits)


def test_the_pilots_first_file_imports_nothing_that_a_bare_python_lacks():
    root = Path(parsl_pilot.__file__).parents[2]
    command = [sys.executable, "-S", "-c", "import executors.engines.parsl_pilot as p; print(p.unfit({}))"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=30, check=False)
    assert "lacks parsl, zmq" in done.stdout, done.stderr


def test_the_memory_of_a_process_leaves_room_for_parsl():
    assert parsl_node.call_memory(None, 4) is None
    assert parsl_node.call_memory(2000 << 20, 1) == (2000 - 140 - 65) << 20
    assert parsl_node.call_memory(100 << 20, 2) == 25 << 20


def test_a_dead_child_of_the_manager_is_noticed(monkeypatch):
    monkeypatch.setattr(parsl_node, "SETTLED", 0.2)
    script = "import subprocess, time; one = subprocess.Popen(['sleep', '60']); print(one.pid, flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        try:
            brood = parsl_node.Brood(parent.pid)
            assert not brood.lost()
            time.sleep(0.3)
            assert not brood.lost()
            os.kill(child, signal.SIGKILL)  # it stays as a zombie: nobody waits for it
            until(brood.lost)
        finally:
            parent.kill()


def test_a_runner_that_listens_no_more_is_dead_after_a_while():
    with socket.create_server(("127.0.0.1", 0)) as server:
        line = parsl_node.Line("127.0.0.1", server.getsockname()[1], 0.5)
        line._pause = 0.1
        begun = time.monotonic()
        while time.monotonic() - begun < 1.0:
            assert not line.dead()
            time.sleep(0.02)
    until(line.dead, 3.0)


# Whole jobs: job.sh, parcel, pilot, manager and worker as on a node, started by a scheduler that is none.


class Here:
    """A batch system that runs each job at once as a process of this machine."""

    name = "here"

    def __init__(self):
        self.jobs: dict[str, subprocess.Popen] = {}

    def submit(self, spec, count):
        write_text("slurm", spec)
        return [self._start(spec) for _ in range(count)]

    def _start(self, spec):
        number = str(len(self.jobs) + 100)
        with (spec.logs / f"{number}.err").open("wb") as log:
            env = {"SLURM_JOB_ID": number, "HOME": os.environ.get("HOME", "/")}
            command = ["/bin/bash", str(spec.folder / "job.sh")]
            self.jobs[number] = subprocess.Popen(
                command, stderr=log, stdout=log, env=env, start_new_session=True
            )
        return number

    def query(self, name, ids):
        states = {}
        for number, process in self.jobs.items():
            code = process.poll()
            phase = "running" if code is None else "done" if code == 0 else "failed"
            fate = "" if code in (None, 0) else "removed" if code in (-9, -15, 143) else "exit"
            states[number] = JobState(number, phase, fate=fate, exit=code)
        return states

    def cancel(self, ids):
        for one in ids:
            if self.jobs[one].poll() is None:
                self.jobs[one].terminate()

    def cancel_named(self, name):
        self.cancel(list(self.jobs))

    def fetch(self, ids):
        """Their output is here."""

    def why_pending(self, ids):
        return ""


def first(*words):
    """An initializer that a task can see the effect of."""
    os.environ["DRESSED"] = " ".join(words)


def dressed(number):
    return number, os.environ.get("DRESSED"), os.environ.get("SLURM_JOB_ID"), os.environ.get("PYTHONPATH")


def exit_with(code):
    os._exit(code)


def eat(size):
    block = bytearray(os.urandom(1 << 20)) * (size >> 20)
    time.sleep(60)
    return len(block)


def linger():
    subprocess.Popen(["sleep", "300"], start_new_session=True)
    time.sleep(60)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """Berths whose jobs really run; every process of theirs is gone at the end."""
    base = tmp_path_factory.mktemp("jobs")
    for name in ("private", "logs"):
        (base / name).mkdir(mode=0o700)
    patch, before, told = pytest.MonkeyPatch(), os.umask(0o077), []
    system = Here()
    patch.setattr(parsl_remote, "scheduler_of", lambda *_: system)
    patch.setattr(parsl_remote, "say", lambda *words: told.append(words))
    patch.setattr(parsl_exchange, "SILENCE", 8)
    patch.setattr(parsl_exchange, "HEARTBEAT", 1)
    site = SiteProfile(
        name="here",
        scheduler="slurm",
        network=Network("loopback"),
        resources=SiteResources(cores=2, memory=700 << 20),
        limits=Limits(polls_per_minute=120.0, start=60.0, death=5.0),
    )
    setup = {
        "site": site, "name": "cs-test-0", "workers": 1, "jobs": 2, "memory": None, "env": {"A": "b c"},
        "private": str(base / "private"), "logs": str(base / "logs"), "python": sys.executable,
        "outfit": pack_outfit(first, ("a", "b")), "preload": (), "path": sys.path,
    }  # fmt: skip
    ends: list[str] = []
    berths = parsl_remote.open_berths(setup, ends.append)
    berths.system, berths.base, berths.told = system, base, told
    yield berths
    try:
        processes = ours(base)
        berths.close()
        until(lambda: not [one for one in processes if tasks.alive(one)])
        assert not ours(base)
        assert not ends
    finally:
        os.umask(before)
        patch.undo()
        for job in system.jobs.values():
            job.kill()
            job.wait()


def ours(base):
    """Every process that works in a job's folder or for it."""
    found = []
    for one in psutil.process_iter():
        try:
            if str(base) in " ".join([*one.cmdline(), one.environ().get("CS_TEST", "")]):
                found += [one, *one.children(recursive=True)]
        except psutil.Error:
            continue
    return [one for one in found if one.pid != os.getpid()]


def call(berths, function, *args):
    """One call through a lane of its own."""
    slot = parsl_remote.RemoteParslSlot(berths)
    try:
        slot.ready()
        return pickle.loads(slot.call(pack_call(function, args, {})))
    finally:
        slot.close()


def test_a_call_on_a_job(here):
    good, (number, words, job, path) = call(here, dressed, 3)
    assert (good, number, words) == (True, 3, "a b")
    assert job in here.system.jobs
    assert path is None, "what Parsl's manager needs is none of the tasks' business"


def test_a_call_that_raises(here):
    good, (_, kind, summary, _) = call(here, dressed)
    assert not good
    assert kind == "TypeError"
    assert "missing 1 required" in summary


def test_a_process_that_exits_is_told_by_its_code(here):
    with pytest.raises(WorkerDied) as death:
        call(here, exit_with, 11)
    assert (death.value.why, death.value.exitcode) == ("exit", 11)
    assert call(here, dressed, 1)[0]


def test_a_process_over_its_part_of_the_memory_is_killed_for_that(here):
    begun = time.monotonic()
    with pytest.raises(WorkerDied) as death:
        call(here, eat, 600 << 20)
    assert death.value.why == "memory"
    assert death.value.peak > 300 << 20
    assert time.monotonic() - begun < 30


def test_a_process_that_is_to_be_renewed_makes_no_other_call(here):
    slot = parsl_remote.RemoteParslSlot(here)
    slot.ready()
    old = pickle.loads(slot.call(pack_call(os.getpid, (), {})))[1]
    # It makes more calls, once they happen to go to it again.
    until(lambda: pickle.loads(slot.call(pack_call(os.getpid, (), {})))[1] == old)
    slot.renew(slot.worker)
    # Wherever the next calls go: to another of the two workers, or to this one's new process.
    assert old not in {pickle.loads(slot.call(pack_call(os.getpid, (), {})))[1] for _ in range(8)}
    slot.close()


def with_their_tasks(jobs):
    """The processes of each job that runs, once each has a task's own child; until then none."""
    found = {
        one: psutil.Process(job.pid).children(recursive=True)
        for one, job in jobs.items()
        if job.poll() is None
    }
    return found if all(map(has_sleeper, found.values())) else {}


def has_sleeper(processes):
    for one in processes:
        with contextlib.suppress(psutil.Error):
            if one.cmdline() == ["sleep", "300"]:
                return True
    return False


def test_a_job_that_is_removed_is_noticed_and_replaced_and_leaves_nothing(here):
    until(lambda: here._capacity == 2)
    before = dict(here.system.jobs)
    running = [in_thread(lambda: call(here, linger)) for _ in range(2)]
    children = until(lambda: with_their_tasks(before))
    victim = next(iter(children))
    here.system.jobs[victim].terminate()
    begun = time.monotonic()
    lost = until(lambda: next((one for one in running if one.done()), None), 30)
    with pytest.raises(WorkerDied, match="its batch job was removed"):
        lost.result()
    assert time.monotonic() - begun < 25
    assert len(children[victim]) > 6, "manager, its services, a worker, keepers and a task's own child"
    until(lambda: not [one for one in children[victim] if tasks.alive(one)])
    here.system.jobs[next(one for one in children if one != victim)].terminate()
    until(lambda: all(one.done() for one in running), 30)
    until(lambda: len(here.system.jobs) >= len(before) + 2, 20)
    assert call(here, dressed, 5)[0]


def test_a_worker_of_parsl_that_dies_takes_its_job_along(here):
    until(lambda: here._capacity == 2)
    pid, job = call(here, where)[1]
    count = len(here.system.jobs)
    time.sleep(parsl_node.SETTLED + 3 * parsl_node.LOOK)
    os.kill(pid, signal.SIGKILL)
    assert here.system.jobs[job].wait(15) == parsl_node.LOST
    assert "a process of Parsl's manager died" in (here.base / "logs" / f"{job}.err").read_text()
    until(lambda: len(here.system.jobs) > count)


def where():
    """The worker of Parsl (parent of the keeper, which is this one's) and the job."""
    return psutil.Process(os.getppid()).ppid(), os.environ["SLURM_JOB_ID"]


def test_a_node_where_no_process_lives_gives_its_job_back(tmp_path, monkeypatch):
    settings = {"local": str(tmp_path), "logs": str(tmp_path / "absent"), "job": "1", "memory": None,
                "preload": [], "outfit": str(tmp_path / "outfit"), "env": {}, "path": sys.path}  # fmt: skip
    (tmp_path / "outfit").write_bytes(pack_outfit(None, ()))
    slot = parsl_task.KeptSlot(settings)
    try:
        for _ in range(parsl_task.FALSE_STARTS):
            assert not (tmp_path / parsl_task.BROKEN).exists()
            with pytest.raises(WorkerDied):
                slot.ready()
        assert "3 processes in a row" in (tmp_path / parsl_task.BROKEN).read_text()
    finally:
        slot._nursery.close()
