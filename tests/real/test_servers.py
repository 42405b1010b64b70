"""The fixtures themselves: a test of the project may rely on what they promise."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from real.servers import condor as condor_pool
from real.servers import processes, session
from real.servers import slurm as slurm_cluster

BOTH = pytest.mark.parametrize("batch", ["slurm", "condor"], indirect=True)


def submit(batch, folder, count=1, seconds=60, options=()):
    """Jobs that sleep; in the batch system's own words."""
    script = folder / "job.sh"
    script.write_text(f"#!/bin/sh\nexec sleep {seconds}\n")
    script.chmod(0o755)
    if batch.kind == "slurm":
        argv = [
            "sbatch",
            "--parsable",
            f"--array=1-{count}",
            f"--output={folder}/%A_%a.out",
            *options,
            str(script),
        ]
    else:
        (folder / "job.sub").write_text(
            f"executable = {script}\nrequest_memory = 100MB\nrequest_disk = 1MB\nbatch_name = test\n"
            f"log = {folder}/log\nshould_transfer_files = YES\n{chr(10).join(options)}\nqueue {count}\n"
        )
        argv = ["condor_submit", "-terse", str(folder / "job.sub")]
    batch.command(*argv)


@BOTH
def test_jobs_run_and_are_cleared(batch):
    folder = batch.fresh("run")
    submit(batch, folder, 3)
    assert processes.wait_for(lambda: len(batch.running()) == 3, 30), batch.queue()
    assert processes.wait_for(lambda: len(batch.job_processes()) >= 3, 10)
    batch.clear()
    assert batch.empty(5)


@BOTH
def test_a_job_ends_by_itself(batch):
    submit(batch, batch.fresh("end"), 2, seconds=0)
    assert processes.wait_for(lambda: not batch.queue(), 30), batch.queue()


@pytest.mark.full  # the suite of the engines would fail with them
@pytest.mark.parametrize(
    ("batch", "way"),
    [("slurm", way) for way in slurm_cluster.Slurm.ways]
    + [("condor", way) for way in condor_pool.Condor.ways],
    indirect=["batch"],
)
def test_a_job_is_taken_away(batch, way):
    submit(batch, batch.fresh("away"))
    assert processes.wait_for(lambda: batch.running() and batch.job_processes(), 30), batch.queue()
    (job,) = batch.running()
    before = set(batch.job_processes())
    batch.take_away(job, way)
    assert processes.wait_for(lambda: not before & set(batch.job_processes()), 30), batch.queue()
    if way in ("hold", "condor_hold"):
        assert processes.wait_for(lambda: [j.state for j in batch.queue()] == ["held"], 15), batch.queue()
    batch.clear()
    batch.mend()


@BOTH
def test_memory_is_enforced(batch):
    """The tests that rely on it are worth nothing else."""
    if batch.kind == "slurm" and not batch.enforces_memory:
        pytest.skip("no writable cgroup of version 1: Slurm cannot hold a job to its memory")
    folder = batch.fresh("memory")
    eat = folder / "eat.py"
    eat.write_text("import time\nx = bytearray(b'1' * (400 << 20))\ntime.sleep(60)\n")
    script = folder / "job.sh"  # as the engines do: HTCondor itself looks with other rights than it runs with
    script.write_text(f"#!/bin/sh\nexec {sys.executable} {eat}\n")
    script.chmod(0o755)
    if batch.kind == "slurm":
        batch.command("sbatch", "--mem=100", f"--output={folder}/out", str(script))
        assert processes.wait_for(lambda: not batch.queue(), 30)
        return
    (folder / "job.sub").write_text(
        f"executable = {script}\nrequest_memory = 100MB\nshould_transfer_files = YES\nrequest_disk = 1MB\nqueue\n"
    )
    batch.command("condor_submit", str(folder / "job.sub"))
    assert processes.wait_for(lambda: [job.state for job in batch.queue()] == ["held"], 40), batch.queue()
    assert "memory" in batch.queue()[0].reason
    batch.clear()


SCRIPT = """
    import sys, time
    sys.path.insert(0, sys.argv[1])
    from real.servers import condor, session, slurm
    module = {"slurm": slurm, "condor": condor}[sys.argv[2]]
    with session.folder() as folder:
        server = (slurm.Slurm if sys.argv[2] == "slurm" else condor.Condor)(folder).start()
        print(folder, flush=True)
        time.sleep(300)
"""


@BOTH
def test_what_a_killed_session_left_is_ended(batch, tmp_path):
    """And only that: the servers of this very session live on."""
    argv = [
        sys.executable,
        "-c",
        textwrap.dedent(SCRIPT),
        str(session.__file__).rpartition("/real/")[0],
        batch.kind,
    ]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        folder = process.stdout.readline().strip()
        process.kill()
    variable = {"slurm": "SLURM_CONF", "condor": "CONDOR_CONFIG"}[batch.kind]
    mine = lambda: processes.with_environment(variable, lambda value: value.startswith(folder + "/"))  # noqa: E731
    assert mine()
    swept = session.sweep(slurm_cluster.end, condor_pool.end)
    assert folder in map(str, swept)
    assert not mine()
    assert not os.path.exists(folder)
    assert batch.queue() == []


def inner(folder, text):
    """The command of a pytest session of its own, with these fixtures and the summary of all tests."""
    test = folder / "test_inner.py"
    test.write_text(textwrap.dedent(text))
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n  real: x\n  full: x\n")
    tests = Path(session.__file__).parents[2]
    argv = [sys.executable, "-m", "pytest", "-s", "-p", "no:cacheprovider", f"--basetemp={folder}/inner"]
    argv += [
        f"--confcutdir={folder}",
        "-p",
        "conftest",
        "-p",
        "real.conftest",
        "--rootdir",
        str(folder),
        str(test),
    ]
    return argv, {**os.environ, "PYTHONPATH": str(tests)}


def test_an_interrupted_session_leaves_nothing(tmp_path):
    """Ctrl-C in the middle of a test: the fixtures still end what they started."""
    if why := slurm_cluster.missing() or condor_pool.missing():
        pytest.skip(why)
    argv, env = inner(
        tmp_path,
        """
        import time
        def test_one(slurm, condor):
            print()
            print(slurm.folder, condor.folder, flush=True)
            time.sleep(60)
        """,
    )
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=env) as process:
        folders = next(words for line in process.stdout if len(words := line.split()) == 2 and "csr-" in line)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    for variable in ("SLURM_CONF", "CONDOR_CONFIG"):
        assert not processes.with_environment(variable, lambda value: value.startswith(tuple(folders)))
    assert not any(map(os.path.exists, folders))


@pytest.mark.parametrize("ci", ["", "1"])
def test_what_cannot_run_is_said_aloud(tmp_path, ci):
    """And where everything has to be there, it is a failure."""
    argv, env = inner(
        tmp_path,
        """
        import pytest
        from real.servers import slurm as cluster
        cluster.missing = lambda: "no slurmctld; on Debian: apt-get install slurmctld"
        pytestmark = pytest.mark.real
        def test_one(slurm): ...
        def test_two(slurm): ...
        """,
    )
    done = subprocess.run(
        argv, capture_output=True, text=True, cwd=tmp_path, env=env | {"CI": ci}, check=False
    )
    if ci:
        assert done.returncode == 1, done.stdout + done.stderr
        assert "no slurmctld" in done.stdout
    else:
        assert done.returncode == 0, done.stdout + done.stderr
        last = [line for line in done.stdout.splitlines() if line.startswith("real: ")]
        assert last == ["real: 2 tests skipped: no slurmctld; on Debian: apt-get install slurmctld"]
