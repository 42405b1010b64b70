"""A site's own Dask cluster class instead of this program's jobs: dask-jobqueue's, at a real Slurm and a real HTCondor."""

from __future__ import annotations

import contextlib
import socket
import time

import psutil
import pytest
from real.lab import accounted
from real.servers import processes

CLASSES = {"slurm": "dask_jobqueue:SLURMCluster", "condor": "dask_jobqueue:HTCondorCluster"}
pytestmark = [
    pytest.mark.parametrize(
        "lab", [("slurm", "dask"), ("condor", "dask")], indirect=True, ids=["slurm", "condor"]
    ),
    pytest.mark.timeout(300),
]


def open_pages(pid):
    """Ports that answer anybody on the network without encryption."""
    try:
        found = psutil.Process(pid).net_connections()
    except psutil.Error:
        return
    for one in found:
        if one.status == "LISTEN" and one.laddr.ip not in ("127.0.0.1", "::1"):
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", one.laddr.port), 3) as sock,
            ):
                sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
                if sock.recv(4) == b"HTTP":
                    yield one.laddr.port


def by_class(lab, *more, **words):
    chosen = f"dask.cluster={CLASSES[lab.batch.kind]}"
    return lab.command("--site-set", chosen, "--site-set", "limits.polls_per_minute=30", *more, **words)


def test_two_hundred_chunks(lab):
    """A run is the same, bit for bit, as the plain one; the class submits, and its jobs are found by name."""
    lab.data(dy=[2500] * 2, tt=[5000])
    truth = lab.truth()
    code, out = lab.run(by_class(lab, workers=2), timeout=150)
    assert code == 0, out
    assert CLASSES[lab.batch.kind] in out or "--quiet" in out, out
    found = lab.manifest()
    accounted(found, 10_000)
    assert found["digest"] == truth
    lab.nothing_left(30)


@pytest.mark.full
def test_jobs_are_taken_away(lab):
    """Removed or put aside: another takes the place, which such classes do not see to by themselves."""
    lab.data(dy=[5000])
    gate = lab.folder / "gate"
    argument = f"gate={gate}"
    process = lab.start(by_class(lab, "--wf-arg", argument, wf="Paced", jobs=1))
    lab.until_working(process, wf="Paced")
    assert lab.batch.job_processes()
    assert not [port for pid in lab.batch.job_processes() for port in open_pages(pid)]
    for way in {"condor": ("condor_rm", "condor_hold"), "slurm": ("scancel",)}[lab.batch.kind]:
        (before,) = lab.batch.running()
        lab.batch.take_away(before, way)
        lab.until(lambda old=before.id: {job.id for job in lab.batch.running()} - {old}, process, within=60)
        lab.until_working(process, lab.journal("task", wf="Paced") + 2, wf="Paced")  # its worker has come
    gate.touch()
    out, _ = process.communicate(timeout=150)
    assert process.returncode == 0, out
    accounted(lab.manifest(wf="Paced"), 5000)
    assert lab.manifest(wf="Paced")["digest"] == lab.truth("Paced", "--wf-arg", argument)
    lab.nothing_left(30)


@pytest.mark.full
def test_nothing_ever_starts(lab):
    """Jobs that wait: why is said, and after the time for it the run gives up and takes them back."""
    lab.data(dy=[500])
    never = {"condor": "requirements=False", "slurm": "begin=now+1hour"}[lab.batch.kind]
    code, out = lab.run(by_class(lab, "--directive", never, "--start-timeout", "8s"), timeout=90)
    assert code == 4, out
    assert "pending" in out, out
    assert "--start-timeout" in out
    lab.nothing_left(30)


def test_no_such_queue(lab):
    """Refused by the batch system: said in its own words, at once, which such classes only log."""
    lab.data(dy=[500])
    began = time.monotonic()
    wrong = ["--queue", "nosuch"] if lab.batch.kind == "slurm" else ["--directive", "universe=nosuch"]
    code, out = lab.run(by_class(lab, *wrong, "--no-check"), timeout=90)
    assert time.monotonic() - began < 45
    assert code == 4, out
    assert "nosuch" in out.lower() or "invalid partition" in out.lower(), out
    assert "did not take the jobs" in out
    assert "Traceback" not in out
    lab.nothing_left(30)


@pytest.mark.full
def test_missing_python(lab):
    """Jobs that end at once, one after the other: given up, with what their log says."""
    lab.data(dy=[500])
    code, out = lab.run(by_class(lab, "--worker-python", "/nowhere/python", "--no-check"), timeout=150)
    assert code == 4, out
    assert "/nowhere/python" in out, out
    lab.nothing_left(30)


def test_without_a_common_file_system(lab):
    """HTCondor carries the key to its workers; what carries nothing is refused."""
    lab.data(dy=[1000])
    code, out = lab.run(by_class(lab, "--shared-store", "no", "--no-check"), timeout=150)
    if lab.batch.kind == "slurm":
        assert code == 2, out
        assert "carries no files" in out
        return
    assert code == 0, out
    assert "runs code as you" not in out
    accounted(lab.manifest(), 1000)
    lab.nothing_left(30)


def test_the_runner_is_killed(lab):
    """Its jobs are removed by name, whoever submitted them."""
    lab.data(dy=[5000])
    process = lab.start(by_class(lab, "--wf-arg", f"gate={lab.folder / 'never'}", wf="Paced"))
    lab.until_working(process, wf="Paced")
    process.kill()
    process.communicate(timeout=60)
    assert processes.wait_for(lambda: not lab.batch.queue(), 60), lab.batch.queue()
    lab.nothing_left(60)
