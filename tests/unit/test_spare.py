"""A keeper that is started before anybody needs it: taken once, or gone without a trace."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from executors.engines.hosted import spare_for
from executors.engines.nursery import Nursery, Spare
from sites.profile import load_site

ROOT = Path(__file__).parents[2]
TARGET = "told:tell"
TOLD = """
import os, sys, time

def tell(sock):
    print("hello from", os.environ.get("LATE"), os.environ.get("EARLY"), "heavy" in sys.modules, flush=True)
    sock.recv(1)

def breed(sock):
    if pid := os.fork():
        print(pid, flush=True)
        sock.recv(1)
    os.setsid()
    time.sleep(60)
"""


def until(condition, limit=30.0):
    end = time.monotonic() + limit
    while not (found := condition()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)
    return found


def gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """What a child runs, and something that takes its time to be imported."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "told.py").write_text(TOLD)
    (folder / "heavy.py").write_text("import time\ntime.sleep(0.3)\n")
    (folder / "endless.py").write_text("import time\ntime.sleep(300)\n")
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.fixture
def spare():
    made = []

    def make(*preload):
        made.append(Spare(preload))
        return made[-1]

    yield make
    for one in made:
        one.close()
        one.process.kill()
        one.process.wait()


def test_it_is_taken_with_what_is_known_only_then(tmp_path, modules, spare, monkeypatch):
    monkeypatch.setenv("EARLY", "before")
    one = spare("heavy")
    monkeypatch.setenv("EARLY", "after")  # an analysis may set variables while it is imported
    (logs := tmp_path / "logs").mkdir()
    (sweep := tmp_path / "private").mkdir()
    nursery = Nursery(logs, env={"LATE": "set"}, sweep=sweep, spare=one)
    assert nursery.pid == one.process.pid
    nursery.spawn(TARGET, "child.log")
    said = until(lambda: (logs / "child.log").exists() and (logs / "child.log").read_text())
    assert said == "hello from set after True\n"
    nursery.close()
    assert gone(one.process.pid)
    assert not sweep.exists()
    one.close()  # it is a nursery's: nothing to end


def test_it_is_taken_once(tmp_path, spare):
    one = spare()
    first = Nursery(tmp_path, spare=one)
    second = Nursery(tmp_path, spare=one)
    assert first.pid == one.process.pid != second.pid
    first.close()
    second.close()


def test_nobody_needs_it_even_in_the_middle_of_an_import(modules, spare):
    for preload in ((), ("endless",)):
        one = spare(*preload)
        time.sleep(0.2)
        assert not gone(one.process.pid)
        one.close()
        assert gone(one.process.pid)


def test_one_that_died_is_replaced(tmp_path, modules, spare):
    one = spare()
    one.process.kill()
    one.process.wait()
    nursery = Nursery(tmp_path, env={"LATE": "x"}, spare=one)
    nursery.spawn(TARGET, "child.log")
    assert until(lambda: (tmp_path / "child.log").exists() and (tmp_path / "child.log").read_text())
    nursery.close()


def test_what_cannot_be_imported_is_said_where_it_is_needed(tmp_path, modules, spare):
    one = spare("nosuchmodule")
    nursery = Nursery(tmp_path, preload=("nosuchmodule",), spare=one)
    nursery.spawn(TARGET, "child.log")
    until(lambda: (tmp_path / "child.log").exists() and (tmp_path / "child.log").read_text())
    nursery.close()
    assert "nosuchmodule" in (tmp_path / "keeper.log").read_text()


@pytest.mark.parametrize("preload", ["heavy", "endless"])
def test_it_ends_with_its_runner(modules, preload):
    code = (
        f"import sys, time; sys.path[:0] = [{str(ROOT)!r}, {str(modules)!r}]\n"
        "from executors.engines.nursery import Spare\n"
        f"print(Spare([{preload!r}]).process.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as runner:
        pid = int(runner.stdout.readline())
        os.kill(runner.pid, signal.SIGKILL)
    until(lambda: gone(pid))


def test_a_killed_one_leaves_no_process(tmp_path, modules, spare):
    """What its children have started is found by its mark: no folder of ours is in its arguments."""
    one = spare()
    (private := tmp_path / "private").mkdir()
    (logs := tmp_path / "logs").mkdir()
    nursery = Nursery(logs, sweep=private, spare=one)
    nursery.spawn("told:breed", "child.log")
    grandchild = int(until(lambda: (logs / "child.log").exists() and (logs / "child.log").read_text()))
    until(lambda: os.getsid(grandchild) == grandchild)
    os.kill(nursery.pid, signal.SIGKILL)
    nursery.close()
    until(lambda: gone(grandchild))


@pytest.mark.parametrize(
    ("engine", "there"), [("dask", True), ("parsl", True), ("futures", False), ("x", False)]
)
def test_only_engines_with_a_host_have_one(engine, there):
    with spare_for(engine, load_site("local")) as one:
        assert (one is not None) == there
    assert one is None or gone(one.process.pid)


def test_an_error_of_use_leaves_none(tmp_path):
    argv = [sys.executable, str(ROOT / "runner.py"), "--wf", "nosuch.py:X", "--json", "no.json"]
    done = subprocess.run(
        [*argv, "--executor", "dask/local"],
        cwd=tmp_path, env={**os.environ, "SPARE_TEST": str(tmp_path)}, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    for process in psutil.process_iter():
        try:
            assert process.environ().get("SPARE_TEST") != str(tmp_path), process
        except psutil.Error:
            continue
