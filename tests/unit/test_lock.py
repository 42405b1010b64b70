"""The lock: who holds it is named, the dead are overtaken, the living never."""

import errno
import getpass
import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from executors.errors import LockedError, SiteError
from executors.work import lock


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.05)
    monkeypatch.setattr(lock, "SILENCE", 0.4)


def put(folder, number=1, age=0.0, **changes):
    """A lock as somebody else left it."""
    path = folder / f"lock.{number}"
    path.write_text(json.dumps({**lock._own(), **changes}))
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def dead_pid():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_one_holds_and_is_named(tmp_path):
    with lock.hold(tmp_path / "run"):
        with pytest.raises(LockedError) as caught, lock.hold(tmp_path / "run"):
            pass
        for word in (socket.gethostname(), str(os.getpid()), getpass.getuser(), "kill", "--outputdir", "run"):
            assert word in str(caught.value)
        assert str(os.getpid()) in lock.holder(tmp_path / "run")
    assert lock.holder(tmp_path / "run") is None
    with lock.hold(tmp_path / "run"):
        pass


def test_a_second_thread_waits_for_it(tmp_path):
    order = []

    def other():
        with lock.hold(tmp_path, wait=5):
            order.append("other")

    with lock.hold(tmp_path):
        thread = threading.Thread(target=other)
        thread.start()
        time.sleep(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "other"]


def test_numbers_only_rise_and_one_file_stays(tmp_path):
    for n in range(1, 6):
        with lock.hold(tmp_path) as held:
            assert held.path.name == f"lock.{n}"
    assert [p.name for p in tmp_path.iterdir()] == ["lock.5"]


@pytest.mark.parametrize("how", ["dead", "reused pid", "reboot", "no pid", "odd pid", "empty", "zombie"])
def test_the_dead_of_this_machine_are_overtaken_at_once(tmp_path, how):
    child = None
    if how == "zombie":
        child = subprocess.Popen([sys.executable, "-c", ""])
        time.sleep(0.3)
    changes = {
        "dead": {"pid": dead_pid()},
        "reused pid": {"start": "1"},
        "reboot": {"boot": "another"},
        "no pid": {"pid": None},
        "odd pid": {"pid": "12; rm"},
        "empty": {},
        "zombie": {"pid": child.pid if child else 0},
    }[how]
    path = put(tmp_path, **changes)
    if how == "empty":
        path.write_text("{}")
    with lock.hold(tmp_path) as held:
        assert held.path.name == "lock.2"
    if child:
        child.wait()


def test_a_process_of_another_container_is_not_taken_for_dead(tmp_path):
    put(tmp_path, pid=dead_pid(), seen="pid:[1]")
    with pytest.raises(LockedError), lock.hold(tmp_path):
        pass
    put(tmp_path, pid=dead_pid(), seen="pid:[1]", age=9)
    with lock.hold(tmp_path):
        pass


def test_a_hidden_process_of_another_user_is_not_taken_for_dead(tmp_path, monkeypatch):
    put(tmp_path, pid=1, start="5")
    monkeypatch.setattr(lock, "_start_time", lambda pid: None)

    def refused(pid, number):
        raise PermissionError(errno.EPERM, "not yours")

    monkeypatch.setattr(lock.os, "kill", refused)
    with pytest.raises(LockedError), lock.hold(tmp_path):
        pass


def test_another_host_counts_by_its_silence(tmp_path):
    put(tmp_path, host="far.example", pid=1)
    with pytest.raises(LockedError, match="far.example"), lock.hold(tmp_path):
        pass
    put(tmp_path, host="far.example", pid=1, age=9)
    with lock.hold(tmp_path) as held:
        assert held.path.name == "lock.2"


