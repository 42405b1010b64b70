"""Cluster classes of others: what they are given, what is refused, and what the watch makes of their jobs."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest
from hostile.test_injection import CANARY, HOSTILE

from executors.batch.schedulers import JobState
from executors.engines import dask_class, dask_cluster, dask_keywords
from executors.errors import EngineError, ExecutorsError, UnknownNameError, UsageError
from sites import clusters
from sites.overrides import overridden
from sites.profile import load_site
from sites.scene import Scene

pytestmark = pytest.mark.usefixtures("signals_as_they_were")


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


def offer(name="slurm", workers=2, carried=(), **asked):
    site, _ = overridden(load_site(name), {key.replace("__", "."): value for key, value in asked.items()})
    setup = {"name": "cs-me-01234567", "workers": workers, "python": "/usr/bin/python3",
             "private": "/run/private", "logs": "/run/logs"}  # fmt: skip
    return dask_keywords.offered(site, setup, carried)


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


KINDS = {"condor": "HTCondor", "lsf": "LSF", "pbs": "PBS", "sge": "SGE", "slurm": "SLURM"}
WHOLE = {"job__account": "group", "resources__walltime": "90m", "resources__cores": 2, "resources__memory": "4GB",
         "resources__disk": "6GB", "job__setup": "a='b c'", "ports__worker": "10000:10100"}  # fmt: skip
GOLDEN = Path(__file__).parents[1] / "golden" / "classes"


@pytest.mark.parametrize("name", sorted(KINDS))
def test_what_dask_jobqueue_takes(name):
    """Every keyword is a real one, and its text has what the site says."""
    jobqueue = pytest.importorskip("dask_jobqueue")
    kind = getattr(jobqueue, f"{KINDS[name]}Cluster")
    asked = {} if name == "condor" else {"job__queue": "long"}
    offered = offer(name, 1, job__account="group", resources__walltime="90m", job__setup="a='b c'", **asked)
    given, missed = dask_keywords.fitting(kind, offered, {})
    assert not dask_class.MISSED.intersection(missed) - {"account", "queue", "walltime"}
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


async def rendered(name, folder):
    """The text that dask-jobqueue's own class makes of all that it is told, nothing started or submitted."""
    import dask_jobqueue

    kind = getattr(dask_jobqueue, f"{KINDS[name]}Cluster")
    own = {} if name == "condor" else {"job__queue": "long"}
    site, setup = theirs(name, **{key.replace("__", "."): value for key, value in (WHOLE | own).items()})
    setup |= {"name": "cs-me-01234567", "workers": 2, "python": "/usr/bin/python3", "private": str(folder),
              "logs": str(folder / "logs"), "env": {"SECRET": "not to be seen"}}  # fmt: skip
    keys = dask_class.guarded(site, setup, folder / "keys", dask_keywords.accepted(kind))
    files, read = dask_class.sourced(site, setup, folder / "keys", keys)
    given, _ = dask_keywords.fitting(kind, dask_keywords.offered(site, setup, files, read), {})
    cluster = kind(**given, security=keys.told, protocol="tls://", asynchronous=True)
    return cluster.job_script().replace(str(folder), "/run")


