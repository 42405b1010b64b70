"""Cluster classes of others: what they are given, what is refused, and what the watch makes of their jobs."""

from __future__ import annotations

import sys
import threading
import types

import pytest
from hostile.test_injection import CANARY, HOSTILE

from executors.batch.schedulers import JobState
from executors.engines import dask_cluster, dask_keywords
from executors.errors import EngineError, ExecutorsError, UnknownNameError, UsageError
from sites.overrides import overridden
from sites.profile import load_site


class Job:
    def __init__(self, scheduler=None, name=None, cores=None, memory=None, python=None, job_name=None):
        pass


class QueueJob(Job):
    def __init__(self, scheduler=None, queue=None, account=None, walltime=None, **base):
        pass


class Cluster:
    job_cls = QueueJob

    def __init__(self, security=None, scheduler_options=None, **job):
        self.given = job

    def scale(self, n=0, jobs=0):
        pass


class Narrow(Cluster):
    """Takes its own words and passes the others on, as a site's class does."""

    def __init__(self, *, image=None, nanny=True, **more):
        super().__init__(**more)


def offer(name="slurm", workers=2, **asked):
    site, _ = overridden(load_site(name), {key.replace("__", "."): value for key, value in asked.items()})
    setup = {"name": "cs-me-01234567", "workers": workers, "python": "/usr/bin/python3",
             "private": "/run/private", "logs": "/run/logs"}  # fmt: skip
    return dask_keywords.offered(site, setup)


def test_keywords_are_those_that_the_class_and_its_jobs_take():
    assert dask_keywords.accepted(Cluster) == {
        "security", "scheduler_options", "scheduler", "name", "queue", "account", "walltime", "cores",
        "memory", "python", "job_name",
    }  # fmt: skip
    given, missed = dask_keywords.fitting(Narrow, offer(job__queue="long"), {"image": "coffea:latest"})
    assert given == {
        "cores": 1, "memory": "2000000000B", "queue": "long", "walltime": "02:00:00", "nanny": True,
        "python": "/usr/bin/python3", "job_name": "cs-me-01234567", "image": "coffea:latest",
    }  # fmt: skip
    assert "log_directory" in missed


def test_options_are_the_users_own_and_known():
    for key in ("queue", "security", "scheduler_options", "job_extra_directives", "job_cls", "project"):
        with pytest.raises(UsageError, match=f"cluster_options.{key}: {key} is said by"):
            dask_keywords.fitting(Narrow, offer(job__queue="long"), {key: "x"})
    with pytest.raises(UnknownNameError, match="'imagee': did you mean 'image'"):
        dask_keywords.fitting(Narrow, offer(), {"imagee": "x"})


@pytest.mark.parametrize("name", ["condor", "lsf", "pbs", "sge", "slurm"])
def test_what_dask_jobqueue_takes(name):
    """Every keyword is a real one, and its text has what the site says."""
    jobqueue = pytest.importorskip("dask_jobqueue")
    kinds = {"condor": "HTCondor", "lsf": "LSF", "pbs": "PBS", "sge": "SGE", "slurm": "SLURM"}
    kind = getattr(jobqueue, f"{kinds[name]}Cluster")
    asked = {} if name == "condor" else {"job__queue": "long"}
    offered = offer(name, 1, job__account="group", resources__walltime="90m", job__setup="a='b c'", **asked)
    given, missed = dask_keywords.fitting(kind, offered, {})
    assert not dask_cluster.MISSED.intersection(missed) - {"account", "queue", "walltime"}
    words = {key: value for key, value in given.items() if key != "shared_temp_directory"}
    words["log_directory"] = None  # it would be made
    text = kind.job_cls("tls://h:1", name="one", **words).job_script()
    for one in ("group", "/usr/bin/python3 -m distributed", "--no-nanny", "--nthreads 1 --no-dashboard"):
        assert one in text, (one, text)
    if name == "condor":
        assert 'MY.CoffeaScaleout = "cs-me-01234567"' in text
        assert "CoffeaScaleoutWalltime = 5400" in text
        assert "accounting_group = group" in text
    else:
        assert "cs-me-01234567" in text
        assert "long" in text
        assert "01:30" in text or "5400" in text
        assert "eval 'a='\\''b c'\\''' || exit 78" in text


def test_a_sites_own_words_are_directives():
    lxplus = offer("lxplus", 1)
    assert lxplus["queue"] is None
    assert lxplus["walltime"] is None
    assert lxplus["job_extra_directives"] == {
        "MY.JobFlavour": '"workday"', "MY.SendCredential": "True", "MY.CoffeaScaleout": '"cs-me-01234567"'
    }  # fmt: skip
    assert lxplus["worker_extra_args"][-2:] == ["--worker-port", "10000:10100"]
    assert lxplus["submit_command_extra"] == ["-spool"]
    slurm = offer(**{"directives.qos": "high", "directives.nice": 100})
    assert slurm["job_extra_directives"] == ["--qos=high", "--nice=100"]


