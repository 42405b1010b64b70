"""Cluster classes of others at pools with the rules of lxplus and the LPC: CERN's own, and where nothing is shared."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from real.conftest import absent
from real.lab import ROOT, TESTS, accounted
from real.test_imitations import at_lpc, at_lxplus, lpc, lxplus, sockets

__all__ = ["at_lpc", "at_lxplus", "lpc", "lxplus"]
pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def cern(at_lxplus):
    if importlib.util.find_spec("dask_lxplus") is None:
        absent("dask_lxplus is not installed: pip install dask-lxplus")
    return at_lxplus


def theirs(lab, *more, **words):
    place = Path(importlib.util.find_spec("dask_lxplus").origin).parents[1]
    command = lab.command("--site-set", "dask.cluster=site", "--task-seconds", "1", *more, **words)
    return ["env", f"PYTHONPATH={TESTS}:{place}", *command]


def test_lxplus(cern):
    """Its jobs keep the site's rules, and a run on them is the same as any; one that is lost has another after it."""
    cern.data(dy=[5000])
    gate = cern.folder / "gate"
    argument = f"gate={gate}"
    process = cern.start(theirs(cern, "--wf-arg", argument, wf="Paced"))
    cern.until_working(process, 2, wf="Paced")
    before = cern.batch.queue()
    ad = cern.batch.show(before[0].id)
    assert (ad["JobFlavour"], ad["MaxRuntime"]) == ("workday", 28800)
    assert ad["IsDaskWorker"]
    assert ad["Iwd"].startswith(str(cern.batch.folder / "spool"))
    assert "SingularityImage" not in ad, "the class's own image would hide the environment that the jobs name"
    assert ad["TransferInput"].count("/") == 0, ad["TransferInput"]
    here, there = sockets(cern.here()), sockets(cern.batch.job_processes())
    assert here.listening == {8786}
    assert all(10_000 <= port <= 10_100 for port in there.listening), there
    cern.batch.take_away(before[0], "condor_rm")
    cern.until(
        lambda: {one.id for one in cern.batch.running()} - {one.id for one in before}, process, within=60
    )
    gate.touch()
    out, _ = process.communicate(timeout=120)
    assert "dask_lxplus:CernCluster submits" in out, out
    assert process.returncode == 0, out
    accounted(cern.manifest(wf="Paced"), 5000)
    assert cern.manifest(wf="Paced")["digest"] == cern.truth("Paced", "--wf-arg", argument)
    cern.nothing_left(30)


@pytest.mark.full
def test_lxplus_says_what_a_log_says(cern):
    """A job that ends at once: its log comes back from where it was spooled, and is read."""
    cern.data(dy=[500])
    code, out = cern.run(theirs(cern, "--worker-python", "/nowhere/python", "--no-check"), timeout=150)
    assert code == 4, out
    assert "/nowhere/python" in out, out
    assert "ended before a worker came" in out
    cern.nothing_left(30)


def test_lpc_by_a_class(at_lpc):
    """Workers that see nothing of ours have the key all the same, since HTCondor brings it."""
    at_lpc.data(at=at_lpc.batch.fresh("data"), dy=[2500] * 2)
    far = ["--wf-arg", f"unseen={at_lpc.folder}:{ROOT / 'runner.py'}", "--wf-arg", "proxy=yes"]
    chosen = ["--site-set", "dask.cluster=dask_jobqueue:HTCondorCluster"]
    code, out = at_lpc.run(at_lpc.command(*chosen, *far, wf="Far"))
    assert code == 0, out
    assert "runs code as you" not in out
    accounted(at_lpc.manifest(wf="Far"), 5000)
