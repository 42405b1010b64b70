"""Jobs that ended for memory: the next ones ask for more, up to what the site gives, and are told what they have."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest

from executors.batch import crew as crew_module
from executors.batch import parcel
from executors.batch.crew import Crew
from executors.batch.render import render
from executors.batch.schedulers import JobState
from executors.batch.spec import growing, spec_of
from executors.engines.base import WorkerDied
from executors.engines.dask_fleet import Fleet
from executors.errors import SiteError
from sites.profile import Limits, SiteResources, load_site

GB = 10**9


class Queue:
    """A batch system in memory that keeps what each job asked for."""

    def __init__(self):
        self.asked, self.states = [], {}

    def submit(self, spec, count):
        ids = [str(len(self.asked) + at) for at in range(count)]
        self.asked += [spec] * count
        self.states |= {one: JobState(one, "running") for one in ids}
        return ids

    def query(self, name, ids):
        return dict(self.states)

    def fetch(self, ids):
        pass

    def cancel(self, ids):
        for one in ids:
            self.end(one, "removed")

    def cancel_argv(self, name):
        return ["cancel", name]

    def cancel_named(self, name):
        self.cancel([one for one, state in self.states.items() if not state.ended])

    def why_pending(self, ids):
        return ""

    def end(self, one, fate):
        self.states[one] = JobState(one, "failed", fate, fate=fate)

    def memory(self):
        return [spec.memory for spec in self.asked]


@pytest.fixture
def gang(tmp_path, monkeypatch):
    """``gang(most, memory, fixed)``: a crew with one job, its queue and what it says."""
    monkeypatch.setattr(crew_module, "BACKOFF", 0.02)
    made = []

    def make(most=None, memory=2 * GB, fixed=()):
        site = load_site("slurm")
        site = replace(site, resources=SiteResources(memory=memory), fixed=dict.fromkeys(fixed, "it is so"))

        def described(site, folder, more):
            return spec_of(site, name="cs-me-1", command=("x",), folder=folder, logs=tmp_path, env=more)

        queue, told = Queue(), []
        limits = Limits(polls_per_minute=6000, submissions_per_second=1000, memory=most)
        crew = Crew(queue, described(site, tmp_path, {}), limits, lambda level, text: told.append((level, text)),
                    grow=growing(site, tmp_path, described))  # fmt: skip
        made.append(crew)
        crew.want(1)
        until(lambda: "0" in crew._roster.jobs)
        crew.started("0")
        crew.seen(1)
        return crew, queue, told

    yield make
    for one in made:
        one.close()


def until(true, limit=10.0):
    deadline = time.monotonic() + limit
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def ended(crew, queue, fate):
    """The newest job ends, and another has come."""
    count = len(queue.asked)
    queue.end(str(count - 1), fate)
    crew.seen(0)
    until(lambda: str(count) in crew._roster.jobs)
    crew.started(str(count))
    crew.seen(1)


def test_the_next_jobs_ask_for_half_as_much_again(gang):
    crew, queue, told = gang(most=4 * GB)
    for _ in range(4):
        ended(crew, queue, "memory")
    megabyte = 1 << 20
    assert [round(one / GB, 2) for one in queue.memory()] == [2, 3, 4, 4, 4]
    assert queue.memory()[1] % megabyte == 0
    said = [text for level, text in told if level == "warning" and "jobs ask for" in text]
    assert said == [
        "jobs ask for 3 GB now: 1 ended for memory with 2 GB",
        "jobs ask for 4 GB now: 1 ended for memory with 3 GB",
    ]


@pytest.mark.parametrize("fate", ["removed", "walltime", "node", "exit"])
def test_for_other_reasons_nothing_grows(gang, fate):
    crew, queue, _ = gang(most=4 * GB)
    ended(crew, queue, fate)
    assert queue.memory() == [2 * GB] * 2


@pytest.mark.parametrize(
    "given", [{"most": None}, {"most": 2 * GB}, {"most": 9 * GB, "memory": None},
              {"most": 9 * GB, "fixed": ["resources.memory"]}],
)  # fmt: skip
def test_where_a_site_gives_no_more_none_is_asked_for(gang, given):
    crew, queue, told = gang(**given)
    ended(crew, queue, "memory")
    assert len(set(queue.memory())) == 1
    assert not any("ask for" in text for _, text in told)


def test_two_workers_over_their_share_are_enough(gang):
    crew, queue, _ = gang(most=9 * GB)
    crew.outgrown("0")
    crew.outgrown("unknown")
    ended(crew, queue, "removed")
    assert queue.memory() == [2 * GB] * 2
    crew.outgrown("1")
    ended(crew, queue, "removed")
    assert round(queue.memory()[-1] / GB) == 3
    crew.outgrown("2")  # one of the new size is not enough again
    ended(crew, queue, "removed")
    assert round(queue.memory()[-1] / GB) == 3


def test_jobs_of_an_earlier_size_say_nothing_of_the_present_one(gang):
    crew, queue, _ = gang(most=9 * GB)
    crew.want(2)
    until(lambda: len(queue.asked) == 2)
    crew.started("1")
    for one in ("0", "1"):
        count = len(queue.asked)
        queue.end(one, "memory")
        crew.seen(0)
        until(lambda: len(queue.asked) > count)
    assert [round(one / GB) for one in queue.memory()] == [2, 2, 3, 3]


def test_what_cannot_be_described_is_said_and_the_old_jobs_go_on(gang):
    crew, queue, told = gang(most=9 * GB)

    def broken(memory):
        raise SiteError("no room")

    crew._growth._grow = broken
    ended(crew, queue, "memory")
    assert queue.memory() == [2 * GB] * 2
    assert ("warning", "jobs cannot ask for more memory: no room") in told


@pytest.mark.parametrize("scheduler", ["condor", "slurm", "sge", "pbs", "lsf"])
def test_the_text_of_the_larger_job(tmp_path, scheduler):
    """It asks for more in every way, and tells the job; the text of the smaller one is not touched."""
    site = replace(
        load_site(scheduler), resources=SiteResources(memory=2 << 30), directives={"x": "m={memory_mb}"}
    )
    site = replace(site, directives={"comment": "m={memory_mb}"} if scheduler == "slurm" else {})

    def described(site, folder, more):
        return spec_of(site, name="cs-me-1", command=("x",), folder=folder, logs=tmp_path, env=more)

    grow = growing(site, tmp_path, described)
    before, after = described(site, tmp_path, {}), grow(3 << 30)
    assert after.folder != before.folder
    assert after.folder.parent == before.folder
    small, large = ("\n".join(render(scheduler, one).values()) for one in (before, after))
    assert parcel.JOB_MEMORY not in small
    assert parcel.JOB_MEMORY in large
    assert str(3 << 30) in large
    if scheduler == "slurm":
        assert "m=3072" in large


def test_a_job_believes_what_it_is_told(tmp_path, monkeypatch):
    heard = []
    (tmp_path / "pilot.json").write_text(json.dumps({"pilot": "nobody:main", "memory": 5}))
    monkeypatch.setattr(
        parcel, "_pilot", lambda target, local: lambda settings: heard.append(settings["memory"])
    )
    monkeypatch.setattr(parcel, "_scratch", lambda asked: str(tmp_path))
    monkeypatch.setattr(parcel.signal, "signal", lambda *_: None)
    for given, memory in ((None, 5), ("7", 7)):
        if given:
            monkeypatch.setenv(parcel.JOB_MEMORY, given)
        assert parcel.run([str(tmp_path / "pilot.json")]) == 0
        assert heard.pop() == memory


def test_an_obituary_for_memory_is_passed_on():
    fleet, heavy = Fleet(), []
    fleet.on_heavy = heavy.append
    fleet.joined("7.0-1-0", "tls://a")
    fleet.buried("7.0-1-0", WorkerDied.of("memory", -9, 5))
    fleet.buried("8.0-1-0", WorkerDied.of("signal", -9, 5))
    assert heavy == ["7.0"]
