"""Workers that take too much: known as such on every engine of this machine, and the run is exact all the same."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from data import make_fileset

from executors import contract_tasks as tasks
from executors import registry
from executors.engines.base import Resources, WorkerDied

ROOT = Path(__file__).parents[2]
GREEDY = ROOT / "tests" / "greedy.py"
GROUPS = Path("/sys/fs/cgroup/memory")
MB = 1 << 20
LOCAL = ["futures", "dask/local", "parsl/local"]


def opened(name, **want):
    engine, site = registry.resolve(name)
    return engine.open(site, Resources(**({"workers": 2} | want)))


# -- the kernel ------------------------------------------------------------------------------------


def own_group() -> Path:
    """The folder of this process's memory group, version 1."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    path = next((line.split(":", 2)[2] for line in lines if "memory" in line.split(":")[1].split(",")), None)
    if path is None or not os.access(GROUPS / path.lstrip("/"), os.W_OK):
        pytest.skip("no writable memory cgroup of version 1: nobody can be killed by the kernel's limit")
    return GROUPS / path.lstrip("/")


@pytest.fixture
def group():
    """``group(bytes)``: a new memory group below one's own, removed at the end."""
    made = []

    def make(limit: int) -> Path:
        folder = own_group() / f"scaleout-test-{os.getpid()}-{len(made)}"
        folder.mkdir()
        made.append(folder)
        (folder / "memory.limit_in_bytes").write_text(str(limit))
        return folder

    yield make
    for folder in made:
        for _ in range(50):
            with contextlib.suppress(OSError):
                folder.rmdir()
                break
            time.sleep(0.1)


IN_A_GROUP = """
import json, os, sys, time
sys.path[:0] = {path!r}
from pathlib import Path
Path({group!r}, "cgroup.procs").write_text(str(os.getpid()))
from executors import contract_tasks as tasks
from executors import registry
from executors.engines.base import Resources

def main():
    engine, site = registry.resolve({name!r})
    with engine.open(site, Resources(workers=2)) as pool:
        said = []
        for turn in range(2):  # the second kill is told from the first
            modest = pool.submit(tasks.interval, 1.0)
            error = pool.submit(tasks.eat, 900 << 20, 30).exception(60)
            said.append([getattr(error, "why", repr(error)), getattr(error, "exitcode", 0), getattr(error, "peak", 0)])
            assert modest.exception(30) is None, modest.exception()
        error = pool.submit(tasks.die, "kill").exception(60)
        said.append([error.why, error.exitcode, error.peak])
        print(json.dumps(said))

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("name", LOCAL)
def test_killed_by_the_kernel(name, group, tmp_path):
    """The limit is a group's: the kernel takes the greedy worker, not the runner, and nobody else is blamed."""
    limit = 600 * MB
    script = tmp_path / "script.py"
    script.write_text(IN_A_GROUP.format(path=[str(ROOT)], group=str(group(limit)), name=name))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=100, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second, killed = json.loads(done.stdout.splitlines()[-1])
    assert [first[:2], second[:2]] == [["memory", -9]] * 2
    if name != "parsl/local":  # whose workers are not ours to wait for
        assert all(200 * MB < one[2] < 1.2 * limit for one in (first, second))
    assert killed[0] in ("signal", "lost"), "a kill that is not the kernel's is not for memory"


def test_refused_by_the_kernel():
    """RLIMIT_DATA: a MemoryError, of which the worker does not die."""
    with opened("futures", workers=1, initializer=_no_more_than, initargs=(300 * MB,)) as pool:
        before = pool.submit(tasks.pid).result(30)
        assert isinstance(pool.submit(_allocate, 600 * MB).exception(30), MemoryError)
        assert pool.submit(tasks.pid).result(30) == before


def _no_more_than(size: int) -> None:
    lines = Path("/proc/self/status").read_text().splitlines()
    data = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:"))
    resource.setrlimit(resource.RLIMIT_DATA, (data + size, data + size))


def _allocate(size: int) -> int:
    return len(np.ones(size, "u1"))


@pytest.mark.parametrize(
    ("said", "why"), [(b"what():  std::bad_alloc\n", "memory"), (b"free(): invalid pointer\n", "signal")]
)
def test_compiled_code_that_gets_no_memory(said, why):
    """It cannot raise, so it aborts; what it says last tells which of the two it was."""
    with opened("futures", workers=1) as pool:
        error = pool.submit(_abort, said).exception(30)
    assert isinstance(error, WorkerDied)
    assert (error.why, error.exitcode) == (why, -signal.SIGABRT)


def _abort(said: bytes) -> None:
    os.write(2, b"terminate called after throwing an instance\n" + said)
    os.abort()


def test_what_a_task_has_left_behind_counts():
    """Processes whose own parents are gone are the keeper's by then; whose they were, their session tells."""
    with opened("futures", memory=300 * MB) as pool:
        innocent = pool.submit(tasks.interval, 2.0)
        error = pool.submit(_leave_behind, 400 * MB).exception(30)
        assert (error.why, error.peak > 300 * MB) == ("memory", True)
        assert innocent.exception(30) is None


