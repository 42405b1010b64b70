"""Columns read for several chunks at once are those that coffea reads for each, and cost nobody else anything."""

from __future__ import annotations

import dataclasses
import itertools
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import awkward as ak
import numpy as np
import pytest
import uproot
from coffea.nanoevents import BaseSchema, NanoAODSchema

from executors.coffea import reads, template
from executors.coffea.count import count
from executors.coffea.events import open_input, schema_named
from executors.coffea.reads import Numbers, numbers, readable
from executors.work.model import FileSlice
from executors.work.worker import TimeLimitError
from tests.data import columns, corrupt, write_columns, write_events
from tests.same_events import differences
from tests.unit.test_events import SAMPLES, TREES

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRIES = 1000
RANGES = ((0, 137), (137, 300), (300, 742), (742, 743), (743, 1000))


@pytest.fixture(autouse=True)
def no_template_is_left() -> Iterator[None]:
    template.forget()
    yield
    template.forget()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_events(tmp_path_factory.mktemp("good") / "good.root", ENTRIES, cluster=300, wide=6)


def piece_of(path: Path, ranges: tuple[tuple[int, int], ...] = RANGES) -> FileSlice:
    found = count(str(path))
    return FileSlice(0, str(path), found.treename, found.uuid, found.entries, 0, ranges)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What uproot was asked for: (start, stop, columns) at once, or the name of one branch."""
    calls: list[Any] = []
    tree, branch = uproot.behaviors.TBranch.HasBranches, uproot.behaviors.TBranch.TBranch
    several, one = tree.arrays, branch.array

    def arrays(self: Any, wanted: Any, **options: Any) -> Any:
        calls.append((options["entry_start"], options["entry_stop"], {name for name, _ in wanted}))
        return several(self, wanted, **options)

    def array(self: Any, *args: Any, **options: Any) -> Any:
        calls.append(self.name)
        return one(self, *args, **options)

    monkeypatch.setattr(tree, "arrays", arrays)
    monkeypatch.setattr(branch, "array", array)
    return calls


def analyse(events: Any) -> list[Any]:
    return [events.Muon.pt.tolist(), events.MET.pt.tolist(), float(ak.sum(events.genWeight))]


def expected(start: int, stop: int, seed: int = 0) -> list[Any]:
    data = columns(ENTRIES, seed, wide=6)
    weight = float(ak.sum(ak.Array(data["genWeight"][start:stop])))
    return [data["Muon_pt"][start:stop].tolist(), data["MET_pt"][start:stop].tolist(), weight]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "schema"), SAMPLES)
def test_equal_on_coffeas_samples(name: str, schema: str) -> None:
    folder = os.environ.get("COFFEA_SAMPLES")
    if not folder:
        pytest.skip("COFFEA_SAMPLES does not name tests/samples of coffea's source distribution")
    path = Path(folder) / f"{name}.root"
    found = count(str(path), TREES.get(name))
    cuts = [i * found.entries // 5 for i in range(6)]
    piece = FileSlice(
        0, str(path), found.treename, found.uuid, found.entries, 0, tuple(itertools.pairwise(cuts))
    )
    kind = schema_named(schema)
    with open_input(piece, kind) as lazy, open_input(piece, kind, lazy=False) as public:
        for span in piece.ranges[:4]:
            assert differences(lazy.events(*span), public.events(*span)) == []


READ = {"Muon_pt", "nMuon", "MET_pt", "genWeight"}


@pytest.mark.parametrize("rntuple", [False, True], ids=["TTree", "RNTuple"])
@pytest.mark.parametrize("schema", [NanoAODSchema, BaseSchema])
@pytest.mark.parametrize("most", [1, 20_000, 1 << 30], ids=["one by one", "a few", "all"])
def test_equal_to_coffeas(
    tmp_path: Path, schema: type, most: int, rntuple: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every column is foreseen, because everything was looked at: values, transformations, the access log."""
    monkeypatch.setattr(reads, "MOST", most)
    path = write_events(tmp_path / "a.root", ENTRIES, cluster=300, rntuple=rntuple)
    piece = piece_of(path)
    with open_input(piece, schema) as lazy, open_input(piece, schema, lazy=False) as public:
        for span in (*RANGES, RANGES[2], (5, 50), (0, ENTRIES)):
            assert differences(lazy.events(*span), public.events(*span)) == [], span


def test_one_request_for_what_is_foreseen(good: Path, asked: list[Any]) -> None:
    with open_input(piece_of(good), NanoAODSchema) as source:
        for span in RANGES:
            assert analyse(source.events(*span)) == expected(*span)
    assert sorted(asked[:-1]) == sorted(READ), "the first chunk, column by column"
    assert asked[-1] == (137, 1000, READ)