@pytest.mark.parametrize("name", sorted(KINDS))
def test_job_scripts_of_dask_jobqueue_are_as_kept(name, tmp_path):
    """To write them anew, after a look at what changed: remove the file and run this twice."""
    pytest.importorskip("dask_jobqueue")
    text = asyncio.run(rendered(name, tmp_path))
    kept = GOLDEN / f"{name}.txt"
    if not kept.exists():
        kept.write_text(text)
        pytest.fail(f"{kept} was missing; it is written now")
    assert text == kept.read_text()
    assert "not to be seen" not in text
    job = text.partition("#!")[2]
    if name != "condor":
        done = subprocess.run(["sh", "-n"], input=f"#!{job}", text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr


def test_a_sites_own_words_are_directives():
    lxplus = offer("lxplus", 1)
    assert lxplus["queue"] is None
    assert lxplus["walltime"] is None
    assert lxplus["job_extra_directives"] == {
        "MY.JobFlavour": '"workday"', "MY.SendCredential": "True", "MY.SpoolOnEvict": "False",
        "Stream_Output": "False", "Stream_Error": "False", "MY.CoffeaScaleout": '"cs-me-01234567"'
    }  # fmt: skip
    assert lxplus["worker_extra_args"][-2:] == ["--worker-port", "10000:10100"]
    assert lxplus["submit_command_extra"] == ["-spool"]
    slurm = offer(**{"directives.qos": "high", "directives.nice": 100})
    assert slurm["job_extra_directives"] == ["--qos=high", "--nice=100"]


def test_a_nanny_has_ports_of_its_own():
    words = offer("lxplus", 4)["worker_extra_args"]
    assert words[words.index("--worker-port") + 1] == "10000:10049"
    assert words[words.index("--nanny-port") + 1] == "10050:10099", "never the same port for both"


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
        with contextlib.suppress(UsageError):
            assert clusters.lacks(value)[0] == "a is not installed"  # of a:b
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
        self.states, self.questions, self.fetched = {}, 0, []

    def fetch(self, ids):
        self.fetched += ids

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
    one._said, one._last, one._pause, one._refused, one._patience, one.failure = "", "", 0.0, {}, 60.0, None
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
    assert hired._asked.fetched == ["0", "1", "2", "3"], "logs that were spooled"


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
    hired._asked.states = {f"{n}.0": JobState(f"{n}.0", "gone") for n in "01"}  # asked by cluster and process
    for _ in range(5):
        hired._look()
    assert hired._cluster.submitted == 2
    hired._shown = {"0.0"}
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


def theirs(name="condor", **more):
    site, _ = overridden(load_site(name), {"dask.cluster": "some:Cluster"} | more)
    return site, {"insecure": False, "environment": ""}


def test_keys_go_nowhere_without_a_common_file_system(monkeypatch, tmp_path):
    """A class that has no word for files cannot be given any."""
    site, setup = theirs("lpc")
    said = []
    monkeypatch.setattr(dask_class, "say", lambda *words: said.append(words))
    with pytest.raises(UsageError, match="--insecure"):
        dask_class.guarded(site, setup, tmp_path / "keys", {"cores"})
    assert dask_class.guarded(site, setup | {"insecure": True}, tmp_path / "keys", {"cores"}) == (
        None,
        None,
        (),
    )
    assert said[0][0] == "warning"
    with pytest.raises(UsageError, match="--ship-env"):
        dask_class.guarded(site, setup | {"environment": "env.tar"}, tmp_path, {"job_extra_directives"})


@pytest.mark.parametrize("name", ["condor", "lpc", "lxplus"])
def test_condor_carries_the_key_and_workers_find_it(name, tmp_path):
    site, setup = theirs(name)
    keys = dask_class.guarded(site, setup, tmp_path / "keys", {"job_extra_directives"})
    assert [one.name for one in keys.files] == ["certificate.pem", "key.pem"]
    here = keys.guard.get_tls_config_for_role("scheduler")
    assert keys.told.get_tls_config_for_role("scheduler") == here
    assert keys.told.require_encryption is True
    there = keys.told.get_tls_config_for_role("worker")
    assert there["key"] == "${_CONDOR_SCRATCH_DIR:-.}/key.pem"
    assert there["ca_file"] == there["cert"] == "${_CONDOR_SCRATCH_DIR:-.}/certificate.pem"
    given = offer(name, 1, carried=keys.files, **({"proxy__required": "false"} if name == "lpc" else {}))
    said = given["job_extra_directives"]
    assert said["transfer_input_files"] == ", ".join(map(str, keys.files))
    assert (said["should_transfer_files"], said["transfer_output_files"]) == ("YES", '""')
    assert ("Stream_Output" in said) == ("-spool" in site.job.submit_options)


def test_elsewhere_workers_read_the_key_where_it_lies(tmp_path):
    site, setup = theirs("slurm")
    keys = dask_class.guarded(site, setup, tmp_path / "keys", {"job_extra_directives"})
    assert keys.files == ()
    assert keys.told.get_tls_config_for_role("worker")["key"] == str(tmp_path / "keys" / "key.pem")


def test_variables_are_read_from_a_file_and_not_seen(tmp_path):
    """Arguments of jobs can be read by anybody at the site."""
    site, setup = theirs("condor", **{"env.SECRET": "it's here"})
    setup |= {
        "name": "cs-me-01234567",
        "workers": 1,
        "python": "/p",
        "private": str(tmp_path),
        "logs": str(tmp_path),
    }
    keys = dask_class.guarded(site, setup, tmp_path / "keys", {"job_extra_directives"})
    files, sourced = dask_class.sourced(site, setup, tmp_path / "keys", keys)
    assert files[-1].read_text().endswith("export SECRET='it'\\''s here'\n")
    given = dask_keywords.offered(site, setup, files, sourced)
    assert given["job_script_prologue"][-1] == ". ${_CONDOR_SCRATCH_DIR:-.}/environment.sh"
    assert "SECRET" not in str(given)
    assert dask_class.sourced(site, setup, tmp_path, dask_class.Keys(None, None)) == ((), "")


# -- classes that sites offer -----------------------------------------------------------------------


class Cern(Cluster):
    """As dask-lxplus's takes its words."""

    config_name = "cern"

    def __init__(self, *, worker_image=None, container_runtime=None, batch_name=None, lcg=False, **more):
        super().__init__(**more)


def lpc_class():
    """As lpcjobqueue's, which takes one word out of its own that no signature names."""
    kind = type("LPCCondorCluster", (Cluster,), {"__init__": lambda self, **words: None})
    kind.__module__ = "lpcjobqueue.cluster"
    return kind


def test_its_own_image_does_not_hide_what_the_site_says():
    def words(options=None, **asked):
        return dask_keywords.fitting(Cern, offer("lxplus", 1, **asked), options or {})[0]

    assert words()["container_runtime"] == "none"
    assert "worker_image" not in words()
    image = words(job__image="/cvmfs/image")
    assert (image["container_runtime"], image["worker_image"]) == ("singularity", "/cvmfs/image")
    assert words()["batch_name"] == "cs-me-01234567"
    assert words({"container_runtime": "docker", "batch_name": "mine"})["container_runtime"] == "docker"
    own = words({"worker_image": "/cvmfs/mine"})
    assert own["worker_image"] == "/cvmfs/mine"
    assert "container_runtime" not in own, "its own default starts an image"
    assert words({"lcg": True})["lcg"] is True


def test_files_go_by_the_word_that_no_signature_names(tmp_path):
    given = offer("lpc", 1, carried=[tmp_path / "key.pem"], proxy__required="false")
    words, _ = dask_keywords.fitting(lpc_class(), given, {"transfer_input_files": "mine.txt"})
    assert words["transfer_input_files"] == [str(tmp_path / "key.pem"), "mine.txt"]


def test_a_users_dask_configuration_is_heeded_or_told_of(monkeypatch, tmp_path):
    import dask

    (tmp_path / "jobqueue-cern.yaml").write_text(
        "jobqueue:\n  cern:\n    memory: 9GB\n    worker-image: /cvmfs/mine\n    extra: []\n  slurm:\n    cores: 3\n"
    )
    monkeypatch.setattr(dask.config, "paths", [str(tmp_path)])
    monkeypatch.setenv("DASK_JOBQUEUE__CERN__DEATH_TIMEOUT", "9")
    assert dask_class.said_by_user("cern") == {"memory", "worker_image", "death_timeout"}
    said = []
    monkeypatch.setattr(dask_class, "say", lambda level, text: said.append(text))
    given = {"memory": "2GB", "container_runtime": "none", "death_timeout": 60, "cores": 1}
    dask_class.heed(Cern, given, load_site("lxplus"))
    assert "container_runtime" not in given, "an image of one's own is started"
    assert "jobqueue.cern (death_timeout, memory) is not used" in said[0]
    assert "runner.py sites lxplus" in said[0]


def test_what_the_site_offers_is_used_where_it_is_installed(monkeypatch):
    there = {"dask_lxplus", "dask_jobqueue", "lpcjobqueue"}
    monkeypatch.setattr(clusters, "_there", there.__contains__)

    def site(name):
        return overridden(load_site(name), {"dask.cluster": "site"})[0]

    assert clusters.settled(site("lxplus"))[0].dask.cluster == "dask_lxplus:CernCluster"
    assert clusters.settled(site("naf"))[0].dask.cluster == "dask_jobqueue:HTCondorCluster"
    lpc, why = clusters.settled(site("lpc"))
    assert lpc.dask.cluster is None
    assert "needs the module htcondor" in why
    assert '"htcondor<25"' in why
    there.remove("dask_lxplus")
    assert "pip install dask-lxplus" in clusters.settled(site("lxplus"))[1]
    with pytest.raises(UsageError, match="offers no cluster class"):
        clusters.settled(site("local"))
    assert clusters.settled(load_site("lxplus")) == (load_site("lxplus"), "")


@pytest.mark.parametrize(
    ("name", "chosen", "there", "ok", "says"),
    [
        ("lxplus", None, True, True, "dask_lxplus:CernCluster is installed: --site-set dask.cluster=site"),
        ("lxplus", None, False, "", ""),
        ("slurm", None, True, "", ""),
        ("lxplus", "site", True, True, "submits the jobs"),
        ("lxplus", "site", False, None, "dask_lxplus is not installed: jobs are this program's own"),
        (
            "slurm",
            "my_site:Cluster",
            False,
            False,
            "my_site:Cluster cannot be used: my_site is not installed",
        ),
    ],
)
def test_the_preflight_knows_of_it(monkeypatch, tmp_path, name, chosen, there, ok, says):
    monkeypatch.setattr(clusters, "_there", lambda module: there)
    site = overridden(load_site(name), {"dask.cluster": chosen} if chosen else {})[0]
    found = clusters.check(Scene(site=site, engine="dask", folder=tmp_path, quick=False))
    assert [one.ok for one in found] == ([ok] if says else [])
    assert not says or says in found[0].says
    assert not clusters.check(Scene(site=site, engine="parsl", folder=tmp_path, quick=False))


def test_what_the_class_only_logs_is_heard():
    class Refused:
        async def start(self):
            raise RuntimeError("stderr:\nno")

    heard = []
    cluster = types.SimpleNamespace(new_spec={"cls": Refused})
    dask_class.listen_to(cluster, lambda job, error: heard.append(str(error)))
    with pytest.raises(RuntimeError):
        cluster.new_spec["cls"]().start().send(None)
    assert heard == ["stderr:\nno"]


def test_a_submission_of_which_nothing_came_is_heard(hired):
    """As of lpcjobqueue, which writes to its log what went wrong."""

    class Silent:
        name, job_id = "w-9", None

        async def start(self):
            pass

    cluster = types.SimpleNamespace(new_spec={"cls": Silent})
    dask_class.listen_to(cluster, hired._not_taken)
    with pytest.raises(StopIteration):
        cluster.new_spec["cls"]().start().send(None)
    assert hired.failure is None
    assert "did not take the jobs: it got no number" in hired.silence()
    hired._look()
    assert any(level == "warning" and "dask-host.log" in said for level, said in hired.said)


def test_what_would_be_submitted_is_not_ours_to_show(tmp_path):
    from executors import where
    from executors.settings import resolve

    shown = {}
    for chosen in ({}, {"dask.cluster": "some:Cluster"}):
        spot = where.where(resolve(executor="dask/slurm", site_set=chosen).settings)
        shown[bool(chosen)] = where.submitted(spot, tmp_path)
    assert "#SBATCH" in shown[False]["job.sh"]
    assert "some:Cluster (dask.cluster) makes its text" in shown[True]["job.sub"]
