"""What is measured reaches the page as it was measured: the last run of each test, and a verdict that is true."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from bench import figures, performance

DOCUMENT = """before
<!-- targets: begin (made by: make bench-docs) -->
old
<!-- targets: end (made by: make bench-docs) -->
between
<!-- peers: begin (made by: make bench-docs) -->
old peers
<!-- peers: end (made by: make bench-docs) -->
after
"""


@pytest.fixture
def kept(tmp_path, monkeypatch, capsys):
    """The file of figures, and a way to add one to it as a test of that name would."""
    path = tmp_path / "figures.jsonl"
    monkeypatch.setenv("BENCH_JSON", str(path))

    def add(test, run, **more):
        monkeypatch.setenv("PYTEST_CURRENT_TEST", f"tests/bench/{test} (call)")
        monkeypatch.setattr(figures, "RUN", run)
        words = {"measure": "m", "baseline": "b", "value": "1 s", "ratio": 3.0, "must": "2", "reach": "4"}
        figures.report(figures.Figure(**words | more))

    add.path = path
    return add


def written(kept, tmp_path, monkeypatch):
    document = tmp_path / "page.md"
    document.write_text(DOCUMENT)
    monkeypatch.setattr(sys, "argv", ["performance.py", str(kept.path), str(document)])
    performance.main()
    return document.read_text()


def test_of_what_was_measured_twice_the_last_run_is_shown(kept, tmp_path, monkeypatch):
    kept("test_merge.py::test_a", "1", measure="old one")
    kept("test_driver.py::test_b", "1", measure="driver's")
    kept("test_merge.py::test_a", "2", measure="new one")
    kept("test_merge.py::test_a", "2", measure="new, again")
    text = written(kept, tmp_path, monkeypatch)
    assert "old one" not in text
    assert (
        text.index("driver's")
        < text.index("### The merge")
        < text.index("new one")
        < text.index("new, again")
    )
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "\nbetween\n" in text
    assert "old peers" in text, "nothing was measured of them"


def test_peers_go_to_their_own_place(kept, tmp_path, monkeypatch):
    kept("test_merge.py::test_a", "1", measure="mine")
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    monkeypatch.setattr(sys, "argv", ["tests/bench/peers/compare.py"])
    figures.report(figures.Figure("side by side", "coffea", "1 s", 1.5, "", ""))
    text = written(kept, tmp_path, monkeypatch)
    mine, _, theirs = text.partition("\nbetween\n")
    assert "| mine |" in mine
    assert "side by side" not in mine
    assert "side by side" in theirs
    assert "old peers" not in theirs


def test_no_name_and_no_path_of_the_machine(kept, tmp_path, monkeypatch):
    kept("test_merge.py::test_a", "1")
    text = written(kept, tmp_path, monkeypatch)
    import socket

    assert "cores of" in text
    for word in (str(Path.cwd()), str(Path.home()), str(tmp_path)):
        assert word not in text
    assert socket.gethostname() not in json.loads(kept.path.read_text())["machine"].split()


@pytest.mark.parametrize(
    ("must", "reach", "ratio", "value", "said"),
    [
        ("30", "100", 29.0, "", "**missed**"),  # more is better: so say the two bounds
        ("30", "100", 34.0, "", "kept"),
        ("30", "100", 100.0, "", "reached"),
        ("8", "4", 9.0, "", "**missed**"),  # less is better
        ("8", "4", 5.0, "", "kept"),
        ("8", "4", 2.0, "", "reached"),
        ("1", "", 1.2, "", "**missed**"),  # a lone bound is a most
        ("1", "", 0.9, "", "kept"),
        (">= 20", ">= 400", 1000.0, "", "reached"),
        (">= 20", ">= 400", 19.9, "", "**missed**"),
        ("<= 300 us", "<= 50 us", None, "49.9 us", "reached"),
        ("<= 300 us", "<= 50 us", None, "301 us", "**missed**"),
        ("<= 1000 B", "<= 300 B", None, "1,001 B", "**missed**"),
        ("<= 300 us", "<= 50 us", None, "0.3 ms", ""),  # other units: a person has to look
        ("<= 2.2 outputs + 64 MB", "<= 1.1 outputs", 1.0, "10 MB", ""),
        ("<= 1.1", "flat", 1.0, "", "kept"),
        ("", "", 1.0, "", ""),
    ],
)
def test_the_verdict(must, reach, ratio, value, said):
    row = {
        "must": must,
        "reach": reach,
        "ratio": ratio,
        "value": value,
        "measure": "",
        "baseline": "",
        "rounds": 1,
    }
    assert performance.cells({**row, "spread": ""})[-1] == said


def test_a_document_without_the_markers_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="needs these two lines"):
        performance.between("nothing", "targets", "made")


def test_the_page_has_both_places():
    text = (Path(__file__).resolve().parents[2] / "docs" / "performance.md").read_text()
    for name in ("targets", "peers"):
        assert "new" in performance.between(text, name, "new")