def test_a_nanny_has_ports_of_its_own():
    words = offer("lxplus", 4)["worker_extra_args"]
    assert words[words.index("--worker-port") + 1] == "10000:10050"
    assert words[words.index("--nanny-port") + 1] == "10051:10100"


FIELDS = (
    "job.queue",
    "job.account",
    "job.python",
    "job.scratch",
    "directives.qos",
    "directives.+Mine",
    "job.image",
)


@pytest.mark.parametrize("name", ["condor", "lsf", "pbs", "sge", "slurm"])
@pytest.mark.parametrize("field", FIELDS)
def test_hostile_values_do_not_reach_a_template(name, field):
    """Refused, or a word in which neither a shell nor HTCondor finds anything to do."""
    refused = 0
    for value in HOSTILE:
        try:
            given = offer(name, 1, **{field: value})
        except ExecutorsError:
            refused += 1
            continue
        directives = given.pop("job_extra_directives")
        lines = [f"{k} = {v}" for k, v in directives.items()] if isinstance(directives, dict) else directives
        for text in (*lines, *map(str, given.values())):
            assert text.isprintable(), (value, text)
            assert "`" not in text
            assert "$(" not in text
        for key in ("queue", "account", "project", "python"):
            word = given[key]
            assert word is None or not set(word) & set(" ;&|<>'\"\\$`()*?[]{}#~!\n"), (value, word)
        assert CANARY not in " ".join(str(given["local_directory"]).split()[:1])
    assert refused > 40


def test_hostile_options_and_class_names():
    taken = []
    for value in HOSTILE:
        with pytest.raises((ExecutorsError, ImportError)):
            dask_keywords.found_class(value)
        try:
            taken.append(dask_keywords.fitting(Narrow, offer(), {"image": value})[0]["image"])
        except UsageError:
            continue
    assert not [one for one in taken if set(one) & set(" ;&|<>'\"\\$`()*?[]{}#~!\n")]


def test_setup_lines_that_htcondor_would_read_itself():
    with pytest.raises(UsageError, match=r"job.setup\[1\].*HTCondor reads"):
        offer("condor", job__setup="export A=$(hostname)")
    assert (
        "export A=$(hostname)" in offer("slurm", job__setup="export A=$(hostname)")["job_script_prologue"][-1]
    )


def test_an_image_that_the_class_would_not_start():
    with pytest.raises(UsageError, match="--image"):
        offer("slurm", job__image="/cvmfs/image")


def test_the_class_is_found_or_it_is_said_what_to_do(monkeypatch):
    module = types.ModuleType("some_site")
    module.SiteCluster, module.nothing = Narrow, 3
    monkeypatch.setitem(sys.modules, "some_site", module)
    assert dask_keywords.found_class("some_site:SiteCluster") is Narrow
    with pytest.raises(UnknownNameError, match="SiteCluster"):
        dask_keywords.found_class("some_site:SitCluster")
    with pytest.raises(UsageError, match="no cluster class"):
        dask_keywords.found_class("some_site:nothing")
    with pytest.raises(EngineError, match=r"pip install git\+https://github.com/CoffeaTeam/lpcjobqueue"):
        dask_keywords.found_class("lpcjobqueue:LPCCondorCluster")
    with pytest.raises(EngineError, match="pip install no_such_site"):
        dask_keywords.found_class("no_such_site.clusters:One")


# -- the watch --------------------------------------------------------------------------------------


class FakeCluster:
    """Jobs that a test says the fate of."""

    def __init__(self):
        self.worker_spec, self.workers, self.submitted = {}, {}, 0

    def scale(self, jobs=0):
        while len(self.worker_spec) < jobs:
            name = next(name for n in range(99) if (name := f"w-{n}") not in self.worker_spec)  # as Dask does
            self.worker_spec[name] = {}
            if name not in self.workers:
                self.workers[name] = types.SimpleNamespace(job_id=str(self.submitted), name=name)
                self.submitted += 1

    def sync(self, function, *args, callback_timeout=None):
        with pytest.raises(StopIteration) as ended:
            function(*args).send(None)
        return ended.value.value


class Asked:
    name = "slurm"

    def __init__(self):
        self.states, self.questions = {}, 0

    def query(self, name, ids):
        self.questions += 1
        return {one: self.states.get(one, JobState(one, "running")) for one in ids}


@pytest.fixture
def hired(monkeypatch, tmp_path):
    said = []
    monkeypatch.setattr(dask_cluster, "say", lambda level, text: said.append((level, text)))
    one = dask_cluster.Hired.__new__(dask_cluster.Hired)
    one._site, _ = overridden(load_site("slurm"), {"dask.cluster": "some:Cluster"})
    one._name, one._logs, one._wanted, one._workers, one._bad = "cs-me-1", tmp_path, 2, 0, 0
    one._needed, one._started, one._shown = 9, set(), set()
    one._said, one._pause, one._refused, one._patience, one.failure = "", 0.0, {}, 60.0, None
    one._bell, one._closing = threading.Event(), threading.Event()
    one._asked, one._cluster, one.said = Asked(), FakeCluster(), said
    one._grow()
    return one