def test_the_next_file_is_foreseen_from_its_first_chunk(tmp_path: Path, good: Path, asked: list[Any]) -> None:
    with open_input(piece_of(good), NanoAODSchema, dataset="dy") as source:
        analyse(source.events(*RANGES[0]))
    asked.clear()
    other = write_events(tmp_path / "b.root", ENTRIES, seed=1, cluster=300, wide=6)
    with open_input(piece_of(other), NanoAODSchema, dataset="dy") as source:
        for span in RANGES:
            assert analyse(source.events(*span)) == expected(*span, seed=1)
    assert asked == [(0, 1000, READ)]
    with open_input(piece_of(other), NanoAODSchema, dataset="another") as source:
        analyse(source.events(*RANGES[0]))
    assert len(asked) == 5, "what one dataset's chunks read says nothing of another's"


def test_nothing_is_read_before_it_is_used(good: Path, asked: list[Any]) -> None:
    with open_input(piece_of(good), NanoAODSchema) as source:
        analyse(source.events(*RANGES[0]))
        asked.clear()
        events = source.events(*RANGES[1])
        assert "genWeight" in events.fields
        assert asked == []
        assert set(events.run.tolist()) == {1}
        assert asked == ["run"], "it was not foreseen, and does not have the others read"


def test_what_is_rarely_read_is_not_foreseen(
    good: Path, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reads, "MOST", 1)
    ranges = tuple((i, i + 100) for i in range(0, ENTRIES, 100))
    with open_input(piece_of(good, ranges), NanoAODSchema) as source:
        for i, span in enumerate(ranges):
            events = source.events(*span)
            ak.sum(events.genWeight)
            if i == 4:
                ak.sum(events.run)
    assert [names for *_, names in (call for call in asked if isinstance(call, tuple))].count(
        {"genWeight"}
    ) == 8
    assert asked.count("run") == 1


def test_a_wrong_guess_changes_nothing(good: Path, asked: list[Any]) -> None:
    piece = piece_of(good)
    with open_input(piece, NanoAODSchema) as source:
        source._template.read[""] = frozenset({"Muon_eta", "no such branch", "run"})
        for span in RANGES:
            assert analyse(source.events(*span)) == expected(*span)


def test_a_gap_ends_what_is_read_at_once(good: Path, asked: list[Any]) -> None:
    ranges = ((0, 100), (100, 200), (300, 400), (400, 500), (600, 700))
    with open_input(piece_of(good, ranges), NanoAODSchema) as source:
        for span in ranges:
            assert analyse(source.events(*span)) == expected(*span)
    assert [call[:2] for call in asked if isinstance(call, tuple)] == [(100, 200), (300, 500), (600, 700)]


