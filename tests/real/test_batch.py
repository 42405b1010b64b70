"""The crew alone against the real batch systems: it keeps its number, knows what happened, and leaves nothing."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from real.servers import processes

ROOT = Path(__file__).parents[2]
TALK = Path(__file__).with_name("crew_talk.py")
WAYS = {
    "slurm": ("scancel", "requeue", "hold", "kill", "node"),
    "condor": ("condor_rm", "condor_hold", "condor_vacate_job", "kill", "node"),
}


class Talk:
    """One crew in a process of its own, run as the batch system's user."""

    def __init__(self, batch, line="sleep 600", limits=None, spec=None):
        self.batch = batch
        folder = batch.fresh("crew")
        env = {**batch.env, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        changes = {} if batch.kind == "condor" else {"queue": "main"}
        argv = [str(folder), line, json.dumps(limits or {}), json.dumps({**changes, **(spec or {})})]
        self.process = subprocess.Popen(
            [*batch.run_as, sys.executable, str(TALK), batch.kind, *argv],
            env=env, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        self.events, self.news = [], queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        first = self.until("name", 30)
        self.name, self.cancel = first["name"], first["cancel"]

    def _listen(self):
        for line in self.process.stdout:
            self.news.put(json.loads(line))

    def say(self, *words):
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()

    def until(self, key, within=60, where=lambda event: True):
        end = time.monotonic() + within
        while True:
            try:
                event = self.news.get(timeout=max(0.01, end - time.monotonic()))
            except queue.Empty:
                last = f"{self.events[-5:]}; told: {self.told()}"  # what is told once may be long ago
                raise AssertionError(f"no {key}: {last}; queue: {self.batch.queue()}") from None
            self.events.append(event)
            if key in event and where(event):
                return event

    def jobs(self, state="running"):
        return [job for job in self.batch.queue() if job.name == self.name and job.state == state]

    def running(self, count, within=90):
        reached = processes.wait_for(lambda: len(self.jobs()) == count, within, every=0.3)
        assert reached, (self.batch.queue(), self.told())

    def told(self):
        while not self.news.empty():
            self.events.append(self.news.get())
        return [(event["level"], event["text"]) for event in self.events if "level" in event]

    def close(self):
        if self.process.poll() is None:
            self.say("close")
            took = self.until("closed", 40)["closed"]
            self.process.wait(20)
            assert took < 20
        assert not [job for job in self.batch.queue() if job.name == self.name and job.state != "ending"]


@pytest.fixture(params=["slurm", "condor"])
def batch(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def talk(batch):
    made = []

    def make(*args, **more):
        made.append(Talk(batch, *args, **more))
        return made[-1]

    yield make
    for one in made:
        if one.process.poll() is None:
            os.killpg(one.process.pid, 9)
        one.process.wait(10)
        batch.command(*one.cancel, check=False)
    assert batch.empty(40)


def test_up_and_down(talk):
    crew = talk()
    for count in (3, 0, 2):
        crew.say("want", count)
        crew.running(count)
    assert processes.wait_for(lambda: len(crew.batch.queue()) == 2, 30, every=0.3)
    crew.close()
    assert not [event for event in crew.events if "failure" in event]


# In the quick set the whole suite has every way, with both engines.
@pytest.mark.parametrize(
    "number", [pytest.param(at, marks=[pytest.mark.full] if at not in (0, 3) else []) for at in range(5)]
)
def test_what_is_taken_away_is_replaced(talk, batch, number):
    way = WAYS[batch.kind][number]
    crew = talk()
    crew.say("want", 2)
    crew.running(2)
    lost = crew.jobs()[0]
    if way in ("requeue", "hold"):  # our jobs forbid it, a site's operator may all the same
        batch.command("scontrol", "update", f"JobId={lost.id}", "Requeue=1")
    begun = time.monotonic()
    batch.take_away(lost, way)
    crew.say("fate", lost.id, 30)
    fate = crew.until("fate", 40)["fate"]
    took = time.monotonic() - begun
    assert fate in {
        "kill": ("exit", "removed", ""),
        "node": ("node", "removed", "exit", ""),
        "condor_vacate_job": ("removed", ""),
    }.get(way, ("removed",)), (fate, took)
    crew.running(2, 90)
    if way != "node":
        assert time.monotonic() - begun < 60
    crew.close()


def test_jobs_that_die_at_once(talk):
    crew = talk("echo 'the environment is broken' >&2; exit 3 # never")
    crew.say("want", 2)
    failure = crew.until("failure", 60)["failure"]
    assert "exit code 3" in failure
    assert "the environment is broken" in failure
    crew.close()


@pytest.mark.at("condor")
def test_spooled_jobs(talk, batch):
    """As at sites whose schedds see nothing of ours: the log of a job that failed is fetched, and none stays."""
    crew = talk(
        "echo 'the environment is broken' >&2; exit 3 # never",
        spec={"submit_options": ["-spool"], "shared": False},
    )
    crew.say("want", 3)
    failure = crew.until("failure", 60)["failure"]
    assert "    the environment is broken" in failure
    crew.close()
    assert processes.wait_for(
        lambda: not batch.command("condor_q", "-af", "ClusterId").split(), 20, every=0.3
    )


def test_a_refused_submission(talk, batch):
    spec = {"queue": "nope"} if batch.kind == "slurm" else {"directives": {"requirements": "((("}}
    crew = talk(spec=spec)
    crew.say("want", 2)
    failure = crew.until("failure", 30)
    assert failure["kind"] == "SubmissionError"
    assert ("--queue" if batch.kind == "slurm" else "Parse error") in failure["failure"]
    crew.close()


@pytest.mark.at("condor")  # this Slurm refuses what never fits
def test_jobs_that_never_fit(talk):
    crew = talk(spec={"memory": 10**15}, limits={"start": 12.0})
    crew.say("want", 2)
    failure = crew.until("failure", 60)["failure"]
    assert "no machine has TARGET.Memory >= RequestMemory (--memory)" in failure
    crew.close()


@pytest.mark.at("condor")  # Slurm carries no files
def test_held_for_a_missing_input(talk):
    crew = talk("sleep 600 # never", spec={"transfer": ["/nowhere/at/all"]})
    crew.say("want", 3)
    failure = crew.until("failure", 60)["failure"]
    assert "an input file is missing" in failure
    assert "/nowhere/at/all" in failure
    crew.close()


def test_after_a_kill_the_command_by_name_empties_the_queue(talk, batch):
    crew = talk()
    crew.say("want", 3)
    crew.running(3)
    os.killpg(crew.process.pid, 9)
    crew.process.wait(10)
    batch.command(*crew.cancel)
    assert processes.wait_for(lambda: not batch.queue(), 40, every=0.3)
    batch.command(*crew.cancel, check=False)


def test_the_site_is_asked_as_often_as_it_allows(talk):
    crew = talk(limits={"polls_per_minute": 30.0})
    crew.say("want", 2)
    crew.running(2)
    began = time.monotonic()  # the same clock as the crew's: it is the machine's
    time.sleep(12)
    ended = time.monotonic()
    crew.told()
    looks = [event["query"] for event in crew.events if "query" in event]
    crew.close()
    assert len(looks) >= 3
    # Once all are there it looks half as often as it may.
    assert 2 <= sum(began < one < ended for one in looks) <= (ended - began) / 2 + 2
