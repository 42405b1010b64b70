"""What people write today: coffea's Runner with dask-jobqueue or Parsl, set up by hand for a batch system.

``by_hand.py run ENGINE SCHEDULER FILESET MARK JOBS`` runs ``timed.Timed`` over a fileset;
``by_hand.py noop ENGINE ITEMS`` hands chunks of no work to coffea's executor on two local workers (iterative: one).
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT)]


def main() -> None:
    what, engine, *rest = sys.argv[1:]
    if what == "run":
        scheduler, fileset, mark, jobs = rest
        run(engine, scheduler, json.loads(Path(fileset).read_text()), mark, int(jobs))
    else:
        noop(engine, int(rest[0]))


def run(engine, scheduler, fileset, mark, jobs):
    from coffea.nanoevents import BaseSchema
    from coffea.processor import Runner
    from timed import Timed

    with (
        tempfile.TemporaryDirectory(dir=Path(mark).parent) as folder,
        executor(engine, scheduler, jobs, folder) as one,
    ):
        runner = Runner(executor=one, schema=BaseSchema, chunksize=400, savemetrics=False)
        out = runner(fileset, processor_instance=Timed(mark), treename="Events")
    print(json.dumps({"events": out["events"], "sum": out["sum"]}))


@contextlib.contextmanager
def executor(engine, scheduler, jobs, folder):
    with (
        dask_executor(scheduler, jobs, folder)
        if engine == "dask"
        else parsl_executor(scheduler, jobs, folder) as one
    ):
        yield one


@contextlib.contextmanager
def dask_executor(scheduler, jobs, folder):
    import dask_jobqueue
    from coffea.processor import DaskExecutor
    from distributed import Client

    common = {
        "cores": 1, "processes": 1, "memory": "1500MB", "interface": "lo", "log_directory": folder,
        "job_script_prologue": [f"export PYTHONPATH={HERE}"], "scheduler_options": {"dashboard_address": ":0"},
    }  # fmt: skip
    if scheduler == "slurm":
        made = dask_jobqueue.SLURMCluster(**common, queue="main", walltime="00:20:00", local_directory=folder)
    else:
        made = dask_jobqueue.HTCondorCluster(
            **common, disk="1GB", local_directory="$TMPDIR", python=sys.executable
        )
    with made as cluster, Client(cluster) as client:
        cluster.scale(jobs=jobs)
        yield DaskExecutor(client=client, status=False, retries=0)


@contextlib.contextmanager
def parsl_executor(scheduler, jobs, folder):
    import parsl
    from coffea.processor import ParslExecutor
    from parsl.config import Config
    from parsl.executors import HighThroughputExecutor
    from parsl.launchers import SimpleLauncher
    from parsl.providers import CondorProvider, SlurmProvider

    path = f"export PATH={Path(sys.executable).parent}:$PATH PYTHONPATH={HERE}:{ROOT}; export HOME=$PWD"
    blocks = {
        "init_blocks": jobs,
        "min_blocks": jobs,
        "max_blocks": jobs,
        "worker_init": path,
        "walltime": "00:20:00",
    }
    if scheduler == "slurm":
        provider = SlurmProvider(
            partition="main",
            cores_per_node=1,
            mem_per_node=2,
            exclusive=False,
            launcher=SimpleLauncher(),
            **blocks,
        )
    else:
        provider = CondorProvider(cores_per_slot=1, mem_per_slot=1.5, launcher=SimpleLauncher(), **blocks)
    htex = HighThroughputExecutor(
        label="htex",
        address="127.0.0.1",
        loopback_address="127.0.0.1",
        provider=provider,
        max_workers_per_node=1,
    )
    parsl.load(Config(executors=[htex], run_dir=folder, usage_tracking=0, initialize_logging=False))
    try:
        yield ParslExecutor(status=False)
    finally:
        parsl.dfk().cleanup()
        parsl.clear()


def noop(engine, items):
    from timed import no_work

    with {"iterative": one_process, "futures": processes, "dask": local_dask, "parsl": local_parsl}[
        engine
    ]() as make:
        timed(make, no_work, items)


@contextlib.contextmanager
def one_process():
    from coffea.processor import IterativeExecutor

    yield lambda: IterativeExecutor(status=False)


@contextlib.contextmanager
def processes():
    from coffea.processor import FuturesExecutor

    yield lambda: FuturesExecutor(workers=2, status=False)


@contextlib.contextmanager
def local_dask():
    from coffea.processor import DaskExecutor
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(2)
        yield lambda: DaskExecutor(client=client, status=False)


@contextlib.contextmanager
def local_parsl():
    import parsl
    from coffea.processor import ParslExecutor
    from parsl.config import Config
    from parsl.executors import HighThroughputExecutor
    from parsl.providers import LocalProvider

    with tempfile.TemporaryDirectory() as folder:
        htex = HighThroughputExecutor(
            label="htex", address="127.0.0.1", loopback_address="127.0.0.1", cores_per_worker=1e-6,
            provider=LocalProvider(init_blocks=1, max_blocks=1, worker_init=f"export PYTHONPATH={HERE}"),
            max_workers_per_node=2,
        )  # fmt: skip
        parsl.load(Config(executors=[htex], run_dir=folder, usage_tracking=0, initialize_logging=False))
        try:
            yield lambda: ParslExecutor(status=False)
        finally:
            parsl.dfk().cleanup()
            parsl.clear()


def timed(make, function, items):
    make()(list(range(20)), function, None)  # the workers are there and have imported what they need
    began = time.perf_counter()
    out, _ = make()(list(range(items)), function, None)
    took = time.perf_counter() - began
    print(json.dumps({"seconds": took, "n": out["n"]}))


if __name__ == "__main__":
    main()
