"""Sizes that follow the memory, against sizes given by hand: wall time, and workers killed for memory.

Two datasets, one of which needs ten times as much memory for an event. And a day's worth of chunks, tiny ones:
nothing may grow.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import data
import psutil
import pytest
from bench.figures import FULL, ROUNDS, Figure, report

from executors.work import journal

ROOT = Path(__file__).resolve().parents[2]
FILES, EVENTS = 4, 500_000 if FULL else 150_000
BY_HAND = (10_000, 25_000, 50_000, 75_000)
GREEDY = [
    "--wf", str(ROOT / "tests" / "greedy.py") + ":make", "--wf-arg", "per_event=1500",
    "--wf-arg", json.dumps({f"heavy_{i}.root%1": 13_500 for i in range(FILES)}).join(["spike=", ""]),
    "--executor", "futures", "-j", "2", "--memory", "2000MB", "--quiet",
]  # fmt: skip


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sizes")
    fileset = {
        kind: [str(data.write_events(folder / f"{kind}_{i}.root", EVENTS, seed=i)) for i in range(FILES)]
        for kind in ("light", "heavy")
    }
    (folder / "set.json").write_text(json.dumps(fileset))
    return folder / "set.json"


def run(events, folder, *more):
    """Wall seconds, chunks that failed for memory, and the manifest."""
    began = time.monotonic()
    cache = ["--cache", str(folder.parent / f"cache-{folder.name}")]  # nothing is remembered from another run
    done = subprocess.run(
        [sys.executable, str(ROOT / "runner.py"), "--json", str(events), "--outputdir", str(folder), *GREEDY,
         *cache, *more],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    wall = time.monotonic() - began
    assert done.returncode == 0, done.stderr[-3000:]
    (out,) = folder.glob("hist_*")
    failed = [row for row in journal.read(out / "journal.jsonl") if row["event"] == "failure"]
    return wall, len(failed), json.loads((out / "manifest.json").read_text())


def test_auto_against_sizes_by_hand(events, tmp_path):
    walls: dict[str, list[float]] = {}
    killed: dict[str, int] = {}
    ways = ["auto", "100000", *map(str, BY_HAND)]
    for turn in range(ROUNDS):
        for way in ways:
            wall, failed, manifest = run(events, tmp_path / f"{way}-{turn}", "--chunk", way)
            walls.setdefault(way, []).append(wall)
            killed[way] = killed.get(way, 0) + failed
            assert manifest["complete"]
            if way == "auto":
                assert max(d["peak_memory"] for d in manifest["datasets"].values()) <= 1_000_000_000
    median = {way: statistics.median(found) for way, found in walls.items()}
    best = min((str(n) for n in BY_HAND if not killed[str(n)]), key=median.__getitem__)
    print("\nchunk, s, failed for memory:", [(w, round(median[w], 2), killed[w]) for w in ways], "best", best)
    assert killed["auto"] == 0
    report(
        *(
            Figure("sizes by memory: wall", against, f"{median['auto']:.2f} s", median["auto"] / median[way], must, "", ROUNDS,
                   f"{min(walls['auto']):.2f}-{max(walls['auto']):.2f} s")
            for against, way, must in (("--chunk 100000", "100000", "1"), (f"best by hand, {best}", best, "1.1"))
        )
    )  # fmt: skip
    if not FULL:
        return  # a run of two seconds is mostly its start
    assert median["auto"] <= median["100000"]
    assert median["auto"] <= 1.1 * median[best]


def test_a_day_of_chunks(tmp_path):
    chunks = int(os.environ.get("BENCH_CHUNKS", "20000" if FULL else "3000"))
    data.write_events(tmp_path / "many.root", chunks * 10)
    (tmp_path / "set.json").write_text(json.dumps({"many": [str(tmp_path / "many.root")]}))
    watched = Watched()
    with subprocess.Popen(
        [sys.executable, str(ROOT / "runner.py"), "--wf", str(ROOT / "tests" / "analyses.py") + ":Sum",
         "--json", str(tmp_path / "set.json"), "--chunk", "10", "--executor", "futures", "-j", "2", "--quiet",
         "--outputdir", str(tmp_path / "out")],
    ) as process:  # fmt: skip
        watched.follow(process)
        assert process.wait(900) == 0
    early, late = watched.growth()
    report(*(
        Figure(f"{chunks} tiny chunks: {name.split()[0]}", "after a fifth of the time", f"{late[name]} MB",
               late[name] / before, "1.1", "1")
        for name, before in early.items()
    ))  # fmt: skip
    for name, before in early.items():
        assert late[name] <= 1.1 * before, name


class Watched:
    """The memory of a runner and its workers while they work."""

    def __init__(self):
        self.seen: dict[str, list[tuple[float, int]]] = {}

    def follow(self, process):
        thread = threading.Thread(target=self._follow, args=(psutil.Process(process.pid),), daemon=True)
        thread.start()

    def _follow(self, runner):
        while runner.is_running():
            with contextlib.suppress(psutil.Error):
                for each in [runner, *runner.children(recursive=True)]:
                    name = "runner" if each == runner else f"worker {each.pid}"
                    self.seen.setdefault(name, []).append((time.monotonic(), each.memory_info().rss))
            time.sleep(0.25)

    def growth(self):
        """The memory after a fifth of the time, and the most after that, of those that lived so long."""
        begin, end = self.seen["runner"][0][0], self.seen["runner"][-1][0]
        warm = begin + 0.2 * (end - begin)
        early, late = {}, {}
        for name, rows in self.seen.items():
            after = [rss for at, rss in rows if at >= warm]
            if rows[0][0] < warm and rows[-1][0] > end - 2 and max(after) > 60 << 20:
                early[name], late[name] = round(after[0] / 1e6), round(max(after) / 1e6)
        return early, late
