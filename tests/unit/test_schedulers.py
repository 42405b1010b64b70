"""What batch systems are asked and answer: recorded answers, and commands that hang, babble or are not there."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from executors.batch import holds, joblogs, reasons, schedulers
from executors.batch.schedulers import SYSTEMS, CommandError, SubmissionError, ask, clean, scheduler_of
from executors.batch.spec import JobSpec
from executors.errors import SiteError, UnknownNameError, UsageError


class Commands:
    """Commands on PATH that are small scripts; each writes down how it was called."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder.parent / "called"
        folder.mkdir()

    def put(self, name: str, script: str = "", *, out: str = "", err: str = "", code: int = 0) -> None:
        """``script`` runs first; then the texts and the code."""
        for kind, text in (("out", out), ("err", err)):
            (self.folder / f".{name}.{kind}").write_text(text)
        base = self.folder / f".{name}"
        path = self.folder / name
        path.write_text(
            "#!/bin/bash\n"
            f'{{ printf "%s" {name}; for one in "$@"; do printf "\\t%s" "$one"; done; echo; }} >> {self.log}\n'
            f"{script}\ncat {base}.out; cat {base}.err >&2; exit {code}\n"
        )
        path.chmod(0o755)

    @property
    def calls(self) -> list[list[str]]:
        return [line.split("\t") for line in self.log.read_text().splitlines()] if self.log.exists() else []


@pytest.fixture
def commands(tmp_path, monkeypatch):
    made = Commands(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{made.folder}:/usr/bin:/bin")
    return made


@pytest.fixture
def spec(tmp_path):
    (tmp_path / "job").mkdir()
    (tmp_path / "logs").mkdir()
    return JobSpec(name="cs-me-1", command=("python3", "x"), folder=tmp_path / "job", logs=tmp_path / "logs")


def brief(states):
    return {one: (state.phase, state.fate, state.exit) for one, state in states.items()}


# The door for commands.


def test_an_absent_command_is_a_site_error_with_a_way_on(commands):
    with pytest.raises(CommandError, match="condor_q is not here: .*command -v condor_q"):
        scheduler_of("condor").query("cs-me-1", [])
    assert issubclass(CommandError, SiteError)


def test_a_command_that_may_not_be_run(commands):
    (commands.folder / "squeue").write_text("")
    with pytest.raises(CommandError, match="squeue cannot be run: Permission denied"):
        ask([str(commands.folder / "squeue")])


def test_a_command_that_hangs_ends_in_time_with_its_children(commands):
    commands.put("slow", f"sleep 61.5 & echo $! > {commands.folder}/child; wait")
    begun = time.monotonic()
    with pytest.raises(CommandError, match="slow gave no answer within 2 s") as caught:
        ask(["slow"], 2.0)
    assert time.monotonic() - begun < 7
    assert caught.value.about["late"]
    child = int((commands.folder / "child").read_text())
    for _ in range(100):
        path = Path(f"/proc/{child}/stat")
        if not path.exists() or path.read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.02)
    else:
        pytest.fail("the command's own child lives on")


def test_what_a_command_leaves_behind_does_not_hold_its_answer_up(commands):
    commands.put("parent", f"sleep 30 & echo $! > {commands.folder}/child", out="fine\n")
    begun = time.monotonic()
    assert ask(["parent"], 10).out == "fine\n"
    assert time.monotonic() - begun < 5
    os.kill(int((commands.folder / "child").read_text()), 9)


def test_commands_read_nothing_and_speak_english(commands, monkeypatch):
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    commands.put("curious", 'cat; echo "$LC_ALL"')
    assert ask(["curious"], 5).out == "C\n"


def test_an_answer_is_bounded_and_need_not_be_text(commands, monkeypatch):
    monkeypatch.setattr(schedulers, "ANSWER_LIMIT", 1000)
    commands.put("babble", "head -c 100000 /dev/urandom")
    assert len(ask(["babble"], 5).out) <= 1000


def test_words_are_words(commands):
    commands.put("echoing")
    ask(["echoing", "a b", "$(touch x)", "; rm", "*"])
    assert commands.calls == [["echoing", "a b", "$(touch x)", "; rm", "*"]]


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("a\n b\t\tc", "a b c"),
        ("\x1b[31mred\x1b[0m", "[31mred[0m"),
        ("right\u202eleft\u200bthin", "rightleftthin"),
        ("nul\x00bell\x07", "nulbell"),
        ("x" * 1000, "x" * 599 + "…"),
    ],
)
def test_foreign_text_is_made_plain(text, plain):
    assert clean(text) == plain


def test_names_of_batch_systems():
    assert sorted(SYSTEMS) == ["condor", "lsf", "pbs", "sge", "slurm"]
    for name in SYSTEMS:
        assert scheduler_of(name).name == name
    with pytest.raises(UnknownNameError, match="did you mean 'slurm'"):
        scheduler_of("slrum")


# Submitting.

SUBMITS = {
    "condor": ("condor_submit", "7.0 - 7.2\n", ["7.0", "7.1", "7.2"]),
    "slurm": ("sbatch", "41\n", ["41_0", "41_1", "41_2"]),
    "sge": ("qsub", "12\n", ["12"]),
    "pbs": ("qsub", "12.pbs-1.cern.ch\n", ["12.pbs-1.cern.ch"]),
    "lsf": ("bsub", "Job <345> is submitted to default queue <normal>.\n", ["345"]),
}


@pytest.mark.parametrize("system", SYSTEMS)
def test_submitting(commands, spec, system):
    command, out, ids = SUBMITS[system]
    commands.put(command, "pwd", out=out)
    assert scheduler_of(system).submit(spec, 3) == ids
    assert len(commands.calls) == 1
    for path in spec.folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) in (0o600, 0o700)


def test_condor_queues_many_at_once(commands, spec):
    commands.put("condor_submit", out="7.0 - 7.99\n")
    assert len(scheduler_of("condor").submit(spec, 100)) == 100
    assert commands.calls == [["condor_submit", "-terse", "job.sub", "-queue", "100"]]


def test_slurm_makes_one_array_and_no_array_of_one(commands, spec):
    commands.put("sbatch", out="41;cluster\n")
    slurm = scheduler_of("slurm")
    assert slurm.submit(spec, 1) == ["41"]
    slurm.submit(spec, 20)
    assert [call[1:] for call in commands.calls] == [
        ["--parsable", "job.sh"],
        ["--parsable", "--array", "0-19", "job.sh"],
    ]


