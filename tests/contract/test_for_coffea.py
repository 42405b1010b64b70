"""``for_coffea`` on every engine: what coffea's ``Runner`` expects, and what it does not dare to hope for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cloudpickle
import numpy as np
import psutil
import pytest
from coffea import processor
from coffea.nanoevents import NanoAODSchema
from coffea.processor import IterativeExecutor, Runner

from executors.coffea.adapter import for_coffea
from executors.errors import AnalysisError, IncompleteError
from tests.data import corrupt, make_fileset

cloudpickle.register_pickle_by_value(sys.modules[__name__])
ROOT = Path(__file__).parents[2]
NAMES = ["iterative", "futures", "dask/local", "parsl/local"]
DEADLY = NAMES[1:]  # a task that kills its process kills the iterative engine, and us


@pytest.fixture(scope="module")
def opened():
    """One executor an engine for all tests here: being used again and again is part of the contract."""
    kept = {}

    def get(name):
        if name not in kept:
            kept[name] = for_coffea(name, workers=2, status=False, backoff=0.01)
        kept[name].report.clear()
        return kept[name]

    yield get
    for executor in kept.values():
        executor.close()


@pytest.fixture(scope="module")
def fileset(tmp_path_factory):
    return make_fileset(tmp_path_factory.mktemp("good"), {"dy": [300, 200, 0], "tt": [250, 170]})


class Spectrum(processor.ProcessorABC):
    def __init__(self, fault=None, start=None):
        self.fault, self.start = fault, start

    def process(self, events):
        import awkward as ak
        import hist

        name, start = events.metadata["dataset"], events.metadata["entrystart"]
        if self.fault is not None and name == "tt" and self.start in {None, start}:
            self.fault()
        h = hist.Hist.new.StrCat([], growth=True, name="d").Reg(20, 0, 200, name="pt").Double()
        h.fill(d=name, pt=ak.flatten(events.Muon.pt))
        return {
            name: {"entries": len(events), "sumw": float(ak.sum(events.genWeight))},
            "rounding": np.asarray(ak.sum(events.Muon.pt) * 1.1 / 3.3),
            "pt": h,
            "starts": [start],
        }

    def postprocess(self, accumulator):
        accumulator["post"] = 1


def run(executor, fileset, proc=None, **fields):
    NanoAODSchema.warn_missing_crossrefs = False
    call = Runner(
        **{"executor": executor, "schema": NanoAODSchema, "chunksize": 90, "metadata_cache": {}, **fields}
    )
    return call(fileset, treename="Events", processor_instance=proc or Spectrum())


@pytest.fixture(scope="module")
def expected(fileset):
    return run(IterativeExecutor(status=False), fileset)


def same(ours, theirs):
    for key in ("dy", "tt", "starts", "pt", "post"):
        assert ours[key] == theirs[key], key


@pytest.mark.parametrize("name", NAMES)
def test_equal_to_coffeas_own(opened, fileset, expected, name):
    for fields in (
        {},
        {"savemetrics": True},
        {"skipbadfiles": True, "use_result_type": True},
        {"align_clusters": True},
    ):
        out = run(opened(name), fileset, **fields)
        out = out.unwrap() if "use_result_type" in fields else out
        if "savemetrics" in fields:
            assert out[1]["entries"] == 920
            out = out[0]
        if "align_clusters" not in fields:
            same(out, expected)
        assert out["dy"] == expected["dy"]


def test_the_same_bits_everywhere(opened, fileset):
    sums = {name: run(opened(name), fileset)["rounding"].tobytes() for name in NAMES}
    assert len(set(sums.values())) == 1, sums


@pytest.mark.parametrize("name", NAMES)
def test_a_bug_stops_early_and_is_shown(opened, fileset, name, tmp_path):
    def fault():
        (tmp_path / str(time.monotonic_ns())).touch()
        raise ZeroDivisionError("oh")

    many = {"tt": {**fileset["tt"], "files": dict(list(fileset["tt"]["files"].items())[:1])}}
    with pytest.raises(AnalysisError, match=r"ZeroDivisionError: oh at test_for_coffea\.py"):
        run(opened(name), many, Spectrum(fault), chunksize=2)
    assert len(list(tmp_path.iterdir())) <= 4


@pytest.mark.parametrize("name", NAMES)
def test_a_bug_in_one_chunk_keeps_the_rest(opened, fileset, expected, name):
    def fault():
        raise ZeroDivisionError("oh")

    with pytest.raises(AnalysisError) as caught:
        run(opened(name), fileset, Spectrum(fault, start=84))
    partial = caught.value.partial_output
    assert partial["dy"] == expected["dy"]
    assert partial["tt"]["entries"] == expected["tt"]["entries"] - 84
    assert isinstance(caught.value.__cause__.__cause__, ZeroDivisionError)


@pytest.mark.parametrize("name", NAMES)
def test_bad_files(opened, tmp_path, name):
    fileset = make_fileset(tmp_path, {"dy": [100, 100, 100, 100]})
    files = [Path(path) for path in fileset["dy"]["files"]]
    corrupt("missing", files[1])
    corrupt("garbage", files[2])
    executor = opened(name)
    with pytest.raises(IncompleteError, match=files[2].name):
        run(executor, fileset)
    executor.report.clear()
    with pytest.warns(UserWarning, match="2 of 4 files skipped"):
        out = run(executor, fileset, skipbadfiles=True)
    assert out["dy"]["entries"] == 200
    assert {Path(m.item.filename) for m in executor.report.skipped} == set(files[1:3])


@pytest.mark.parametrize("name", DEADLY)
def test_a_killed_worker_costs_nothing(opened, fileset, expected, tmp_path, name):
    def fault():
        try:
            (tmp_path / "once").touch(exist_ok=False)
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)

    executor = opened(name)
    same(run(executor, fileset, Spectrum(fault, start=84)), expected)
    assert (tmp_path / "once").exists()
    assert executor.report.retried


@pytest.mark.parametrize("name", DEADLY)
def test_a_killer_is_named_and_the_rest_is_kept(opened, fileset, expected, name):
    def fault():
        os.kill(os.getpid(), signal.SIGKILL)

    executor = opened(name)
    with pytest.raises(IncompleteError, match=r"\[84, 168\): worker lost") as caught:
        run(executor, fileset, Spectrum(fault, start=84))
    assert [item.entrystart for item in caught.value.about["items"]] == [84]
    assert caught.value.partial_output["dy"] == expected["dy"]
    same(run(executor, fileset), expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpointer_resumes(opened, fileset, expected, tmp_path, name):
    def fault():
        raise ZeroDivisionError("oh")

    points = processor.SimpleCheckpointer(str(tmp_path))
    with pytest.raises(AnalysisError):
        run(opened(name), fileset, Spectrum(fault, start=84), checkpointer=points)
    same(run(opened(name), fileset, checkpointer=points), expected)


@pytest.mark.parametrize("name", NAMES)
def test_many_small_items_through_a_window(opened, name):
    out, error = opened(name)(range(500), lambda i: {"n": 1, "items": [i]}, None)
    assert (error, out["n"], out["items"]) == (0, 500, list(range(500)))


SCRIPT = """
import sys, json
from coffea import processor
from coffea.nanoevents import NanoAODSchema
import executors