@pytest.mark.parametrize("skew", [-3600, 3600])
def test_another_host_with_a_wrong_clock_is_watched(tmp_path, monkeypatch, skew):
    monkeypatch.setattr(lock, "BEAT", 0.4)  # three of them are watched: time for many of the holder's
    path = put(tmp_path, host="far.example", pid=1, age=skew)
    stop = threading.Event()

    def beat():
        n = 0
        while not stop.wait(0.03):
            n += 1
            os.utime(path, (time.time() - skew + n, time.time() - skew + n))

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(LockedError), lock.hold(tmp_path):
            pass
    finally:
        stop.set()
        thread.join()
    with lock.hold(tmp_path):
        pass


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"3", b"\xff\xfe", b'"text"', b"null"])
def test_an_unreadable_lock_counts_by_its_age(tmp_path, content):
    path = put(tmp_path)
    path.write_bytes(content)
    if content != b"null":
        with pytest.raises(LockedError, match=r"cannot be read.*remove that file"), lock.hold(tmp_path):
            pass
        assert "cannot be read" in lock.holder(tmp_path)
    os.utime(path, (1, 1))
    with lock.hold(tmp_path):
        pass


def test_odd_names_are_passed_over(tmp_path):
    for name in ("lock.x", "lock.007", "lock.٣", "lock.", "lock.-1", "lock.1.2"):
        (tmp_path / name).write_text("x")
    with lock.hold(tmp_path) as held:
        assert held.path.name == "lock.1"


def test_a_name_that_stays_listed_does_not_recurse(tmp_path):
    (tmp_path / "lock.3").symlink_to(tmp_path / "nowhere")
    started = time.monotonic()
    with lock.hold(tmp_path) as held:
        assert held.path.name == "lock.4"
    assert time.monotonic() - started < 20


def test_without_hard_links(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(errno.EPERM, "no hard links")

    monkeypatch.setattr(lock.os, "link", refuse)
    with lock.hold(tmp_path):
        with pytest.raises(LockedError, match=str(os.getpid())), lock.hold(tmp_path):
            pass
        assert [p.name for p in tmp_path.iterdir()] == ["lock.1"]
    with lock.hold(tmp_path):
        pass


def test_it_is_renewed_while_held(tmp_path):
    with lock.hold(tmp_path) as held:
        os.utime(held.path, (1, 1))
        deadline = time.monotonic() + 5
        while held.path.stat().st_mtime <= 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert held.path.stat().st_mtime > 1
        assert not held.lost.is_set()


def test_who_was_taken_for_dead_is_told(tmp_path):
    with lock.hold(tmp_path) as held:
        held.path.unlink()
        put(tmp_path, 2, host="far.example")
        assert held.lost.wait(10)
    assert [p.name for p in tmp_path.iterdir()] == ["lock.2"]
    os.utime(tmp_path / "lock.2")  # its holder lives
    with pytest.raises(LockedError, match="far.example"), lock.hold(tmp_path):
        pass


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EIO])
def test_a_folder_that_takes_no_lock_is_the_sites_matter(tmp_path, monkeypatch, number):
    def refuse(*args, **kw):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock, "_write", refuse)
    monkeypatch.setattr(lock.Path, "open", refuse)
    with pytest.raises(SiteError, match="cannot be locked") as caught, lock.hold(tmp_path):
        pass
    assert caught.value.exit_code == 4
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_at_the_end_frees_it_all_the_same(tmp_path, monkeypatch):
    def full(*args, **kw):
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch, lock.hold(tmp_path):
        patch.setattr(lock, "_write", full)
    with lock.hold(tmp_path):
        pass


def test_old_tries_of_killed_processes_are_swept(tmp_path):
    old, new = tmp_path / ".lock.aaaa", tmp_path / ".lock.bbbb"
    old.write_text(""), new.write_text("")
    os.utime(old, (1, 1))
    with lock.hold(tmp_path):
        assert not old.exists()
        assert new.exists()


def test_a_number_from_an_old_listing_is_given_back(tmp_path):
    """Slow between looking and taking: others have come and gone, and hold a higher number."""
    put(tmp_path, 5)
    assert lock._take(tmp_path, 3) is None
    assert [p.name for p in tmp_path.iterdir()] == ["lock.5"]