def test_slurm_without_arrays_submits_one_at_a_time(commands, spec):
    commands.put(
        "sbatch",
        'case "$*" in *--array*) echo "sbatch: error: Batch job submission failed: Invalid job array specification" >&2; exit 1;; esac',
        out="5\n",
    )
    slurm = scheduler_of("slurm")
    assert slurm.submit(spec, 20) == ["5"]
    assert slurm.submit(spec, 19) == ["5"]
    assert len(commands.calls) == 3, "arrays were tried again"


def test_submit_options_go_before_the_file(commands, tmp_path, spec):
    from dataclasses import replace

    spec = replace(spec, submit_options=("-spool",))
    commands.put("condor_submit", out="7.0 - 7.0\n")
    scheduler_of("condor").submit(spec, 1)
    assert commands.calls == [["condor_submit", "-terse", "-spool", "job.sub", "-queue", "1"]]


def test_lsf_reads_the_job_from_its_input(commands, spec):
    commands.put("bsub", f"cat > {spec.folder.parent}/read", out="Job <3> is submitted to queue <q>.\n")
    scheduler_of("lsf").submit(spec, 1)
    assert (spec.folder.parent / "read").read_text() == (spec.folder / "job.sh").read_text() != ""


def test_the_users_environment_does_not_overrule_the_job(commands, spec, monkeypatch):
    from dataclasses import replace

    for name in ("SBATCH_PARTITION", "SBATCH_ACCOUNT", "SBATCH_TIMELIMIT", "SLURM_JOB_ID", "SBATCH_QOS"):
        monkeypatch.setenv(name, "theirs")
    commands.put("sbatch", f"env > {spec.folder.parent}/env", out="1\n")
    scheduler_of("slurm").submit(replace(spec, queue="main"), 1)
    seen = (spec.folder.parent / "env").read_text()
    assert "SBATCH_ACCOUNT=theirs" in seen, "the job leaves it open"
    assert "SBATCH_QOS=theirs" in seen
    assert "SBATCH_PARTITION" not in seen
    assert "SBATCH_TIMELIMIT" not in seen
    assert "SLURM_JOB_ID" not in seen


REFUSALS = [
    ("slurm", "sbatch", "sbatch: error: invalid partition specified: nope\nsbatch: error: Batch job submission failed: Invalid partition name specified\n", False, "--queue"),
    ("slurm", "sbatch", "sbatch: error: Batch job submission failed: Requested node configuration is not available\n", False, "--memory"),
    ("slurm", "sbatch", "sbatch: error: Batch job submission failed: Requested time limit is invalid (missing or exceeds some limit)\n", False, "--walltime"),
    ("slurm", "sbatch", "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified\n", False, "--account"),
    ("slurm", "sbatch", "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation\n", True, ""),
    ("slurm", "sbatch", "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)\n", True, ""),
    ("slurm", "sbatch", "sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)\n", True, ""),
    ("slurm", "sbatch", "sbatch: error: Batch job submission failed: Resource temporarily unavailable\n", True, ""),
    ("condor", "condor_submit", '\nERROR: Parse error in expression: \n\tRequirements = ((((\n', False, "--directive"),
    ("condor", "condor_submit", "\nERROR: Failed to commit job submission into the queue.\nERROR: unknown JobFlavour bogus\n", False, "--queue"),
    ("condor", "condor_submit", "ERROR: Can't find address of local schedd\n", True, ""),
    ("condor", "condor_submit", "ERROR: Number of submitted jobs would exceed MAX_JOBS_PER_OWNER\n", True, ""),
    ("condor", "condor_submit", "ERROR: Failed to create new cluster\nSCHEDD:13:Cannot allocate a cluster id\n", False, "plain user"),
    ("sge", "qsub", 'Unable to run job: Job was rejected because job requests unknown queue "nope".\nExiting.\n', False, "--queue"),
    ("sge", "qsub", 'Unable to run job: job rejected: the requested parallel environment "smp" does not exist\nExiting.\n', False, "pe=NAME"),
    ("sge", "qsub", "Unable to run job: job rejected: only 5 jobs are allowed per user (current job count: 5).\nExiting.\n", True, ""),
    ("pbs", "qsub", "qsub: Unknown queue\n", False, "--queue"),
    ("pbs", "qsub", "Connection refused\nqsub: cannot connect to server pbs (errno=111)\n", True, ""),
    ("lsf", "bsub", "nope: No such queue. Job not submitted.\n", False, "--queue"),
    ("lsf", "bsub", "LSF is down. Please wait ...\nUser has reached the maximum number of jobs\n", True, ""),
]  # fmt: skip


@pytest.mark.parametrize(("system", "command", "said", "transient", "advice"), REFUSALS)
def test_refusals(commands, spec, system, command, said, transient, advice):
    commands.put(command, err=said, code=1)
    with pytest.raises(SubmissionError) as caught:
        scheduler_of(system).submit(spec, 1)
    assert caught.value.transient is transient
    assert advice in str(caught.value)
    last = (
        said.strip().splitlines()[-1].rpartition("error: ")[2].removeprefix("Batch job submission failed: ")
    )
    assert " ".join(last.split()).removeprefix("qsub: ") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_submission_that_says_nothing_useful(commands, spec, system):
    commands.put(SUBMITS[system][0], out="welcome to the cluster!\n")
    try:
        ids = scheduler_of(system).submit(spec, 1)
    except SiteError:
        return
    assert ids == []


def test_a_submit_command_that_hangs_may_have_worked(commands, spec, monkeypatch):
    monkeypatch.setattr(schedulers, "SUBMIT_PATIENCE", 0.3)
    commands.put("sbatch", "sleep 30")
    with pytest.raises(SubmissionError) as caught:
        scheduler_of("slurm").submit(spec, 3)
    assert caught.value.transient


def test_an_absent_submit_command_is_final(commands, spec, monkeypatch):
    (commands.folder / "none").mkdir()
    monkeypatch.setenv("PATH", str(commands.folder / "none"))
    with pytest.raises(SubmissionError, match="sbatch is not here") as caught:
        scheduler_of("slurm").submit(spec, 3)
    assert not caught.value.transient


def test_no_submission_of_nothing(spec):
    with pytest.raises(UsageError):
        scheduler_of("slurm").submit(spec, 0)


def test_text_that_is_there_already_is_not_written_again(commands, spec):
    commands.put("sbatch", out="5\n")
    slurm = scheduler_of("slurm")
    slurm.submit(spec, 1)
    before = (spec.folder / "job.sh").stat().st_ino
    slurm.submit(spec, 1)
    assert (spec.folder / "job.sh").stat().st_ino == before
    (spec.folder / "job.sh").write_text("rm -rf ~")
    slurm.submit(spec, 1)
    assert "rm -rf" not in (spec.folder / "job.sh").read_text()


