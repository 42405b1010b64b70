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
    lab.nothing_left(10)


@pytest.mark.full
def test_a_job_is_taken_away(lab):
    """Another takes its place, which such classes do not do by themselves."""
    lab.data(dy=[5000])
    gate = lab.folder / "gate"
    argument = f"gate={gate}"
    process = lab.start(by_class(lab, "--wf-arg", argument, wf="Paced", jobs=1))
    lab.until_working(process, wf="Paced")
    (before,) = lab.batch.running()
    assert lab.batch.job_processes()
    assert not [port for pid in lab.batch.job_processes() for port in open_pages(pid)]
    lab.batch.take_away(before, lab.batch.ways[0])
    lab.until(lambda: any(job.id != before.id for job in lab.batch.running()), process, within=60)
    gate.touch()
    out, _ = process.communicate(timeout=150)
    assert process.returncode == 0, out
    accounted(lab.manifest(wf="Paced"), 5000)
    assert lab.manifest(wf="Paced")["digest"] == lab.truth("Paced", "--wf-arg", argument)
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
    lab.nothing_left(10)


@pytest.mark.full
def test_missing_python(lab):
    """Jobs that end at once, one after the other: given up, with what their log says."""
    lab.data(dy=[500])
    code, out = lab.run(by_class(lab, "--worker-python", "/nowhere/python", "--no-check"), timeout=150)
    assert code == 4, out
    assert "/nowhere/python" in out, out
    lab.nothing_left(10)


def test_without_a_common_file_system(lab):
    """The class carries no keys: refused, unless one says that it may go without."""
    lab.data(dy=[1000])
    far = ["--shared-store", "no", "--no-check"]
    code, out = lab.run(by_class(lab, *far), timeout=60)
    assert code == 2, out
    if lab.batch.kind == "slurm":
        assert "carries no files" in out
        return
    assert "--insecure" in out
    code, out = lab.run(by_class(lab, *far, "--insecure"), timeout=150)
    assert code == 0, out
    assert "runs code as you" in out
    accounted(lab.manifest(), 1000)
    lab.nothing_left(10)


def test_the_runner_is_killed(lab):
    """Its jobs are removed by name, whoever submitted them."""
    lab.data(dy=[5000])
    process = lab.start(by_class(lab, "--wf-arg", f"gate={lab.folder / 'never'}", wf="Paced"))
    lab.until_working(process, wf="Paced")
    process.kill()
    process.communicate(timeout=60)
    assert processes.wait_for(lambda: not lab.batch.queue(), 60), lab.batch.queue()
    lab.nothing_left(60)