def test_one_question_for_all_and_a_lost_job_is_replaced(hired):
    hired.counted(2)
    hired._asked.states["0"] = JobState("0", "failed", "it was removed", fate="removed")
    hired._look()
    assert hired._asked.questions == 1
    assert {one.job_id for one in hired._cluster.workers.values()} == {"1", "2"}
    hired._look()
    assert ("status", "2 workers; 2 running") in hired.said
    assert hired._cluster.submitted == 3


def test_jobs_that_end_without_a_worker_are_given_up_with_the_end_of_their_log(hired):
    (hired._logs / "worker-0.err").write_text("no such python\n")
    hired._asked.states = {str(n): JobState(str(n), "failed", "exit code 1", exit=1) for n in range(9)}
    hired._look()
    with pytest.raises(EngineError, match="ended before a worker came: exit code 1"):
        hired._look()
    assert hired._cluster.submitted == 4


def test_jobs_that_worked_and_went_at_once_are_replaced(hired):
    workers = {f"tls://{n}": types.SimpleNamespace(name=f"w-{n}-0") for n in range(4)}
    hired._cluster.scheduler = types.SimpleNamespace(workers=workers)
    hired._wanted = 4
    hired._grow()
    hired.counted(4)
    hired._look()
    workers.clear()
    hired.counted(0)
    hired._asked.states = {str(n): JobState(str(n), "held", "memory", "memory") for n in range(4)}
    hired._look()
    assert hired._cluster.submitted == 8


def test_jobs_at_a_server_that_is_not_asked_are_let_be(hired):
    hired._asked.name = "condor"
    hired._asked.states = {n: JobState(n, "gone") for n in "01"}
    for _ in range(5):
        hired._look()
    assert hired._cluster.submitted == 2
    hired._shown = {"0"}
    hired._look()
    assert hired._cluster.submitted == 3


def test_no_more_jobs_than_are_needed(hired):
    hired._need(1)
    hired._asked.states["0"] = JobState("0", "done")
    hired.counted(1)
    hired._look()
    assert hired._cluster.submitted == 2


def test_all_held_or_hopeless_is_said_at_once(hired):
    hired._asked.states = {n: JobState(n, "held", "memory", "held 34/0: too much memory") for n in "01"}
    with pytest.raises(EngineError, match="2 of 2 jobs held: held 34/0: too much memory"):
        hired._look()
    hired._asked.states = {n: JobState(n, "pending", "x", "no such node", hopeless=True) for n in "01"}
    with pytest.raises(EngineError, match="never start: no such node"):
        hired._look()


def test_a_refused_submission_is_an_error_and_a_passing_one_is_tried_again(hired):
    job = hired._cluster.workers["w-0"]
    job.job_id = None
    text = "Command exited with non-zero exit code.\nstderr:\nsbatch: error: Socket timed out on send/recv operation\n"
    hired._not_taken(job, RuntimeError(text))
    assert hired.failure is None
    hired._look()
    assert {one.job_id for one in hired._cluster.workers.values()} == {"1", "2"}
    assert any(level == "warning" and "Socket timed out" in said for level, said in hired.said)
    hired._not_taken(job, RuntimeError("stderr:\nsbatch: error: invalid partition specified: nosuch\n"))
    assert "some:Cluster did not take the jobs: sbatch: error: invalid partition" in str(hired.failure)
    assert "--queue" in str(hired.failure)


def test_keys_go_nowhere_without_a_common_file_system(monkeypatch):
    site, _ = overridden(load_site("lpc"), {"dask.cluster": "lpcjobqueue:LPCCondorCluster"})
    said = []
    monkeypatch.setattr(dask_cluster, "say", lambda *words: said.append(words))
    setup = {"site": site, "insecure": False, "environment": ""}
    with pytest.raises(UsageError, match="--insecure"):
        dask_cluster._guard(setup, None)
    assert dask_cluster._guard(setup | {"insecure": True}, None) is None
    assert said[0][0] == "warning"
    with pytest.raises(UsageError, match="--ship-env"):
        dask_cluster._guard(setup | {"environment": "env.tar"}, None)


def test_what_the_class_only_logs_is_heard():
    class Refused:
        async def start(self):
            raise RuntimeError("stderr:\nno")

    heard = []
    cluster = types.SimpleNamespace(new_spec={"cls": Refused})
    dask_cluster._listen_to(cluster, lambda job, error: heard.append(str(error)))
    with pytest.raises(RuntimeError):
        cluster.new_spec["cls"]().start().send(None)
    assert heard == ["stderr:\nno"]
