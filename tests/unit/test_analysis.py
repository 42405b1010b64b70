"""What a worker runs: a processor over slices, as coffea would run it, and clear about what it may not do."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar

import awkward as ak
import cloudpickle
import hist
import numpy as np
import pytest
from coffea.nanoevents import BaseSchema, NanoAODSchema
from coffea.processor import IterativeExecutor, ProcessorABC, Runner, accumulate

from configs.dimuon import DimuonProcessor
from configs.make_data import make
from executors.coffea.analysis import CoffeaAnalysis
from executors.coffea.classify import ChangedFileError, ColumnError
from executors.coffea.columns import Columns, undeclared
from executors.coffea.count import count
from executors.coffea.events import Input
from executors.errors import AnalysisError, UnknownNameError, UsageError
from executors.work.model import FileSlice, Kind
from tests.data import columns, make_fileset, write_events

if TYPE_CHECKING:
    from pathlib import Path

ENTRIES = 1000


def piece_of(path: Path | str, ranges: tuple[tuple[int, int], ...] = ()) -> FileSlice:
    found = count(str(path))
    return FileSlice(0, str(path), found.treename, found.uuid, found.entries, 0, ranges)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_events(tmp_path_factory.mktemp("good") / "good.root", ENTRIES, cluster=300)


class Spectrum(ProcessorABC):
    def __init__(self, low: float = 0.0) -> None:
        self.low = low

    def process(self, events: Any) -> Any:
        muons = events.Muon[events.Muon.pt > self.low]
        pairs = ak.combinations(muons, 2)
        mass = ak.flatten((pairs["0"] + pairs["1"]).mass)
        spectrum = hist.Hist.new.Reg(50, 0, 200, name="mass").Weight().fill(mass=mass)
        weight = float(ak.sum(events.genWeight)) if "genWeight" in events.fields else float(len(events))
        return {events.metadata["dataset"]: {"mass": spectrum, "sumw": weight, "n": len(events)}}

    def postprocess(self, accumulator: Any) -> Any:
        raise RuntimeError("this belongs to the merged result")


def sums(analysis: CoffeaAnalysis, dataset: str, path: Path | str, step: int) -> list[Any]:
    piece = piece_of(path)
    with analysis.open(dataset, piece) as file:
        return [
            file.process(start, min(start + step, piece.entries)) for start in range(0, piece.entries, step)
        ]


# --- the same as coffea ---------------------------------------------------------------------------


@pytest.mark.parametrize("rntuple", [False, True], ids=["TTree", "RNTuple"])
@pytest.mark.parametrize("lazy", [True, False], ids=["lazy", "public"])
def test_the_same_as_coffeas_runner(tmp_path: Path, lazy: bool, rntuple: bool) -> None:
    fileset = make_fileset(tmp_path, {"dy": [500, 300], "tt": [700]}, cluster=200, rntuple=rntuple)
    run = Runner(IterativeExecutor(status=False), schema=NanoAODSchema, chunksize=100)
    NanoAODSchema.warn_missing_crossrefs = False

    class Plain(Spectrum):
        def postprocess(self, accumulator: Any) -> Any:
            return accumulator

    theirs = run({k: {"files": v["files"], "metadata": v["metadata"]} for k, v in fileset.items()}, Plain())
    analysis = CoffeaAnalysis(Spectrum(), {k: v["metadata"] for k, v in fileset.items()}, lazy=lazy)
    ours = accumulate(
        part
        for name, given in fileset.items()
        for path in given["files"]
        for part in sums(analysis, name, path, 100)
    )
    assert ours == theirs
    assert ours["dy"]["n"] == 800


def test_the_demo_is_the_same_as_coffeas_runner(tmp_path: Path) -> None:
    fileset = json.loads(make(tmp_path, events=6000).read_text())
    assert sum(count(path).entries for given in fileset.values() for path in given["files"]) == 6000
    NanoAODSchema.warn_missing_crossrefs = False
    run = Runner(IterativeExecutor(status=False), schema=NanoAODSchema, chunksize=700)
    theirs = run(
        {k: {"files": v["files"], "metadata": v["metadata"]} for k, v in fileset.items()}, DimuonProcessor()
    )
    processor = DimuonProcessor()
    analysis = CoffeaAnalysis(processor, {k: v["metadata"] for k, v in fileset.items()})
    parts = [
        part
        for name, given in fileset.items()
        for path in given["files"]
        for part in sums(analysis, name, path, 700)
    ]
    ours = processor.postprocess(accumulate(parts))
    assert ours.keys() == theirs.keys()
    for name, found in ours.items():
        assert {k: v for k, v in found.items() if k != "mass"} == {
            k: v for k, v in theirs[name].items() if k != "mass"
        }
        # Coffea cuts other chunks: sums of such weights are exact in any order.
        assert np.array_equal(found["mass"].values(flow=True), theirs[name]["mass"].values(flow=True))
    data, simulation = ours["DoubleMuon_A"], ours["DYJetsToMuMu"]
    assert data["sum of weights"] == data["events"]
    assert simulation["sum of weights"] < simulation["events"]
    peak = simulation["mass"]["opposite", hist.loc(80.0) : hist.loc(100.0)].values().sum()
    assert peak > 0.5 * simulation["mass"]["opposite", :].values().sum()


def test_the_demo_is_drawn(tmp_path: Path) -> None:
    from configs.plot import draw

    fileset = json.loads(make(tmp_path, events=3000).read_text())
    analysis = CoffeaAnalysis(DimuonProcessor(), {})
    result = accumulate(
        part
        for name, given in fileset.items()
        for path in given["files"]
        for part in sums(analysis, name, path, 1000)
    )
    assert draw(result, tmp_path / "a.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_demos_data_come_from_the_seed(tmp_path: Path) -> None:
    def events(folder: str, seed: int) -> list[float]:
        fileset = json.loads(make(tmp_path / folder, events=600, seed=seed).read_text())
        analysis = CoffeaAnalysis(lambda e: ak.to_list(e.Muon.pt), {})
        return [out for n, g in fileset.items() for p in g["files"] for out in sums(analysis, n, p, 600)]

    assert events("a", 1) == events("b", 1) != events("c", 2)


# --- what travels, what is shown ------------------------------------------------------------------


def test_it_travels(good: Path) -> None:
    here = CoffeaAnalysis(Spectrum(low=5.0), {"dy": {"xsec": 2.0}}, columns=["Muon_*", "genWeight"])
    there = cloudpickle.loads(cloudpickle.dumps(here))
    assert sums(here, "dy", good, 400) == sums(there, "dy", good, 400)


def test_it_travels_while_and_after_a_file_is_open(good: Path) -> None:
    analysis = CoffeaAnalysis(len, {})
    with analysis.open("dy", piece_of(good)) as file:
        file.process(0, 10)
        cloudpickle.loads(cloudpickle.dumps(analysis))


def test_the_users_metadata(good: Path) -> None:
    analysis = CoffeaAnalysis(lambda events: dict(events.metadata), {"dy": {"xsec": 2.0, "era": [1, 2]}})
    with analysis.open("dy", piece_of(good)) as file:
        first, second = file.process(0, 10), file.process(10, 30)
    assert (first["entrystart"], first["entrystop"]) == (0, 10)
    assert (second["entrystart"], second["entrystop"]) == (10, 30)
    assert second["dataset"] == "dy"
    assert second["filename"] == str(good)
    assert second["treename"] == "Events"
    assert second["fileuuid"].replace("-", "") == piece_of(good).uuid
    assert (second["xsec"], second["era"]) == (2.0, [1, 2])


def test_an_analysis_that_changes_its_metadata_changes_nothing_else(good: Path) -> None:
    def changes(events: Any) -> Any:
        seen = dict(events.metadata)
        events.metadata["xsec"] = 0.0
        events.metadata["eras"].append("B")
        return seen["xsec"], len(seen["eras"])

    analysis = CoffeaAnalysis(changes, {"dy": {"xsec": 2.0, "eras": ["A"]}})
    with analysis.open("dy", piece_of(good)) as file:
        file.process(0, 10)
        assert file.process(10, 20) == (2.0, 2)


def test_bytes_are_counted(good: Path) -> None:
    analysis = CoffeaAnalysis(lambda events: float(ak.sum(events.genWeight)), {})
    with analysis.open("dy", piece_of(good)) as file:
        before = file.bytes_read
        assert file.process(0, ENTRIES) == float(np.sum(columns(ENTRIES)["genWeight"]))
        assert file.bytes_read > before


def test_pack_and_combine(good: Path) -> None:
    from executors.coffea.pack import unpack

    analysis = CoffeaAnalysis(Spectrum(), {})
    parts = [analysis.pack(part) for part in sums(analysis, "dy", good, 250)]
    total = parts[0]
    for part in parts[1:]:
        total = analysis.combine(total, part)
    assert unpack(total) == accumulate(sums(analysis, "dy", good, 250))


@pytest.mark.parametrize("schema", ["BaseSchema", BaseSchema])
def test_other_schemas(good: Path, schema: Any) -> None:
    analysis = CoffeaAnalysis(lambda events: float(ak.sum(events.Muon_pt)), {}, schema=schema)
    with analysis.open("dy", piece_of(good)) as file:
        assert file.process(0, ENTRIES) > 0


def test_what_is_no_analysis() -> None:
    with pytest.raises(UsageError, match="neither a coffea processor nor a function"):
        CoffeaAnalysis(42, {})
    with pytest.raises(UnknownNameError, match="did you mean 'NanoAODSchema'"):
        CoffeaAnalysis(len, {}, schema="NanoADSchema")
    with pytest.raises(UsageError, match="columns must be names of branches"):
        CoffeaAnalysis(len, {}, columns=[1, 2])


def test_none_is_not_a_result(good: Path) -> None:
    analysis = CoffeaAnalysis(lambda events: None, {})
    with (
        analysis.open("dy", piece_of(good)) as file,
        pytest.raises(AnalysisError, match="returned None") as caught,
    ):
        file.process(0, 10)
    assert analysis.classify(caught.value) is Kind.USER


def test_events_that_are_not_there_are_not_counted(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    analysis = CoffeaAnalysis(len, {})
    real = Input.events
    monkeypatch.setattr(Input, "events", lambda self, start, stop: real(self, start, stop - 1))
    with (
        analysis.open("dy", piece_of(good)) as file,
        pytest.raises(ChangedFileError, match="gave 9 events, not 10"),
    ):
        file.process(0, 10)


@pytest.mark.parametrize("value", [0, {}, [], 0.0, np.zeros(0)], ids=repr)
def test_empty_results_are_results(good: Path, value: Any) -> None:
    analysis = CoffeaAnalysis(lambda events: value, {})
    with analysis.open("dy", piece_of(good)) as file:
        assert file.process(0, 10) is value


# --- declared columns -----------------------------------------------------------------------------


class Declares(Spectrum):
    columns = ("Muon_pt", "genWeight")


class HasOtherColumns(Spectrum):
    """With an attribute that is something else."""

    columns: ClassVar = {"mass": [1, 2, 3]}


class Asks(Spectrum):
    def process(self, events: Any) -> Any:
        return events.HLT.IsoMu24


def test_the_processors_own_declaration(good: Path) -> None:
    analysis = CoffeaAnalysis(Declares(), {})
    assert analysis.columns == Declares.columns
    assert sums(analysis, "dy", good, 400) == sums(CoffeaAnalysis(Spectrum(), {}), "dy", good, 400)
    assert CoffeaAnalysis(Declares(), {}, columns=["Muon_*"]).columns == ("Muon_*",)
    assert CoffeaAnalysis(HasOtherColumns(), {}).columns is None
    assert CoffeaAnalysis(Spectrum(), {}, columns=()).columns is None


@pytest.mark.parametrize(
    ("declared", "asks", "missed"),
    [
        (["genWeight"], lambda e: e.Muon.pt, "Muon_pt"),
        (["Muon_pt"], lambda e: e.genWeight, "genWeight"),
        (["Muon_pt"], lambda e: e["genWeight"], "genWeight"),
        (["Muon_pt"], lambda e: e.HLT.IsoMu24, "HLT_IsoMu24"),
        (["Muon_pt", "HLT_x0"], lambda e: e.HLT.IsoMu24, "HLT_IsoMu24"),
        (["Muon_pt", "HLT_x0"], lambda e: e.HLT["IsoMu24"], "HLT_IsoMu24"),
        (["Muon_pt"], lambda e: e.MET.pt, "MET_pt"),
        (["Muon_pt"], lambda e: ak.sum(e.Muon[e.MET.pt > 3].pt), "MET_pt"),
    ],
)
@pytest.mark.parametrize("lazy", [True, False], ids=["lazy", "public"])
def test_a_column_that_was_not_declared_is_named(
    tmp_path: Path, declared: list[str], asks: Any, missed: str, lazy: bool
) -> None:
    path = write_events(tmp_path / "a.root", 50, wide=2)
    analysis = CoffeaAnalysis(asks, {}, columns=declared, lazy=lazy)
    with analysis.open("dy", piece_of(path)) as file, pytest.raises(ColumnError) as caught:
        file.process(0, 10)
    assert f"'{missed}'" in str(caught.value)
    assert "--columns" in str(caught.value)
    assert missed in caught.value.about["columns"]
    assert analysis.classify(caught.value) is Kind.USER
    assert analysis.frames(caught.value)[-1].startswith("test_analysis.py:")


def test_other_mistakes_stay_what_they_are(good: Path) -> None:
    for asks, error in (
        (lambda e: e.Muon.nonsense, AttributeError),
        (lambda e: {}["Muon_what"], KeyError),
        (lambda e: int("Muon"), ValueError),
        (lambda e: 1 / 0, ZeroDivisionError),
    ):
        analysis = CoffeaAnalysis(asks, {}, columns=["Muon_pt", "Muon_*"])
        with analysis.open("dy", piece_of(good)) as file, pytest.raises(error) as caught:
            file.process(0, 10)
        assert not isinstance(caught.value, ColumnError)


def test_nothing_is_undeclared_without_a_declaration(good: Path) -> None:
    analysis = CoffeaAnalysis(Asks(), {})
    with analysis.open("dy", piece_of(good)) as file:
        assert len(file.process(0, 10)) == 10


def test_columns_by_pattern() -> None:
    names = [
        "run",
        "event",
        "nMuon",
        "Muon_pt",
        "Muon_eta",
        "Muon_charge",
        "Muon_dxy",
        "Jet_pt",
        "nJet",
        "genWeight",
    ]
    assert Columns(["Muon_pt"]).chosen(names, ["run"]) == {
        "run",
        "nMuon",
        "Muon_pt",
        "Muon_eta",
        "Muon_charge",
    }
    assert Columns(["gen*"]).chosen(names) == {"genWeight"}
    assert Columns(["Muon_dx?"]).chosen(names) == {"nMuon", "Muon_pt", "Muon_eta", "Muon_charge", "Muon_dxy"}
    assert Columns([]).chosen(names, ["run", "gone"]) == {"run"}
    assert Columns(["muon_pt"]).chosen(names) == set(), "names of branches differ by case"
    assert Columns(["nothing*"]).chosen(names) == set()
    assert undeclared(AttributeError("no field named 'dxy'"), []) is None
    assert undeclared(OSError("no field named 'dxy'"), ["Muon_dxy"]) is None
    assert "'Muon_dxy'" in str(undeclared(AttributeError("no field named 'dxy'"), ["Muon_dxy"]))
