"""The crew against a batch system of our own making: what it submits, replaces, tells and gives up on."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from executors.batch import crew as crew_module
from executors.batch.crew import Crew
from executors.batch.pace import Pace
from executors.batch.schedulers import CommandError, JobState, SubmissionError
from executors.batch.spec import JobSpec
from executors.errors import EngineError, SiteError, UsageError
from sites.profile import Limits

QUICK = Limits(polls_per_minute=6000, submissions_per_second=1000, start=30.0)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(crew_module, "BACKOFF", 0.02)


class Queue:
    """A batch system in memory. ``rule(id)`` says what becomes of a job at its first look."""

    name = "slurm"

    def __init__(self, rule=lambda one: JobState(one, "running")):
        self.rule = rule
        self.jobs: dict[str, JobState] = {}
        self.submissions: list[int] = []
        self.queries: list[float] = []
        self.cancelled: list[str] = []
        self.names_cancelled = 0
        self.refuse: list[Exception] = []
        self.deaf: list[Exception] = []
        self.number = 0
        self.busy = threading.Lock()
        self.overlaps = 0

    def submit(self, spec, count):
        self.submissions.append(count)
        if self.refuse:
            raise self.refuse.pop(0)
        ids = [str(self.number + at) for at in range(count)]
        self.number += count
        self.jobs |= {one: JobState(one, "pending") for one in ids}
        return ids

    def query(self, name, ids):
        if not self.busy.acquire(blocking=False):
            self.overlaps += 1
            raise RuntimeError("two questions at a time")
        try:
            self.queries.append(time.monotonic())
            if deaf := self.deaf:  # a test may put another list there at any moment
                raise deaf.pop(0)
            for one, state in self.jobs.items():
                if state.phase == "pending":
                    self.jobs[one] = self.rule(one)
            return {one: JobState(one, "gone") for one in ids} | dict(self.jobs)
        finally:
            self.busy.release()

    def fetch(self, ids):
        for one in ids:
            self.fetched(one)

    fetched = staticmethod(lambda one: None)

    def cancel(self, ids):
        self.cancelled += ids
        for one in ids:
            self.jobs[one] = JobState(one, "failed", fate="removed")

    def cancel_argv(self, name):
        return ["cancel", name]

    def cancel_named(self, name):
        self.names_cancelled += 1
        for one, state in self.jobs.items():
            if not state.ended:
                self.jobs[one] = JobState(one, "failed", fate="removed")

    def why_pending(self, ids):
        return "no node has 9 arms"

    def end(self, one, **about):
        self.jobs[one] = JobState(one, "failed", **about)

    def left(self):
        return [one for one, state in self.jobs.items() if not state.ended]


def spec(tmp_path: Path) -> JobSpec:
    (tmp_path / "logs").mkdir(exist_ok=True)
    return JobSpec(name="cs-me-1", command=("x",), folder=tmp_path, logs=tmp_path / "logs")


@pytest.fixture
def gang(tmp_path):
    made = []

    def make(queue, limits=QUICK):
        told = []
        crew = Crew(queue, spec(tmp_path), limits, lambda level, text: told.append((level, text)))
        made.append(crew)
        return crew, told

    yield make
    for crew in made:
        crew.close()
    assert [thread for thread in threading.enumerate() if thread.name == "crew"] == []


def until(condition, limit=10.0):
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)


def texts(told, level):
    return [text for one, text in told if one == level]


# Keeping the number.


def test_it_submits_what_is_wanted_in_one_go(gang):
    queue = Queue()
    crew, told = gang(queue)
    crew.want(7)
    until(lambda: crew.status() == "7 running")
    assert queue.submissions == [7]
    assert ("status", "7 running") in told


def test_a_submission_is_no_larger_than_the_site_wants(gang):
    queue = Queue()
    crew, _ = gang(queue, Limits(polls_per_minute=6000, submissions_per_second=1000, jobs_per_submission=3))
    crew.want(7)
    until(lambda: len(queue.jobs) == 7)
    assert queue.submissions == [3, 3, 1]


def test_submissions_are_paced(gang):
    queue = Queue()
    crew, _ = gang(queue, Limits(polls_per_minute=6000, submissions_per_second=20, jobs_per_submission=1))
    begun = time.monotonic()
    crew.want(6)
    until(lambda: len(queue.jobs) == 6)
    assert time.monotonic() - begun >= 5 / 20 - 0.01


def test_the_sites_limit_holds_and_is_said(gang):
    queue = Queue()
    crew, told = gang(queue, Limits(polls_per_minute=6000, submissions_per_second=1000, jobs=2))
    crew.want(5)
    until(lambda: crew.status() == "2 running")
    time.sleep(0.05)
    assert sum(queue.submissions) == 2
    assert texts(told, "warning") == ["this site takes 2 jobs of one run at a time, not 5"]


def test_nothing_is_submitted_before_something_is_wanted(gang):
    queue = Queue()
    crew, _ = gang(queue)
    crew.want(0)
    crew.close()
    assert queue.submissions == []
    assert queue.queries == []
    assert queue.names_cancelled == 0


def test_scale_up_and_down(gang):
    queue = Queue()
    crew, _ = gang(queue)
    for wanted in (4, 0, 3, 1):
        crew.want(wanted)
        until(lambda w=wanted: len(queue.left()) == w and len(crew._roster.jobs) == w)
    assert sum(queue.submissions) == 7
    assert crew.failure is None


def test_scaling_down_spares_those_that_work(gang):
    queue = Queue(lambda one: JobState(one, "running" if one in ("0", "1") else "pending"))
    crew, _ = gang(queue)
    crew.want(4)
    until(lambda: crew.status() == "2 running, 2 pending")
    crew.started("0")
    crew.seen(1)
    crew.want(1)
    until(lambda: len(queue.left()) == 1)
    assert queue.left() == ["0"]


# Replacing.


@pytest.mark.parametrize("fate", ["removed", "node", "walltime", "exit", "memory"])
def test_a_lost_job_is_replaced(gang, fate):
    queue = Queue()
    crew, told = gang(queue)
    crew.want(2)
    until(lambda: crew.status() == "2 running")
    for one in ("0", "1"):
        crew.started(one)
    crew.seen(2)
    queue.end("0", fate=fate, says="it is so")
    crew.seen(1)
    until(lambda: queue.left() == ["1", "2"])
    assert crew.failure is None
    level = {"walltime": "info", "memory": "warning"}.get(fate, "debug")
    assert [text for text in texts(told, level) if "job 0 ended: it is so" in text]


@pytest.mark.parametrize("known", ["the batch system's", "its own"])
def test_a_job_that_only_the_queue_has_is_replaced(gang, monkeypatch, known):
    """Its node went down with all its workers, and the batch system has not noticed."""
    monkeypatch.setattr(crew_module, "GONE", 1.0)
    queue = Queue(lambda one: JobState(one, "running", alias="" if known != "its own" else f"own-{one}"))
    crew, told = gang(queue, replace(QUICK, death=1.0))
    crew.want(3)
    until(lambda: crew.status() == "3 running")
    names = ["0", "1", "2"] if known != "its own" else ["own-0", "own-1", "own-2"]
    for one in names:
        crew.started(one)
    crew.seen(3)
    crew.left(names[0])
    crew.left(names[1])
    crew.seen(1)
    crew.started(names[1])  # that one has come back
    crew.seen(2)
    time.sleep(0.2)
    assert len(queue.left()) == 3, "it may come back, too"
    until(lambda: queue.left() == ["1", "2", "3"])
    assert queue.cancelled == ["0"]
    until(lambda: crew.status() == "3 running")
    assert any("job 0 should run, but has no worker any more" in text for text in texts(told, "warning"))
    assert crew.failure is None


def test_a_job_that_waits_for_another_node_is_no_shell(gang, monkeypatch):
    monkeypatch.setattr(crew_module, "GONE", 0.05)
    queue = Queue()
    crew, _ = gang(queue, replace(QUICK, death=0.05))
    crew.want(2)
    until(lambda: crew.status() == "2 running")
    for one in ("0", "1"):
        crew.started(one)
    crew.seen(2)
    queue.rule = lambda one: JobState(one, "pending", "requeued")
    queue.jobs["0"] = JobState("0", "pending", "requeued")
    crew.left("0")
    crew.seen(1)
    time.sleep(0.5)
    queue.jobs["0"] = JobState("0", "running")
    until(lambda: crew.status() == "2 running")
    time.sleep(0.5)
    assert queue.cancelled == []


def test_a_job_that_shows_no_worker_on_its_second_node_is_replaced(gang):
    queue = Queue()
    crew, _ = gang(queue, replace(QUICK, start=1.0))
    for one in ("0", "1", "2"):  # said before they are there: only the second node may be too slow
        crew.started(one)
    crew.seen(2)
    crew.want(2)
    until(lambda: crew.status() == "2 running")
    rule, queue.rule = queue.rule, lambda one: JobState(one, "pending", "requeued")
    queue.jobs["0"] = JobState("0", "pending", "requeued")
    crew.left("0")
    crew.seen(1)
    until(lambda: "1 pending" in crew.status())
    queue.rule = rule
    until(lambda: queue.left() == ["1", "2"])
    assert queue.cancelled == ["0"]


def test_nothing_is_replaced_by_what_was_known_before_the_batch_system_fell_silent(gang, monkeypatch):
    monkeypatch.setattr(crew_module, "GONE", 0.1)
    queue = Queue()
    crew, _ = gang(queue, replace(QUICK, death=0.1))
    crew.want(2)
    until(lambda: crew.status() == "2 running")
    for one in ("0", "1"):
        crew.started(one)
    crew.seen(2)
    queue.deaf = [SiteError("no answer")] * 10_000
    until(lambda: "does not answer" in crew.status())
    crew.left("0")
    crew.seen(1)
    time.sleep(0.6)
    assert queue.cancelled == []
    queue.deaf = []
    until(lambda: queue.left() == ["1", "2"])


def test_a_job_of_which_no_worker_ever_comes_is_replaced_beside_others(gang):
    queue = Queue()
    crew, told = gang(queue, replace(QUICK, start=1.0))
    crew.want(2)
    until(lambda: crew.status() == "2 running")
    crew.started("0")
    crew.seen(1)
    until(lambda: "1" not in queue.left())
    until(lambda: len(queue.left()) == 2)
    until(lambda: any("none of its workers has come" in text for text in texts(told, "warning")))
    assert crew.failure is None


def test_twenty_losses_at_random_are_made_good(gang):
    queue = Queue()
    crew, _ = gang(queue)
    crew.want(4)
    for _ in range(20):
        until(lambda: len(queue.left()) == 4 and crew.status() == "4 running")
        for one in queue.left():
            crew.started(one)
        crew.seen(4)
        queue.end(queue.left()[0], fate="removed")
    until(lambda: len(queue.left()) == 4)
    assert queue.number == 24
    assert crew.failure is None


def test_a_held_job_is_told_removed_and_replaced(gang):
    queue = Queue(
        lambda one: (
            JobState(one, "held", "no input", "held 13/2: no input")
            if one == "0"
            else JobState(one, "running")
        )
    )
    crew, told = gang(queue)
    crew.want(2)
    crew.started("1")
    crew.seen(1)
    until(lambda: queue.left() == ["1", "2"])
    assert queue.cancelled == ["0"]
    assert [text for text in texts(told, "warning") if "job 0 is held 13/2: no input" in text]
    assert crew.failure is None


def test_a_job_of_a_submission_whose_answer_was_lost_is_adopted(gang):
    queue = Queue()
    taken = queue.submit

    def lost(spec, count):
        taken(spec, count)
        queue.submit = taken
        raise SubmissionError("no answer within 60 s", transient=True)

    queue.submit = lost
    crew, told = gang(queue)
    crew.want(3)
    until(lambda: crew.status() == "3 running")
    time.sleep(0.05)
    assert queue.submissions == [3]
    assert "no answer within 60 s; trying again" in texts(told, "warning")


def test_jobs_of_a_host_before_that_are_still_on_their_way_out_are_no_failed_starts(gang):
    queue = Queue(rule=lambda one: JobState(one, "pending"))
    queue.jobs = {f"old{n}": JobState(f"old{n}", "ending") for n in range(5)}
    crew, told = gang(queue)
    crew.want(3)
    until(lambda: len(queue.queries) >= 2)
    for n in range(5):
        queue.end(f"old{n}", fate="removed")
    looks = len(queue.queries)
    until(lambda: len(queue.queries) >= looks + 3)
    assert crew.failure is None
    assert crew.status() == "3 pending"
    assert texts(told, "warning") == []


def test_a_job_missing_from_one_look_is_not_lost(gang):
    queue = Queue()
    crew, _ = gang(queue)
    crew.want(1)
    until(lambda: crew.status() == "1 running")
    hidden = queue.jobs.pop("0")
    seen = len(queue.queries)
    until(lambda: len(queue.queries) > seen + 3)
    queue.jobs["0"] = hidden
    assert queue.submissions == [1]


def test_a_job_that_stays_missing_is_replaced(gang, monkeypatch):
    monkeypatch.setattr("executors.batch.roster.BLIND", 0.05)
    queue = Queue()
    crew, _ = gang(queue)
    crew.want(1)
    until(lambda: crew.status() == "1 running")
    crew.started("0")
    crew.seen(1)
    del queue.jobs["0"]
    until(lambda: queue.left() == ["1"])
    assert crew.fate("0", 1.0) == ""


# Failing.


def failing(one):
    return JobState(one, "failed", "it ended with exit code 3", "it ended with exit code 3", "exit", 3)


def test_starts_that_fail_in_a_row_end_it_with_the_log(gang, tmp_path):
    queue = Queue(failing)
    crew, _ = gang(queue)
    failures = []
    crew.on_failure = failures.append
    (tmp_path / "logs").mkdir(exist_ok=True)
    for number in range(5):
        (tmp_path / "logs" / f"{number}.err").write_text(
            "importing\x1b[31m\nModuleNotFoundError: No module named 'x'\n"
        )
    crew.want(3)
    until(lambda: crew.failure is not None)
    assert failures == [crew.failure]
    text = str(crew.failure)
    assert "3 jobs in a row gave no worker" in text
    assert "it ended with exit code 3" in text
    assert "    ModuleNotFoundError: No module named 'x'" in text
    assert "\x1b" not in text
    assert sum(queue.submissions) == 3


def test_logs_that_have_to_be_asked_for_are(gang, tmp_path):
    queue = Queue(failing)
    queue.fetched = lambda one: (tmp_path / "logs" / f"{one}.err").write_text("it came late\n")
    crew, _ = gang(queue)
    crew.want(3)
    until(lambda: crew.failure is not None)
    assert "    it came late" in str(crew.failure)


def test_one_wanted_job_gets_three_tries(gang):
    queue = Queue(failing)
    crew, told = gang(queue)
    crew.want(1)
    until(lambda: crew.failure is not None)
    assert queue.submissions == [1, 1, 1]
    assert len(texts(told, "warning")) == 1, "the same trouble is told once"


def test_failed_starts_wait_for_those_that_still_try(gang):
    queue = Queue(lambda one: failing(one) if int(one) < 3 else JobState(one, "running"))
    crew, _ = gang(queue)
    crew.want(10)
    until(lambda: crew._failed_starts == 3)
    time.sleep(0.05)
    assert crew.failure is None
    assert sum(queue.submissions) == 10, "no more of them until it is known whether any works"
    crew.started("5")
    crew.seen(1)
    until(lambda: sum(queue.submissions) == 13)
    assert crew.failure is None


def test_a_bad_node_does_not_end_a_run_that_has_workers(gang):
    queue = Queue(lambda one: JobState(one, "running") if one == "0" else failing(one))
    crew, _ = gang(queue)
    crew.want(1)
    until(lambda: crew.status() == "1 running")
    crew.started("0")
    crew.seen(1)
    crew.want(2)
    until(lambda: queue.number > 6)
    assert crew.failure is None


def test_failures_are_in_the_status_as_long_as_they_last(gang):
    """The warning is told once, the pauses grow: a run that never says it again seems to do nothing."""
    queue = Queue(lambda one: JobState(one, "running") if one == "0" else failing(one))
    crew, told = gang(queue)
    crew.want(1)
    until(lambda: crew.status() == "1 running")
    crew.started("0")
    crew.seen(1)
    crew.want(2)
    until(
        lambda: any(
            "1 running, jobs gave no worker again and again" in line for line in texts(told, "status")
        )
    )
    queue.rule = lambda one: JobState(one, "running")
    until(lambda: crew.status().startswith("2 running"))
    crew.started(queue.left()[-1])
    assert crew.status() == "2 running"


def test_when_the_last_worker_goes_while_all_others_fail_it_ends(gang):
    queue = Queue(lambda one: JobState(one, "running") if one == "0" else held_up(one))
    crew, _ = gang(queue)
    crew.want(1)
    until(lambda: crew.status() == "1 running")
    crew.started("0")
    crew.seen(1)
    crew.want(2)
    until(lambda: queue.number > 6)
    assert crew.failure is None
    queue.end("0", fate="node")
    crew.seen(0)
    until(lambda: crew.failure is not None)
    assert "an input file is missing" in str(crew.failure)


def held_up(one):
    return JobState(one, "held", "an input file is missing", "held 13/2: an input file is missing")


def test_a_job_that_shows_as_running_while_its_input_travels_has_no_worker(gang):
    """HTCondor says "running" before the input files are there."""

    class Travelling(Queue):
        def query(self, name, ids):
            shown = super().query(name, ids)
            self.jobs |= {one: held_up(one) for one, state in self.jobs.items() if state.phase == "running"}
            return shown

    queue = Travelling()
    crew, told = gang(queue)
    crew.want(3)
    until(lambda: crew.failure is not None)
    assert "3 running" in texts(told, "status")
    assert "an input file is missing" in str(crew.failure)
    assert queue.submissions == [3]


def test_all_held_ends_it_with_the_reason(gang):
    queue = Queue(lambda one: JobState(one, "held", "memory", "held 34/0: too much memory"))
    crew, _ = gang(queue)
    crew.want(4)
    until(lambda: crew.failure is not None)
    assert "held 34/0: too much memory" in str(crew.failure)


def test_a_refused_submission_ends_it_at_once(gang):
    queue = Queue()
    queue.refuse = [SubmissionError("Slurm did not take the jobs: Invalid partition", transient=False)]
    crew, _ = gang(queue)
    crew.want(4)
    until(lambda: crew.failure is not None)
    assert isinstance(crew.failure, SubmissionError)
    assert queue.submissions == [4]


def test_a_refusal_while_others_work_does_not(gang):
    queue = Queue()
    crew, told = gang(queue)
    crew.want(1)
    until(lambda: crew.status() == "1 running")
    crew.started("0")
    crew.seen(1)
    queue.refuse = [SubmissionError("over your limit", transient=False)]
    crew.want(2)
    until(lambda: texts(told, "warning"))
    assert crew.failure is None


def test_a_passing_refusal_is_tried_again(gang):
    queue = Queue()
    queue.refuse = [SubmissionError("Socket timed out", transient=True)] * 3
    crew, told = gang(queue)
    crew.want(2)
    until(lambda: crew.status() == "2 running")
    assert queue.submissions == [2, 2, 2, 2]
    assert texts(told, "warning") == ["Socket timed out; trying again"]


def test_an_unknown_refusal_is_looked_at_before_the_next(gang):
    queue = Queue()
    queue.refuse = [SubmissionError("late", transient=True)]
    queue.deaf = [CommandError("squeue is silent")] * 2
    crew, _ = gang(queue)
    crew.want(1)
    until(lambda: len(queue.submissions) == 2)
    assert len(queue.queries) >= 3, "submitted again before anybody knew whether the first was taken"


@pytest.mark.parametrize("alone", [True, False])
def test_text_that_cannot_be_written_is_final_only_without_workers(gang, alone):
    queue = Queue()
    crew, told = gang(queue)
    if not alone:
        crew.want(1)
        until(lambda: crew.status() == "1 running")
    queue.refuse = [SiteError("submit text cannot be written: disk full")]
    crew.want(2)
    until(lambda: crew.failure if alone else texts(told, "warning"))
    assert (crew.failure is not None) is alone


def test_a_value_that_may_not_go_into_the_text_ends_it(gang):
    queue = Queue()
    queue.refuse = [UsageError("job.queue: a newline")]
    crew, _ = gang(queue)
    crew.want(2)
    until(lambda: crew.failure is not None)
    assert str(crew.failure) == "job.queue: a newline"


def test_jobs_that_never_start_end_it(gang):
    queue = Queue(
        lambda one: JobState(one, "pending", "PartitionTimeLimit", "too long (--walltime)", hopeless=True)
    )
    crew, _ = gang(queue)
    crew.want(2)
    until(lambda: crew.failure is not None)
    assert str(crew.failure) == "the jobs never start: too long (--walltime)"


def test_no_worker_for_long_ends_it_with_everything_known(gang):
    queue = Queue(lambda one: JobState(one, "pending", "Resources", "waits for free nodes"))
    crew, told = gang(queue, Limits(polls_per_minute=6000, start=2.0))
    crew.want(2)
    until(lambda: crew.failure is not None)
    for part in ("2 pending (Resources)", "waits for free nodes", "no node has 9 arms", "--start-timeout"):
        assert part in str(crew.failure)
    assert [text for text in texts(told, "info") if "no node has 9 arms" in text]


def test_the_limit_counts_from_the_last_worker(gang):
    queue = Queue()
    crew, _ = gang(queue, Limits(polls_per_minute=6000, start=0.4))
    crew.started("0")  # said before it is there: no time without a worker has begun
    crew.seen(1)
    crew.want(1)
    until(lambda: crew.status() == "1 running")
    time.sleep(0.5)
    assert crew.failure is None
    lost = time.monotonic()
    crew.seen(0)
    until(lambda: crew.failure is not None)
    assert time.monotonic() - lost > 0.35


def test_a_job_that_runs_in_silence_is_told_with_its_log(gang, tmp_path):
    queue = Queue()
    crew, told = gang(queue, Limits(polls_per_minute=6000, start=4.0))
    (tmp_path / "logs" / "0.err").write_text("no route to host\n")
    crew.want(1)
    until(lambda: texts(told, "warning"))
    assert "none of its workers has come; 0.err ends: no route to host" in texts(told, "warning")[0]


def test_a_silent_batch_system_is_told_and_nothing_is_forgotten(gang):
    queue = Queue()
    crew, told = gang(queue)
    crew.want(2)
    until(lambda: crew.status() == "2 running")
    queue.deaf = [CommandError("squeue gave no answer")] * 10_000
    until(lambda: texts(told, "warning"))
    assert "squeue gave no answer" in texts(told, "warning")[0]
    assert crew.status() == "2 running, the batch system does not answer"
    queue.deaf = []
    until(lambda: crew.status() == "2 running")
    assert queue.submissions == [2]


def test_a_crew_that_breaks_says_so(gang):
    queue = Queue()
    queue.query = lambda name, ids: 1 / 0
    crew, _ = gang(queue)
    crew.want(1)
    until(lambda: crew.failure is not None)
    assert isinstance(crew.failure, EngineError)
    assert "ZeroDivisionError" in str(crew.failure)
    queue.query = lambda name, ids: {}


# Fates.


def test_fate_waits_for_the_end(gang):
    queue = Queue()
    crew, _ = gang(queue, Limits(polls_per_minute=600, submissions_per_second=1000))
    crew.want(1)
    until(lambda: crew.status() == "1 running")
    crew.started("0")
    crew.seen(1)
    threading.Timer(0.05, lambda: queue.end("0", fate="memory")).start()
    assert crew.fate("0", 5.0) == "memory"


def test_fate_of_a_job_that_runs_on_is_empty_before_the_time_is_up(gang):
    queue = Queue()
    crew, _ = gang(queue)
    crew.want(1)
    until(lambda: crew.status() == "1 running")
    begun = time.monotonic()
    assert crew.fate("0", 10.0) == ""
    assert time.monotonic() - begun < 5.0


def test_fate_by_the_name_that_the_job_knows(gang):
    queue = Queue(lambda one: JobState(one, "running", alias=f"raw{one}"))
    crew, _ = gang(queue)
    crew.started("raw0")
    crew.want(1)
    until(lambda: crew.status() == "1 running")
    assert crew._roster.jobs["0"].started
    queue.jobs["0"] = JobState("0", "failed", fate="walltime", alias="raw0")
    assert crew.fate("raw0", 5.0) == "walltime"


def test_a_job_that_goes_back_to_the_queue_lost_its_node(gang):
    queue = Queue()
    crew, _ = gang(queue)
    crew.want(1)
    until(lambda: crew.status() == "1 running")
    queue.rule = lambda one: JobState(one, "pending", "evicted")
    queue.jobs["0"] = JobState("0", "pending")
    assert crew.fate("0", 5.0) == "removed"
    assert crew.failure is None
    assert queue.submissions == [1], "it is still in the queue"


def test_what_the_batch_system_wrote_into_the_log_counts(gang, tmp_path):
    queue = Queue()
    crew, _ = gang(queue)
    crew.want(1)
    until(lambda: crew.status() == "1 running")
    crew.started("0")
    (tmp_path / "logs" / "0.err").write_text("slurmstepd: error: Exceeded job memory limit\n")
    queue.end("0", fate="exit", exit=-9)
    assert crew.fate("0", 5.0) == "memory"


def test_fate_after_the_end_comes_at_once(gang):
    crew, _ = gang(Queue())
    begun = time.monotonic()
    assert crew.fate("12", 5.0) == ""
    assert time.monotonic() - begun < 1.0


# Leaving.


def test_close_removes_everything_and_may_be_called_twice(gang):
    queue = Queue()
    crew, _ = gang(queue)
    crew.want(5)
    until(lambda: crew.status() == "5 running")
    crew.close()
    crew.close()
    assert queue.left() == []
    assert queue.names_cancelled == 1


def test_close_during_a_submission_removes_its_jobs_too(gang):
    queue = Queue()
    begun, go_on = threading.Event(), threading.Event()
    taken = queue.submit

    def slow(spec, count):
        begun.set()
        go_on.wait(10)
        return taken(spec, count)

    queue.submit = slow
    crew, _ = gang(queue)
    crew.want(3)
    begun.wait(10)
    threading.Timer(0.1, go_on.set).start()
    crew.close()
    assert queue.number == 3
    assert queue.left() == []


def test_close_does_not_wait_for_ever(gang, monkeypatch):
    monkeypatch.setattr(crew_module, "LEAVE", 0.5)
    queue = Queue()
    queue.cancel_named = lambda name: None
    crew, told = gang(queue)
    crew.want(1)
    until(lambda: crew.status() == "1 running")
    begun = time.monotonic()
    crew.close()
    assert time.monotonic() - begun < 5
    assert texts(told, "warning") == ["left in the queue: job 0 (running); this removes them: cancel cs-me-1"]


def test_close_from_the_failure_call_does_not_hang(gang):
    queue = Queue(failing)
    crew, _ = gang(queue)
    crew.on_failure = lambda error: crew.close()
    crew.want(3)
    until(lambda: queue.names_cancelled)


def test_never_two_questions_at_a_time(gang):
    queue = Queue()
    crew, _ = gang(queue)
    crew.want(3)
    askers = [threading.Thread(target=crew.fate, args=(str(n), 0.2)) for n in range(5)]
    for one in askers:
        one.start()
    for one in askers:
        one.join()
    assert queue.overlaps == 0


# Pace.


def test_never_more_looks_in_a_minute_than_allowed():
    pace, now, looks = Pace(6), 0.0, []
    while now < 600:
        now = max(now, pace.next(now, news=True, waiting=True))
        pace.mark(now)
        looks.append(now)
    for start in looks:
        assert sum(1 for one in looks if start <= one < start + 60) <= 6
    assert looks[1] - looks[0] == 2.0, "news is worth a quick look"
    assert len(looks) >= 55, "the budget may be used"


def test_looks_go_on_during_many_submissions(gang):
    queue = Queue()
    limits = Limits(polls_per_minute=600, submissions_per_second=50, jobs_per_submission=1)
    crew, _ = gang(queue, limits)
    crew.want(40)
    until(lambda: queue.number == 40)
    assert len(queue.queries) >= 3


def test_looks_are_rarer_when_nothing_is_awaited():
    pace = Pace(6)
    pace.mark(100.0)
    assert pace.next(100.0, news=False, waiting=False) == 120.0
    assert pace.next(100.0, news=False, waiting=True) == 110.0


def test_a_rate_below_one_a_minute():
    pace = Pace(0.5)
    pace.mark(0.0)
    assert pace.next(0.0, news=True, waiting=True) == 120.0


def test_pauses_grow_with_failed_starts(gang, monkeypatch):
    monkeypatch.setattr(crew_module, "BACKOFF", 300.0)
    now = [0.0]
    queue = Queue(failing)
    crew = Crew(queue, JobSpec(name="cs-me-1", command=("x",)), QUICK, lambda *_: None, clock=lambda: now[0])
    crew._start = lambda: None
    crew.want(1)
    crew.seen(1)
    moments = []
    while len(queue.submissions) < 6:
        before = len(queue.submissions)
        pause = crew._turn()
        if len(queue.submissions) > before:
            moments.append(now[0])
        now[0] += pause
    gaps = [round(b - a) for a, b in zip(moments, moments[1:], strict=False)]
    assert gaps == [2, 4, 8, 16, 32]


def test_the_crew_sleeps_between_looks(gang):
    queue = Queue()
    crew, _ = gang(queue, Limits(polls_per_minute=60, submissions_per_second=1000))
    turns = []
    turn = crew._turn
    crew._turn = lambda: turns.append(1) or turn()
    crew.want(2)
    time.sleep(2.5)
    assert len(queue.queries) <= 3
    assert len(turns) < 20


def test_a_site_error_is_what_the_engine_gets():
    assert issubclass(SubmissionError, SiteError)
    assert SubmissionError("x", transient=True).transient
    assert not SubmissionError("x").transient


def test_towards_the_end_no_job_waits_that_nobody_needs(gang):
    queue = Queue(lambda one: JobState(one, "running" if int(one) < 2 else "pending"))
    crew, _ = gang(queue)
    crew.want(6)
    until(lambda: crew.status().startswith("2 running, 4 pending"))
    crew.seen(2)
    crew.need(3)
    until(lambda: len(queue.left()) == 3)
    assert {"0", "1"} <= set(queue.left())
    crew.need(1)  # what runs is not taken away: only the engine knows who is busy
    until(lambda: len(queue.left()) == 2)
    time.sleep(0.2)
    assert queue.left() == ["0", "1"]
    queue.end("0", fate="node")
    until(lambda: queue.left() == ["1"])
    time.sleep(0.2)
    assert queue.left() == ["1"]
    crew.need(4)  # a damaged sum has to be made again
    until(lambda: len(queue.left()) == 4)


def test_jobs_with_nothing_to_do_are_given_back(gang):
    """The engine says which; the crew drops no more of them than are too many, and keeps the others."""
    queue = Queue()
    crew, told = gang(queue, Limits(polls_per_minute=6000, submissions_per_second=1000, idle=0.05))
    asked = []

    def idle(count, seconds):
        asked.append((count, seconds))
        return ["3", "1"][:count] if len(asked) > 2 else []

    crew.idle = idle
    crew.want(4)
    until(lambda: crew.status() == "4 running")
    crew.seen(4)
    time.sleep(0.1)
    assert not asked  # there is work for all
    crew.need(2)
    until(lambda: queue.left() == ["0", "2"])
    assert asked[0] == (2, 0.05)
    assert sorted(queue.cancelled) == ["1", "3"]
    assert ("info", "2 jobs have nothing left to do and will be removed") in told
    assert not texts(told, "warning")
    before = len(asked)
    time.sleep(0.1)
    assert len(asked) == before
    crew.need(4)  # what was in flight has failed, and there is more to do
    until(lambda: len(queue.left()) == 4)


def test_a_job_that_rests_goes_when_its_name_is_known(gang):
    """The engine knows it by the name that it has for itself, which only a look at the queue can match."""
    queue = Queue()
    crew, _ = gang(queue, Limits(polls_per_minute=6000, submissions_per_second=1000, idle=0.05))
    crew.idle = lambda count, seconds: ["job_1"]
    crew.want(2)
    until(lambda: crew.status() == "2 running")
    crew.seen(2)
    crew.need(1)
    time.sleep(0.2)
    assert queue.left() == ["0", "1"]
    queue.jobs["1"] = JobState("1", "running", alias="job_1")
    crew.seen(1)  # the queue is looked at
    until(lambda: queue.left() == ["0"])
