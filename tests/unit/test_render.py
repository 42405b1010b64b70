"""JobSpec from a profile, and the text of a batch job from a JobSpec: units, choices, refusals, job.sh as it runs."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import subprocess
from pathlib import Path

import pytest
from batch_text import directives, run, stub

from executors.batch import allowed
from executors.batch.render import SCHEDULERS, render
from executors.batch.spec import JobSpec, spec_of
from executors.errors import SiteError, UnknownNameError, UsageError
from sites.overrides import overridden
from sites.profile import SiteProfile, load_site

GRID = [one for one in SCHEDULERS if one != "condor"]
FOLDER = Path("/home/user/run")


def job(**about):
    given = {
        "name": "cs-me-01234567",
        "command": ("/usr/bin/python3", "a.pyz"),
        "folder": FOLDER,
        "logs": FOLDER / "logs",
    }
    return JobSpec(**{**given, **about})


def head(scheduler, **about):
    """The directives of job.sh as one string each, or the lines of job.sub."""
    files = render(scheduler, job(**about))
    if scheduler == "condor":
        return files["job.sub"].splitlines()
    return [" ".join(words) for words in directives(scheduler, files["job.sh"])]


def refused(scheduler, match, **about):
    with pytest.raises(UsageError, match=match) as caught:
        render(scheduler, job(**about))
    return caught.value


# ---- units ----


@pytest.mark.parametrize(
    ("scheduler", "line"),
    [
        ("condor", "request_memory = 1908"),
        ("slurm", "--mem=1908M"),
        ("sge", "-l mem_free=1908M"),
        ("pbs", "-l select=1:ncpus=1:mem=1908mb"),
        ("lsf", "-M 1908MB"),
    ],
)
def test_memory_is_rounded_up_to_mebibytes(scheduler, line):
    assert line in head(scheduler, memory=2_000_000_000)
    assert re.sub(r"1908", "1", line) in head(scheduler, memory=1)


@pytest.mark.parametrize(
    ("scheduler", "line"),
    [
        ("slurm", "--time=1:30:01"),
        ("sge", "-l h_rt=1:30:01"),
        ("pbs", "-l walltime=1:30:01"),
        ("lsf", "-W 1:31"),
        ("condor", "MY.CoffeaScaleoutWalltime = 5401"),
    ],
)
def test_a_walltime_is_rounded_up(scheduler, line):
    assert line in head(scheduler, walltime=5400.2)


def test_long_walltimes_have_more_than_24_hours():
    assert "--time=168:00:00" in head("slurm", walltime=7 * 86400)


@pytest.mark.parametrize(
    ("scheduler", "line"),
    [
        ("condor", "request_cpus = 4"),
        ("slurm", "--cpus-per-task=4"),
        ("sge", "-pe smp 4"),
        ("pbs", "-l select=1:ncpus=4"),
        ("lsf", "-n 4"),
    ],
)
def test_cores(scheduler, line):
    assert line in head(scheduler, cores=4)


def test_disk_is_for_condor_in_kibibytes():
    assert "request_disk = 976563" in head("condor", disk=10**9)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_nothing_is_asked_for_that_was_not_given(scheduler):
    text = "\n".join(head(scheduler))
    assert not re.search(r"mem|time|-W |-M |request_disk|None|-q |partition", text), text


@pytest.mark.parametrize("bad", ["4", True, 0, -1, 1.5, None])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_cores_are_a_number(scheduler, bad):
    refused(scheduler, "resources.cores", cores=bad)


@pytest.mark.parametrize("bad", ["1h", True, 0, -1, math.nan, math.inf])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_walltime_is_a_number(scheduler, bad):
    refused(scheduler, "resources.walltime", walltime=bad)


# ---- queue, account, image: plain or in the site's own words ----


@pytest.mark.parametrize(
    ("scheduler", "lines"),
    [
        ("slurm", ["--partition=short", "--account=cms"]),
        ("sge", ["-q short", "-P cms"]),
        ("pbs", ["-q short", "-A cms"]),
        ("lsf", ["-q short", "-P cms"]),
    ],
)
def test_queue_and_account(scheduler, lines):
    assert set(lines) <= set(head(scheduler, queue="short", account="cms"))


def test_condor_has_no_queue_of_its_own():
    refused("condor", "job.queue.*HTCondor has no queues", queue="short")
    assert 'MY.JobFlavour = "short"' in head("condor", queue="short", queue_directive="+JobFlavour")
    assert "accounting_group = cms" in head("condor", account="cms")
    assert "container_image = /i" in head("condor", image="/i")
    assert 'MY.SingularityImage = "/i"' in head("condor", image="/i", image_directive="+SingularityImage")


def test_a_site_can_want_not_to_be_told():
    """naf_lite: a job that asks for a time at all is another kind of job."""
    quiet = {"walltime": 60.0, "walltime_directive": ""}
    assert "60" not in "\n".join(head("condor", **quiet))
    assert "60" not in "\n".join(head("slurm", **quiet))
    assert "time" not in "\n".join(head("sge", **quiet))


def test_words_of_the_site_are_no_way_around_what_is_ours():
    refused("slurm", "job.queue_directive.*the runner itself", queue="0-9", queue_directive="--array")
    refused("slurm", "job.queue_directive.*the runner itself", queue="0-9", queue_directive="-a")
    refused("condor", "job.queue_directive.*the runner itself", queue="a", queue_directive="executable")
    assert "--partition=a" in head("slurm", queue="a", queue_directive="--partition")
    assert "--time=60" in head("slurm", walltime=60.0, walltime_directive="--time")


def lxplus(**asked):
    site, _ = overridden(load_site("lxplus"), asked)
    spec = spec_of(site, name="cs-me-0", command=("python3",), folder=FOLDER, logs=FOLDER)
    return [
        line
        for line in render("condor", spec)["job.sub"].splitlines()
        if re.search("Flavour|Runtime|Walltime", line)
    ]


def test_a_flavour_is_a_time_and_one_of_both_is_said():
    assert lxplus() == ['MY.JobFlavour = "workday"']
    assert lxplus(**{"job.queue": "longlunch"}) == ['MY.JobFlavour = "longlunch"']
    assert lxplus(**{"resources.walltime": "150m"}) == ["MY.MaxRuntime = 9000"]


# ---- directives of the profile ----


def test_directives_of_slurm():
    given = {
        "constraint": "zen4",
        "--qos": "long",
        "-C": "a&b",
        "exclusive": True,
        "hint": False,
        "reservation": "",
    }
    lines = head("slurm", directives={**given, "nice": 100, "--comment": "two words"})
    assert lines[-6:] == [
        "--constraint=zen4",
        "--qos=long",
        "-C a&b",
        "--exclusive",
        "--nice=100",
        "--comment=two words",
    ]


def test_directives_of_the_others():
    assert head("sge", directives={"-l h_vmem": "4G", "pe": "mpi 8"}, cores=8, memory=2**30)[-2:] == [
        "-l h_vmem=4G",
        "-pe mpi 8",
    ]
    assert not [
        line for line in head("sge", directives={"-l h_vmem": "4G"}, memory=2**30) if "mem_free" in line
    ]
    assert head("sge", directives={"-pe mpi": 8}, cores=8)[-1] == "-pe mpi 8"
    with pytest.raises(UsageError, match="what follows a #"):
        head("sge", directives={"-ac": "comment=a #b"})
    assert head("pbs", directives={"-l select": "1:ncpus=2:model=x"})[-1] == "-l select=1:ncpus=2:model=x"
    assert len([line for line in head("pbs", directives={"-l select": "2"}) if "select" in line]) == 1
    assert (
        head("lsf", directives={"-R": "select[mem>4000] span[ptile=1]"})[-1]
        == "-R select[mem>4000] span[ptile=1]"
    )


def test_directives_of_condor():
    given = {
        "+A": "word",
        "MY.B": "a b",
        "+C": '"quoted"',
        "+D": "= time() + 1",
        "+E": True,
        "+F": 1.5,
        "+G": "",
    }
    assert head("condor", directives=given)[-6:] == [
        'MY.A = "word"', 'MY.B = "a b"', 'MY.C = "quoted"', "MY.D = time() + 1", "MY.E = True", "MY.F = 1.5",
    ]  # fmt: skip
    wanted = '(OpSysAndVer == "AlmaLinux9") && regexp("^n[0-9]+$", Machine)'
    assert f"requirements = {wanted}" in head("condor", directives={"requirements": wanted})


def test_what_a_profile_says_wins_over_a_default_of_condor():
    lines = head(
        "condor",
        directives={
            "Universe": "docker",
            "docker_image": "a/b:c",
            "when_to_transfer_output": "ON_EXIT_OR_EVICT",
        },
    )
    assert [line for line in lines if "niverse" in line] == ["Universe = docker"]
    assert [line for line in lines if "when_to" in line] == ["when_to_transfer_output = ON_EXIT_OR_EVICT"]


@pytest.mark.parametrize(
    ("scheduler", "key", "says"),
    [
        ("condor", "request_memory", "--memory"), ("condor", "Request_CPUs", "--cores"), ("condor", "RequestDisk", "runner"),
        ("condor", "executable", "runner"), ("condor", "Cmd", "runner"), ("condor", "+Cmd", "runner"), ("condor", "MY.Env", "runner"),
        ("condor", "environment", "--env"), ("condor", "getenv", "could be read by others"), ("condor", "queue", "no directive"),
        ("condor", "include", "no directive"), ("condor", "IF", "no directive"), ("condor", "transfer_input_files", "runner"),
        ("condor", "+CoffeaScaleout", "runner"), ("condor", "log", "runner"), ("condor", "leave_in_queue", "runner"),
        ("slurm", "--mem", "--memory"), ("slurm", "mem", "--memory"), ("slurm", "-c", "--cores"), ("slurm", "cpus", "--cores"),
        ("slurm", "--partition", "--queue"), ("slurm", "-p", "--queue"), ("slurm", "part", "--queue"), ("slurm", "--wrap", "runner"),
        ("slurm", "wra", "runner"), ("slurm", "--export", "runner"), ("slurm", "--exp", "runner"), ("slurm", "-o", "runner"),
        ("slurm", "--array", "runner"), ("slurm", "requeue", "runner"), ("slurm", "-J", "runner"),
        ("sge", "-o", "runner"), ("sge", "q", "--queue"), ("sge", "-l h_rt", "--walltime"), ("sge", "V", "runner"), ("sge", "-t", "runner"),
        ("pbs", "-l walltime", "--walltime"), ("pbs", "-V", "runner"), ("pbs", "-J", "runner"), ("pbs", "A", "--account"),
        ("lsf", "-n", "--cores"), ("lsf", "-env", "runner"), ("lsf", "W", "--walltime"), ("lsf", "-L", "runner"), ("lsf", "-E", "runner"),
    ],
)  # fmt: skip
def test_no_second_opinion(scheduler, key, says):
    error = refused(scheduler, "directives.*set by", directives={key: "1"})
    assert says in error.message
    assert key.removeprefix("+").removeprefix("MY.") in error.message


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize(
    "key", ["", " ", "-", "--", "a b c", "a=b", "+", "+a b", "MY.", "1a", "a\n", "é", "-l a=b"]
)
def test_a_directive_has_a_name(scheduler, key):
    refused(scheduler, "directives", directives={key: "1"})


def test_no_number_that_is_none():
    refused("condor", "directives.*finite", directives={"+A": math.nan})


# ---- what HTCondor is told besides ----


def test_condor_text():
    lines = head("condor", transfer=(Path("/a/parcel.pyz"), Path("/a/pilot.json")))
    for line in (
        "executable = job.sh",
        "batch_name = cs-me-01234567",
        'MY.CoffeaScaleout = "cs-me-01234567"',
        "should_transfer_files = YES",
        "transfer_input_files = /a/parcel.pyz, /a/pilot.json",
        'transfer_output_files = ""',
        "leave_in_queue = False",
        "output = /home/user/run/logs/$(ClusterId).$(ProcId).out",
        "stream_output = True",
        "getenv = False",
    ):
        assert line in lines
    assert not [
        line for line in lines if line.startswith(("queue", "environment", "arguments", "x509", "periodic"))
    ]


def test_a_spooled_job_stays_until_its_output_was_fetched():
    lines = head("condor", submit_options=("-spool",))
    assert "leave_in_queue = JobStatus == 4 && time() - CompletionDate < 600" in lines
    assert not [line for line in lines if line.startswith("stream")]
    assert not [line for line in head("condor", shared=False) if line.startswith("stream")]


def test_two_files_of_one_name_cannot_travel():
    refused("condor", "a file to carry.*same name", transfer=(Path("/a/key"), Path("/b/key")))
    refused("condor", "a file to carry.*same name", transfer=(Path("/a/job.sh"),))


def test_a_proxy_is_delegated_by_condor_and_named_to_the_others():
    proxy = Path("/home/user/x509up_u1")
    assert {f"x509userproxy = {proxy}", "use_x509userproxy = True"} <= set(head("condor", proxy=proxy))
    assert "X509_USER_PROXY" not in render("condor", job(proxy=proxy))["job.sh"]
    assert f"export X509_USER_PROXY='{proxy}'" in render("slurm", job(proxy=proxy))["job.sh"]
    own = render("slurm", job(proxy=proxy, env={"X509_USER_PROXY": "/x"}))["job.sh"]
    assert own.count("X509_USER_PROXY") == 1


@pytest.mark.parametrize("scheduler", GRID)
def test_without_a_shared_folder_only_condor_can_carry(scheduler):
    refused(scheduler, "shares_store", shared=False)


def test_an_unknown_batch_system_has_near_names():
    with pytest.raises(UnknownNameError, match="did you mean 'slurm'"):
        render("slrum", job())


def test_slurm_gets_an_environment_of_its_own():
    files = render("slurm", job())
    assert set(files) == {"job.sh", "job.env"}
    assert files["job.env"] == "COFFEA_SCALEOUT=cs-me-01234567\0"
    assert {"--export-file=job.env", "--no-requeue"} <= set(head("slurm"))


# ---- job.sh, run ----


@pytest.fixture
def place(tmp_path):
    (tmp_path / "logs").mkdir()
    return tmp_path


def ran(place, scheduler="slurm", env=None, **about):
    about = {"folder": place, "logs": place / "logs", "command": (str(stub(place)), "a b", "it's"), **about}
    return run(render(scheduler, job(**about))["job.sh"], place, env)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_job_that_has_no_environment_gets_the_usual_one(scheduler, place):
    """As jobs of HTCondor: no PATH, HOME or USER."""
    env = {"PBS_JOBID": "12.server"} if scheduler == "pbs" else {}
    code, said, args, told = ran(place, scheduler, env)
    assert (code, args) == (0, ["a b", "it's"]), said
    assert told["PATH"] == "/usr/local/bin:/usr/bin:/bin"
    assert told["HOME"] == os.path.expanduser("~" + told["USER"])
    said = (place / "logs" / "12.server.err").read_text() if scheduler == "pbs" else said
    assert "coffea-scaleout: on " in said


def test_what_is_there_stays(place):
    _, _, _, told = ran(place, env={"PATH": "/bin:/usr/bin", "HOME": "/h", "USER": "u"})
    assert (told["PATH"], told["HOME"], told["USER"]) == ("/bin:/usr/bin", "/h", "u")


def test_every_variable_of_the_shell_is_refused_or_set(place):
    """The real bash says which variables it has; a new version may have more."""
    names = subprocess.run(
        ["/bin/bash", "-c", "compgen -v"], capture_output=True, text=True, env={}
    ).stdout.split()
    assert {"BASH_VERSION", "UID", "PATH"} <= set(names)
    let_through = []
    for name in [
        *names,
        "LC_ALL",
        "TMOUT",
        "CDPATH",
        "ENV",
        "LD_LIBRARY_PATH",
        "PS4",
        "HISTFILE",
        "MAILCHECK",
        "GLOBIGNORE",
    ]:
        try:
            allowed.variable("env", name)
        except UsageError:
            continue
        let_through.append(name)
    values = {name: "/usr/bin:/bin" if name == "PATH" else "C" for name in let_through if name != "TERM"}
    code, said, _, told = ran_with(place, values)
    assert code == 0, said
    assert {name: told.get(name) for name in values} == values


def ran_with(place, values):
    spec = job(folder=place, logs=place / "logs", command=(str(stub(place)),), env=values)
    return run(render("slurm", spec)["job.sh"], place, {"PATH": "/usr/bin:/bin"})


def test_setup_lines_share_one_shell(place):
    spec = job(
        folder=place,
        logs=place,
        command=(str(stub(place)),),
        setup=("A=1", "export B=$((A + 1))", "cd /", "# only words"),
    )
    code, said, _, told = run(render("slurm", spec)["job.sh"], place)
    assert code == 0, said
    assert (told["B"], told["PWD"]) == ("2", "/")


@pytest.mark.parametrize(
    "line", ["false", "echo 'open", "(exit 3)", "no-such-program", "if", "source /no/such/file", "a b) c"]
)
def test_a_setup_line_that_fails_ends_the_job_and_is_named(place, line):
    code, said, args, _ = ran(place, setup=("true", line))
    assert args is None
    assert code == 78
    assert "coffea-scaleout: setup line 2 failed (exit code " in said
    assert line in said


def test_an_environment_reaches_the_setup(place):
    assert ran(place, env={}, setup=('[ "$WANTED" = yes ]',))[0] == 78
    spec = job(
        folder=place,
        logs=place,
        command=(str(stub(place)),),
        setup=('[ "$WANTED" = yes ]',),
        env={"WANTED": "yes"},
    )
    assert run(render("slurm", spec)["job.sh"], place)[0] == 0


def test_a_program_that_is_not_there_is_named(place):
    code, said, args, _ = ran(place, command=("/no/such/python3", "a"))
    assert (code, args) == (127, None)
    assert "/no/such/python3 is not there or cannot be run on " in said


def test_a_node_without_the_folder_says_so(place):
    code, said, args, _ = ran(place, folder=Path("/no/such/folder"))
    assert (code, args) == (78, None)
    assert "this node does not see the folder /no/such/folder" in said


def test_files_of_a_job_are_private(place):
    spec = job(folder=place, logs=place, command=("/usr/bin/touch", str(place / "new")))
    assert run(render("slurm", spec)["job.sh"], place)[0] == 0
    assert (place / "new").stat().st_mode & 0o777 == 0o600


def test_scratch_is_the_jobs_tmpdir(place):
    (place / "disk").mkdir()
    code, said, _, told = ran(place, env={"USER": "u", "FAST": str(place / "disk")}, scratch="$FAST/$USER/x")
    assert code == 0, said
    assert told["TMPDIR"] == f"{place}/disk/u/x"
    assert (place / "disk/u/x").stat().st_mode & 0o777 == 0o700
    assert ran(place, scratch="$TMPDIR")[3]["TMPDIR"] == "/tmp"
    code, said, args, _ = ran(place, scratch="$NOWHERE/x")
    assert (code, args) == (78, None)
    assert "$NOWHERE of job.scratch is not set on this node" in said
    code, said, args, _ = ran(place, scratch=f"{place}/stub/x")
    assert (code, args) == (78, None)
    assert "scratch folder" in said


def test_a_container_is_run_where_the_site_has_no_word_for_it(place):
    (place / "apptainer").write_text('#!/bin/sh\necho "$@" > "$CS_TOLD.image"\n')
    (place / "apptainer").chmod(0o755)
    path = {"PATH": f"/usr/bin:/bin:{place}"}
    assert ran(place, env=path, image="/cvmfs/i:1")[0] == 0
    assert (place / "told.image").read_text() == f"exec /cvmfs/i:1 {place}/stub a b it's\n"
    code, said, _, _ = ran(place, env={"PATH": "/nowhere"}, image="/cvmfs/i:1")
    assert code == 127
    assert "neither apptainer nor singularity" in said


def test_the_exit_code_and_signals_are_the_commands_own(place):
    """No shell stays between the batch system and the worker."""
    spec = job(folder=place, logs=place, command=("/bin/sh", "-c", "exit 7"))
    assert run(render("slurm", spec)["job.sh"], place)[0] == 7
    spec = job(folder=place, logs=place, command=("/bin/sh", "-c", "kill -9 $$"))
    assert run(render("slurm", spec)["job.sh"], place)[0] == -9


# ---- from a profile ----


def site_of(name="slurm", **asked):
    return overridden(load_site(name), asked)[0]


def spec_for(site, **about):
    return spec_of(
        site, **{"name": "cs-me-0", "command": ("python3",), "folder": FOLDER, "logs": FOLDER, **about}
    )


def test_every_field_of_the_spec_comes_from_somewhere():
    """A field that spec_of forgets would be a key of the profile without effect."""
    site = site_of(
        "condor",
        **{
            "resources.cores": 2, "resources.memory": "3GB", "resources.disk": "4GB", "resources.walltime": "5h", "job.queue": "q",
            "job.queue_directive": "+Q", "job.walltime_directive": "+W", "job.account": "a", "job.account_directive": "+A",
            "job.image": "/i", "job.image_directive": "+I", "directives.+D": "d", "env.E": "e", "job.setup": ["s"],
            "job.scratch": "/s", "job.submit_options": ["-o"], "shares_store": False,
        },
    )  # fmt: skip
    spec = spec_for(
        site, env={"F": "f"}, transfer=[Path("/t")], proxy=Path("/p"), folder=Path("/f"), logs=Path("/l")
    )
    empty = JobSpec(name="", command=())
    same = [
        one.name for one in dataclasses.fields(JobSpec) if getattr(spec, one.name) == getattr(empty, one.name)
    ]
    assert same == ["queue"]  # the walltime is told instead: both have words of the site
    assert spec.env["E"] == "e"
    assert spec.env["F"] == "f"


def test_the_callers_environment_wins():
    assert spec_for(site_of(**{"env.A": "site"}), env={"A": "run"}).env["A"] == "run"


def test_what_only_the_run_knows_is_filled_in(monkeypatch):
    monkeypatch.setenv("LOGNAME", "alice")
    site = site_of("condor", **{"resources.cores": 2, "resources.memory": "3GB"})
    given = {
        "+A": "analysis.{user}",
        "+B": "{cores}/{memory_mb}/{memory_mb_per_core}",
        "+C": "{other} {",
        "+D": 4,
    }
    spec = spec_for(dataclasses.replace(site, directives=given))
    assert dict(spec.directives) == {"+A": "analysis.alice", "+B": "2/2862/1431", "+C": "{other} {", "+D": 4}


def test_a_hostile_user_name_stays_a_value(monkeypatch):
    monkeypatch.setenv("LOGNAME", "a\nqueue 9")
    spec = spec_for(dataclasses.replace(site_of("condor"), directives={"+A": "{user}"}))
    with pytest.raises(UsageError, match="directives"):
        render("condor", spec)


def test_a_proxy_goes_along_where_the_site_wants_one(tmp_path, monkeypatch):
    proxy = tmp_path / "x509up"
    monkeypatch.setenv("X509_USER_PROXY", str(proxy))
    wanting = site_of("lxplus")
    assert spec_for(wanting).proxy is None
    needing = dataclasses.replace(wanting, proxy=dataclasses.replace(wanting.proxy, required=True))
    with pytest.raises(SiteError, match="voms-proxy-init"):
        spec_for(needing)
    proxy.write_text("x")
    assert spec_for(wanting).proxy == spec_for(needing).proxy == proxy
    assert spec_for(site_of("slurm")).proxy is None
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("X509_USER_PROXY", "x509up")
    assert spec_for(wanting).proxy == proxy


def test_a_profile_of_defaults_renders():
    for scheduler in SCHEDULERS:
        assert render(scheduler, spec_for(SiteProfile(name="mine", scheduler=scheduler)))[
            "job.sh"
        ].startswith("#!/bin/bash\n")
