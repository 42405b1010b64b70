"""What the layer adds to work that takes time, and how well the end of a run is packed.

The work is sleep, so that eight workers are eight workers on a machine with two cores.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from bench.figures import FULL, Figure, report

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 3 if FULL else 1

SCRIPT = """
import hashlib, json, sys, time
sys.path[:0] = [{root!r}, {tests!r}]
import executors
from dataclasses import dataclass
from fakes import FakeAnalysis, drive_to_end, fake_sum, make_plan

engine, workers, files, chunks, least, most = sys.argv[1], *map(int, sys.argv[2:5]), *map(float, sys.argv[5:7])


def cost(path, start):
    # The same for every run, and like nothing that order could guess.
    share = int.from_bytes(hashlib.blake2b(f"{{path}}{{start}}".encode(), digest_size=4).digest(), "big") / 2**32
    return least + (most - least) * share


def busy(path, start, stop):
    time.sleep(cost(path, start))
    return fake_sum(path, start, stop)


with executors.open(engine, workers=workers) as pool:
    drive_to_end(make_plan((50,) * 2, chunk=5), sys.argv[7] + "/warm", FakeAnalysis(), pool, slots=workers)
    plan = make_plan((5 * chunks,) * files, chunk=5)
    began = time.time()
    drive = drive_to_end(plan, sys.argv[7] + "/run", FakeAnalysis(value=busy), pool, slots=workers)
    ended = time.time()
work = sum(cost(f.path, a) for d in plan.datasets for f in d.files for a, _ in f.ranges(5))
assert drive.ledger.complete
print(json.dumps({{"began": began, "ended": ended, "work": work}}))
"""


def timed(folder, *argv):
    """Wall seconds, seconds of work in all, and when how much of the work was stored."""
    from executors.work import journal

    script = folder / "work.py"
    script.write_text(SCRIPT.format(root=str(ROOT), tests=str(ROOT / "tests")))
    with tempfile.TemporaryDirectory(dir="/dev/shm") as run:
        done = subprocess.run(
            [sys.executable, str(script), *map(str, argv), run],
            capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        said = json.loads(done.stdout.splitlines()[-1])
        rows = [row for row in journal.read(Path(run, "run", "journal.jsonl")) if row["event"] == "task"]
    return said["ended"] - said["began"], said["work"], rows, said


@pytest.mark.timeout(900)
@pytest.mark.parametrize("engine", ["iterative", "futures", "dask/local", "parsl/local"])
def test_heavy_chunks(engine, tmp_path):
    """Half a second a chunk: what is not the analysis's own, of the time that workers were there."""
    workers = 1 if engine == "iterative" else 2
    chunks = 40 if FULL else 12
    shares = []
    for turn in range(ROUNDS):
        folder = tmp_path / str(turn)
        folder.mkdir()
        wall, work, _, _ = timed(folder, engine, workers, workers, chunks, 0.5, 0.5)
        shares.append(1 - work / workers / wall)
    share = statistics.median(shares)
    report(
        Figure(
            f"{engine}: 0.5 s a chunk", "the layer's share of the time", f"{100 * share:.2f} %", share, "0.02", "0.005",
            ROUNDS, f"{min(shares):.4f}-{max(shares):.4f}",
        )
    )  # fmt: skip
    assert share <= (0.02 if FULL else 0.1)  # a few seconds are mostly begin and end


@pytest.mark.timeout(900)
def test_the_end_of_a_run(tmp_path):
    """Chunks of 20 to 180 ms on eight workers: the last twentieth of the work against perfect packing."""
    tails, walls = [], []
    for turn in range(ROUNDS):
        folder = tmp_path / str(turn)
        folder.mkdir()
        wall, work, rows, said = timed(folder, "futures", 8, 8, 200, 0.02, 0.18)
        walls.append(wall / (work / 8))
        # What is stored when: each task's share of the work by its events.
        total, done = sum(row["entries"] for row in rows), 0
        for row in sorted(rows, key=lambda row: row["t"]):
            done += row["entries"]
            if done >= 0.95 * total:
                break
        left = (1 - done / total) * work
        tails.append((said["ended"] - row["t"]) / max(left / 8, 1e-9) if left else 1.0)
    report(
        Figure("mixed chunks, 8 workers: whole run", "perfect packing", "", statistics.median(walls), "1.15", "1.05", ROUNDS),
        Figure("mixed chunks, 8 workers: last 5 %", "perfect packing", "", statistics.median(tails), "1.15", "1.05", ROUNDS),
    )  # fmt: skip
    assert statistics.median(walls) <= 1.15
    assert statistics.median(tails) <= 1.15