def test_a_folder_that_cannot_be_written(commands, spec):
    spec.folder.rmdir()
    with pytest.raises(SiteError, match="submit text cannot be written"):
        scheduler_of("slurm").submit(spec, 1)


# HTCondor's answers.


def job(proc, status, **more):
    return {"ClusterId": 7, "ProcId": proc, "JobStatus": status, "ExitBySignal": False, **more}


def test_condor_states(commands):
    queue = [
        job(0, 1),
        job(1, 2, RemoteHost="slot1@x"),
        job(
            2,
            5,
            HoldReasonCode=13,
            HoldReasonSubCode=2,
            HoldReason="Transfer input files failure: no such file /a",
        ),
        job(3, 5, HoldReasonCode=16, HoldReason="Spooling input data files"),
        job(4, 3, RemoveReason="via condor_rm (by user me)"),
        job(5, 4, ExitCode=0),
        job(6, 6),
        job(7, 7),
    ]
    commands.put("condor_q", out=json.dumps(queue))
    commands.put(
        "condor_history", out=json.dumps([job(8, 4, ExitCode=7), job(9, 4, ExitBySignal=True, ExitSignal=9)])
    )
    states = scheduler_of("condor").query("cs-me-1", ["7.0", "7.8", "7.9", "7.10"])
    assert brief(states) == {
        "7.0": ("pending", "", None),
        "7.1": ("running", "", None),
        "7.2": ("held", "", None),
        "7.3": ("pending", "", None),
        "7.4": ("ending", "removed", None),
        "7.5": ("done", "", 0),
        "7.6": ("ending", "", None),
        "7.7": ("running", "", None),
        "7.8": ("failed", "exit", 7),
        "7.9": ("failed", "exit", -9),
        "7.10": ("gone", "", None),
    }
    assert "an input file is missing: Transfer input files failure: no such file /a" in states["7.2"].says
    assert len(commands.calls) == 2
    assert (
        commands.calls[1][-1]
        == 'CoffeaScaleout == "cs-me-1" && ((ClusterId == 7 && member(ProcId, {8, 9, 10})))'
    )


def test_condors_history_is_asked_only_for_those_that_left(commands):
    commands.put("condor_q", out=json.dumps([job(0, 2)]))
    commands.put("condor_history", code=1)
    scheduler_of("condor").query("cs-me-1", ["7.0"])
    assert [call[0] for call in commands.calls] == ["condor_q"]


@pytest.mark.parametrize("out", ["", "\n", "[\n]\n"])
def test_an_empty_queue_of_condor(commands, out):
    commands.put("condor_q", out=out)
    assert scheduler_of("condor").query("cs-me-1", []) == {}


def test_answers_of_several_schedds(commands):
    commands.put("condor_q", out=json.dumps([job(0, 2)]) + "\n\n-- Schedd: two\n" + json.dumps([job(1, 1)]))
    assert set(scheduler_of("condor").query("cs-me-1", [])) == {"7.0", "7.1"}


@pytest.mark.parametrize(
    "out", ['[{"ClusterId": 7, "ProcId"', "[ garbage", '[{"ClusterId": 1, "ProcId": 0}, tail']
)
def test_half_an_answer_of_condor_is_no_answer(commands, out):
    commands.put("condor_q", out=out)
    with pytest.raises(CommandError, match="cannot be read"):
        scheduler_of("condor").query("cs-me-1", ["7.0"])


def test_records_that_are_strange(commands):
    odd = [
        3,
        None,
        {},
        {"ClusterId": 7},
        job(0, None),
        job(1, 5, HoldReason=3, HoldReasonCode="x"),
        job(2, 99),
    ]
    commands.put("condor_q", out=json.dumps(odd))
    assert brief(scheduler_of("condor").query("cs-me-1", [])) == {
        "7.0": ("pending", "", None), "7.1": ("held", "", None), "7.2": ("pending", "", None),
    }  # fmt: skip


def test_a_schedd_without_history(commands):
    commands.put("condor_q", out="")
    commands.put("condor_history", err="denied", code=1)
    assert brief(scheduler_of("condor").query("cs-me-1", ["7.0"])) == {"7.0": ("gone", "", None)}


@pytest.mark.parametrize("system", ["condor", "slurm", "sge", "pbs", "lsf"])
def test_a_failing_question_is_an_error_with_its_words(commands, system):
    for name in ("condor_q", "squeue", "qstat", "qselect", "bjobs"):
        commands.put(name, err="the server is on fire", code=3)
    with pytest.raises(CommandError, match="the server is on fire"):
        scheduler_of(system).query("cs-me-1", ["7"])


def test_removed_by_a_rule_of_the_site(commands):
    commands.put("condor_q")
    ended = [
        job(
            0,
            3,
            RemoveReason="The job attribute PeriodicRemove expression 'over MaxRuntime 3' evaluated to TRUE",
        ),
        job(1, 3, RemoveReason="system policy: memory usage too high"),
        job(2, 3, RemoveReason="via condor_rm (by user me)"),
        job(3, 3, RemoveReason="via condor_rm (by user me)", HoldReasonCode=34, HoldReason="over memory"),
    ]
    commands.put("condor_history", out=json.dumps(ended))
    states = scheduler_of("condor").query("cs-me-1", ["7.0", "7.1", "7.2", "7.3"])
    assert [state.fate for _, state in sorted(states.items())] == ["walltime", "memory", "removed", "memory"]


def test_why_a_job_of_condor_waits(commands):
    commands.put(
        "condor_q",
        out="Step    Matched  Condition\n-----  --------  ---------\n"
        '[0]           1  TARGET.Arch == "X86_64"\n[5]           0  TARGET.Memory >= RequestMemory\n'
        "009.000:  Run analysis summary ignoring user priority.  Of 1 machines,\n      1 are rejected by your job's requirements\n",
    )
    assert (
        scheduler_of("condor").why_pending(["9.0"])
        == "no machine has TARGET.Memory >= RequestMemory (--memory)"
    )


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (['0 Machine == "none"'], 'Machine == "none" (requirements, of the profile or by --directive)'),
        (["0 TARGET.HasContainer", "0 TARGET.HasSIF"], "TARGET.HasContainer nor TARGET.HasSIF (--image)"),
        (
            [
                "3 TARGET.Memory >= RequestMemory",
                "2 TARGET.Cpus >= RequestCpus",
                "0 [0] && [1]",
                "0 [2] && [0]",
            ],
            "TARGET.Memory >= RequestMemory && TARGET.Cpus >= RequestCpus (--memory, --cores)",
        ),
    ],
)
def test_conditions_that_no_machine_fulfils(commands, steps, said):
    rows = (
        f"[{at}]  {matched:>8}  {text}"
        for at, step in enumerate(steps)
        for matched, _, text in [step.partition(" ")]
    )
    commands.put("condor_q", out="\n".join(rows) + "\n")
    assert scheduler_of("condor").why_pending(["9.0"]) == f"no machine has {said}"


