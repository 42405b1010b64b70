"""The cache of counts: found again in any number, never for another file, and only ever a saving."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from data import write_events

from executors.work.cache import AT_ONCE, Cache, Known

ROOT = Path(__file__).parents[2]
ONE = Known("/a.root", "", 10, 20, 30, "ab" * 16, "Events")


def some(count: int) -> list[Known]:
    return [Known(f"/{i}.root", "", i, i, i, f"{i:032x}", "Events") for i in range(count)]


@pytest.mark.parametrize("count", [0, 1, AT_ONCE, 2 * AT_ONCE + 1])
def test_any_number_is_found(tmp_path, count):
    cache = Cache(tmp_path)
    cache.put(some(count + 3))
    found = cache.find([one.path for one in some(count)])
    assert found == {(one.path, ""): one for one in some(count)}
    cache.close()


def test_only_the_same_file(tmp_path):
    cache = Cache(tmp_path)
    cache.put([ONE])
    assert cache.get("/a.root", "", 10, 20) == ONE
    assert cache.get("/a.root", "", 11, 20) is None
    assert cache.get("/a.root", "", 10, 21) is None
    assert cache.get("/a.root", "Events", 10, 20) is None
    assert cache.get("/b.root", "", 10, 20) is None
    cache.put([ONE._replace(size=11, entries=31)])
    assert cache.get("/a.root", "", 11, 20).entries == 31
    cache.put([ONE._replace(treename="Runs", found="Runs", entries=1)])
    assert {key: one.entries for key, one in cache.find(["/a.root"]).items()} == {
        ("/a.root", ""): 31,
        ("/a.root", "Runs"): 1,
    }


def test_another_process_finds_it(tmp_path):
    first = Cache(tmp_path)
    first.put([ONE])
    assert Cache(tmp_path).get("/a.root", "", 10, 20) == ONE


@pytest.mark.parametrize("damage", [b"no database at all" * 100, b"SQLite format 3\0" + b"\xff" * 4000])
def test_a_damaged_one_is_made_anew(tmp_path, damage):
    (tmp_path / "entries.sqlite").write_bytes(damage)
    (tmp_path / "entries.sqlite-journal").write_bytes(damage)
    cache = Cache(tmp_path)
    assert cache.find(["/a.root"]) == {}
    cache.put([ONE])
    cache.close()
    assert Cache(tmp_path).get("/a.root", "", 10, 20) == ONE


def test_a_locked_one_is_passed_over(tmp_path, monkeypatch):
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, **more: connect(path, **more | {"timeout": 0.05}))
    Cache(tmp_path).put([ONE])
    other = connect(tmp_path / "entries.sqlite", isolation_level=None)
    other.execute("begin exclusive")
    locked = Cache(tmp_path)
    assert locked.find(["/a.root"]) == {}
    locked.put([ONE._replace(entries=99)])
    other.execute("rollback")
    assert Cache(tmp_path).get("/a.root", "", 10, 20) == ONE, "what others hold is not thrown away"


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").touch()
    cache = Cache(tmp_path / "file" / "below")
    cache.put([ONE])
    assert cache.find(["/a.root"]) == {}


PLAN = """
import sys, runner
code = runner.main(["plan", "--wf", "plain.py:P", "--json", "fs.json", "--cache", "cache", "--outputdir", "."])
print("imported:", *sorted({"uproot", "awkward", "coffea"} & set(sys.modules)))
sys.exit(code)
"""


def test_what_is_known_is_planned_without_reading(tmp_path):
    """The second time nothing that reads files is imported, which would take longer than all the rest."""
    (tmp_path / "plain.py").write_text("class P:\n    def process(self, events):\n        return {'n': 1}\n")
    file = write_events(tmp_path / "a.root", 70)
    (tmp_path / "fs.json").write_text(json.dumps({"a": [str(file)]}))
    said = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", PLAN],
            cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "70 events" in done.stdout
        said.append(done.stdout.splitlines()[-1])
    assert "uproot" in said[0]
    assert said[1] == "imported:"
