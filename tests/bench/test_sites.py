"""Side by side with what people set up by hand, in the same minutes on the same machines: ratios of medians.

``make bench`` runs this. The numbers go to standard output; only the ratios that were promised are judged.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bench.timed import first_event

from executors.coffea import made

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TURNS = 3
JOBS = 2
CHUNKS = 200


@pytest.fixture(scope="module", params=["slurm", "condor"])
def batch(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def place(batch):
    folder = batch.fresh("bench")
    fileset = {}
    for half in range(2):
        (folder / f"data{half}").mkdir()
        fileset[f"made{half}"] = made.make_files(folder / f"data{half}")["made"]
    (folder / "fileset.json").write_text(json.dumps(fileset))
    for path in folder.rglob("*"):
        path.chmod(0o777 if path.is_dir() else 0o666)
    return folder


def call(batch, argv, folder) -> tuple[float, str]:
    """Wall seconds and output of a command."""
    path = os.pathsep.join([str(Path(sys.executable).parent), batch.env["PATH"]])  # Parsl asks for it
    env = batch.env | {"PYTHONPATH": os.pathsep.join([str(HERE), str(ROOT)]), "PATH": path}
    began = time.time()
    done = subprocess.run(
        [*batch.run_as, *argv], env=env, cwd=folder, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return time.time() - began, done.stdout


def by_hand(batch, engine, place, turn):
    mark = place / f"hand-{engine}-{turn}"
    began = time.time()
    argv = [sys.executable, str(HERE / "by_hand.py"), "run", engine, batch.kind, str(place / "fileset.json")]
    took, said = call(batch, [*argv, str(mark), str(JOBS)], place)
    assert json.loads(said.splitlines()[-1])["events"] == CHUNKS * made.EVENTS
    return first_event(mark, began), took


def ours(batch, engine, place, turn):
    mark = place / f"ours-{engine}-{turn}"
    began = time.time()
    argv = [
        sys.executable, str(ROOT / "runner.py"), "--wf", f"{HERE / 'timed.py'}:Timed", "--wf-arg", f"mark={mark}",
        "--json", str(place / "fileset.json"), "--executor", f"{engine}/{batch.site_file.stem}",
        "--site-file", str(batch.site_file), "-s", str(JOBS), "--chunk", str(made.EVENTS), "--schema", "BaseSchema",
        "--outputdir", str(place / f"out-{engine}-{turn}"), "-q",
    ]  # fmt: skip
    took, _ = call(batch, argv, place)
    return first_event(mark, began), took


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("engine", ["dask", "parsl"])
def test_from_command_to_end(batch, place, engine):
    """200 chunks through a real batch system: the first event and the end are not later than by hand."""
    hand, mine = [], []
    for turn in range(TURNS):
        mine.append(ours(batch, engine, place, turn))
        assert batch.empty()
        hand.append(by_hand(batch, engine, place, turn))
        assert batch.empty()
    first = [statistics.median(row[0] for row in rows) for rows in (hand, mine)]
    end = [statistics.median(row[1] for row in rows) for rows in (hand, mine)]
    print(
        f"\n{engine}/{batch.kind}: first event {first[1]:.1f} s, by hand {first[0]:.1f} s ({first[0] / first[1]:.2f}x); "
        f"end of {CHUNKS} chunks {end[1]:.1f} s, by hand {end[0]:.1f} s ({end[0] / end[1]:.2f}x)"
    )
    assert end[1] <= end[0]
    assert first[1] <= first[0] * 1.1


NOOP = """
import json, sys, tempfile, time
sys.path[:0] = [{root!r}, {tests!r}]
import executors
from fakes import FakeAnalysis, drive_to_end, make_plan

engine, chunks = sys.argv[1], int(sys.argv[2])
with executors.open(engine, workers=2) as pool, tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
    drive_to_end(make_plan((50,) * 2, chunk=5), folder + "/first", FakeAnalysis(), pool, slots=2)
    plan = make_plan((5 * chunks // 10,) * 10, chunk=5)
    began = time.perf_counter()
    drive = drive_to_end(plan, folder + "/second", FakeAnalysis(), pool, slots=2)
    print(json.dumps({{"seconds": time.perf_counter() - began, "n": drive.ledger.chunks_done}}))
"""


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("engine", ["dask", "parsl"])
def test_chunks_of_no_work(engine, tmp_path):
    """5,000 chunks on two workers: what the way to a worker costs, every chunk stored and accounted for."""
    items = 5000
    script = tmp_path / "noop.py"
    script.write_text(NOOP.format(root=str(ROOT), tests=str(ROOT / "tests")))
    path = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    seconds = {"hand": [], "ours": []}
    for _ in range(TURNS):
        for who, argv in (
            ("ours", [str(script), f"{engine}/local", str(items)]),
            ("hand", [str(HERE / "by_hand.py"), "noop", engine, str(items)]),
        ):
            done = subprocess.run(
                [sys.executable, *argv],
                env=path,
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=600,
                check=False,
            )
            assert done.returncode == 0, done.stderr[-3000:]
            said = json.loads(done.stdout.splitlines()[-1])
            assert said["n"] == items
            seconds[who].append(said["seconds"])
    hand, ours_ = (items / statistics.median(seconds[who]) for who in ("hand", "ours"))
    print(f"\n{engine}: {ours_:,.0f} chunks/s, coffea's executor {hand:,.0f} ({ours_ / hand:.1f}x)")
    assert ours_ >= 5 * hand