def test_why_a_job_of_condor_waits_in_numbers(commands):
    commands.put(
        "condor_q",
        out="009.000:  Run analysis summary.  Of 9 machines,\n      1 are rejected by your job's requirements\n"
        "      0 match and are already running your jobs\n      8 match but are serving other users\n",
    )
    assert scheduler_of("condor").why_pending(["9.0"]) == (
        "of the machines 1 are rejected by your job's requirements, 8 match but are serving other users"
    )


def test_a_named_schedd_is_asked_and_cancelled_at(commands):
    commands.put("condor_q")
    condor = scheduler_of("condor", ("-spool", "-remote", "schedd1", "-pool", "p"))
    condor.query("cs-me-1", [])
    assert commands.calls[0][1:5] == ["-name", "schedd1", "-pool", "p"]
    assert condor.cancel_argv("cs-me-1")[:5] == ["condor_rm", "-name", "schedd1", "-pool", "p"]


def test_spooled_logs_are_fetched_and_others_are_there(commands):
    commands.put("condor_transfer_data")
    commands.put("condor_rm")
    scheduler_of("condor").fetch(["7.0"])
    scheduler_of("condor", ("-spool",)).fetch([])
    assert commands.calls == []
    scheduler_of("condor", ("-spool",)).fetch(["7.0", "7.1"])
    assert commands.calls == [["condor_transfer_data", "7.0", "7.1"], ["condor_rm", "7.0", "7.1"]]


@pytest.mark.parametrize("name", ['a" || true || "', "a b", "", "ä", "a" * 65])
def test_a_name_that_would_reach_other_peoples_jobs(name):
    with pytest.raises(CommandError):
        scheduler_of("condor").cancel_argv(name)


# Slurm's answers, recorded on 22.05.

SQUEUE = """\
1_0                             2                       FAILED                  1792            0       NonZeroExitCode
1_1                             3                       FAILED                  9               0       JobLaunchFailure
1_6                             1                       PENDING                 0               0       Resources
1_2                             4                       RUNNING                 0               0       None
1_3                             5                       COMPLETING              0               0       None
1_4                             6                       CANCELLED               15              0       None
1_5                             7                       OUT_OF_MEMORY           125:0           0       OutOfMemory
8                               8                       TIMEOUT                 0               0       TimeLimit
9                               9                       NODE_FAIL               0               0       NodeDown
10                              10                      PENDING                 0               0       JobHeldUser
11                              11                      PENDING                 0               0       launch failed requeued held
12                              12                      COMPLETED               0:0             0       None
13                              13                      PENDING                 0               0       PartitionTimeLimit
14                              14                      PREEMPTED               0               0       None
15                              15                      PENDING                 0               1       BeginTime
16                              16                      PENDING                 0               0       BeginTime
17                              17                      PENDING                 0               5       JobHoldMaxRequeue
slurm_load_jobs: a line of noise
"""


def test_slurm_states(commands):
    commands.put("squeue", out=SQUEUE)
    states = scheduler_of("slurm").query("cs-me-1", [])
    assert brief(states) == {
        "1_0": ("failed", "exit", 7),
        "1_1": ("failed", "exit", -9),
        "1_6": ("pending", "", None),
        "1_2": ("running", "", None),
        "1_3": ("ending", "", None),
        "1_4": ("failed", "removed", -15),
        "1_5": ("failed", "memory", 125),
        "8": ("failed", "walltime", 0),
        "9": ("failed", "node", 0),
        "10": ("held", "removed", None),
        "11": ("held", "node", None),
        "12": ("done", "", 0),
        "13": ("pending", "", None),
        "14": ("failed", "removed", 0),
        "15": ("held", "removed", None),
        "16": ("pending", "", None),
        "17": ("held", "node", None),
    }
    assert states["1_2"].alias == "4"
    assert states["1_6"].alias == "", "an array's number is no task's before it runs"
    assert states["13"].hopeless
    assert "--walltime" in states["13"].says
    assert not states["1_6"].hopeless
    assert len(commands.calls) == 1
    assert f"--user={os.getuid()}" in commands.calls[0]
    assert "--name=cs-me-1" in commands.calls[0]
    assert {"--states=all", "--array"} <= set(commands.calls[0]), "ended ones too, and no tasks put together"


def test_slurm_asks_accounting_once_where_there_is_none(commands):
    commands.put("squeue")
    commands.put("sacct", err="Slurm accounting storage is disabled", code=1)
    slurm = scheduler_of("slurm")
    for _ in range(3):
        assert brief(slurm.query("cs-me-1", ["1_0"])) == {"1_0": ("gone", "", None)}
    assert [call[0] for call in commands.calls] == ["squeue", "sacct", "squeue", "squeue"]


def test_slurm_finds_old_jobs_in_the_accounting(commands):
    commands.put("squeue")
    commands.put("sacct", out="1_0|2|CANCELLED by 1000|0:15\n1_1|3|TIMEOUT|0:0\n5|5|COMPLETED|0:0\n")
    states = scheduler_of("slurm").query("cs-me-1", ["1_0", "1_1", "1_2"])
    assert brief(states) == {
        "1_0": ("failed", "removed", -15), "1_1": ("failed", "walltime", 0), "1_2": ("gone", "", None),
    }  # fmt: skip
    assert states["1_0"].alias == "2"


def test_slurms_own_settings_do_not_hide_jobs(commands, tmp_path, monkeypatch):
    monkeypatch.setenv("SQUEUE_PARTITION", "other")
    monkeypatch.setenv("SCANCEL_INTERACTIVE", "1")
    for name in ("squeue", "scancel"):
        commands.put(name, f"env >> {tmp_path}/env")
    slurm = scheduler_of("slurm")
    slurm.query("cs-me-1", [])
    slurm.cancel(["1"])
    slurm.cancel_named("cs-me-1")
    assert "SQUEUE_" not in (tmp_path / "env").read_text()
    assert "SCANCEL_" not in (tmp_path / "env").read_text()


