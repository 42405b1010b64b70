"""``--profile-memory``: which pieces are measured, what a failure means, the advice; and once for real."""

from __future__ import annotations

import json
import os
import threading
import types
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from data import make_fileset, write_events
from fakes import make_place

import runner
from executors.engines.base import WorkerDied
from executors.errors import (
    AnalysisError,
    EngineError,
    IncompleteError,
    InterruptedRunError,
    SiteError,
)
from executors.memory import footprints
from executors.memory import probe as profiling
from executors.memory.advice import advice, budget_of, fitting_events
from executors.memory.budget import Budget
from executors.memory.probe import Probe, Sample
from executors.memory.usage import Usage
from executors.running import profile_memory
from executors.settings import resolve
from executors.work import journal, sizing
from executors.work.model import ChunkRecord, Failure, Kind, Receipt
from executors.work.plan import Plan, PlannedDataset, PlannedFile
from executors.work.report import Outcome

ROOT = Path(__file__).parents[2]
MB = 1_000_000
FIXED = 300 * MB


class Clock:
    """Time that only passes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


class Worker:
    """A pool that answers at once, as a worker with known needs would; ``faults`` by path or number of events."""

    def __init__(self, clock: Clock, each: float = 5000, seconds: float = 0.0, **faults: Any) -> None:
        self.clock, self.each, self.seconds = clock, each, seconds
        self.faults: dict[Any, Any] = faults.pop("faults", {})
        self.sizes: list[int] = []
        self.paths: list[str] = []

    def submit(self, call: Any, task: Any) -> Future[Receipt]:
        (piece,) = task.slices
        ((start, events),) = piece.ranges
        assert start == 0
        self.sizes.append(events)
        self.paths.append(piece.address)
        self.clock.now += self.seconds * events
        future: Future[Receipt] = Future()
        fault = self.faults.get(piece.path) or next(
            (v for k, v in self.faults.items() if isinstance(k, int) and events >= k), None
        )
        if isinstance(fault, BaseException):
            future.set_exception(fault)
            return future
        failures, extra = (), {}
        if isinstance(fault, Kind):
            failures = (Failure(0, 0, piece.path, (0, events), fault, "Error", "it failed", ("wf.py:3",)),)
        elif fault is not None:
            extra = {"put_error": fault}
        record = ChunkRecord(0, 0, events, 0.1, int(FIXED + self.each * events), before=FIXED)
        future.set_result(Receipt(task.id, (), failures, (record,), extra=extra))
        return future


class Heard:
    def __init__(self) -> None:
        self.said: list[tuple[str, str]] = []

    def message(self, level: str, text: str) -> None:
        self.said.append((level, text))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(profiling, "time", made)
    return made


def sample(name: str = "dy", *entries: int) -> Sample:
    files = tuple(PlannedFile(f"{name}/{i}.root", "Events", f"{i:032x}", n) for i, n in enumerate(entries))
    return Sample(PlannedDataset(name, 0, files), files, "none is good")


def probe(tmp_path: Path, worker: Worker, *, top: int = 200_000, memory: int | None = None) -> Probe:
    plan = Plan("wf", "fs", 1000, None, (), "f" * 40)
    how = types.SimpleNamespace(urls={"dy/0.root": "root://here/0.root"})
    asked: Any = types.SimpleNamespace(
        plan=plan,
        how=how,
        observer=Heard(),
        stop=threading.Event(),
        settings=types.SimpleNamespace(wf_arg={}),
    )
    pool: Any = worker
    call: Any = None
    return Probe(asked, pool, call, make_place(tmp_path), top, memory, worker.clock.now)


def test_pieces_grow_until_the_line_is_clear(tmp_path: Path, clock: Clock) -> None:
    worker = Worker(clock)
    usage = probe(tmp_path, worker).measure(sample("dy", 10**6))
    # 40 MB at 8,000 events are clear, but 200,000 are out of reach of a line so short.
    assert worker.sizes == [1000, 8000, 64000]
    assert usage.fit is not None
    assert usage.fit.per_event == pytest.approx(5000, rel=0.001)
    assert usage.fit.fixed == pytest.approx(FIXED, rel=0.001)
    assert usage.where == ("dy/0.root", 0, 64000)
    assert worker.paths[0] == "root://here/0.root"  # as the site reads it


@pytest.mark.parametrize(
    ("each", "entries", "top", "sizes"),
    [
        (50_000, 10**6, 200_000, [1000, 8000]),  # 400 MB: enough for any line
        (6000, 10**6, 64_000, [1000, 8000]),  # 48 MB: enough for one that is not longer
        (10, 10**6, 200_000, [1000, 8000, 64000, 200_000]),  # nothing grows: as far as a chunk may go
        (10, 10**9, 10**9, [1000, 8000, 64000, 512_000, 4_096_000]),  # never more than five
        (5000, 900, 200_000, [112, 900]),  # a small file: 896 would tell the same
        (5000, 1, 200_000, [1]),
        (5000, 10**6, 1500, [187, 1500]),
    ],
)
def test_how_far(tmp_path: Path, clock: Clock, each: float, entries: int, top: int, sizes: list[int]) -> None:
    worker = Worker(clock, each)
    probe(tmp_path, worker, top=top).measure(sample("dy", entries))
    assert worker.sizes == sizes


def test_this_machine_is_not_filled(tmp_path: Path, clock: Clock) -> None:
    worker = Worker(clock, 100_000)
    probe(tmp_path, worker, memory=700 * MB).measure(sample("dy", 10**6))
    assert worker.sizes[0] == 1000
    assert len(worker.sizes) == 2
    assert worker.sizes[1] * 100_000 + FIXED < 700 * MB


@pytest.mark.parametrize("fault", [Kind.MEMORY, WorkerDied.of("memory", -9), MemoryError()])
def test_a_piece_that_fails_for_memory_is_a_measurement(tmp_path: Path, clock: Clock, fault: Any) -> None:
    worker = Worker(clock, 1000, faults={50_000: fault})
    usage = probe(tmp_path, worker).measure(sample("dy", 10**6))
    assert worker.sizes == [1000, 8000, 64000]
    assert (usage.chunks, usage.too_big, usage.burst) == (2, 1, 64000)
    assert fitting_events(usage, 10**12) == 32000
    none = probe(tmp_path, Worker(clock, faults={1: fault})).measure(sample("dy", 10**6))
    assert (none.chunks, none.burst, none.fit) == (0, 1000, None)
    assert fitting_events(none, 10**12) == 0


def test_a_bad_file_is_passed_over(tmp_path: Path, clock: Clock) -> None:
    worker = Worker(clock, faults={"dy/0.root": Kind.BAD, "dy/1.root": Kind.PASSING})
    one = probe(tmp_path, worker)
    usage = one.measure(sample("dy", 5000, 6000, 7000))
    assert worker.paths[:3] == ["root://here/0.root", "dy/1.root", "dy/2.root"]
    assert usage.where == ("dy/2.root", 0, 7000)
    assert one.asked.observer.said == []  # type: ignore[attr-defined]
    worker.faults["dy/2.root"] = Kind.BAD
    usage = one.measure(sample("dy", 5000, 6000, 7000))
    assert usage.chunks == 0
    ((level, text),) = one.asked.observer.said  # type: ignore[attr-defined]
    assert level == "warning"
    assert "dy could not be measured: dy/2.root: Error: it failed" in text


@pytest.mark.parametrize(
    ("fault", "error", "text"),
    [
        (
            Kind.USER,
            AnalysisError,
            r"the analysis raised Error: it failed\n  wf.py:3\n  in dy/0.root, entries 0",
        ),
        (Kind.TIMEOUT, AnalysisError, "the analysis raised"),
        (Kind.SITE, SiteError, "dy/0.root: Error: it failed"),
        (WorkerDied.of("signal", -11), EngineError, "lost on the first 1,000 events of dy/0.root"),
        ((28, "No space left on device"), SiteError, "No space left"),
    ],
)
def test_what_is_not_the_inputs_fault_is_raised(
    tmp_path: Path, clock: Clock, fault: Any, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        probe(tmp_path, Worker(clock, faults={"dy/0.root": fault})).measure(sample("dy", 10**6))


def test_a_slow_analysis_is_measured_on_smaller_pieces(tmp_path: Path, clock: Clock) -> None:
    worker = Worker(clock, 10, seconds=0.01)  # 10 s for the first piece, 50 s are left
    usage = probe(tmp_path, worker).measure(sample("dy", 10**6))
    assert worker.sizes == [1000, 5000]
    assert usage.chunks == 2
    worker = Worker(clock, 10, seconds=1)
    probe(tmp_path, worker).measure(sample("dy", 10**6))
    assert worker.sizes == [1000]


def test_when_the_time_is_over_the_rest_is_named(tmp_path: Path, clock: Clock) -> None:
    worker = Worker(clock, 10, seconds=0.3)
    one = probe(tmp_path, worker)
    measured = list(one.measured([sample(f"d{i}", 10**6) for i in range(9)]))
    assert 2 <= len(measured) < 9
    level, text = one.asked.observer.said[-1]  # type: ignore[attr-defined]
    assert (level, text.split(" not")[0]) == ("warning", f"{9 - len(measured)} datasets")


def test_a_signal_ends_it(tmp_path: Path, clock: Clock) -> None:
    worker = Worker(clock)
    one = probe(tmp_path, worker)
    one.asked.stop.set()
    one.pool = types.SimpleNamespace(submit=lambda *_: Future())  # type: ignore[assignment]
    with pytest.raises(InterruptedRunError, match="nothing was begun"):
        one.measure(sample("dy", 10**6))


# -- advice -----------------------------------------------------------------------------------------


def used(name: str, each: float, burst: int = 0) -> Usage:
    usage = Usage(name, burst=burst, longest=10**6)
    for events in (1000, 8000, 64000):
        usage.took(events, FIXED, int(FIXED + each * events))
    return usage


def have(memory: int) -> Budget:
    return Budget(memory, "--memory")


def test_a_run_that_fits() -> None:
    code, text = advice([used("dy", 5000), used("tt", 500)], 100_000, have(2000 * MB), 4)
    assert code == 0
    assert text.startswith("this run needs up to 8")  # 800 MB and what the spread adds
    assert "a worker, in chunks of 100,000 events of dy; a worker has 2.0 GB (--memory): that fits" in text
    assert text.endswith("190,000 of dy, 200,000 of tt")


def test_a_run_that_does_not_fit_and_what_would() -> None:
    code, text = advice([used("dy", 50_000), used("tt", 500)], 100_000, have(2000 * MB), 4)
    assert code == 0
    assert "that is too much" in text
    size = fitting_events(used("dy", 50_000), 2000 * MB)
    assert f"at most: {size:,} of dy" in text
    assert 15_000 < size < 22_000
    assert used("dy", 50_000).fit.upper(size) <= sizing.SHARE * 2000 * MB  # type: ignore[union-attr]


def test_with_sizes_by_memory_it_fits() -> None:
    code, text = advice([used("dy", 50_000)], "auto", have(2000 * MB), 4)
    assert code == 0
    assert "that fits" in text
    assert f"in chunks of {fitting_events(used('dy', 50_000), 2000 * MB):,} events" in text


def test_nothing_fits() -> None:
    code, text = advice([used("dy", 50_000), used("tt", 500)], "auto", have(200 * MB), 4)
    assert code == SiteError.exit_code
    lines = text.splitlines()
    assert len(lines) == 3
    assert lines[1].startswith("dy needs 35")
    assert "--memory 2.1GB, or fewer workers than 4 (-j)" in lines[1]
    _, text = advice([used("dy", 50_000)], "auto", have(200 * MB), 1)
    assert "fewer" not in text


def test_what_was_too_big_here_does_not_fit() -> None:
    _, text = advice([used("dy", 500, burst=64000)], 100_000, have(10**11), 1)
    assert "that is too much" in text
    assert "32,000 of dy" in text
    code, text = advice([Usage("dy", burst=1000)], 100_000, have(10**11), 1)
    assert code == SiteError.exit_code
    assert "dy: 1,000 events need more than this machine has" in text


def test_without_a_limit_only_the_need_is_said() -> None:
    code, text = advice([used("dy", 5000)], 100_000, None, 1)
    assert code == 0
    assert "--memory says what a worker has" in text
    assert advice([used("dy", 5000)], "auto", None, 1)[0] == 0


def test_many_datasets_are_summed_up() -> None:
    _, text = advice([used(f"d{i}", 5000) for i in range(40)], 100_000, have(10**10), 1)
    assert "and no fewer of 37 other datasets" in text


def test_a_small_dataset_is_not_predicted_for_chunks_it_cannot_have() -> None:
    small = Usage("tt", longest=500)
    small.took(500, FIXED, FIXED + 10 * MB)
    _, text = advice([small], 100_000, have(10**10), 1)
    assert "in chunks of 500 events of tt" in text


def test_who_says_what_a_worker_has() -> None:
    here: Any = types.SimpleNamespace(budget=None, where=types.SimpleNamespace(local=True, slots=2))
    there: Any = types.SimpleNamespace(budget=None, where=types.SimpleNamespace(local=False, slots=2))
    told: Any = types.SimpleNamespace(budget=have(5), where=None)
    assert budget_of(here) is not None
    assert budget_of(there) is None
    assert budget_of(told) == have(5)


# -- for real ---------------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path: Path) -> Any:
    """Settings of a command over two datasets, one of which begins with a broken file."""
    fileset = make_fileset(tmp_path / "data", {"dy": [20_000], "tt": [600, 3000]}, seed=3)
    broken = next(iter(fileset["tt"]["files"]))
    Path(broken).write_bytes(b"no tree grows here")
    write_events(tmp_path / "data" / "empty.root", 0)
    fileset["none"] = {"files": {str(tmp_path / "data" / "empty.root"): "Events"}}
    (tmp_path / "fs.json").write_text(json.dumps(fileset))

    def make(**options: Any) -> Any:
        options = {
            "wf": f"{ROOT / 'tests' / 'greedy.py'}:make", "json": str(tmp_path / "fs.json"), "chunk": 20_000,
            "outputdir": tmp_path / "out", "cache": tmp_path / "cache", **options,
        }  # fmt: skip
        return resolve(**options).settings

    return make


def children() -> set[str]:
    folder = Path(f"/proc/{os.getpid()}/task")
    return {pid for task in folder.iterdir() for pid in (task / "children").read_text().split()}


def test_a_probe_for_real(command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A known need comes out, is remembered by the analysis, and nothing of a run is there afterwards."""
    monkeypatch.setattr(profiling, "SECONDS", 600.0)  # however slow this machine is, no piece is left out
    before = children()
    heard = Heard()
    outcome = profile_memory(command(wf_arg={"per_event": 10_000}, memory="6GB"), observer=heard)
    assert outcome.exit_code == 0, outcome.text
    dy, tt = outcome.data["datasets"]
    assert 10_000 < dy["bytes_per_event"] < 12_000  # and what reading takes
    assert [point[0] for point in dy["points"]] == [1000, 8000]  # clear by then, for 20,000
    assert tt["chunk"][0].endswith("nano_1.root")
    assert dy["budget"] == 2_000_000_000
    assert "that fits" in outcome.text
    assert ("info", "measuring dy") in heard.said
    assert any(text.startswith("none could not be measured") for _, text in heard.said)
    (kept,) = (tmp_path / "cache" / "footprints").iterdir()
    fits = footprints.recall(kept.stem, tmp_path / "cache")
    assert fits["dy"].per_event == dy["bytes_per_event"]
    assert not (tmp_path / "out").exists()
    assert children() == before