def _leave_behind(size: int) -> None:
    words = f"{sys.executable} -S -E -c '{tasks.EATER}' {size} 30 &"
    subprocess.run(["/bin/sh", "-c", words], check=True)
    time.sleep(20)


@pytest.mark.parametrize("name", LOCAL)
def test_the_kernel_is_told_whom_to_take(name):
    own = int(Path("/proc/self/oom_score_adj").read_text())
    with opened(name, workers=1) as pool:
        score = int(pool.submit(Path.read_text, Path("/proc/self/oom_score_adj")).result(60))
        serving = [
            int(Path(f"/proc/{one.pid}/oom_score_adj").read_text())
            for one in tasks.descendants()
            if one.pid != pool.submit(tasks.pid).result(60)
        ]
    assert score == 500
    assert max(serving, default=0) < 500
    assert int(Path("/proc/self/oom_score_adj").read_text()) == own


# -- a whole run -----------------------------------------------------------------------------------


def run(folder, *more):
    command = [sys.executable, ROOT / "runner.py", "--json", "fs.json", *map(str, more)]
    env = os.environ | {"PYTHONPATH": str(ROOT / "tests")}
    return subprocess.run(command, capture_output=True, text=True, timeout=400, cwd=folder, env=env)


def manifest(folder, out):
    (found,) = (folder / out).glob("*/manifest.json")
    return json.loads(found.read_text())


def lines(folder, out, event):
    (found,) = (folder / out).glob("*/journal.jsonl")
    rows = [json.loads(line.partition(" ")[2]) for line in found.read_text().splitlines()]
    return [row for row in rows if row["event"] == event]


def halved(failures) -> dict[tuple[int, ...], int]:
    """How often each chunk was ended for memory; each time for less than before, or this fails."""
    found = defaultdict(int)
    for one in failures:
        assert (one["kind"], one["action"]) == ("memory", "split"), one
        found[tuple(one["node"])] += 1
    # A number of pieces is tried once: what is counted here is how often it was doubled.
    counts = [sum(1 for one in failures if tuple(one["node"]) == node) for node in found]
    assert counts == [max(one["count"] for one in failures if tuple(one["node"]) == node) for node in found]
    return found


@pytest.mark.parametrize(
    ("chunks", "name"),
    [
        (100, "futures"),
        pytest.param(500, "futures", marks=pytest.mark.full),
        pytest.param(500, "dask/local", marks=pytest.mark.full),
        pytest.param(500, "parsl/local", marks=pytest.mark.full),
    ],
)
@pytest.mark.timeout(900)
def test_five_of_a_hundred_chunks_need_three_times_the_limit(tmp_path, chunks, name):
    """The command finishes by halving, without a word from the user, and the answer is the same."""
    files = chunks // 20
    fileset = make_fileset(tmp_path / "data", {"dy": [80_000] * files}, seed=5)
    (tmp_path / "fs.json").write_text(json.dumps(fileset))
    limit = 400 * MB  # of a worker, which has some 140 without any events, mapped files included
    spike = json.dumps({"*@2000": (3 * limit - 140 * MB) // 4000 - 20_000})  # one chunk of each file
    common = ["--wf", f"{GREEDY}:make", "--wf-arg", "per_event=20000", "--wf-arg", f"spike={spike}",
              "--wf-arg", "seconds=0.2", "--chunk", "4000", "-j", "2"]  # fmt: skip
    # A memory of its own for each: what was measured in the one would change the sizes of the other.
    common += ["--executor"]
    roomy = run(tmp_path, *common, name, "--memory", "4GB", "--outputdir", "roomy", "--cache", "one")
    assert roomy.returncode == 0, roomy.stdout + roomy.stderr
    began = time.monotonic()
    tight = run(
        tmp_path, *common, name, "--memory", f"{2 * limit}B", "--outputdir", "tight", "--cache", "two"
    )
    took = time.monotonic() - began
    assert tight.returncode == 0, tight.stdout + tight.stderr
    found = manifest(tmp_path, "tight")
    assert found["digest"] == manifest(tmp_path, "roomy")["digest"]
    assert found["events_counted"] == files * 80_000
    # What is counted was within the limit, which is for what a worker cannot give back: not for mapped libraries.
    assert found["peak_memory"] <= limit + 80 * MB
    ended = halved(lines(tmp_path, "tight", "failure"))
    assert len(ended) == files, "the innocent were let be"
    assert set(ended.values()) <= {1, 2}
    print(
        f"{name}, {chunks} chunks: {took:.1f} s, with a limit that fits {manifest(tmp_path, 'roomy')['wall_seconds']} s"
    )
    if chunks == 500:  # fewer take so little time that the first worker's start decides
        assert found["wall_seconds"] <= 1.3 * manifest(tmp_path, "roomy")["wall_seconds"]