# The others' answers.

QSTAT_XML = """<?xml version='1.0'?>
<job_info xmlns:xsd="http://www.w3.org/2001/XMLSchema"><queue_info>
<job_list state="running"><JB_job_number>1</JB_job_number><JB_name>cs-me-1</JB_name><state>r</state></job_list>
<job_list state="running"><JB_job_number>9</JB_job_number><JB_name>cs-me-12</JB_name><state>r</state></job_list>
</queue_info><job_info>
<job_list state="pending"><JB_job_number>2</JB_job_number><JB_name>cs-me-1</JB_name><state>qw</state></job_list>
<job_list state="pending"><JB_job_number>3</JB_job_number><JB_name>cs-me-1</JB_name><state>hqw</state></job_list>
<job_list state="pending"><JB_job_number>4</JB_job_number><JB_name>cs-me-1</JB_name><state>Eqw</state></job_list>
<job_list state="running"><JB_job_number>5</JB_job_number><JB_name>cs-me-1</JB_name><state>dr</state></job_list>
<job_list state="running"><JB_job_number>20</JB_job_number><JB_name>cs-me-1</JB_name><state>hr</state></job_list>
<job_list state="running"><JB_job_number>21</JB_job_number><JB_name>cs-me-1</JB_name><state>dhr</state></job_list>
<job_list state="pending"><JB_job_number>22</JB_job_number><JB_name>cs-me-1</JB_name><state>Rq</state></job_list>
<job_list state="running"><JB_job_number>23</JB_job_number><JB_name>cs-me-1</JB_name><state>t</state></job_list>
</job_info></job_info>
"""
QACCT = """\
==============================================================
qname        main.q
jobname      cs-me-1
jobnumber    6
failed       0
exit_status  3
==============================================================
jobnumber    7
failed       100 : assumedly after job
exit_status  137
==============================================================
jobnumber    8
failed       37  : qmaster enforced h_rt, h_cpu, or h_vmem limit
exit_status  137
==============================================================
jobnumber    10
failed       0
exit_status  0
==============================================================
jobnumber    12
failed       37  : qmaster enforced h_rt, h_cpu, or h_vmem limit
exit_status  137                  (Killed)
ru_wallclock 20s
category     -l h_rt=7200,h_vmem=300M
==============================================================
jobnumber    13
failed       37  : qmaster enforced h_rt, h_cpu, or h_vmem limit
exit_status  137                  (Killed)
ru_wallclock 61s
category     -l h_rt=60,h_vmem=300M
==============================================================
jobnumber    14
failed       100 : assumedly after job
exit_status  139                  (Segmentation fault)
==============================================================
jobnumber    15
failed       19  : before writing exit_status
exit_status  0
"""


def test_sge_states(commands):
    commands.put(
        "qstat",
        'case "$*" in "-j "*) echo "error reason    1:          can not find the shell"; exit;; esac',
        out=QSTAT_XML,
    )
    commands.put("qacct", out=QACCT)
    ids = ["1", "6", "7", "8", "10", "11", "12", "13", "14", "15"]
    states = scheduler_of("sge").query("cs-me-1", ids)
    assert brief(states) == {
        "1": ("running", "", None), "2": ("pending", "", None), "3": ("held", "removed", None),
        "4": ("held", "", None), "5": ("ending", "removed", None), "6": ("failed", "exit", 3),
        "7": ("failed", "removed", -9), "8": ("failed", "walltime", -9), "10": ("done", "", 0),
        "11": ("ending", "", None), "12": ("failed", "memory", -9), "13": ("failed", "walltime", -9),
        "14": ("failed", "exit", -11), "15": ("failed", "node", 0),
        "20": ("running", "", None), "21": ("ending", "removed", None), "22": ("pending", "", None),
        "23": ("running", "", None),
    }  # fmt: skip
    assert "can not find the shell" in states["4"].says


def test_sge_accounts_come_late_or_never(commands, monkeypatch):
    scheduler, now = scheduler_of("sge"), [1000.0]
    monkeypatch.setattr("executors.batch.sge.time.monotonic", lambda: now[0])
    commands.put("qstat", out=QSTAT_XML)
    commands.put("qacct", err="error: job name cs-me-1 not found\n", code=1)
    ids = ["5", "12"]
    assert brief(scheduler.query("cs-me-1", ids))["12"] == ("ending", "", None)
    commands.put("qstat", out="<job_info/>")
    now[0] += 10
    assert brief(scheduler.query("cs-me-1", ids)) == {
        "5": ("failed", "removed", None),  # it was seen leaving, and the accounts will not say so
        "12": ("ending", "", None),
    }
    commands.put("qacct", out=QACCT)
    assert brief(scheduler.query("cs-me-1", ids))["12"] == ("failed", "memory", -9)
    now[0] += 20
    commands.put("qacct", err="error: job name cs-me-1 not found\n", code=1)
    assert brief(scheduler.query("cs-me-1", ["12"])) == {"12": ("gone", "", None)}


def test_sge_accounts_that_cannot_be_read(commands):
    scheduler = scheduler_of("sge")
    commands.put("qstat", out="<job_info/>")
    commands.put("qacct", err="error: cannot open accounting: Permission denied\n", code=1)
    for _ in range(2):
        assert brief(scheduler.query("cs-me-1", ["12"])) == {"12": ("gone", "", None)}
    assert [call[0] for call in commands.calls].count("qacct") == 1


def test_sge_why_pending(commands):
    said = (
        "job_number:   3\n"
        'scheduling info:            cannot run in queue "all.q" because it is not in its list\n'
        '                            (-l h_rt=120) cannot run in queue "short.q"\n\n'
    )
    commands.put("qstat", out=said)
    assert scheduler_of("sge").why_pending(["3"]) == (
        'cannot run in queue "all.q" because it is not in its list; (-l h_rt=120) cannot run in queue "short.q"'
    )
    commands.put("qstat", out="scheduling info:            There are no messages available\n")
    assert scheduler_of("sge").why_pending(["3"]) == ""


def test_an_answer_of_sge_that_is_no_xml(commands):
    commands.put("qstat", out="<job_info><half")
    with pytest.raises(CommandError, match="cannot be read"):
        scheduler_of("sge").query("cs-me-1", [])


