"""Why workers do not come, or die: the program asks the batch system and says it, on real ones."""

from __future__ import annotations

import json
import re
import sys
import time

import pytest
from real.lab import ROOT, accounted
from real.servers import processes

SLURM, CONDOR = [("slurm", "dask")], [("condor", "dask")]
THE_OTHER = [pytest.param(("condor", "parsl"), marks=pytest.mark.full)]  # the crew is the same
pytestmark = pytest.mark.timeout(300)


def at(places):
    return pytest.mark.parametrize("lab", places, indirect=True, ids=lambda place: f"{place[1]}/{place[0]}")


def script(lab, text):
    path = lab.folder / "python"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def gives_up(lab, *more, **about):
    """What a run says that gets no worker, and that it leaves nothing."""
    lab.data(dy=[500])
    code, out = lab.run(lab.command("--no-check", *more, **about), timeout=120)
    assert code == 4, out
    assert "Traceback" not in out
    lab.nothing_left(30)
    return out


def last(out):
    """The error that it ends with."""
    return out[out.rindex("runner.py: error:") :]


@at([*SLURM, ("condor", "parsl")])
def test_jobs_that_end_without_a_complaint(lab):
    out = gives_up(lab, "--worker-python", script(lab, "exit 0"))
    assert "ended by itself (with no complaint: does --worker-python" in last(out)


@at(CONDOR)
@pytest.mark.parametrize(
    ("directive", "says"),
    [
        ("hold=True", "held 15/0: submitted on hold"),
        ("periodic_hold=True", "held 3/0: held by a rule of the job or site: The job attribute PeriodicHold"),
    ],
)
def test_all_held(lab, directive, says):
    """At once, and not when the patience is over."""
    out = gives_up(lab, "--directive", directive)
    assert says in last(out)


@at([*CONDOR, *THE_OTHER])
def test_partially_held(lab):
    """The first job of each submission is held and the others work: it is said, and the run goes on."""
    lab.data(dy=[2000])
    words = ["--directive", "periodic_hold=ProcId == 0", "--wf-arg", f"gate={lab.folder / 'never'}"]
    code, out = lab.run(lab.command(*words, wf="Paced", jobs=3))
    assert code == 0, out
    accounted(lab.manifest(wf="Paced"), 2000)
    assert len(re.findall(r"is held 3/0: held by a rule", out)) == 1, "once for each reason"
    lab.nothing_left(30)


@at(SLURM)
def test_waiting_ones_are_held(lab):
    """By whoever runs the site, while others work."""
    lab.data(dy=[20_000])
    gate = lab.folder / "gate"
    process = lab.start(lab.command("--wf-arg", f"gate={gate}", wf="Paced", jobs=12))
    lab.until_working(process, wf="Paced")
    waiting = [job.id for job in lab.batch.queue() if job.state == "pending"]
    assert waiting
    for one in waiting:
        lab.batch.command("scontrol", "hold", one)
    lab.until(lambda: {job.id for job in lab.batch.queue()}.isdisjoint(waiting), process)
    gate.touch()
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    accounted(lab.manifest(wf="Paced"), 20_000)
    assert "is held: held by the site: JobHeldAdmin" in out
    lab.nothing_left(30)


@at(CONDOR)
def test_no_slot_fits(lab):
    """HTCondor's own analysis, in the line of progress and in the end."""
    out = gives_up(lab, "--directive", 'requirements=(Machine == "none")', "--start-timeout", "12")
    assert out.count('no machine has Machine == "none" (requirements') == 2, out


@at(SLURM)
def test_a_partition_that_is_down(lab):
    lab.batch.command("scontrol", "update", "PartitionName=main", "State=DOWN")
    try:
        out = gives_up(lab, "--start-timeout", "10")
    finally:
        lab.batch.command("scontrol", "update", "PartitionName=main", "State=UP")
    assert "the jobs wait in the queue: the partition is down: PartitionDown" in out
    assert "2 pending (PartitionDown)" in last(out)


@at([*CONDOR, *THE_OTHER])
@pytest.mark.parametrize(
    "spooled", [pytest.param(False, marks=pytest.mark.full), True], ids=["carried", "spooled"]
)
def test_logs_come_back(lab, spooled):
    """Where the nodes do not see the run's folder, too."""
    text = lab.batch.site_file.read_text()
    options = 'submit_options = ["-spool"]\n' if spooled else ""
    far = lab.folder / "far.toml"
    far.write_text(text.replace("[job]\n", f"[job]\n{options}"))
    lab.site_file = lab.own(far)
    broken = script(lab, "echo 'this environment is broken' >&2; exit 3")
    out = gives_up(lab, "--worker-python", broken, "--shared-store", "no")
    assert "    this environment is broken" in last(out)
    logs = [path.read_text() for path in (lab.rundir() / "logs").glob("*.err")]
    assert logs
    assert all("this environment is broken" in one for one in logs)


@at(SLURM)
def test_two_runs_want_one_port(lab):
    """The second says so at once, and who has it."""
    lab.data(dy=[5000])
    port = str(processes.free_ports(1))
    gate = lab.folder / "gate"
    more = ["--scheduler-port", port, "--wf-arg", f"gate={gate}"]
    first = lab.start(lab.command(*more, "--task-seconds", "1", wf="Paced"))
    lab.until_working(first, wf="Paced")
    began = time.monotonic()
    code, out = lab.run(lab.command(*more, wf="Paced", out="second"))
    assert time.monotonic() - began < 15
    assert code == 4, out
    assert f"port {port} is taken on 127.0.0.1: held by another run, pid {first.pid} of you" in out
    assert f"end it: kill {first.pid}" in out
    gate.touch()
    out, _ = first.communicate(timeout=60)
    assert first.returncode == 0, out
    lab.nothing_left(30)


@at([*SLURM, *CONDOR, ("sge", "dask")])
def test_check_has_the_job_read(lab):
    """By the batch system's own parser; in JSON, as a program reads it."""
    words = {
        "slurm": (["--memory", "900GB"], "Requested node configuration is not available"),
        "condor": (["--directive", "requirements=((("], "Parse error"),
        "sge": (["--account", "nobody"], 'the requested project "nobody" does not exist'),
    }
    more, says = words[lab.batch.kind]
    found = checked(lab, *more)
    assert found["job"]["ok"] is False
    assert says in found["job"]["says"]
    assert found["job"]["mend"]
    assert checked(lab)["job"]["ok"] is True
    assert not lab.batch.queue(), "nothing is submitted"


@at(CONDOR)
def test_check_asks_the_pool(lab):
    assert "900 GB" in checked(lab, "--memory", "900GB")["size"]["says"]
    none = checked(lab, "--site-set", 'schedd.constraint=Name == "none"')["schedd"]
    assert none["ok"] is False
    assert "none with" in none["says"]
    assert checked(lab, "--site-set", "schedd.rank=TotalIdleJobs")["schedd"]["ok"] is True
    unknown = checked(lab, "--directive", "bogus_command=1")["job"]
    assert "bogus_command" in unknown["says"]


def checked(lab, *more):
    """The checks by name."""
    command = [sys.executable, str(ROOT / "runner.py"), "check", "--executor", lab.on]
    _, out = lab.run([*command, "--site-file", str(lab.site_file), "--as-json", *more], timeout=60)
    return {each["name"]: each for each in json.loads(out[out.index("{") :])["checks"]}
