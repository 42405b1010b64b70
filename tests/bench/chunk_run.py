"""One timed run, in a process of its own: ``chunk_run.py WHO ENGINE WORKERS CHUNK FILE...``.

WHO is ``ours``, ``coffea`` (its Runner) or ``bare`` (a loop over uproot and numpy). A small file goes first, so that
everything is imported, and then again: what that takes is the start, which is printed beside the whole.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]


def main() -> None:
    who, engine, workers, chunk, *paths = sys.argv[1:]
    with {"ours": ours, "coffea": coffea, "bare": bare}[who](engine, int(workers)) as run:
        small = [paths[0]] * (1 if engine == "iterative" else int(workers))
        run(small[:1], 1 << 40)
        start, _, _ = timed(run, paths[:1], 1 << 40)
        seconds, cpu, result = timed(run, paths[1:], int(chunk))
    from executors import digest

    said = {
        "start": start,
        "seconds": seconds,
        "cpu": cpu,
        "events": result["events"],
        "digest": digest(result),
    }
    print("\n" + json.dumps(said))


def timed(run, paths, chunk):
    """Wall and CPU seconds (of this process and the children that ended) and the result."""
    before, began = used(), time.perf_counter()
    result = run(paths, chunk)
    return time.perf_counter() - began, used() - before, result


def used() -> float:
    kinds = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
    return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, kinds))


@contextlib.contextmanager
def ours(engine, workers):
    from bench.spectra import Spectra

    import executors

    name = engine if engine in {"iterative", "futures"} else f"{engine}/local"

    def run(paths, chunk):
        with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_TMP")) as folder:
            fileset = {"made": {"files": dict.fromkeys(paths, "Events")}}
            size = {"chunk": min(chunk, 1 << 30), "workers": workers}
            return executors.run(Spectra(), fileset, on=name, out=folder, **size)

    yield run


@contextlib.contextmanager
def coffea(engine, workers):
    from bench.spectra import Spectra
    from coffea.nanoevents import NanoAODSchema
    from coffea.processor import Runner

    NanoAODSchema.warn_missing_crossrefs = False
    with {"iterative": iterative, "futures": futures, "dask": dask, "parsl": parsl}[engine](
        workers
    ) as executor:

        def run(paths, chunk):
            runner = Runner(executor=executor, schema=NanoAODSchema, chunksize=chunk, savemetrics=False)
            return runner({"made": list(paths)}, processor_instance=Spectra(), treename="Events")

        yield run


@contextlib.contextmanager
def iterative(_workers):
    from coffea.processor import IterativeExecutor

    yield IterativeExecutor(status=False)


@contextlib.contextmanager
def futures(workers):
    from coffea.processor import FuturesExecutor

    yield FuturesExecutor(workers=workers, status=False)


@contextlib.contextmanager
def dask(workers):
    from coffea.processor import DaskExecutor
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(workers)
        yield DaskExecutor(client=client, status=False)


@contextlib.contextmanager
def parsl(workers):
    import parsl
    from coffea.processor import ParslExecutor
    from parsl.config import Config
    from parsl.executors import HighThroughputExecutor
    from parsl.providers import LocalProvider

    with tempfile.TemporaryDirectory() as folder:
        path = f"export PYTHONPATH={ROOT}:{ROOT / 'tests'}"
        htex = HighThroughputExecutor(
            label="htex", address="127.0.0.1", loopback_address="127.0.0.1", cores_per_worker=1e-6,
            provider=LocalProvider(init_blocks=1, max_blocks=1, worker_init=path), max_workers_per_node=workers,
        )  # fmt: skip
        parsl.load(Config(executors=[htex], run_dir=folder, usage_tracking=0, initialize_logging=False))
        try:
            yield ParslExecutor(status=False)
        finally:
            parsl.dfk().cleanup()
            parsl.clear()


@contextlib.contextmanager
def bare(engine, workers):
    from bench import spectra

    if engine == "iterative":
        yield spectra.bare
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:

        def run(paths, chunk):
            shares = [list(paths)[i::workers] for i in range(workers)]
            parts = pool.map(spectra.bare, [share for share in shares if share], [chunk] * workers)
            total = spectra.empty()
            for part in parts:
                total = spectra.add(total, part)
            return total

        yield run


if __name__ == "__main__":
    main()