QSTAT_F = """\
Job Id: 1.pbs
    Job_Name = cs-me-1
    job_state = R

Job Id: 2.pbs
    Job_Name = cs-me-1
    job_state = Q
    comment = Can Never Run: Insufficient amount of resource: ncpus (R: 900 A:
\t 64 T: 64)

Job Id: 3.pbs
    job_state = F
    Exit_status = 271

Job Id: 4.pbs
    job_state = F
    Exit_status = -29

Job Id: 5.pbs
    job_state = H
    Hold_Types = u

Job Id: 6.pbs
    job_state = F
    Exit_status = 0

Job Id: 8.pbs
    job_state = F
"""


def test_pbs_states(commands):
    commands.put("qselect", out="1.pbs\n2.pbs\n3.pbs\n4.pbs\n5.pbs\n6.pbs\n")
    commands.put("qstat", out=QSTAT_F, err="qstat: Unknown Job Id 7.pbs", code=153)
    states = scheduler_of("pbs").query("cs-me-1", ["1.pbs", "7.pbs"])
    assert brief(states) == {
        "1.pbs": ("running", "", None), "2.pbs": ("pending", "", None), "3.pbs": ("failed", "removed", -15),
        "4.pbs": ("failed", "walltime", -29), "5.pbs": ("held", "removed", None), "6.pbs": ("done", "", 0),
        "7.pbs": ("gone", "", None), "8.pbs": ("failed", "removed", None),
    }  # fmt: skip
    assert states["2.pbs"].hopeless
    assert "64 T: 64" in states["2.pbs"].says


def test_an_empty_queue_of_pbs_takes_one_command(commands):
    commands.put("qselect")
    assert scheduler_of("pbs").query("cs-me-1", []) == {}
    assert [call[0] for call in commands.calls] == ["qselect"]


def test_removing_at_pbs_by_name(commands):
    commands.put("qselect", out="1.pbs\n2.pbs\n")
    commands.put("qdel")
    argv = scheduler_of("pbs").cancel_argv("cs-me-1")
    assert subprocess.run(argv, timeout=30, env={"PATH": os.environ["PATH"]}, check=False).returncode == 0
    assert [call[0] for call in commands.calls] == ["qselect", "qdel"]
    assert commands.calls[0][-2:] == ["-N", "cs-me-1"]
    assert commands.calls[1][1:] == ["1.pbs", "2.pbs"]
    assert argv[0] == sys.executable


def test_removing_at_pbs_when_nothing_is_there(commands):
    commands.put("qselect")
    commands.put("qdel")
    scheduler_of("pbs").cancel_named("cs-me-1")
    assert [call[0] for call in commands.calls] == ["qselect"]


BJOBS = """\
1^RUN^-^-^-
2^PEND^-^-^New job is waiting for scheduling;
3^EXIT^130^TERM_OWNER: job killed by owner^-
4^EXIT^137^TERM_MEMLIMIT: job killed after reaching LSF memory usage limit^-
5^EXIT^140^TERM_RUNLIMIT: job killed after reaching LSF run time limit^-
6^EXIT^127^-^-
7^DONE^-^-^-
8^PSUSP^-^-^The job was suspended by the user
9^UNKWN^-^-^-
Job noise
"""


def test_lsf_states(commands):
    commands.put("bjobs", out=BJOBS)
    states = scheduler_of("lsf").query("cs-me-1", ["1", "99"])
    assert brief(states) == {
        "1": ("running", "", None), "2": ("pending", "", None), "3": ("failed", "removed", -2),
        "4": ("failed", "memory", -9), "5": ("failed", "walltime", -12), "6": ("failed", "exit", 127),
        "7": ("done", "", None), "8": ("held", "removed", None), "9": ("ending", "node", None),
        "99": ("gone", "", None),
    }  # fmt: skip
    assert "New job is waiting" in states["2"].says


def test_an_empty_queue_of_lsf(commands):
    commands.put("bjobs", err="Job <cs-me-1> is not found\n", code=255)
    assert scheduler_of("lsf").query("cs-me-1", []) == {}


# Removing.


@pytest.mark.parametrize(
    ("system", "argv"),
    [
        ("condor", ["condor_rm", "-constraint", 'CoffeaScaleout == "cs-me-1"']),
        ("slurm", ["scancel", "--quiet", f"--user={os.getuid()}", "--name=cs-me-1"]),
        ("sge", ["qdel", "cs-me-1"]),
        ("lsf", ["bkill", "-J", "cs-me-1", "0"]),
    ],
)
def test_removing_by_name(commands, system, argv):
    commands.put(argv[0], err="nothing found", code=1)
    scheduler = scheduler_of(system)
    assert scheduler.cancel_argv("cs-me-1") == argv
    scheduler.cancel_named("cs-me-1")
    assert commands.calls == [argv]


@pytest.mark.parametrize("system", SYSTEMS)
def test_removing_no_job_asks_nobody(commands, system):
    scheduler_of(system).cancel([])
    assert commands.calls == []


# Words.


@pytest.mark.parametrize(
    ("code", "subcode", "said", "words", "fate"),
    [
        (13, 2, "x", "an input file is missing", ""),
        (12, 2, "x", "an output file that it should bring back is missing", ""),
        (34, 0, "x", "it used more memory than requested", "memory"),
        (21, 102, "memory usage exceeded request_memory", "it used more memory than requested", "memory"),
        (3, 34, "The job attribute PeriodicHold expression", "it used more memory than requested", "memory"),
        (
            26,
            0,
            "SYSTEM_PERIODIC_HOLD: job exceeded allowed runtime",
            "it ran longer than allowed",
            "walltime",
        ),
        (26, 0, "your quota of goodwill is used up", "held by a rule of the site", ""),
        (1, 0, "via condor_hold (by user me)", "held by its owner", "removed"),
        (999, 7, "x", "held with code 999/7", ""),
    ],
)
def test_reasons_to_hold(code, subcode, said, words, fate):
    meaning = holds.condor_hold(code, subcode, said)
    assert (meaning.words, meaning.fate) == (words, fate)