def test_so_much_at_once(good: Path, asked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    ranges = tuple((i, i + 100) for i in range(0, ENTRIES, 100))

    def grouped(most: int, alone: int) -> list[int]:
        template.forget()
        monkeypatch.setattr(reads, "MOST", most)
        monkeypatch.setattr(reads, "MOST_ALONE", alone)
        asked.clear()
        with open_input(piece_of(good, ranges), NanoAODSchema) as source:
            for span in ranges:
                assert analyse(source.events(*span)) == expected(*span)
        return [call[1] - call[0] for call in asked if isinstance(call, tuple)]

    assert grouped(1 << 30, 1 << 30) == [900]
    assert grouped(1, 1 << 30) == [100] * 9
    assert grouped(1, 1) == []
    each = sum(grouped(15_000, 1 << 30)[:1])
    assert 100 <= each < 900
    assert each % 100 == 0


def test_a_chunk_in_parts_was_too_much_at_once(good: Path, asked: list[Any]) -> None:
    with open_input(dataclasses.replace(piece_of(good), parts=2), NanoAODSchema) as source:
        for span in RANGES:
            assert analyse(source.events(*span)) == expected(*span)
    assert not [call for call in asked if isinstance(call, tuple)]


def test_only_the_chunk_with_the_damage_fails(tmp_path: Path) -> None:
    """Its neighbours were to be read together with it."""
    path = write_events(tmp_path / "a.root", ENTRIES, cluster=100)
    piece = piece_of(path, tuple((i, i + 100) for i in range(0, ENTRIES, 100)))
    corrupt("flipped", path)  # the last basket of Muon_pt
    data = columns(ENTRIES)
    with open_input(piece, NanoAODSchema) as source:
        for span in piece.ranges[:-1]:
            assert source.events(*span).Muon.pt.tolist() == data["Muon_pt"][slice(*span)].tolist()
        # Anything may be raised; it is for the classifier.
        with pytest.raises(Exception):  # noqa: PT011
            source.events(*piece.ranges[-1]).Muon.pt.tolist()
        events = source.events(*piece.ranges[-1])
        assert events.genWeight.tolist() == data["genWeight"][-100:].tolist()


def test_the_limit_of_time_is_not_taken_for_damage(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(*_args: Any, **_options: Any) -> Any:
        raise TimeLimitError("over")

    with open_input(piece_of(good), NanoAODSchema) as source:
        analyse(source.events(*RANGES[0]))
        monkeypatch.setattr(uproot.behaviors.TBranch.HasBranches, "arrays", late)
        events = source.events(*RANGES[1])
        with pytest.raises(TimeLimitError):
            analyse(events)


@pytest.mark.parametrize("ranges", [RANGES, (RANGES[0], RANGES[1])], ids=["several", "alone"])
def test_chunks_do_not_write_into_each_other(good: Path, ranges: tuple[tuple[int, int], ...]) -> None:
    with open_input(piece_of(good, ranges), NanoAODSchema) as source:
        analyse(source.events(*RANGES[0]))
        for _ in range(2):
            events = source.events(*RANGES[1])
            for column in (events.MET.pt, ak.flatten(events.Muon.pt)):
                np.asarray(column)[:] = -1.0
        assert analyse(source.events(*RANGES[1])) == expected(*RANGES[1])


def test_to_keep_a_column_does_not_keep_all_that_was_read(good: Path) -> None:
    with open_input(piece_of(good), NanoAODSchema) as source:
        analyse(source.events(*RANGES[0]))
        events = source.events(*RANGES[1])
        for kept in (np.asarray(events.MET.pt), np.asarray(ak.flatten(events.Muon.pt))):
            while isinstance(kept.base, np.ndarray):
                kept = kept.base
            assert kept.nbytes <= 4 * 163 * 5


def test_chunks_in_any_order_and_at_once(good: Path) -> None:
    with open_input(piece_of(good), NanoAODSchema) as source:
        analyse(source.events(*RANGES[0]))
        held = [(span, source.events(*span)) for span in (*RANGES, *reversed(RANGES), (3, 8))]
        for span, events in reversed(held):
            assert analyse(events) == expected(*span)


# --- reading ahead --------------------------------------------------------------------------------


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


def test_reading_ahead(good: Path, asked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reads, "MOST", 1)
    with open_input(piece_of(good), NanoAODSchema, ahead=True) as source:
        analyse(source.events(*RANGES[0]))
        for i, span in enumerate(RANGES[1:], 1):
            assert analyse(source.events(*span)) == expected(*span)
            if i + 1 < len(RANGES):
                source._reads._next._coming.result(timeout=60)
                assert asked[-1] == (*RANGES[i + 1], READ), "it is there before anybody asks for it"
        assert threads()
    assert not threads()
    assert len([call for call in asked if isinstance(call, tuple)]) == 4, "nothing twice"


def test_trouble_while_reading_ahead_is_met_by_the_chunk_itself(
    good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reads, "MOST", 1)
    failed = []

    def broken(self: Any) -> Any:
        failed.append(threading.current_thread().name)
        raise ConnectionResetError("reset")

    monkeypatch.setattr(reads.Group, "_read", broken)
    with open_input(piece_of(good), NanoAODSchema, ahead=True) as source:
        for span in RANGES:
            assert analyse(source.events(*span)) == expected(*span)
    assert failed
    assert all(name.startswith("read-ahead") for name in failed)


def test_little_is_read_ahead_of_what_is_large(
    good: Path, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reads, "MOST", 1)
    monkeypatch.setattr(reads, "MOST_AHEAD", 1)
    with open_input(piece_of(good), NanoAODSchema, ahead=True) as source:
        for span in RANGES:
            assert analyse(source.events(*span)) == expected(*span)
            assert source._reads._next is None


# --- what can be read so --------------------------------------------------------------------------


def test_numbers_and_lists_of_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.root"
    data = columns(50)
    write_columns(path, {**data, "pair": np.zeros((50, 2))}, 50)
    with uproot.open({str(path): None}) as file:
        tree = file["Events"]
        tree_of = {name: readable(tree[name]) for name in ("Muon_pt", "nMuon", "HLT_IsoMu24", "pair")}
        assert tree_of == {"Muon_pt": True, "nMuon": True, "HLT_IsoMu24": True, "pair": False}
        assert numbers(tree["pair"].array().layout) is None
    assert not readable(object())
    assert numbers(ak.Array([["a"], []]).layout) is None
    assert numbers(ak.Array([[[1.0]], []]).layout) is None
    found = numbers(ak.Array([[1.5], [], [2.5, 3.5]])[1:].layout)
    assert found is not None
    assert reads.array(found, 0, 2).tolist() == [[], [2.5, 3.5]]
    assert reads.array(found, 1, 2).tolist() == [[2.5, 3.5]]


def test_takes() -> None:
    lists = Numbers(np.arange(6.0), np.array([0, 2, 2, 6]))
    counts = Numbers(np.array([2, 0, 4], "u4"))
    assert reads.content(lists, 1, 3).tolist() == [2, 3, 4, 5]
    assert reads.offsets(lists, 1, 3).tolist() == [0, 0, 4]
    assert reads.offsets_of_counts(counts, 1, 3).tolist() == [0, 0, 4]
    assert reads.offsets_of_counts(counts, 0, 3).dtype == np.int64
    assert reads.flat(counts, 0, 1).tolist() == [2]
    assert reads.flat(lists, 0, 1) is reads.offsets_of_counts(lists, 0, 1) is None
    assert reads.content(counts, 0, 1) is reads.offsets(counts, 0, 1) is None
