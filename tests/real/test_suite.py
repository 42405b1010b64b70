"""The same suite for both engines at both batch systems: exact, whatever is taken away, and nothing left."""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
import time

import pytest
from real.lab import accounted
from real.servers import processes

PLACES = [("slurm", "dask"), ("slurm", "parsl"), ("condor", "dask"), ("condor", "parsl")]
pytestmark = [
    pytest.mark.parametrize("lab", PLACES, indirect=True, ids=lambda place: f"{place[1]}/{place[0]}"),
    pytest.mark.timeout(600),
]

OPEN = """
import os, sys, time
import executors

name, file, jobs = sys.argv[1], sys.argv[2], int(sys.argv[3])
with executors.open(name, site_file=file, jobs=jobs, workers=1) as pool:
    # Each waits for the others: that many workers there are at once.
    futures = [pool.submit(time.sleep, 3) for _ in range(jobs)]
    for future in futures:
        future.result(timeout=90)
    print("inside", flush=True)
    while not os.path.exists(sys.argv[4]):
        time.sleep(0.1)
print("after", flush=True)
"""


def test_two_hundred_chunks(lab):
    """A run is the same, bit for bit, as the plain one."""
    lab.data(dy=[2500] * 2, tt=[5000])
    truth = lab.truth()
    code, out = lab.run(lab.command(workers=2))
    assert code == 0, out
    found = lab.manifest()
    accounted(found, 10_000)
    assert found["digest"] == truth
    lab.nothing_left(30)


def test_from_none_to_four_to_none(lab):
    """Jobs are there as long as the engine is open."""
    gate = lab.folder / "leave"
    process = lab.start([sys.executable, "-c", OPEN, lab.on, str(lab.batch.site_file), "4", str(gate)])
    said = itertools.takewhile(lambda line: line != "inside\n", process.stdout)
    print("".join(said))
    jobs = lab.batch.queue()
    assert [job.state for job in jobs] == ["running"] * 4, jobs
    assert len({job.name for job in jobs}) == 1
    gate.touch()
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "after\n")
    lab.nothing_left(30)


@pytest.mark.quick_at(("slurm", "dask"), ("condor", "parsl"))
def test_jobs_without_work_are_given_back(lab):
    """While one chunk takes its time, nobody else's machines are kept for it."""
    lab.data(dy=[1000])
    gate = lab.folder / "gate"
    argument = f"gate={gate}"
    command = lab.command("--wf-arg", argument, "--site-set", "limits.idle=2s", wf="OneSlow", jobs=3)
    process = lab.start(command)
    lab.until(lambda: len(lab.batch.running()) == 3, process)
    lab.until(lambda: len(lab.batch.queue()) == 1, process)
    assert lab.journal("task", wf="OneSlow")
    gate.touch()
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    assert "nothing left to do" in out, out
    accounted(lab.manifest(wf="OneSlow"), 1000)
    assert lab.manifest(wf="OneSlow")["digest"] == lab.truth("OneSlow", "--wf-arg", argument)
    assert not [line for line in lab.troubles("OneSlow").splitlines() if line], lab.troubles("OneSlow")
    lab.nothing_left(30)


@pytest.mark.timeout(1800)
def test_jobs_taken_away(lab, scale):
    """Whatever happens to jobs behind the runner's back: others take their place, and nothing is counted twice."""
    most, files = scale(5, 20), scale(4, 20)
    lab.data(dy=[10_000] * files)
    gate = lab.folder / "gate"
    argument = f"gate={gate}"
    rng = random.Random(f"{lab.on}-{most}")
    # The quick set is every way once with each engine at each batch system: twenty in all.
    ways = list(lab.batch.ways)
    ways = ways + rng.choices(ways, k=most - len(ways)) if most > len(ways) else ways[:most]
    rng.shuffle(ways)
    command = lab.command(
        "--wf-arg", argument, "--task-seconds", "1", "--retries", "20", wf="Paced", workers=2
    )
    process = lab.start(command)
    lab.until_working(process, wf="Paced")
    taken = []
    for way in ways:
        lab.until(lambda: lab.batch.running() and lab.batch.job_processes(), process, within=180)
        time.sleep(rng.uniform(0, 4))
        if running := lab.batch.running():
            job = rng.choice(running)
            lab.batch.take_away(job, way)
            taken.append((way, job.id))
        tasks = lab.journal("task", wf="Paced")
        lab.until(lambda: lab.journal("task", wf="Paced") > tasks, process, within=180)
    assert process.poll() is None, "the run was over before all jobs were taken away"
    gate.touch()
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, f"{taken}\n{lab.troubles('Paced')}\n{out}"
    assert len(taken) >= most - 1
    accounted(lab.manifest(wf="Paced"), files * 10_000)
    assert lab.manifest(wf="Paced")["digest"] == lab.truth("Paced", "--wf-arg", argument)
    lab.nothing_left(30)


