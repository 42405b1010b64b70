"""A kill, and every error that a disk knows, at every system call of what is written: nothing lost or torn."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from breaking import NUMBERS, Breaking, Inline
from fakes import FakeAnalysis, make_plan, promise, resumed, rough_sum

from executors.errors import DamagedError, ExecutorsError
from executors.work import journal
from executors.work.model import Kind, Node
from executors.work.plan import Plan
from executors.work.store import Store

NODE, ID = Node(0, 0, 1, 0, 4), "ab" * 20
SECTIONS = [("skeleton", memoryview(b"{}")), ("region <f8", memoryview(os.urandom(500)))]
TESTS = Path(__file__).parents[1]


def put(store):
    store.put(NODE, ID, {"entries": 4}, SECTIONS)


def calls_of(action):
    with Breaking() as count:
        action()
    return count.seen


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("number", NUMBERS, ids=errno.errorcode.get)
@pytest.mark.parametrize("present", [False, True])
def test_put_is_whole_or_not_there(memory_path, number, after, present):
    def fresh(n):
        store = Store(memory_path / str(n))
        if present:
            put(store)
        return store

    calls = calls_of(lambda: put(fresh("count")))
    assert {"open", "write", "fsync", "close", "replace"} <= set(calls)
    for at in range(len(calls)):
        store = fresh(at)
        raised = False
        try:
            with Breaking(at, number, after=after):
                put(store)
        except OSError as error:
            raised = True
            assert error.errno == number
        try:
            assert store.get(NODE, ID)[1] == {name: bytes(data) for name, data in SECTIONS}
        except DamagedError:
            assert raised, calls[at]
            assert not present
        store.sweep()
        folder = store.path(NODE, ID).parent
        assert not folder.exists() or not [p for p in folder.iterdir() if p.name.startswith(".")]
        put(store)
        assert store.head(NODE, ID).about["entries"] == 4


def test_a_temporary_file_is_removed_when_the_write_fails(memory_path):
    """The disk is full: what is half written must not fill it for good."""
    store = Store(memory_path)
    for call in ("write", "fsync", "replace"):
        with pytest.raises(OSError), Breaking(0, errno.ENOSPC, calls=(call,), times=99):  # noqa: PT011
            put(store)
        assert [p.name for p in store.path(NODE, ID).parent.iterdir()] == []


@pytest.mark.parametrize("number", NUMBERS, ids=errno.errorcode.get)
def test_plan_is_whole_or_the_one_before(memory_path, number):
    old, new = make_plan((5, 6)), make_plan((5, 6, 7))
    path = memory_path / "plan.json"
    old.save(path)
    calls = calls_of(lambda: old.save(path))
    for at in range(len(calls)):
        old.save(path)
        for after in (False, True):
            raised = False
            try:
                with Breaking(at, number, after=after):
                    new.save(path)
            except OSError:
                raised = True
            assert Plan.load(path) in ((old, new) if raised else (new,))
    new.save(path)
    assert [p.name for p in memory_path.iterdir()] == ["plan.json"]


# -- whole runs -------------------------------------------------------------------------------------

PLAN = make_plan((12, 0, 9), chunk=5, fsize=2)


def run(folder, **kw):
    return resumed(PLAN, folder, FakeAnalysis(value=rough_sum), pool=Inline(), inline=True, slots=1, **kw)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("number", NUMBERS, ids=errno.errorcode.get)
def test_a_run_after_an_error_anywhere(memory_path, scale, number, shared):
    with Breaking() as count:
        run(memory_path / "count", shared=shared)
    assert len(count.seen) > 60
    stopped = 0
    for at in range(number % 5, len(count.seen), scale(6, 1)):
        folder = memory_path / str(at)
        try:
            with Breaking(at, number, after=at % 2 == 1):
                drive = run(folder, shared=shared)
            stopped += drive.halted is not None
            if drive.halted is None and not drive.ledger.lost:
                promise(drive, PLAN, value=rough_sum, tidy=False)
            else:
                assert drive.halted.kind is Kind.SITE
        except (OSError, ExecutorsError):
            stopped += 1
        promise(run(folder, shared=shared), PLAN, value=rough_sum)
    print(f"{errno.errorcode[number]}: {len(count.seen)} calls, {stopped} runs stopped")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_disk_that_stays_full_stops_the_run(memory_path, number):
    with Breaking() as count:
        run(memory_path / "count")
    for at in range(count.seen.count("write")):
        folder = memory_path / str(at)
        with Breaking(at, number, times=10**9, calls=("write",)):
            drive = run(folder)
        assert drive.halted.kind is Kind.SITE
        assert os.strerror(number) in drive.halted.message
        assert not [p for p in (folder / "store").rglob("*") if p.name.endswith(".tmp")]
        promise(run(folder), PLAN, value=rough_sum)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_disk_that_stays_broken_stops_the_run(memory_path, number):
    with Breaking(4, number, times=10**9, calls=("write",)):
        drive = run(memory_path)
    assert drive.halted.kind is Kind.SITE
    promise(run(memory_path), PLAN, value=rough_sum)


def test_a_hiccup_of_the_disk_is_healed_in_the_same_run(memory_path):
    for number in (errno.EIO, errno.ESTALE, errno.EINTR):
        folder = memory_path / str(number)
        with Breaking(3, number, times=2, calls=("write",)):
            drive = run(folder)
        promise(drive, PLAN, value=rough_sum)


KILLED = """
import os, sys
sys.path[:0] = [sys.argv[1], sys.argv[2]]
from pathlib import Path
from breaking import Breaking, Inline
from fakes import FakeAnalysis, make_plan, promise, resumed, rough_sum
from executors.work.plan import Plan

