"""Real batch systems as fixtures of the session: ``slurm`` and ``condor``, started at first use, gone at the end.

Each is a ``real.servers.batch.Batch``: ``env`` and ``run_as`` for clients, ``site_file`` for the runner's
``--site-file`` (executor names ``dask/testslurm``, ``parsl/testcondor``), ``queue()``, ``take_away(job, way)``,
``empty()``, ``clear()``, ``fresh(name)``. Where one cannot be started its tests are skipped and counted aloud at
the end; with CI in the environment that is a failure. The fixture ``lab`` is the place for one test: see ``lab.py``.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from real.lab import Lab
from real.servers import condor as condor_pool
from real.servers import dask as dask_facility
from real.servers import session
from real.servers import sge as grid_engine
from real.servers import slurm as slurm_cluster

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("real")


def absent(why):
    """Without it the test cannot run: a failure where everything has to be there."""
    if os.environ.get("CI"):
        pytest.fail(f"CI is set, so this has to be there: {why}", pytrace=False)
    pytest.skip(why)


@pytest.fixture(scope="session")
def clean():
    """What killed sessions have left is ended first."""
    session.sweep(slurm_cluster.end, condor_pool.end, dask_facility.end, grid_engine.end)


@pytest.fixture(scope="session")
def slurm(clean):
    """A Slurm of two nodes, ``n1`` and ``n2``."""
    if why := slurm_cluster.missing():
        absent(why)
    with session.folder() as folder:
        cluster = slurm_cluster.Slurm(folder)
        try:
            yield cluster.start()
        finally:
            cluster.stop()


@pytest.fixture(scope="session")
def condor(clean):
    """A pool of HTCondor, an ordinary user's."""
    if why := condor_pool.missing():
        absent(why)
    with session.folder() as folder:
        pool = condor_pool.Condor(folder)
        try:
            yield pool.start()
        finally:
            pool.stop()


@pytest.fixture(scope="session")
def sge(clean):
    """A Grid Engine in a network of its own; not every Debian has it, so that it may be absent everywhere."""
    if why := grid_engine.missing():
        pytest.skip(why)
    with session.folder() as folder:
        cell = grid_engine.Sge(folder)
        try:
            yield cell.start()
        finally:
            cell.stop()


@pytest.fixture(scope="module")
def pool(clean):
    """``pool(private_tmp=…, rules=…)``: one more pool, not below /tmp, for the module that needs other rules."""
    if why := condor_pool.missing():
        absent(why)
    with contextlib.ExitStack() as stack:

        def start(**options):
            if options.get("private_tmp") and not condor_pool.can_hide_tmp():
                pytest.skip("a /tmp for each job needs root and the right to mount")
            one = condor_pool.Condor(stack.enter_context(session.folder(session.BASES[1])), **options)
            stack.callback(one.stop)
            return one.start()

        yield start


@pytest.fixture
def batch(request):
    """The batch system that a test is parametrised with, empty before and after."""
    one = request.getfixturevalue(request.param)
    assert one.empty(5), one.queue()
    yield one
    left, running = one.queue(), one.job_processes()
    one.clear()
    one.mend()
    assert not left, f"jobs left in the queue: {left}"
    assert not running, f"processes of jobs left: {running}"


@pytest.fixture
def lab(request):
    """One test's place at one batch system for one engine: parametrised with ``("slurm", "dask")`` and so on."""
    kind, engine = request.param
    one = request.getfixturevalue(kind)
    assert one.empty(5), (one.queue(), one.job_processes())
    place = Lab(one, engine, request.node.originalname.removeprefix("test_")[:20])
    try:
        yield place
        place.finish()
    finally:
        place.close()
        one.clear()
        one.mend()
