"""A worker's last input stays open for its next task, and only for that, and only while it is the same file."""

from __future__ import annotations

import dataclasses
import gc
import os
import pickle
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import pytest
import uproot

from executors.coffea import kept
from executors.coffea.analysis import CoffeaAnalysis
from executors.coffea.classify import ChangedFileError
from executors.coffea.count import count
from executors.work.model import FileSlice
from tests.data import corrupt, write_events

if TYPE_CHECKING:
    from collections.abc import Iterator


def weights(events: Any) -> float:
    return float(sum(events.genWeight.tolist()))


def about(events: Any) -> tuple[str, Any]:
    return events.metadata["dataset"], events.metadata.get("year")


def piece_of(path: Path, *ranges: tuple[int, int]) -> FileSlice:
    found = count(str(path))
    return FileSlice(0, str(path), found.treename, found.uuid, found.entries, 0, ranges)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_events(tmp_path / "a.root", 100)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []
    real = uproot.open
    monkeypatch.setattr(uproot, "open", lambda f, **k: names.append(Path(next(iter(f))).name) or real(f, **k))
    return names


@pytest.fixture
def analysis() -> Iterator[CoffeaAnalysis]:
    made = CoffeaAnalysis(weights, {"dy": {"year": 1}, "tt": {"year": 2}})
    yield made
    made.close()


def files_of_mine() -> list[str]:
    folder = Path("/proc/self/fd")
    found = []
    for link in folder.iterdir():
        try:
            found.append(str(link.readlink()))
        except OSError:
            continue
    return [name for name in found if name.endswith(".root")]


def task(analysis: CoffeaAnalysis, piece: FileSlice, dataset: str = "dy") -> list[Any]:
    with analysis.open(dataset, piece) as file:
        return [file.process(*span) for span in piece.ranges]


def test_tasks_of_one_file_open_it_once(analysis: CoffeaAnalysis, path: Path, opened: list[str]) -> None:
    pieces = [piece_of(path, (i, i + 10), (i + 10, i + 20)) for i in range(0, 100, 20)]
    opened.clear()
    together = [out for piece in pieces for out in task(analysis, piece)]
    assert opened == ["a.root"]
    apart = [out for piece in pieces for out in task(CoffeaAnalysis(weights, {"dy": {}}), piece)]
    assert together == apart
    assert len(opened) == 6


def test_each_task_has_its_own_dataset(path: Path, opened: list[str]) -> None:
    analysis = CoffeaAnalysis(about, {"dy": {"year": 1}, "tt": {"year": 2}})
    piece = piece_of(path, (0, 10))
    opened.clear()
    assert [task(analysis, piece, name) for name in ("dy", "tt", "dy")] == [
        [("dy", 1)],
        [("tt", 2)],
        [("dy", 1)],
    ]
    assert len(opened) == 1
    analysis.close()


def test_at_most_one_is_open(analysis: CoffeaAnalysis, tmp_path: Path, path: Path) -> None:
    other = write_events(tmp_path / "b.root", 100, seed=1)
    for each in (path, other, path):
        task(analysis, piece_of(each, (0, 10)))
        assert files_of_mine() in ([], [str(each)])
    analysis.close()
    assert files_of_mine() == []
    analysis.close()
    assert task(analysis, piece_of(path, (0, 10)))


def test_a_file_that_was_replaced_is_opened_anew(
    analysis: CoffeaAnalysis, tmp_path: Path, path: Path, opened: list[str]
) -> None:
    piece = piece_of(path, (0, 10))
    task(analysis, piece)
    write_events(tmp_path / "new.root", 100, seed=5).replace(path)
    with pytest.raises(ChangedFileError):
        task(analysis, piece)
    assert task(analysis, piece_of(path, (0, 10)))
    corrupt("changed", path)  # written over in place
    with pytest.raises(ChangedFileError):
        task(analysis, piece)
    path.unlink()
    with pytest.raises(OSError):  # noqa: PT011
        task(analysis, piece)
    assert opened.count("a.root") >= 5


def test_another_slice_is_checked_as_when_opened(analysis: CoffeaAnalysis, path: Path) -> None:
    piece = piece_of(path, (0, 10))
    task(analysis, piece)
    with pytest.raises(ChangedFileError, match="another file than was planned"):
        task(analysis, dataclasses.replace(piece, uuid="0" * 32))
    task(analysis, piece)
    with pytest.raises(ChangedFileError, match="entries"):
        task(analysis, dataclasses.replace(piece, entries=99))


def test_after_a_failure_it_is_opened_anew(path: Path, opened: list[str]) -> None:
    mood = {"fails": False}

    def moody(events: Any) -> float:
        if mood["fails"]:
            raise RuntimeError("oops")
        return weights(events)

    analysis = CoffeaAnalysis(moody, {"dy": {}})
    piece = piece_of(path, (0, 10))
    opened.clear()
    task(analysis, piece)
    mood["fails"] = True
    # As a worker does it: the failure is caught within, and the file closed like any other.
    with analysis.open("dy", piece) as file, pytest.raises(RuntimeError, match="oops"):
        file.process(0, 10)
    assert opened == ["a.root"]
    assert files_of_mine() == []
    mood["fails"] = False
    task(analysis, piece)
    assert len(opened) == 2
    analysis.close()


def test_not_after_a_while(
    analysis: CoffeaAnalysis, path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    piece = piece_of(path, (0, 10))
    opened.clear()
    task(analysis, piece)
    monkeypatch.setattr(kept, "IDLE", 0.0)
    task(analysis, piece)
    assert len(opened) == 2


def test_two_at_the_same_time_have_one_each(analysis: CoffeaAnalysis, path: Path, opened: list[str]) -> None:
    piece = piece_of(path, *((i, i + 10) for i in range(0, 100, 10)))
    alone = task(analysis, piece)
    opened.clear()
    results: list[Any] = []
    started = threading.Barrier(2)

    def one() -> None:
        with analysis.open("dy", piece) as file:
            started.wait(timeout=60)
            results.append([file.process(*span) for span in piece.ranges])

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert results == [alone, alone]
    assert len(opened) == 1, "the one that was kept, and another"
    assert len(files_of_mine()) <= 1


def test_what_is_open_does_not_travel(analysis: CoffeaAnalysis, path: Path) -> None:
    before = cloudpickle.dumps(analysis, protocol=5)
    task(analysis, piece_of(path, (0, 10)))
    with_one_open = pickle.loads(cloudpickle.dumps(analysis, protocol=5))
    assert with_one_open._kept._slot == []
    assert len(cloudpickle.dumps(analysis, protocol=5)) < len(before) + 500
    with_one_open.close()


def test_garbage_is_collected_between_tasks_as_ever(analysis: CoffeaAnalysis, path: Path) -> None:
    piece = piece_of(path, (0, 10))
    frozen = gc.get_freeze_count()
    for _ in range(2):
        with analysis.open("dy", piece) as file:
            file.process(0, 10)
            assert gc.get_freeze_count() > 1000
        assert gc.get_freeze_count() <= frozen
        assert gc.isenabled()


def test_a_dropped_analysis_closes_its_file(path: Path) -> None:
    analysis = CoffeaAnalysis(weights, {"dy": {}})
    task(analysis, piece_of(path, (0, 10)))
    del analysis
    gc.collect()
    assert os.fspath(path) not in files_of_mine()