base, step, offset = Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
plan = make_plan((12, 0, 9), chunk=5, fsize=2)

def run(folder):
    folder.mkdir(exist_ok=True)
    plan.save(folder / "plan.json")
    return resumed(Plan.load(folder / "plan.json"), folder, FakeAnalysis(value=rough_sum), pool=Inline(),
                   inline=True, slots=1)

def child(action):
    pid = os.fork()
    if not pid:
        try:
            action()
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def broken(folder, at, after):
    with Breaking(at, "kill", after=after):
        run(folder)

with Breaking() as count:
    run(base / "count")
killed = 0
for at in range(offset, len(count.seen), step):
    for after in (False, True):
        folder = base / f"{at}-{after}"
        code = child(lambda: broken(folder, at, after))
        assert code == 9, code
        killed += 1
        # Once more, in what the first one left; and then to the end.
        child(lambda: broken(folder, at // 2, not after))
        drive = run(folder)
        promise(drive, plan, value=rough_sum)
        assert not [p for p in folder.rglob("*") if p.name.endswith(".tmp")], at
        assert list(drive.store.scan()) == list(drive.coverage.stored.items()), (at, list(drive.store.scan()), drive.coverage.stored, drive.halted)
print(killed)
"""


def test_a_kill_at_every_system_call(memory_path, scale):
    script = [sys.executable, "-c", KILLED, TESTS, TESTS.parent, memory_path, scale(6, 1), 0]
    done = subprocess.run([str(a) for a in script], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) > 40


# -- a disk that is really full ---------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte."""
    place = tmp_path / "small"
    place.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True, text=True
    )
    if mount.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mount.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("shared", [True, False])
def test_a_really_full_disk(small_disk, shared):
    plan = make_plan((400, 300, 0, 500), chunk=5, fsize=2)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes((1 << 20) - 200_000))
    drive = resumed(
        plan, small_disk, FakeAnalysis(value=rough_sum), merging=False, task_seconds=0.0, shared=shared
    )
    assert drive.halted.kind is Kind.SITE
    assert "No space left" in drive.halted.message
    assert 0 < drive.ledger.events_counted < drive.ledger.events_planned
    assert not [p for p in (small_disk / "store").rglob("*") if p.name.endswith(".tmp")]
    counted = drive.ledger.events_counted
    ballast.unlink()
    again = FakeAnalysis(value=rough_sum)
    promise(resumed(plan, small_disk, again, shared=shared), plan, value=rough_sum)
    assert sum(stop - start for _, start, stop in again.runs) == 1200 - counted


def test_merging_on_a_really_full_disk(small_disk):
    """No room for the sum of what is there: the pieces stay, and are merged once there is room."""
    plan = make_plan((400, 300), chunk=5)
    resumed(plan, small_disk, FakeAnalysis(value=rough_sum), merging=False, task_seconds=0.0)
    with (small_disk / "ballast").open("wb", buffering=0) as out:
        with pytest.raises(OSError, match="No space"):
            while True:
                out.write(bytes(4096))
    drive = resumed(plan, small_disk, FakeAnalysis(value=rough_sum))
    assert drive.halted.kind is Kind.SITE
    assert drive.ledger.events_counted == 700
    (small_disk / "ballast").unlink()
    again = FakeAnalysis(value=rough_sum)
    promise(resumed(plan, small_disk, again), plan, value=rough_sum)
    assert not again.runs


# -- the journal ------------------------------------------------------------------------------------


class Refusing(io.RawIOBase):
    """A file whose call of number ``at`` fails, and all after it."""

    def __init__(self, at, number):
        self.at, self.number, self.calls = at, number, 0

    def writable(self):
        return True

    def _call(self):
        self.calls += 1
        if self.calls > self.at:
            raise OSError(self.number, os.strerror(self.number))

    def write(self, data):
        self._call()
        return len(data)

    def close(self):
        if not self.closed:
            super().close()
            self._call()


@pytest.mark.parametrize("number", [n for n in NUMBERS if n != errno.EINTR], ids=errno.errorcode.get)
def test_a_journal_that_cannot_be_written_costs_nothing(memory_path, number, monkeypatch):
    # EINTR is missing here: the interpreter itself tries again for ever.
    for at in range(6):
        real = journal.Journal.__init__

        def refusing(self, path, at=at, real=real):
            real(self, path)
            self._file = io.BufferedWriter(Refusing(at, number), 300)

        with monkeypatch.context() as patch:
            patch.setattr(journal.Journal, "__init__", refusing)
            drive = run(memory_path / str(at))
        promise(drive, PLAN, value=rough_sum)
        assert (drive.journal.failed is not None) == (at < 6)
