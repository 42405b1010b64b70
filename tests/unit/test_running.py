"""Whole runs in this process: outputs, indices, merging, looking, mending, the Python interface."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import analyses
import coffea.util
import numpy as np
import pytest
from coffea.nanoevents import NanoAODSchema
from coffea.processor import IterativeExecutor, Runner
from data import make_fileset, write_events

import executors
from executors.errors import (
    AnalysisError,
    DamagedError,
    IncompleteError,
    PlanChangedError,
    UsageError,
)
from executors.running import execute, inspect, merge_dirs, plan_only, status
from executors.settings import resolve
from executors.work.report import Silent

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    fileset = make_fileset(folder, {"dy": [900, 0, 300], "tt": [500, 700]}, seed=2)
    path = folder / "fs.json"
    path.write_text(json.dumps(fileset))
    return path


class Runs:
    """Runs below one folder."""

    def __init__(self, folder, data):
        self.folder, self.data = folder, data

    def settings(self, **options):
        options = {
            "wf": f"{ROOT / 'tests' / 'analyses.py'}:Sum", "json": str(self.data), "executor": "iterative",
            "chunk": 200, "outputdir": self.folder, "cache": self.folder / "cache", **options,
        }  # fmt: skip
        return resolve(**options).settings

    def __call__(self, **options):
        return execute(self.settings(**options))

    @property
    def dir(self):
        return self.folder / "hist_Sum_fs"


@pytest.fixture
def runs(tmp_path, data):
    return Runs(tmp_path, data)


def names(folder):
    return sorted(p.name for p in folder.glob("*.coffea"))


def test_one_merged_file_is_the_default(runs):
    outcome = runs()
    assert outcome.exit_code == 0
    assert names(runs.dir) == ["hist_Sum_fs.coffea"]
    value = coffea.util.load(runs.dir / "hist_Sum_fs.coffea")
    assert {k: v["events"] for k, v in value.items()} == {"dy": 1200, "tt": 1200}
    manifest = json.loads((runs.dir / "manifest.json").read_text())
    assert manifest["complete"]
    assert not (runs.dir / "failed.json").exists()
    assert manifest["datasets"]["dy"]["events_counted"] == 1200
    assert manifest["peak_memory"] > 10 << 20
    assert manifest["versions"]["coffea"]
    assert "already complete" in runs().text


def test_equal_to_coffeas_own_runner(runs, data):
    runs()
    ours = executors.load(runs.dir)
    theirs = Runner(IterativeExecutor(status=False), schema=NanoAODSchema, chunksize=200)(
        json.loads(data.read_text()), analyses.Sum(), treename="Events"
    )
    assert executors.digest(ours) == executors.digest({k: theirs[k] for k in ours})


def test_indexed_outputs(runs):
    assert runs(fsize=1).exit_code == 0
    indexed = [f"hist_Sum_fs_{i}_{j}.coffea" for i, j in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1))]
    assert names(runs.dir) == sorted([*indexed, "hist_Sum_fs.coffea"])
    parts = [coffea.util.load(runs.dir / name) for name in indexed]
    assert parts[1] == {}, "a split without an event"
    assert [sum(v["events"] for v in p.values()) for p in parts] == [900, 0, 300, 500, 700]


def test_index_chooses_splits(runs):
    outcome = runs(fsize=1, index=(0, 2, 1, 0))
    assert outcome.exit_code == 0
    assert names(runs.dir) == ["hist_Sum_fs_0_2.coffea", "hist_Sum_fs_1_0.coffea"]
    assert runs(fsize=1, index=(1, 1)).exit_code == 0
    with pytest.raises(UsageError, match=r"1,1"):
        runs(fsize=1, index=(1, 2))
    assert status(runs.dir).exit_code == 3
    assert runs(fsize=1).exit_code == 0
    assert status(runs.dir).exit_code == 0
    assert len(names(runs.dir)) == 6


def test_merge_later_is_idempotent(runs):
    assert runs(fsize=2, no_merge=True).exit_code == 0
    assert "hist_Sum_fs.coffea" not in names(runs.dir)
    merged = merge_dirs([runs.dir])
    assert merged.exit_code == 0
    before = (runs.dir / "hist_Sum_fs.coffea").read_bytes()
    assert "as it was" in merge_dirs([runs.dir]).text
    assert (runs.dir / "hist_Sum_fs.coffea").read_bytes() == before
    assert executors.digest(executors.load(runs.dir)) == merged.data["digest"]


def test_merge_refuses_gaps_and_overlap(runs, tmp_path, data):
    runs(fsize=1, index=(0, 0, 0, 0))
    with pytest.raises(IncompleteError, match="tt lacks 1200 of 1200"):
        merge_dirs([runs.dir])
    assert merge_dirs([runs.dir], tmp_path / "some.coffea", allow_missing=1500).exit_code == 0
    one, two, all_ = (Runs(tmp_path / name, data) for name in ("one", "two", "all"))
    one(only=("dy",)), two(only=("tt",)), all_()
    with pytest.raises(UsageError, match="counted twice"):
        merge_dirs([one.dir, all_.dir], tmp_path / "x.coffea")
    with pytest.raises(UsageError, match="-o"):
        merge_dirs([one.dir, two.dir])
    with pytest.raises(UsageError, match="twice"):
        merge_dirs([one.dir, one.dir], tmp_path / "x.coffea")
    both = merge_dirs([one.dir, two.dir], tmp_path / "both.coffea")
    assert both.data["digest"] == json.loads((all_.dir / "manifest.json").read_text())["digest"]
    with pytest.raises(UsageError, match="overwrite"):
        merge_dirs([one.dir], tmp_path / "both.coffea")


@pytest.mark.parametrize("what", ["hist_Sum_fs.coffea", "hist_Sum_fs_0_0.coffea"])
def test_a_damaged_output_is_found_and_written_anew(runs, what):
    runs(fsize=2)
    path = runs.dir / what
    good = path.read_bytes()
    path.write_bytes(good[:100] + bytes([good[100] ^ 8]) + good[101:])
    with pytest.raises(DamagedError):
        inspect(path)
    assert inspect(runs.dir).exit_code == 3
    if what == "hist_Sum_fs.coffea":
        with pytest.raises(IncompleteError, match="damaged"):
            executors.load(runs.dir)
    assert runs(fsize=2).exit_code == 0
    assert path.read_bytes() == good
    assert inspect(runs.dir).exit_code == 0
    assert "pt(32)" in inspect(path).text


def test_every_output_damaged_and_the_store_too(runs):
    runs(fsize=1)
    want = {path.name: path.read_bytes() for path in runs.dir.glob("*.coffea")}
    for path in [*runs.dir.glob("*.coffea"), *(runs.dir / "store").rglob("*.part")]:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    assert runs(fsize=1).exit_code == 0
    assert {path.name: path.read_bytes() for path in runs.dir.glob("*.coffea")} == want
    assert inspect(runs.dir).exit_code == 0


class Interrupts(Silent):
    """Presses Ctrl-C as soon as something is being made again."""

    def message(self, level, text):
        if "made again" in text:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("fsize", [None, 1])
def test_cut_off_while_mending_writes_nothing_empty(runs, fsize):
    runs(fsize=fsize)
    want = (runs.dir / "hist_Sum_fs.coffea").read_bytes()
    for path in [*runs.dir.glob("*.coffea"), runs.dir / "manifest.json"]:
        path.unlink()
    for path in (runs.dir / "store").rglob("*.part"):
        data = bytearray(path.read_bytes())
        data[-5] ^= 1
        path.write_bytes(data)
    outcome = execute(runs.settings(fsize=fsize), observer=Interrupts())
    assert outcome.exit_code == 130
    assert not outcome.data["merged"]
    assert not (runs.dir / "hist_Sum_fs.coffea").exists()
    assert all(coffea.util.load(path) for path in runs.dir.glob("*.coffea"))
    assert runs(fsize=fsize).exit_code == 0
    assert (runs.dir / "hist_Sum_fs.coffea").read_bytes() == want


def test_a_finished_run_without_its_store_is_not_replaced(runs):
    runs()
    shutil.rmtree(runs.dir / "store")
    with pytest.raises(PlanChangedError):
        runs(chunk=300)
    with pytest.raises(PlanChangedError, match="analysis changed"):
        runs(wf_arg={"pause": 0.001})
    assert "already complete" in runs().text


def test_reuse_is_on_record(runs):
    runs(max=2)
    assert not json.loads((runs.dir / "manifest.json").read_text())["reused_analysis"]
    (runs.dir / "hist_Sum_fs.coffea").unlink()
    assert runs(max=2, wf_arg={"pause": 0.001}, reuse=True).data["reused_analysis"]


def test_another_fileset_or_chunk_is_refused(runs, tmp_path, data):
    runs()
    with pytest.raises(PlanChangedError, match="--chunk was 200 and is now 300"):
        runs(chunk=300)
    with pytest.raises(PlanChangedError, match="'tt' is gone"):
        runs(only=("dy",))
    with pytest.raises(PlanChangedError, match="limit"):
        runs(limit=1)
    assert runs(chunk=300, overwrite=True).exit_code == 0
    renamed = json.loads(data.read_text())
    renamed["dy"]["files"] = dict.fromkeys(renamed["dy"]["files"], "Other")
    (tmp_path / "fs.json").write_text(json.dumps(renamed))
    with pytest.raises(PlanChangedError, match="tree 'Other'"):
        runs(chunk=300, json=str(tmp_path / "fs.json"))


@pytest.mark.parametrize(
    ("options", "events"), [({"max": 3}, 600), ({"max_per_dataset": 2}, 750), ({"limit": 1}, 1400)]
)
def test_less_of_it(runs, options, events):
    outcome = runs(**options)
    assert outcome.exit_code == 0
    assert abs(outcome.data["events_counted"] - events) <= 150
    assert outcome.data["events_counted"] == outcome.data["events_planned"]


def test_limits_hold_where_all_is_known_already(runs, tmp_path, data):
    runs()
    plan = json.loads((runs.dir / "plan.json").read_text().splitlines()[1])
    known = {
        d["name"]: {
            "files": {
                f["path"]: {"object_path": f["treename"], "num_entries": f["entries"], "uuid": f["uuid"]}
                for f in d["files"]
            }
        }
        for d in plan["datasets"]
    }
    (tmp_path / "known.json").write_text(json.dumps(known))
    outcome = Runs(tmp_path, tmp_path / "known.json")(max=2)
    assert outcome.data["events_planned"] == outcome.data["events_counted"] < 500


def test_custom_output(runs, tmp_path):
    target = tmp_path / "deep" / "my.result.coffea"
    assert runs(output=target).exit_code == 0
    assert target.read_bytes() == (runs.dir / "hist_Sum_fs.coffea").read_bytes()
    target.unlink()
    assert runs(output=target).exit_code == 0
    assert target.exists()


def test_a_replaced_file_is_noticed(runs, tmp_path):
    files = make_fileset(tmp_path / "own", {"dy": [300, 300]}, seed=9)
    (tmp_path / "own.json").write_text(json.dumps(files))
    own = Runs(tmp_path, tmp_path / "own.json")
    assert own().exit_code == 0
    write_events(list(files["dy"]["files"])[0], 300, seed=77)
    with pytest.raises(PlanChangedError, match="replaced"):
        own()


def test_rntuple_and_named_tree(tmp_path):
    write_events(tmp_path / "a.root", 500, seed=1, rntuple=True)
    write_events(tmp_path / "b.root", 500, seed=1)
    write_events(tmp_path / "c.root", 500, seed=1, treename="Other")
    sums = [
        executors.run(
            analyses.Sum(), {"x": [str(tmp_path / f"{name}.root")]}, on="iterative", chunk=100, **more
        )
        for name, more in (("a", {}), ("b", {}), ("c", {"treename": "Other"}))
    ]
    assert sums[0]["x"]["sumw"] == sums[1]["x"]["sumw"] == sums[2]["x"]["sumw"]


def test_postprocess_once_on_the_whole(data, tmp_path):
    class Counting(analyses.Sum):
        def postprocess(self, accumulator):
            return {**accumulator, "calls": 1, "events": sum(v["events"] for v in accumulator.values())}

    result = executors.run(Counting(), data, on="iterative", chunk=100, out=tmp_path / "o")
    assert (result["calls"], result["events"]) == (1, 2400)
    result = executors.run(Counting(), data, on="iterative", chunk=100, out=tmp_path / "p", postprocess=False)
    assert "calls" not in result


def test_a_postprocess_that_raises_costs_no_event(data, tmp_path):
    class Bad(analyses.Sum):
        def postprocess(self, accumulator):
            raise ValueError("at the end")

    with pytest.raises(AnalysisError, match="at the end"):
        executors.run(Bad(), data, on="iterative", out=tmp_path / "o", name="x")
    assert json.loads((tmp_path / "o" / "manifest.json").read_text())["events_counted"] == 2400


def test_metadata_reaches_the_events(data):
    def look(events):
        meta = events.metadata
        return {"seen": [(meta["dataset"], meta["xsec"], meta["entrystart"], Path(meta["filename"]).name)]}

    seen = executors.run(look, data, on="iterative", chunk=1000)["seen"]
    assert seen == [("dy", 2.5, 0, "nano_0.root"), ("dy", 2.5, 0, "nano_2.root"), ("tt", 2.5, 0, "nano_0.root"),
                    ("tt", 2.5, 0, "nano_1.root")]  # fmt: skip


def test_no_event_at_all(tmp_path):
    write_events(tmp_path / "a.root", 0)
    assert executors.run(analyses.Sum(), {"x": [str(tmp_path / "a.root")]}, on="iterative") == {}


def test_dry_run_writes_nothing(runs, data):
    outcome = plan_only(runs.settings(fsize=1))
    assert outcome.exit_code == 0
    assert "2400 events" in outcome.text
    assert not runs.dir.exists()
    assert outcome.data["outputs"][-1] == "hist_Sum_fs.coffea"


def test_validate_stops_before_work(runs, tmp_path):
    files = make_fileset(tmp_path / "own", {"dy": [300, 300]}, seed=9)
    (tmp_path / "own.json").write_text(json.dumps(files))
    own = Runs(tmp_path, tmp_path / "own.json")
    Path(list(files["dy"]["files"])[1]).write_bytes(b"<html>")
    with pytest.raises(IncompleteError, match="nano_1.root"):
        own(validate=True)
    assert not list((tmp_path / "hist_Sum_own").glob("store/*"))


@pytest.mark.parametrize("how", ["stdin", "file"])
def test_a_processor_of_main(how, data, tmp_path):
    """A class in a cell or a script without a main guard: by value, on real workers."""
    script = f"""
