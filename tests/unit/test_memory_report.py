"""``runner.py memory``: figures out of journals, tables, the plot; on directories made here, and on a real run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import hist
import numpy as np
import pytest
from coffea.processor import column_accumulator
from data import make_fileset
from fakes import make_plan

from executors.coffea.pack import pack
from executors.errors import UnknownNameError, UsageError
from executors.inspection import status
from executors.memory.plot import Curve, drawn, picture, plain
from executors.memory.report import comparison, memory, memory_text, overview, table
from executors.memory.usage import KINDS, Usage, kind_of, read
from executors.running import execute
from executors.settings import resolve
from executors.tables import cells, summary_table
from executors.work.footprint import Footprint
from executors.work.journal import Journal
from executors.work.layout import Tree
from executors.work.report import DatasetCount
from executors.work.store import Store

MB = 1_000_000
FIXED, EACH = 300 * MB, 5000


def line(journal: Journal, split: int, *chunks: tuple[int, int, int], parts: int = 1) -> None:
    """One task's line: (file, chunk, entries) each, on the line of FIXED and EACH."""
    rows = [(f, c, n, FIXED, FIXED + EACH * (n // parts)) for f, c, n in chunks]
    journal.write("task", node=[split, 0, 1, 0, 1], memory=rows, parts=parts)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of two datasets, at work: three chunks measured, one that was too big, and lines that mean nothing."""
    folder = tmp_path / "hist_x_y"
    folder.mkdir()
    make_plan((25000, 7000), 5000, None, ("dy", "tt")).save(folder / "plan.json")
    journal = Journal(folder / "journal.jsonl")
    journal.write("run", pid=1)
    line(journal, 0, (0, 0, 5000), (0, 1, 5000))
    line(journal, 0, (1, 0, 3500))
    line(journal, 1, (1, 1, 1000), parts=2)
    journal.write("failure", node=[1, 0, 1, 0, 1], kind="memory", range=[0, 5000])
    journal.write("failure", node=[1, 0, 1, 0, 1], kind="user code", range=[0, 5000])
    for odd in ([9, 0, 1, 0, 1], [-1, 0, 1, 0, 1], [], None, "x"):
        journal.write("task", node=odd, memory=[(0, 0, 5000, 1, 900 * MB)])
    journal.write("task", node=[0, 0, 1, 0, 1], memory=[(0, 0, "many", 1, 900 * MB)])
    journal.write("task", node=[0, 0, 1, 0, 1], memory=[(0, 0)])
    journal.write("task", node=[0, 0, 1, 0, 1])
    journal.close()
    return folder


def store(folder: Path, value: object) -> None:
    tree = Tree(make_plan((25000, 7000), 5000, None, ("dy", "tt")))
    node = tree.root
    assert node is not None
    about = {"entries": 64000, "dataset": "dy"}
    Store(folder / "store").put(node, tree.id(node), about, pack(value).sections())


def test_a_journal_is_read(run: Path) -> None:
    dy, tt = read(run)
    assert (dy.dataset, dy.chunks, dy.highest, dy.too_big) == ("dy", 3, FIXED + EACH * 5000, 0)
    assert dy.where == ("dy/0.root", 0, 5000)
    assert dy.fit is not None
    assert dy.fit.per_event == pytest.approx(EACH, rel=0.01)
    assert dy.fit.fixed == pytest.approx(FIXED, rel=0.01)
    # In two pieces: what was measured are 500 events.
    assert (tt.chunks, tt.too_big, tt.fit.widest) == (1, 1, 500)
    assert tt.where == ("tt/1.root", 3500, 7000)


def test_the_manifest_stands_in_for_a_lost_journal(run: Path) -> None:
    (run / "journal.jsonl").unlink()
    with pytest.raises(UsageError, match="no chunk of this run was measured"):
        read(run)
    said = {
        "peak": 900 * MB, "chunk": ["dy/0.root", 5000, 10000], "bytes_per_event": 4000.0, "fixed": 100 * MB,
        "spread": 0.1, "points": 12, "budget": 2000 * MB,
    }  # fmt: skip
    rows = {"dy": {"peak_memory": 900 * MB, "memory": said}, "tt": {"peak_memory": 0, "memory": {}}}
    (run / "manifest.json").write_text(json.dumps({"datasets": rows}))
    (dy,) = read(run)
    assert (dy.chunks, dy.highest, dy.budget, dy.where) == (
        12,
        900 * MB,
        2000 * MB,
        ("dy/0.root", 5000, 10000),
    )
    assert dy.fit is not None
    assert dy.fit.peak(5000) == 120 * MB
    memory_text([dy])  # a line without a point is no reason to fall


def test_a_manifest_of_an_older_version_gives_the_peak(run: Path) -> None:
    (run / "journal.jsonl").unlink()
    (run / "manifest.json").write_text(json.dumps({"datasets": {"dy": {"peak_memory": 900 * MB}}}))
    (dy,) = read(run)
    assert (dy.highest, dy.fit, dy.where) == (900 * MB, None, None)
    assert "900.0 MB" in memory_text([dy])


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ({"h": hist.Hist.new.Reg(3, 0, 1).Weight()}, "hist only"),
        ({"h": hist.Hist.new.Reg(3, 0, 1).Mean()}, "hist only"),
        ({"c": column_accumulator(np.zeros(3))}, "array only"),
        ({"a": {"b": np.zeros(3), "text": np.array(["a", "b"])}}, "array only"),
        (
            {"d": {"c": column_accumulator(np.zeros(3)), "h": hist.Hist.new.Reg(3, 0, 1).Double()}},
            "array + hist",
        ),
        ({"n": 3, "w": 2.5, "s": {"x"}}, "counts only"),
    ],
)
def test_what_results_hold_is_told_by_their_structure(run: Path, value: object, kind: str) -> None:
    assert {usage.kind for usage in read(run)} == {""}
    store(run, value)
    assert {usage.kind for usage in read(run)} == {kind}


def test_arrays_written_beside_the_result_are_arrays(run: Path) -> None:
    store(run, {"h": hist.Hist.new.Reg(3, 0, 1).Weight()})
    (run / "manifest.json").write_text(json.dumps({"workflow_arguments": {"isArray": True}}))
    assert {usage.kind for usage in read(run)} == {"array + hist"}


def test_a_damaged_result_holds_nothing_known(run: Path) -> None:
    store(run, {"n": 3})
    (part,) = (run / "store").rglob("*.part")
    part.write_bytes(part.read_bytes()[:-1])
    assert {usage.kind for usage in read(run)} == {""}
    tree = Tree(make_plan((25000, 7000), 5000, None, ("dy", "tt")))
    assert kind_of(Store(run / "store"), tree.root, tree.id(tree.root), {}) == ""


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(UsageError, match="no run|no directory"):
            memory([folder])


def test_a_run_that_has_just_begun_says_so(run: Path) -> None:
    (run / "journal.jsonl").write_bytes(b"")
    with pytest.raises(UsageError, match="not finished a chunk yet"):
        memory([run])


def test_the_command_says_it_in_words_and_data(run: Path) -> None:
    store(run, {"h": hist.Hist.new.Reg(3, 0, 1).Weight()})
    outcome = memory([run, run], width=80)  # the same twice is once
    assert outcome.exit_code == 0
    assert outcome.text.count("dy/0.root [0:5000]") == 1
    assert "tt: 1 times a chunk was too big" in outcome.text.replace("1 time ", "1 times ")
    assert [row["dataset"] for row in outcome.data["datasets"]] == ["dy", "tt"]
    assert outcome.data["datasets"][0]["bytes_per_event"] == pytest.approx(EACH, rel=0.01)
    json.dumps(outcome.data)
    assert max(map(cells, outcome.text.splitlines())) <= 80
    assert [row["dataset"] for row in memory([run], only="tt").data["datasets"]] == ["tt"]
    with pytest.raises(UnknownNameError, match="did you mean 'tt'"):
        memory([run], only="ttt")


def test_runs_side_by_side(run: Path, tmp_path: Path) -> None:
    """Three runs of the same datasets, as on the original's page: a column for each kind of result."""
    store(run, {"h": hist.Hist.new.Reg(3, 0, 1).Weight()})
    for name, value in (
        ("arrays", {"c": column_accumulator(np.zeros(3))}),
        ("again", {"c": column_accumulator(np.zeros(3))}),
    ):
        shutil.copytree(run, tmp_path / name)
        shutil.rmtree(tmp_path / name / "store")
        store(tmp_path / name, value)
    usages = [u for name in ("hist_x_y", "arrays", "again") for u in read(tmp_path / name)]
    head, _, *rows = comparison(usages, 100).splitlines()
    assert head.split("  ")[0] == "peak in MB"
    assert all(kind in head for kind in KINDS[:3])
    assert rows[0].split() == ["dy", "-", "325", "325"]
    assert rows[2].startswith("dy (again)")
    assert "dy (arrays)" in overview(usages, 100)


def usage(
    name: str, each: float, *, chunks: tuple[int, ...] = (1000, 8000, 60000), limit: int | None = None
) -> Usage:
    found = Usage(name, budget=limit)
    for events in chunks:
        if found.took(events, FIXED, int(FIXED + each * events)):
            found.where = (f"root://server//store/{'long/' * 40}{name}.root", 0, events)
    return found


@pytest.mark.parametrize("width", [1, 10, 20, 40, 71, 72, 80, 100, 200])
def test_tables_fit_any_width(width: int) -> None:
    usages = [usage("数据" * 20, 5000, limit=10**9), usage("dy", 10), usage("empty", 0, chunks=())]
    text = overview(usages, width)
    # Below some width numbers would have to be cut.
    assert max(map(cells, text.splitlines())) <= max(width, 40)
    if width >= 40:
        assert ".root [0:60000]" in text
    rows = [["name", "a", "b"], ["n" * 50, "1", "22"]]
    assert max(map(cells, table(rows, width).splitlines())) <= max(width, 8)


def test_a_prediction_beyond_what_was_measured_is_marked() -> None:
    near, far = usage("a", 5000), usage("b", 5000, chunks=(1000, 4000))
    text = overview([near, far], 100)
    assert " 800.0 MB" in text or " 8" in text
    assert text.count("~") == 1


# -- the plot ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 20, 32, 40, 80, 200])
@pytest.mark.parametrize("height", [1, 5, 12, 24])
@pytest.mark.parametrize("limit", [None, 400 * MB, 10**12])
@pytest.mark.parametrize("count", [1, 3, 9])
def test_a_plot_fits_its_window(width: int, height: int, limit: int | None, count: int) -> None:
    curves = [usage(f"{'数据' * 30}{i}", 1000 * i, limit=limit).curve for i in range(count)]
    lines = drawn(curves, width, height).splitlines()
    assert len(lines) <= height
    assert all(cells(text) <= width for text in lines)
    if width >= 40 and height == 24:
        assert lines
        assert plain("\n".join(lines)).isascii()


def test_a_plot_shows_points_line_and_limit() -> None:
    lines = drawn([usage("dy", 5000, limit=500 * MB).curve], 80, 20).splitlines()
    text = "\n".join(lines)
    assert "limit 500.0 MB" in text
    assert "·" in text
    assert lines[-1].strip() == "● dy"
    assert any(row.rstrip().endswith("●") for row in lines)  # the widest chunk, at the right end
    assert "60,000 events" in lines[-2]
    bottom = next(i for i, row in enumerate(lines) if "0 B" in row)
    assert "└" in lines[bottom + 1]
    # The fixed part is far above nought: no point may lie on the axis.
    assert "●" not in lines[bottom]
    far = drawn([usage("dy", 5000, limit=10**12).curve], 80, 20)
    assert "far above" in far
    assert "limit 1.0 TB" not in far


def test_the_highest_curve_is_drawn_above_the_others() -> None:
    curves = [Curve("low", ((1000, 5), (500, 9))), Curve("high", ((1000, 10), (500, 9)))]
    lines = drawn(curves, 80, 20).splitlines()
    picture = "\n".join(lines[:-2])
    assert picture.count("●") == 2  # of 'high', one of them where 'low' lies as well
    assert picture.count("○") == 1
    assert [row.strip() for row in lines[-2:]] == ["● high", "○ low"]


def test_the_line_is_not_drawn_where_it_says_nothing() -> None:
    short, long = usage("a", 50_000, chunks=(100, 500)), usage("b", 5000, chunks=(1000, 100_000))
    assert "·" in drawn([short.curve], 80, 20)
    lines = drawn([short.curve, long.curve], 80, 20).splitlines()
    assert sum(row.count("·") for row in lines) > 40
    # From 500 events on, the line of a would leave the picture at a tenth of its width.
    assert [row[:30].count("·") for row in lines[:5]] == [0] * 5


@pytest.mark.parametrize(
    "curves", [[], [Curve("dy", ())], [Curve("dy", ((1000, 0),))], [Curve("x", ((0, 5),))]]
)
def test_a_plot_of_nothing(curves: list[Curve]) -> None:
    assert isinstance(drawn(curves, 80, 20), str)


def test_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "m.png"
    picture([usage("_a$b", 5000, limit=500 * MB).curve, usage("dy", 10).curve], path)
    assert path.read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(UsageError, match="Format 'foo'"):
        picture([usage("dy", 10).curve], tmp_path / "m.foo")
    with pytest.raises(UsageError, match="No such file"):
        picture([usage("dy", 10).curve], tmp_path / "none" / "m.png")


def test_without_the_library_the_command_says_what_installs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match="pip install matplotlib"):
        picture([usage("dy", 10).curve], tmp_path / "m.png")


def test_a_stream_of_plain_letters_gets_plain_letters(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", types.SimpleNamespace(encoding="ascii"))
    text = memory([run], width=80).text
    monkeypatch.undo()
    assert text.isascii()
    assert "|" in text


def test_the_command_line(run: Path, tmp_path: Path) -> None:
    runner = Path(__file__).parents[2] / "runner.py"
    words = [sys.executable, str(runner), "memory", str(run), "--plot", str(tmp_path / "m.png"), "--as-json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["datasets"][0]["dataset"] == "dy"
    assert (tmp_path / "m.png").exists()
    done = subprocess.run(
        [*words[:3], str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert "hist_x_y" in done.stderr


def test_a_long_journal_is_read_quickly_enough_to_wait_for(run: Path) -> None:
    """Bounded memory and one pass: 20,000 chunks are kept as a few hundred points."""
    journal = Journal(run / "journal.jsonl")
    for _ in range(2000):
        line(journal, 0, *[(0, n % 5, 5000 + n) for n in range(10)])
    journal.close()
    dy, _ = read(run)
    assert dy.chunks == 20_003
    assert len(dy.curve.points) < 500


def test_status_tells_peaks(run: Path) -> None:
    row = {"memory": {"peak": 900 * MB, "bytes_per_event": 4000.0}}
    (run / "manifest.json").write_text(json.dumps({"datasets": {"dy": row, "tt": {"memory": {}}}}))
    text = status(run).text
    assert text.count("900.0 MB at most, 4.0 kB an event") == 1


def test_the_closing_table_tells_peaks_where_there_is_room() -> None:
    rows = [
        DatasetCount("dy", 2, 10**6, 10**6, peak_memory=900 * MB, bytes_per_event=4000.0),
        DatasetCount("tt", 2, 10**6, 10**6, peak_memory=300 * MB),
    ]
    text = summary_table(rows, 80)
    head, _, dy, tt, _, total = text.splitlines()
    assert head.split()[5:] == ["peak", "an", "event"]
    assert dy.split()[5:] == ["900.0", "MB", "4.0", "kB"]
    assert tt.split()[5:] == ["300.0", "MB"]
    assert total.split()[5:] == ["900.0", "MB"]
    narrow = summary_table(rows, 50)
    assert "peak" not in narrow
    assert max(map(cells, narrow.splitlines())) <= 50
    assert "1,000,000" in narrow
    # A reason counts for more.
    rows[0] = replace(rows[0], events_counted=0, reasons=("memory: MemoryError",))
    assert summary_table(rows, 100).splitlines()[0].split()[5:] == ["peak", "an", "event", "why"]
    assert summary_table(rows, 80).splitlines()[0].split()[5:] == ["why"]


def test_a_run_tells_what_it_needed(tmp_path: Path) -> None:
    """From the chunk's measurement to the closing table, the manifest and the verb, through a real run."""
    fileset = make_fileset(tmp_path / "data", {"dy": [4000]}, seed=2)
    (tmp_path / "fs.json").write_text(json.dumps(fileset))
    settings = resolve(
        wf=f"{Path(__file__).parents[1] / 'greedy.py'}:make", wf_arg={"per_event": 10_000}, executor="iterative",
        json=str(tmp_path / "fs.json"), chunk=2000, outputdir=tmp_path, cache=tmp_path / "cache",
    ).settings  # fmt: skip
    outcome = execute(settings)
    assert outcome.summary is not None
    (row,) = outcome.summary.rows
    assert row.peak_memory > 20 * MB
    assert row.bytes_per_event > 0
    (found,) = read(tmp_path / "hist_make_fs")
    assert (found.chunks, found.highest) == (2, row.peak_memory)
    assert found.kind == "hist only"
    assert "MB at most" in status(tmp_path / "hist_make_fs").text


def test_a_footprint_is_what_is_fitted() -> None:
    """The figures of a table are those of the line that sizes chunks."""
    same = Footprint()
    for events in (1000, 8000, 60000):
        same.add(events, FIXED + 5000 * events, FIXED)
    assert usage("dy", 5000).fit == same.fit()
