"""What an engine notes of itself at a batch site, and what is done with the notes of the dead."""

from __future__ import annotations

import json

import pytest

from executors.engines import leftovers
from executors.errors import SiteError
from sites.profile import Job, SiteProfile

JOB = "cs-ada-0123abcd"
SITE = SiteProfile(name="here", scheduler="slurm", job=Job(submit_options=("--clusters=a",)))


@pytest.fixture
def systems(monkeypatch):
    """Every batch system that is asked for, with the names whose jobs it was told to remove."""
    asked = []

    class System:
        def __init__(self, name, options):
            self.about = (name, tuple(options))

        def cancel_named(self, name):
            asked.append((*self.about, name))
            if asked[0] == "deaf":
                raise SiteError("no answer")

    monkeypatch.setattr(leftovers, "scheduler_of", System)
    return asked


@pytest.fixture
def dead(tmp_path):
    """A note of an engine that died on another machine, or on this one before it was started anew."""
    private = tmp_path / "dask-x1y2"
    private.mkdir()
    note = tmp_path / f"open-{JOB}.json"
    words = {"scheduler": "slurm", "options": ["--clusters=a"], "private": str(private), "machine": "other 1"}
    note.write_text(json.dumps(words))
    return note, words


def test_the_note_is_there_as_long_as_the_engine(tmp_path, systems):
    private = tmp_path / "dask-x"
    private.mkdir()
    with leftovers.noted(tmp_path, SITE, JOB, private):
        assert [path.name for path in tmp_path.glob("open-*")] == [f"open-{JOB}.json"]
    assert not list(tmp_path.glob("open-*"))
    with leftovers.noted(None, SITE, JOB, private):
        assert not list(tmp_path.glob("open-*"))


def test_what_the_dead_left_is_removed(tmp_path, dead, systems):
    told = []
    leftovers.remove(tmp_path, tmp_path, lambda *words: told.append(words))
    assert systems == [("slurm", ("--clusters=a",), JOB)]
    assert not dead[0].exists()
    assert not (tmp_path / "dask-x1y2").exists()
    assert JOB in told[0][1]
    leftovers.remove(tmp_path, tmp_path, lambda *words: told.append(words))
    assert len(systems) == len(told) == 1


def test_what_the_keeper_has_cleaned_up_is_not_asked_for(tmp_path, systems):
    private = tmp_path / "parsl-x"
    with pytest.raises(KeyboardInterrupt), leftovers.noted(tmp_path, SITE, JOB, private):
        raise KeyboardInterrupt
    leftovers.remove(tmp_path, tmp_path, lambda *_: pytest.fail("there is nothing to say"))
    assert not systems
    assert not list(tmp_path.glob("open-*"))


def test_a_silent_batch_system_is_asked_again_by_the_next(tmp_path, dead, systems):
    systems.append("deaf")
    told = []
    leftovers.remove(tmp_path, tmp_path, lambda *words: told.append(words))
    assert dead[0].exists()
    assert told[0][0] == "warning"
    assert JOB in told[0][1]


@pytest.mark.parametrize(
    "change",
    [
        {"options": ["--clusters=a; rm"]},
        {"options": "--clusters"},
        {"options": ["x\ny"]},
        {"scheduler": 3},
        {"private": None},
    ],
)
def test_a_note_that_is_not_ours_goes_into_no_command(tmp_path, dead, systems, change):
    note, words = dead
    note.write_text(json.dumps(words | change))
    told = []
    leftovers.remove(tmp_path, tmp_path, lambda *words: told.append(words))
    assert not systems
    assert "not understood" in told[0][1]


@pytest.mark.parametrize("text", ["", "[]", "{", '"x"', '{"scheduler": "slurm"}', "\x00"])
def test_a_torn_note_is_left_alone(tmp_path, dead, systems, text):
    dead[0].write_text(text)
    told = []
    leftovers.remove(tmp_path, tmp_path, lambda *words: told.append(words))
    assert not systems
    assert told


def test_a_name_that_is_not_ours_is_never_cancelled(tmp_path, dead, systems):
    dead[0].rename(tmp_path / "open-everything.json")
    leftovers.remove(tmp_path, tmp_path, lambda *_: None)
    assert not systems


def test_a_private_folder_of_a_site_that_shares_nothing_is_removed(tmp_path, dead, systems, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    leftovers.remove(tmp_path, None, lambda *_: None)
    assert not (tmp_path / "dask-x1y2").exists()


def test_no_folder_of_others_is_removed(tmp_path, dead, systems):
    note, words = dead
    for name in ("precious", "dask-x1y2/../precious"):
        (tmp_path / "precious").mkdir(exist_ok=True)
        note.write_text(json.dumps(words | {"private": str(tmp_path / name)}))
        leftovers.remove(tmp_path, tmp_path, lambda *_: None)
        assert (tmp_path / "precious").exists()
    note.write_text(json.dumps(words))
    leftovers.remove(tmp_path, tmp_path / "elsewhere", lambda *_: None)
    assert (tmp_path / "dask-x1y2").exists()


def test_an_unknown_batch_system_is_said(tmp_path, dead):
    note, words = dead
    note.write_text(json.dumps(words | {"scheduler": "slrm"}))
    told = []
    leftovers.remove(tmp_path, None, lambda *words: told.append(words))
    assert told[0][0] == "warning"
    assert note.exists()


def test_a_note_that_cannot_be_written_stops_it(tmp_path):
    with (
        pytest.raises(SiteError, match="jobs that nobody knows of"),
        leftovers.noted(tmp_path / "nowhere", SITE, JOB, tmp_path),
    ):
        pytest.fail("opened all the same")