import executors
from coffea import processor

class P(processor.ProcessorABC):
    scale = 3
    def process(self, events):
        return {{"n": len(events) * helper(self.scale)}}
    def postprocess(self, accumulator):
        return accumulator

def helper(x):
    return x

print(executors.run(P(), {str(data)!r}, on="futures", workers=2, chunk=200, cache={str(tmp_path)!r})["n"])
"""
    path = tmp_path / "script.py"
    path.write_text(script)
    given = {"input": script} if how == "stdin" else {}
    done = subprocess.run(
        [sys.executable, *(["-"] if how == "stdin" else [str(path)])], capture_output=True, text=True, timeout=100,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}, check=False, **given,
    )  # fmt: skip
    assert done.stdout == "7200\n", done.stderr


def test_wide_output_is_exact(tmp_path):
    """Large partial sums of many chunks: merged in blocks, equal to the sum in the tree's order."""
    write_events(tmp_path / "a.root", 1700, seed=4)

    def big(events):
        start = events.metadata["entrystart"]
        return {"a": np.random.default_rng(start).normal(size=300_000)}

    results = [
        executors.run(
            big, {"x": [str(tmp_path / "a.root")]}, on=on, chunk=50, task_seconds=seconds, workers=2
        )
        for on, seconds in (("iterative", 0.0), ("iterative", 60.0), ("futures", 0.1))
    ]
    assert len({executors.digest(r) for r in results}) == 1