# HoldReasonCode of HTCondor's manual (job ClassAd attributes) and of its condor_holdcodes.h: what each is about.
HOLD_CODES = {
    "Unspecified": "no reason", "UserRequest": "its owner", "GlobusGramError": "grid", "JobPolicy": "a rule of the job",
    "CorruptedCredential": "credential", "JobPolicyUndefined": "has no value", "FailedToCreateProcess": "not be started",
    "UnableToOpenOutput": "its output", "UnableToOpenInput": "standard input", "UnableToOpenOutputStream": "its output",
    "UnableToOpenInputStream": "standard input", "InvalidTransferAck": "transfer", "TransferOutputError": "output",
    "TransferInputError": "input files", "IwdError": "its folder", "SubmittedOnHold": "submitted on hold",
    "SpoolingInput": "on their way", "JobShadowMismatch": "version", "InvalidTransferGoAhead": "transfer",
    "HookPrepareJobFailure": "preparation", "MissedDeferredExecutionTime": "time", "StartdHeldJob": "by the node",
    "UnableToInitUserLog": "event log", "FailedToAccessUserAccount": "account", "NoCompatibleShadow": "can run such",
    "InvalidCronSettings": "cron", "SystemPolicy": "rule of the site", "SystemPolicyUndefined": "has no value",
    "GlexecChownSandboxToUser": "handed over", "PrivsepChownSandboxToUser": "handed over",
    "GlexecChownSandboxToCondor": "handed over", "PrivsepChownSandboxToCondor": "handed over",
    "MaxTransferInputSizeExceeded": "larger than", "MaxTransferOutputSizeExceeded": "output that large",
    "JobOutOfResources": "memory", "InvalidDockerImage": "image", "FailedToCheckpoint": "save its state",
    "EC2UserError": "cloud", "EC2InternalError": "cloud", "EC2AdminError": "cloud", "EC2ConnectionProblem": "cloud",
    "EC2ServerError": "cloud", "EC2InstancePotentiallyLost": "cloud", "PreScriptFailed": "before it failed",
    "PostScriptFailed": "after it failed", "SingularityTestFailed": "containers", "JobDurationExceeded": "longer",
    "JobExecuteExceeded": "longer", "HookShadowPrepareJobFailure": "preparation",
}  # fmt: skip


@pytest.mark.parametrize(("code", "name"), enumerate(HOLD_CODES))
def test_every_code_of_the_manual(code, name):
    assert HOLD_CODES[name] in holds.condor_hold(code, 0, "").words


@pytest.mark.parametrize(
    ("code", "subcode", "said", "words", "fate"),
    [
        (34, 0, "Job has exceeded allocated disk (5000 KB)", "it filled more disk than requested", ""),
        (34, 0, "Job has gone over cgroup memory limit of 128 megabytes", "it used more memory", "memory"),
        (5, 0, "The job attribute PeriodicHold expression 'X' evaluated to UNDEFINED", "has no value", ""),
        (21, 101, "CPU usage exceeded request_cpus", "more cores", ""),
        (21, 103, "runtime exceeded maximum (86400 seconds)", "ran longer", "walltime"),
        (21, 104, "disk usage exceeded allocated disk", "more disk", ""),
        (12, 122, "Disk quota exceeded", "no space is left", ""),
        (13, 13, "Permission denied", "may not be read", ""),
        (6, 2, "exec: No such file or directory", "is not on the node", ""),
    ],
)
def test_codes_that_say_more(code, subcode, said, words, fate):
    meaning = holds.condor_hold(code, subcode, said)
    assert words in meaning.words
    assert meaning.fate == fate


@pytest.mark.parametrize(
    ("reason", "hopeless", "part"),
    [
        ("Resources", False, "free nodes"),
        ("(Priority)", False, "others"),
        ("PartitionTimeLimit", True, "--walltime"),
        ("QOSMaxJobsPerUserLimit", False, "QOS"),
        ("AssocGrpCpuLimit", False, "account"),
        ("AssocMaxCpuPerJobLimit", True, "--cores"),
        ("QOSMaxMemoryPerJob", True, "--memory"),
        ("QOSMaxCpuPerUserLimit", False, "QOS"),
        ("ReqNodeNotAvail, UnavailableNodes:n1", False, "sinfo"),
        ("launch_failed_requeued_held", False, "could not start"),
        ("SomethingOfNextYear", False, "SomethingOfNextYear"),
    ],
)
def test_reasons_to_wait(reason, hopeless, part):
    meaning = reasons.slurm_pending(reason)
    assert meaning.hopeless is hopeless
    assert part in meaning.sentence(reason)


# Of Slurm's library and its page of reasons for jobs: those of which there is one for each thing that is counted...
COUNTED = ("BB", "Billing", "Cpu", "Energy", "GRES", "License", "Mem", "Node", "Unknown")
LIMITS = [
    "Grp{}Limit",
    "Grp{}",
    "Grp{}Minutes",
    "Grp{}RunMinutes",
    "Max{}PerJob",
    "Max{}PerNode",
    "Max{}MinutesPerJob",
]
# ... and the others.
REASONS = [
    "AccountNotAllowed",
    "AccountingPolicy",
    "AssocGrpJobsLimit",
    "AssocGrpSubmitJobsLimit",
    "AssocGrpWallLimit",
    "AssocMaxJobsLimit",
    "AssocMaxSubmitJobLimit",
    "AssocMaxWallDurationPerJobLimit",
    "AssociationJobLimit",
    "AssociationResourceLimit",
    "AssociationTimeLimit",
    "BadConstraints",
    "BeginTime",
    "BurstBufferOperation",
    "BurstBufferResources",
    "BurstBufferStageIn",
    "Cleaning",
    "DeadLine",
    "Dependency",
    "DependencyNeverSatisfied",
    "FedJobLock",
    "FrontEndDown",
    "InactiveLimit",
    "InvalidAccount",
    "InvalidQOS",
    "JobArrayTaskLimit",
    "JobHeldAdmin",
    "JobHeldUser",
    "JobHoldMaxRequeue",
    "Licenses",
    "MaxBBPerAccount",
    "MaxCpuPerAccount",
    "MaxJobsPerAccount",
    "MaxMemPerLimit",
    "MaxMemoryPerAccount",
    "MaxSubmitJobsPerAccount",
    "NodeDown",
    "PartitionConfig",
    "PartitionDown",
    "PartitionInactive",
    "PartitionNodeLimit",
    "PartitionTimeLimit",
    "Priority",
    "Prolog",
    "QOSGrpJobsLimit",
    "QOSGrpWallLimit",
    "QOSJobLimit",
    "QOSMaxJobsPerUserLimit",
    "QOSMaxSubmitJobPerUserLimit",
    "QOSMaxWallDurationPerJobLimit",
    "QOSMinCpuNotSatisfied",
    "QOSMinMemory",
    "QOSMinNode",
    "QOSNotAllowed",
    "QOSResourceLimit",
    "QOSTimeLimit",
    "QOSUsageThreshold",
    "ReqNodeNotAvail",
    "RequiresReservation",
    "Reservation",
    "ReservationDeleted",
    "Resources",
    "SchedDefer",
    "SystemFailure",
]