NanoAODSchema.warn_missing_crossrefs = False
SCALE = 3

class Counts(dict):
    pass

def scaled(n):
    return SCALE * n

class Mine(processor.ProcessorABC):
    def process(self, events):
        return Counts({"n": scaled(len(events))})
    def postprocess(self, accumulator):
        pass

run = processor.Runner(executor=executors.for_coffea(NAME, workers=2, status=False), chunksize=90,
                       schema=NanoAODSchema, metadata_cache={})
out = run(json.loads(FILESET), treename="Events", processor_instance=Mine())
assert type(out) is Counts, type(out)
print(out["n"])
"""


@pytest.mark.parametrize("way", ["file", "stdin", "cell"])
@pytest.mark.parametrize("name", NAMES)
def test_a_class_of_main_and_an_end_without_close(fileset, tmp_path, name, way):
    import json

    script = f"NAME = {name!r}\nFILESET = {json.dumps(fileset)!r}\n" + SCRIPT
    if way == "cell":
        script = f"exec(compile({script!r}, '<cell 1>', 'exec'), globals())"
    (tmp_path / "script.py").write_text(script)
    before = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py") if way == "file" else "-"],
        input=None if way == "file" else script,
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "FOR_COFFEA_TEST": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(3 * 920)]
    assert time.monotonic() - before < 60
    assert [path.name for path in tmp_path.iterdir()] == ["script.py"]
    assert not left_of(tmp_path)


def left_of(token):
    """Processes that still carry the token in their environment, a moment after the end."""

    def carriers():
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid != os.getpid() and process.environ().get("FOR_COFFEA_TEST") == str(token):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    for _ in range(50):
        if not carriers():
            return []
        time.sleep(0.1)
    return carriers()


@pytest.mark.parametrize("name", NAMES)
def test_ctrl_c_stops_promptly_and_leaves_nothing(tmp_path, name):
    script = f"""
import os, time
import executors
def slow(item):
    open({str(tmp_path)!r} + f"/{{item}}", "w").close()
    time.sleep(30)
executors.for_coffea({name!r}, workers=2, status=False)(range(50), slow, None)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "FOR_COFFEA_TEST": str(tmp_path)},
    )
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)
        started = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert time.monotonic() - started < 10
        assert process.returncode in {1, 130, -signal.SIGINT}
        assert "KeyboardInterrupt" in err
        assert len(list(tmp_path.iterdir())) <= 4
        assert not left_of(tmp_path)
    finally:
        process.kill()
        process.wait()