def test_a_worker_that_outgrows_this_machine_for_real(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling.limits, "available", lambda: 400 * MB)
    outcome = profile_memory(command(wf_arg={"fixed": 800 * MB, "seconds": 5}, only=("dy",)))
    assert outcome.exit_code == SiteError.exit_code
    assert "dy: 1,000 events need more than this machine has" in outcome.text
    (dy,) = outcome.data["datasets"]
    assert (dy["too_big"], dy["chunks"], dy["fixed"]) == (1, 0, None)


def test_the_option_measures_and_runs_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def instead(settings: Any, *, observer: Any) -> Outcome:
        asked.append(settings)
        return Outcome(4, "nothing fits")

    monkeypatch.setattr("executors.running.profile_memory", instead)
    assert runner.main(["--wf", "w", "--json", "f", "--profile-memory", "--memory", "2GB"]) == 4
    assert asked[0].memory == "2GB"
    assert "nothing fits" in capsys.readouterr().out


def test_an_analysis_that_raises_is_said_with_its_line(command: Any) -> None:
    with pytest.raises(AnalysisError, match=r"the analysis raised .*\n  .*analyses.py:\d+"):
        profile_memory(command(wf=f"{ROOT / 'tests' / 'analyses.py'}:Raises", only=("dy",)))


def test_nothing_to_read(command: Any) -> None:
    with pytest.raises(IncompleteError, match=r"nothing could be measured: .*empty.root: without an event"):
        profile_memory(command(only=("none",)))


def test_a_run_is_left_alone(command: Any, tmp_path: Path) -> None:
    """With a run in its directory, a probe reads it no more than it would write it."""
    folder = tmp_path / "out" / "hist_make_fs"
    folder.mkdir(parents=True)
    (folder / "journal.jsonl").write_text("as it was")
    profile_memory(command(only=("dy",)))
    assert [path.name for path in folder.iterdir()] == ["journal.jsonl"]
    assert list(journal.read(folder / "journal.jsonl")) == []
