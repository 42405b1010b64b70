"""Planning: the entries of 200 files of 1,500 branches, the first time and the second, and of 100,000 known ones.

The files are links to one: their pages are in memory for everybody, so what is measured is work and not a disk.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from bench import wide
from bench.figures import FULL, ROUNDS, Figure, median, ratio, report, seconds

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FILES = 200 if FULL else 40
KNOWN = 100_000 if FULL else 20_000

# The step of a run that counts: in a process that has planned nothing yet, as every run is.
STEP = """
import json, os, sys, threading, time
sys.path.insert(0, {root!r})
from executors import planning, selection
from executors.fileset import read_fileset
from executors.settings import resolve
from executors.where import where
from types import SimpleNamespace

fileset, cache = sys.argv[1:]
settings = resolve({{"json": fileset, "wf": "none", "cache": cache}}, env={{}}).settings
began = time.perf_counter()
read = read_fileset(settings.json)
access = planning.access(read, where(settings).site, settings, os.environ)
asked = planning.asked_plan(read, settings, "none", SimpleNamespace(digest="none", parts={{}}), 100_000)
counting = time.perf_counter()
plan = planning.fill_counts(asked, settings, access, print, threading.Event())
ended = time.perf_counter()
events = sum(file.entries for dataset in plan.datasets for file in dataset.files)
status = open("/proc/self/status").read()  # ru_maxrss begins with what the parent had
peak = int(status.partition("VmHWM:")[2].split()[0])
print(json.dumps({{"counting": ended - counting, "all": ended - began, "events": events, "peak": peak * 1024}}))
"""
COFFEA = """
import json, sys, time
from coffea.nanoevents import BaseSchema
from coffea.processor import FuturesExecutor, Runner

files = json.load(open(sys.argv[1]))["wide"]
runner = Runner(executor=FuturesExecutor(workers=2, status=False), schema=BaseSchema, metadata_cache={})
began = time.perf_counter()
chunks = list(runner.preprocess({"wide": {"files": dict.fromkeys(files, "Events")}}))
ended = time.perf_counter()
print(json.dumps({"counting": ended - began, "events": sum(c.entrystop - c.entrystart for c in chunks)}))
"""


@pytest.fixture(scope="module")
def fileset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planning")
    made = wide.wide(entries=1000, cluster=1000)
    files = [folder / f"file{i}.root" for i in range(FILES)]
    for path in files:
        _linked(made, path)
    (folder / "fileset.json").write_text(json.dumps({"wide": [str(path) for path in files]}))
    return folder / "fileset.json"


def _linked(made: Path, path: Path) -> None:
    try:
        os.link(made, path)
    except OSError:  # another file system
        path.write_bytes(made.read_bytes())


def child(script: str, *argv: object) -> dict[str, float]:
    """What a script says in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, argv)],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def step(*argv: object) -> dict[str, float]:
    return child(STEP.format(root=str(ROOT)), *argv)


@pytest.mark.timeout(1800)
def test_first_and_second_time(fileset, tmp_path):
    """Counting in processes of their own, imports of what counts included; then the same from the cache."""
    rows = []
    for turn in range(ROUNDS):
        coffea, first = child(COFFEA, fileset), step(fileset, tmp_path / f"cache{turn}")
        second = step(fileset, tmp_path / f"cache{turn}")
        assert coffea["events"] == first["events"] == second["events"] == 1000 * FILES
        rows.append([coffea["counting"], first["counting"], second["counting"]])
    cold, spread = ratio(rows, 0, 1)
    again, again_spread = ratio(rows, 1, 2)
    report(
        Figure(
            f"planning {FILES} files of 1,500 branches", f"coffea preprocess, 2 workers, {median(rows, 0):.1f} s",
            f"{1e3 * median(rows, 1):.0f} ms", cold, "30", "100", ROUNDS, spread,
        ),
        Figure(
            "the same, second time", "the first time",
            f"{1e3 * median(rows, 2):.1f} ms", again, "20", "100", ROUNDS, again_spread,
        ),
    )  # fmt: skip
    assert cold >= 30
    assert again >= 20


@pytest.mark.timeout(600)
def test_the_counting_itself(fileset):
    """A file's header against the whole parse, in one thread, with everything imported."""
    from coffea.processor.executor import FileMeta, Runner

    from executors.coffea.count import count, count_many

    files = json.loads(fileset.read_text())["wide"][:10]

    def parsed():
        for path in files:
            list(Runner.metadata_fetcher_root(60, False, {}, FileMeta("wide", path, "Events")))

    def counted():
        assert all(answer.entries == 1000 for _, answer in count_many([(p, None) for p in files], workers=1))

    assert count(files[0]).entries == 1000
    rows = [[seconds(parsed), seconds(counted)] for _ in range(ROUNDS)]
    found, spread = ratio(rows, 0, 1)
    report(
        Figure(
            "one file's header", f"the whole parse, {1e3 * median(rows, 0) / len(files):.0f} ms",
            f"{1e3 * median(rows, 1) / len(files):.2f} ms", found, "30", "100", ROUNDS, spread,
        )
    )  # fmt: skip
    assert found >= 30


@pytest.mark.timeout(600)
def test_many_known_files(tmp_path):
    """A second planning of files that the cache knows: seconds, and the memory of the plan."""
    from executors.work.cache import Cache, Known

    folder = tmp_path / "files"
    folder.mkdir()
    paths = [folder / f"{i}.root" for i in range(KNOWN)]
    for path in paths:
        path.touch()
    cache = Cache(tmp_path / "cache")
    cache.put(
        Known(str(p), "", 0, p.stat().st_mtime_ns, 1000, f"{i:032x}", "Events") for i, p in enumerate(paths)
    )
    cache.close()
    (tmp_path / "fileset.json").write_text(json.dumps({"known": [str(path) for path in paths]}))
    found = [step(tmp_path / "fileset.json", tmp_path / "cache") for _ in range(ROUNDS)]
    assert all(one["events"] == 1000 * KNOWN for one in found)
    took = [one["all"] for one in found]
    report(
        Figure(
            f"a plan of {KNOWN:,} known files", f"peak {found[0]['peak'] / 2**20:.0f} MiB",
            f"{statistics.median(took):.2f} s", None, "", "", ROUNDS, f"{min(took):.2f}-{max(took):.2f} s",
        )
    )  # fmt: skip
    assert statistics.median(took) < 1e-4 * KNOWN + 1
