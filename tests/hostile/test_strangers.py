"""What somebody else on the same machine could put where a run looks, and what they could read of it.

Files of others are made by changing their owner where the tests run as root, else by being somebody else.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import cloudpickle
import pytest

from executors import jobs
from executors.coffea.save import save
from executors.errors import UsageError
from executors.work import lock
from executors.work.model import Node
from executors.work.store import Store, make_folder, write_whole
from executors.work.worker import Place

NODE = Node(3, 0, 2, 0, -1)
ID = "ab" * 20
NUMBERS = [("skeleton", memoryview(b"{}")), ("region <f8", memoryview(bytes(80)))]
CODE = [*NUMBERS, ("blob 0", memoryview(b"a pickle"))]
NOBODY = 65534


@pytest.fixture
def theirs(monkeypatch):
    """Makes a file another user's; where only root could, us."""

    def change(path: Path) -> None:
        if os.geteuid() == 0:
            os.chown(path, NOBODY, NOBODY)
        else:
            mine = os.geteuid()
            monkeypatch.setattr(os, "geteuid", lambda: mine + 1)

    return change


@pytest.fixture(params=[0o000, 0o002, 0o077])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def writable(top):
    """What somebody else may write to at or below a folder."""
    return [path for path in (top, *top.rglob("*")) if stat.S_IMODE(path.lstat().st_mode) & 0o022]


def test_nobody_else_writes_in_a_runs_folder(tmp_path, umask):
    run = tmp_path / "above" / "run"
    with lock.hold(run):
        Store(run / "store").put(NODE, ID, {}, NUMBERS)
        write_whole(run / "plan.json", [b"{}"])
        make_folder(run / "logs")
        save({"n": 1}, run / "hist.coffea")
    assert writable(tmp_path / "above") == []
    assert (run / "plan.json").stat().st_mode & 0o077 & umask == 0, "stricter than asked is not asked for"


def test_an_object_with_code_is_read_only_if_it_is_ours(tmp_path, theirs):
    store = Store(tmp_path / "store")
    store.put(NODE, ID, {}, CODE)
    assert store.get(NODE, ID)[1]["blob 0"] == b"a pickle"
    header = store.head(NODE, ID)
    path = store.path(NODE, ID)
    theirs(path)
    with pytest.raises(UsageError, match=f"{path}.*run code"):
        store.get(NODE, ID)
    with pytest.raises(UsageError, match="run code"):
        store.reading(NODE, ID, header)


def test_numbers_of_others_may_be_read(tmp_path, theirs):
    store = Store(tmp_path / "store")
    store.put(NODE, ID, {}, NUMBERS)
    theirs(store.path(NODE, ID))
    assert store.get(NODE, ID)[1]["region <f8"] == bytes(80)


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["*.pkl", "*.json"])
def test_the_kept_analysis_of_others_is_not_loaded(tmp_path, theirs, name):
    """Neither their pickle, nor the folders from which its modules would be imported."""
    jobs.prepare(Bomb(tmp_path / "gone off"), Place(run=tmp_path))
    (file,) = (tmp_path / "job").glob(name)
    theirs(file)
    with pytest.raises(UsageError, match=r"run code of theirs.*--no-postprocess"):
        jobs.stored_analysis(tmp_path)
    assert not (tmp_path / "gone off").exists()
    file.unlink()
    elsewhere = tmp_path / f"elsewhere{file.suffix}"
    elsewhere.write_bytes(cloudpickle.dumps(1) if file.suffix == ".pkl" else json.dumps([]).encode())
    file.symlink_to(elsewhere)
    with pytest.raises(OSError, match="symbolic links"):
        jobs.stored_analysis(tmp_path)
    assert not (tmp_path / "gone off").exists()


def test_the_arguments_of_a_workflow_are_its_owners(tmp_path, umask):
    """They may hold a password, and they are in the pickle that workers read."""
    call = jobs.prepare(Bomb(tmp_path / "never"), Place(run=tmp_path))
    assert stat.S_IMODE(call.path.parent.stat().st_mode) == 0o700
    assert {stat.S_IMODE(one.stat().st_mode) for one in call.path.parent.iterdir()} == {0o600}