def test_too_much_memory(lab):
    """The chunk that is too big for a job is halved; the others do not notice."""
    if not lab.batch.enforces_memory:
        pytest.skip("no writable cgroup of version 1: Slurm cannot hold a job to its memory")
    lab.data(dy=[10_000])
    began = time.monotonic()
    code, out = lab.run(lab.command("--memory", "1500MB", "--chunk", "2500", wf="Hungry"), timeout=300)
    assert code == 0, out
    accounted(lab.manifest(wf="Hungry"), 10_000)
    assert "memory" in out, out
    assert time.monotonic() - began < 150
    lab.nothing_left(30)


def test_no_such_queue(lab):
    """Refused by the batch system: said in its own words, at once."""
    lab.data(dy=[500])
    began = time.monotonic()
    code, out = lab.run(lab.command("--queue", "nosuch", "--no-check"), timeout=60)
    assert time.monotonic() - began < 30
    assert code == 4, out
    assert "nosuch" in out or "invalid partition" in out.lower(), out
    assert "Traceback" not in out
    lab.nothing_left(30)


@pytest.mark.quick_at(("slurm", "dask"), ("condor", "parsl"))
def test_broken_python(lab):
    """A worker's environment that does not work: the end of its log is in the answer."""
    lab.data(dy=[500])
    broken = lab.folder / "python"
    broken.write_text("#!/bin/sh\necho 'this environment is broken' >&2\nexit 3\n")
    broken.chmod(0o755)
    code, out = lab.run(lab.command("--worker-python", str(broken), "--no-check"), timeout=120)
    assert code == 4, out
    assert "this environment is broken" in out, out
    assert "Traceback" not in out
    lab.nothing_left(30)


@pytest.mark.quick_at(("slurm", "parsl"), ("condor", "dask"))
def test_missing_python(lab):
    """No such interpreter: nothing waits for workers that cannot come."""
    lab.data(dy=[500])
    code, out = lab.run(lab.command("--worker-python", "/nowhere/python", "--no-check"), timeout=120)
    assert code == 4, out
    assert "/nowhere/python" in out, out
    lab.nothing_left(30)


@pytest.mark.full
@pytest.mark.timeout(900)
def test_walltime_over(lab):
    """Jobs that are ended for their time are replaced, and that is no failure of any chunk."""
    lab.data(dy=[4000] * 2)
    argument = f"gate={lab.folder / 'never'}"
    walltime = ["--walltime", "1m"] if lab.batch.kind == "slurm" else ["--directive", "+MaxRuntime=40"]
    command = lab.command(
        "--wf-arg", argument, "--wf-arg", "pause=2", *walltime, "--task-seconds", "2", wf="Paced"
    )
    code, out = lab.run(command, timeout=800)
    assert code == 0, out
    accounted(lab.manifest(wf="Paced"), 8000)
    lab.nothing_left(30)


INTERRUPT = pytest.param("interrupt", marks=pytest.mark.quick_at(("slurm", "parsl"), ("condor", "dask")))


@pytest.mark.parametrize("way", [INTERRUPT, "kill", pytest.param("both", marks=pytest.mark.full)])
def test_the_runner_ends_and_comes_again(lab, way):
    """However the runner ends, its jobs leave the queue, and the same command finishes the work."""
    lab.data(dy=[5000])
    gate = lab.folder / "gate"
    command = lab.command("--wf-arg", f"gate={gate}", "--task-seconds", "1", wf="Paced", workers=2)
    process = lab.start(command)
    lab.until_working(process, 2, wf="Paced")
    assert lab.batch.running()
    began = time.monotonic()
    if way != "kill":
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    if way == "both":
        time.sleep(0.3)  # somebody is impatient
    if way != "interrupt":
        process.kill()
    out, _ = process.communicate(timeout=60)
    if way == "interrupt":
        assert process.returncode == 130, out
        assert "same command" in out
        assert "Traceback" not in out
    lab.nothing_left(60)
    print(f"{lab.on}: nothing left {time.monotonic() - began:.1f} s after {way}")
    gate.touch()
    code, out = lab.run(command)
    assert code == 0, out
    accounted(lab.manifest(wf="Paced"), 5000)
    assert lab.manifest(wf="Paced")["digest"] == lab.truth("Paced", "--wf-arg", f"gate={gate}")
    lab.nothing_left(30)