@pytest.mark.parametrize(
    "reason",
    [
        *REASONS,
        *(f"{whose}{one.format(what)}" for whose in ("Assoc", "QOS") for one in LIMITS for what in COUNTED),
        "Nodes_required_for_job_are_DOWN,_DRAINED_or_reserved_for_jobs_in_higher_priority_partitions",
        "(ReqNodeNotAvail, May be reserved for other job)",
        "launch failed requeued held",
    ],
)
def test_every_reason_of_slurm(reason):
    assert reasons.slurm_pending(reason).words != "waits"


OTHERS = {"--constraint", "--format", "--partition", "--qos"}  # of Slurm's own commands


@pytest.mark.parametrize(
    "file", ["executors/batch", "sites", "executors/preflight.py", "executors/canary.py"]
)
def test_every_option_that_is_advised_exists(file):
    """Advice that names an option of nobody's mends nothing."""
    from executors import options as declared

    root = Path(__file__).parents[2]
    known = {flag for each in declared.options() for flag in each.flags} | {"--canary", "--as-json"} | OTHERS
    names = {"holds.py", "reasons.py", "condor.py", "preflight.py", "canary.py"}
    paths = [root / file] if file.endswith(".py") else sorted((root / file).glob("*.py"))
    found = {}
    for path in paths:
        if path.name in names or path.name.startswith("check_"):
            text = "\n".join(re.findall(r'"[^"\n]*"', path.read_text()))
            words = re.findall(r"(?<![\w.=-])--[a-z][a-z-]+(?=[ ;,:)\"=]|$)", text)
            found |= {word: path.name for word in words if not text.count(f'"{word}"')}
    assert found
    assert {word: name for word, name in found.items() if word not in known} == {}


STATES = [
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "LAUNCH_FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "RECONFIG_FAIL",
    "REVOKED",
    "TIMEOUT",
]
NOT_OVER = [
    "CONFIGURING",
    "COMPLETING",
    "EXPEDITING",
    "PENDING",
    "POWER_UP_NODE",
    "REQUEUED",
    "REQUEUE_FED",
    "REQUEUE_HOLD",
    "RESIZING",
    "RESV_DEL_HOLD",
    "RUNNING",
    "SIGNALING",
    "SPECIAL_EXIT",
    "STAGE_OUT",
    "STOPPED",
    "SUSPENDED",
    "UPDATE_DB",
]


@pytest.mark.parametrize("state", [*STATES, *NOT_OVER])
def test_every_state_of_slurm(commands, state):
    """A job that runs on must not be taken for one that ended, nor the other way round."""
    commands.put("squeue", out=f"{7:<32}{7:<24}{state:<24}{0:<16}{0:<8}None\n")
    (found,) = scheduler_of("slurm").query("cs-me-1", ["7"]).values()
    assert found.ended is (state in STATES)
    assert "its state is" not in found.says


@pytest.mark.parametrize(
    ("code", "part"),
    [
        (0, "by itself"),
        (3, "exit code 3"),
        (127, "--worker-python"),
        (126, "executable"),
        (-9, "SIGKILL"),
        (137, "SIGKILL"),
        (-11, "signal 11"),
        (None, "ended"),
    ],
)
def test_exit_codes(code, part):
    assert part in reasons.exit_words(code).sentence()


@pytest.mark.parametrize(
    ("line", "fate"),
    [
        ("slurmstepd: error: Detected 1 oom-kill event(s) in StepId=5.batch cgroup.", "memory"),
        ("slurmstepd: error: Step 5.4294967291 exceeded memory limit (700 > 600), being killed", "memory"),
        (
            "slurmstepd: error: *** JOB 5 ON n1 CANCELLED AT 2026-11-21T06:00:00 DUE TO TIME LIMIT ***",
            "walltime",
        ),
        (
            "slurmstepd: error: *** JOB 5 ON n1 CANCELLED AT 2026-11-21T06:00:00 DUE TO NODE FAILURE, SEE SLURMCTLD LOG ***",
            "node",
        ),
        ("slurmstepd: error: *** JOB 5 ON n1 CANCELLED AT 2026-11-21T06:00:00 ***", "removed"),
        ("TERM_RUNLIMIT: job killed after reaching LSF run time limit.", "walltime"),
        ("=>> PBS: job killed: walltime 62 exceeded limit 60", "walltime"),
        ("my analysis: the oom-kill plot is out of memory", ""),
    ],
)
def test_what_a_batch_system_writes_into_a_log(line, fate):
    meaning = reasons.fate_of_log(
        ["slurmstepd: error: *** JOB 5 CANCELLED AT now ***" if fate == "memory" else "hello", line]
    )
    assert (meaning.fate if meaning else "") == fate


# Logs.


def test_the_last_lines_of_the_right_job(tmp_path):
    (tmp_path / "112.err").write_text("wrong\n")
    (tmp_path / "12.err").write_text("\n".join(f"line {n}" for n in range(9)) + "\n\n")
    (tmp_path / "12.out").write_text("output\n")
    (tmp_path / "7.12.err").write_text("wrong: of another cluster\n")
    assert joblogs.last_lines(tmp_path, ("", "12"), 2) == ("12.err", ["line 7", "line 8"])


def test_the_right_task_of_a_cluster(tmp_path):
    for name in ("12.1.err", "12.10.err", "12.11.out"):
        (tmp_path / name).write_text(name)
    assert joblogs.last_lines(tmp_path, ("12.1",)) == ("12.1.err", ["12.1.err"])


def test_output_where_the_error_file_is_empty(tmp_path):
    (tmp_path / "3.err").write_text("\n")
    (tmp_path / "3.out").write_text("here\n")
    assert joblogs.last_lines(tmp_path, ("3",)) == ("3.out", ["here"])


def test_logs_that_are_traps(tmp_path):
    (tmp_path / "secret").write_text("password\n")
    (tmp_path / "3.err").symlink_to(tmp_path / "secret")
    os.mkfifo(tmp_path / "3.out")
    assert joblogs.last_lines(tmp_path, ("3",)) == ("", [])
    assert joblogs.last_lines(tmp_path / "absent", ("3",)) == ("", [])


def test_a_large_log_is_read_from_its_end(tmp_path):
    (tmp_path / "3.err").write_bytes(b"\xff" * 10_000_000 + b"\nlast\x1b[0m\n")
    assert joblogs.last_lines(tmp_path, ("3",), 1) == ("3.err", ["last[0m"])
