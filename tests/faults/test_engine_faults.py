"""Whole runs on the four engines with analyses and workers that misbehave."""

from __future__ import annotations

import json

import analyses
import pytest
from data import make_fileset

import executors
from executors.errors import AnalysisError, IncompleteError

ALL = ("iterative", "futures", "dask/local", "parsl/local")
POOLS = ALL[1:]
EVENTS = {"dy": 3000, "tt": 4000}


@pytest.fixture(scope="module")
def fileset(tmp_path_factory):
    return make_fileset(
        tmp_path_factory.mktemp("data"), {"dy": [2000, 0, 1000], "tt": [1000, 2000, 1000]}, seed=3
    )


@pytest.fixture(scope="module")
def truth(fileset, tmp_path_factory):
    return go(analyses.Sum(), fileset, "iterative", tmp_path_factory.mktemp("truth"))


def go(processor, fileset, on, folder, **options):
    """The digest of a whole run."""
    options = {"chunk": 50, "workers": 2, "cache": folder / "cache", **options}
    result = executors.run(processor, fileset, on=on, out=folder / "out", name="test", **options)
    return executors.digest(result)


def manifest(folder):
    return json.loads((folder / "out" / "manifest.json").read_text())


@pytest.mark.parametrize("on", ALL)
def test_same_bits(on, fileset, truth, tmp_path):
    assert go(analyses.Sum(), fileset, on, tmp_path) == truth
    found = manifest(tmp_path)
    assert {n: d["events_counted"] for n, d in found["datasets"].items()} == EVENTS


@pytest.mark.parametrize("on", ALL)
@pytest.mark.parametrize("kind", ["Raises", "OwnFile", "ReturnsNone", "Unpicklable"])
def test_a_bug_stops_early(on, kind, fileset, tmp_path):
    with pytest.raises(AnalysisError) as caught:
        go(getattr(analyses, kind)(), fileset, on, tmp_path)
    found = manifest(tmp_path)
    assert found["exit_code"] == 1
    assert sum(d["failures"] for d in found["datasets"].values()) <= 8
    text = str(caught.value)
    if kind == "Raises":
        assert "KeyError" in text and "no such correction" in text and "analyses.py" in text
    if kind == "OwnFile":
        assert "corrections.json" in text


@pytest.mark.parametrize("on", ALL)
def test_unmergeable_is_the_users(on, fileset, tmp_path):
    with pytest.raises(AnalysisError, match="x"):
        go(analyses.Unmergeable(), fileset, on, tmp_path)


@pytest.mark.parametrize("on", ALL)
@pytest.mark.parametrize("kind", ["RaisesOnce", "SysExit"])
def test_a_late_bug_costs_its_chunk_only(on, kind, fileset, truth, tmp_path):
    with pytest.raises(AnalysisError):
        go(getattr(analyses, kind)(), fileset, on, tmp_path)
    found = manifest(tmp_path)
    assert found["events_missing"] == 50
    (failure,) = found["failures"]
    assert failure["range"] == [500, 550]
    assert failure["file"].endswith("tt/nano_1.root")


@pytest.mark.parametrize("on", POOLS)
@pytest.mark.parametrize("kind", ["Exits", "Killed", "Segfaults"])
def test_a_killer_is_isolated(on, kind, fileset, truth, tmp_path):
    with pytest.raises(IncompleteError):
        go(getattr(analyses, kind)(), fileset, on, tmp_path)
    found = manifest(tmp_path)
    (failure,) = found["failures"]
    assert (failure["kind"], failure["range"]) == ("worker lost", [500, 550])
    assert found["events_missing"] == 50
    missing = json.loads((tmp_path / "out" / "failed.json").read_text())
    ((path, about),) = missing["tt"]["files"].items()
    assert path.endswith("tt/nano_1.root") and about["steps"] == [[500, 550]]
    assert list(missing) == ["tt"]


@pytest.mark.parametrize("on", ALL)
def test_an_endless_loop_ends(on, fileset, tmp_path):
    with pytest.raises(AnalysisError, match="analyses.py"):
        go(analyses.Loops(), fileset, on, tmp_path, chunk_timeout=4.0)
    found = manifest(tmp_path)
    assert [f["range"] for f in found["failures"]] == [[500, 550]]
    assert found["failures"][0]["kind"] == "time limit"


@pytest.mark.parametrize("on", POOLS)
def test_a_gigabyte_of_prints(on, fileset, truth, tmp_path, scale, capfd):
    assert go(analyses.Prints(scale(100, 1000)), fileset, on, tmp_path) == truth
    assert len("".join(capfd.readouterr())) < 10_000
    assert sum(p.stat().st_size for p in (tmp_path / "out" / "logs").rglob("*")) < 5_000_000


@pytest.mark.parametrize("on", POOLS)
def test_workers_die_all_the_time(on, tmp_path, scale):
    chunks = scale(100, 2000)
    kills = chunks // 10
    data = make_fileset(tmp_path / "data", {"dy": [chunks * 25, chunks * 25]}, seed=5)
    deaths = tmp_path / "deaths"
    deaths.mkdir()
    want = go(analyses.Sum(), data, "iterative", tmp_path / "truth")
    got = go(analyses.Mortal(str(deaths), kills, 8), data, on, tmp_path)
    assert got == want
    assert len(list(deaths.iterdir())) >= kills, "each file is one worker that died"


@pytest.mark.parametrize("on", ["iterative", "futures"])
def test_changed_arguments_are_never_mixed(on, fileset, truth, tmp_path):
    go(analyses.Sum(), fileset, on, tmp_path)
    with pytest.raises(executors.PlanChangedError, match="pause"):
        go(analyses.Sum(pause=0.0001), fileset, on, tmp_path)
    assert go(analyses.Sum(pause=0.0001), fileset, on, tmp_path, reuse=True) == truth
    assert go(analyses.Sum(pause=0.0001), fileset, on, tmp_path, overwrite=True) == truth