@pytest.mark.full
@pytest.mark.at("slurm")
def test_jobs_of_which_only_the_queue_knows(lab):
    """All that runs on a node dies, and Slurm says for minutes that its jobs run: others take their place."""
    lab.data(dy=[10_000])
    gate = lab.folder / "gate"
    command = lab.command("--wf-arg", f"gate={gate}", "--task-seconds", "1", wf="Paced", workers=2)
    process = lab.start(command)
    now = lambda: {job.id for job in lab.batch.running()}  # noqa: E731
    for _ in range(3):  # Slurm may see by itself that a job has ended: then it has to be done again
        lab.until_working(process, lab.journal("task", wf="Paced") + 2, wf="Paced")
        old = now()
        for node in lab.batch.nodes.values():
            node.hollow()
        unnoticed = now() == old
        lab.until(lambda old=old: now() and old.isdisjoint(now()), process, within=180)
        if unnoticed:
            break
    assert unnoticed, "Slurm has noticed, each time"
    tasks = lab.journal("task", wf="Paced")
    lab.until(lambda: lab.journal("task", wf="Paced") > tasks, process, within=180)
    gate.touch()
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    if lab.on.startswith("dask"):  # Parsl misses its managers as late as Slurm its jobs
        assert "should run, but has no worker any more" in out, out
    accounted(lab.manifest(wf="Paced"), 10_000)
    lab.nothing_left(30)


@pytest.mark.quick_at(("slurm", "parsl"), ("condor", "dask"))
def test_all_dies_at_once(lab):
    """As when the login node goes down: nobody is left to remove the jobs, so that the next run does it."""
    lab.data(dy=[5000])
    gate = lab.folder / "gate"
    command = lab.command("--wf-arg", f"gate={gate}", "--task-seconds", "1", wf="Paced", workers=2)
    process = lab.start(command)
    lab.until_working(process, 2, wf="Paced")
    old = {job.name for job in lab.batch.queue()}
    here = lab.here()  # a short command that asks the batch system, too: it may be gone by itself
    for number in (signal.SIGSTOP, signal.SIGKILL):  # none sees another's death
        processes.send(here, number)
    process.communicate(timeout=60)
    assert {job.name for job in lab.batch.queue()} == old, "somebody was left after all"
    gate.touch()
    code, out = lab.run(command)
    assert code == 0, out
    assert f"whatever was left of {old.pop()}" in out, out
    accounted(lab.manifest(wf="Paced"), 5000)
    lab.nothing_left(30)
    assert not list(lab.rundir(wf="Paced").glob("**/*.key*")), "keys were left"
    assert not list(lab.rundir(wf="Paced").glob("logs/open-*")), "notes were left"


@pytest.mark.quick_at(("slurm", "dask"), ("condor", "parsl"))
def test_the_host_is_killed(lab):
    """The process that holds Dask's scheduler or Parsl's interchange dies: the run goes on or says why, its jobs go."""
    lab.data(dy=[5000])
    gate = lab.folder / "gate"
    command = lab.command("--wf-arg", f"gate={gate}", "--task-seconds", "1", wf="Paced", workers=2)
    process = lab.start(command)
    lab.until_working(process, 2, wf="Paced")
    hosts = [pid for pid in lab.here() if pid != process.pid and listens(pid)]
    assert hosts, "nothing of the runner's listens"
    processes.end(hosts, signal.SIGKILL)
    gate.touch()
    out, _ = process.communicate(timeout=240)
    if process.returncode:
        assert process.returncode in (3, 4), out
        lab.nothing_left(60)
        code, out = lab.run(command)
        assert code == 0, out
    accounted(lab.manifest(wf="Paced"), 5000)
    lab.nothing_left(60)


def listens(pid):
    import psutil

    try:
        return any(c.status == "LISTEN" for c in psutil.Process(pid).net_connections())
    except psutil.Error:
        return False
