"""One task on a worker: whatever happens to its chunks is in the receipt, and nothing is left behind."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fakes import BINS, FakeAnalysis, Garbage, expected, fake_sum, make_place, make_plan, pack

from executors.work import memory, notes
from executors.work import worker as module
from executors.work.layout import Tree
from executors.work.merge import MergeTask, merge, total
from executors.work.model import Kind, Node, Receipt
from executors.work.packed import Packed
from executors.work.store import check_bytes
from executors.work.worker import Bounded, Note, TimeLimitError, perform, time_limit

TESTS = Path(__file__).parents[1]
PLAN = make_plan((40, 0, 25), chunk=5)
TREE = Tree(PLAN)
TASK = TREE.task(TREE.root)


@pytest.fixture
def place(memory_path):
    return make_place(memory_path)


def held(receipt, place):
    """The sum of a receipt's parts, and their events."""
    values, events = np.zeros(BINS), 0
    for part in receipt.parts:
        packed, entries = total((part.node, part.id), place.store, FakeAnalysis().combine)
        assert entries == part.entries == TREE.events(part.node)
        values, events = values + packed.regions["<f8"], events + entries
    return values, events


def test_a_whole_task_is_one_part(place):
    receipt = perform(TASK, FakeAnalysis(), place)
    assert isinstance(receipt, Receipt)
    assert [(p.node, p.id) for p in receipt.parts] == [(TREE.root, TREE.id(TREE.root))]
    assert receipt.failures == ()
    assert [(c.file, c.chunk, c.entries) for c in receipt.chunks] == [
        *((0, n, 5) for n in range(8)), *((2, n, 5) for n in range(5))
    ]  # fmt: skip
    assert np.array_equal(held(receipt, place)[0], expected(PLAN))
    assert list((place.run / "notes").iterdir()) == []


def test_good_chunks_survive_bad_ones(place):
    analysis = FakeAnalysis({("a/0.root", 15): Garbage("zeros"), ("a/2.root", 0): ValueError("bug")})
    receipt = perform(TASK, analysis, place)
    assert [(f.file, f.chunk, f.kind, f.error, f.message) for f in receipt.failures] == [
        (0, 3, Kind.BAD, "Garbage", "zeros"), (2, 0, Kind.USER, "ValueError", "bug")
    ]  # fmt: skip
    assert all(f.pid == os.getpid() for f in receipt.failures)
    lost = fake_sum("a/0.root", 15, 20) + fake_sum("a/2.root", 0, 5)
    values, events = held(receipt, place)
    assert np.array_equal(values, expected(PLAN) - lost)
    assert events == 55
    assert set(analysis.runs.values()) == {1}
    assert len(receipt.parts) == 3 + 3


def test_a_file_that_cannot_be_opened_fails_each_chunk(place):
    receipt = perform(TASK, FakeAnalysis({("a/0.root", None): Garbage("html")}), place)
    assert [f.chunk for f in receipt.failures] == list(range(8))
    assert held(receipt, place)[1] == 25


def test_users_mistakes_are_not_repeated_for_long(place):
    analysis = FakeAnalysis({("a/0.root", s): ValueError() for s in range(0, 40, 5)})
    receipt = perform(TASK, analysis, place)
    assert len(receipt.failures) == 3
    assert len(receipt.chunks) == 0
    assert receipt.parts == ()


def test_a_stop_ends_the_task_after_the_present_chunk(place):
    def stop(start, stop):
        place.stop.touch()

    analysis = FakeAnalysis({("a/0.root", 10): stop})
    receipt = perform(TASK, analysis, place)
    assert [c.chunk for c in receipt.chunks] == [0, 1, 2]
    assert receipt.failures == ()
    assert held(receipt, place)[1] == 15


def test_where_workers_do_not_see_the_store_the_bytes_ride_along(memory_path):
    place = make_place(memory_path, shared=False)
    receipt = perform(TASK, FakeAnalysis(), place)
    (part,) = receipt.parts
    stamp = check_bytes(part.payload, part.node, part.id)
    assert (stamp.digest, stamp.size) == (part.digest, part.size)
    assert list(place.store.scan()) == []
    assert list((memory_path / "notes").iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.ESTALE])
def test_a_result_that_cannot_be_stored_is_said(place, monkeypatch, number):
    def refuse(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("executors.work.store.os.fsync", refuse)
    receipt = perform(TASK, FakeAnalysis(), place)
    assert receipt.parts == ()
    assert receipt.extra["put_error"][0] == number
    assert os.strerror(number) in receipt.extra["put_error"][1]


def test_what_cannot_be_combined_is_kept_in_halves(place):
    class Unmergeable(FakeAnalysis):
        def combine(self, left, right):
            raise TypeError("axes differ")

    receipt = perform(TASK, Unmergeable(), place)
    assert all(p.entries == 5 for p in receipt.parts)
    assert len(receipt.parts) == len(receipt.chunks) >= 3
    assert {f.message for f in receipt.failures} == {"axes differ"}


def test_pieces_of_a_chunk_that_needs_too_much_memory(place):
    plan = make_plan((1000,), chunk=1000)
    tree, analysis = Tree(plan), FakeAnalysis()
    receipt = perform(tree.task(tree.root, parts=3), analysis, place)
    assert sorted((a, b) for _, a, b in analysis.runs) == [(0, 333), (333, 666), (666, 1000)]
    packed, events = total((tree.root, receipt.parts[0].id), place.store, analysis.combine)
    assert np.array_equal(packed.regions["<f8"], expected(plan))
    tiny = make_plan((2,), chunk=5)
    receipt = perform(Tree(tiny).task(Tree(tiny).root, parts=64), FakeAnalysis(), place)
    assert receipt.parts[0].entries == 2


def test_the_order_of_adding_is_the_trees(place):
    order = []

    class Ordered(FakeAnalysis):
        def process(self): ...

        def pack(self, value):
            return Packed(b"x", {}, (str(int(value[-1])).encode(),))

        def combine(self, left, right):
            order.append((left.opaque[0], right.opaque[0]))
            return Packed(b"x", {}, (b"(" + left.opaque[0] + b"+" + right.opaque[0] + b")",))

    plan = make_plan((5,), chunk=1)
    tree = Tree(plan)
    perform(tree.task(tree.root), Ordered(value=lambda path, start, stop: np.array([start])), place)
    assert order[-1] == (b"((0+1)+(2+3))", b"4")


# -- notes ------------------------------------------------------------------------------------------


def test_a_note_names_the_chunk_while_it_runs(place):
    seen = []

    def look(start, stop):
        seen.append(notes.collect(place.run / "notes", TASK.id))

    perform(TASK, FakeAnalysis({("a/2.root", 10): look}), place)
    assert (seen[0].file, seen[0].chunk, seen[0].kind, seen[0].pid) == (2, 2, Kind.LOST, os.getpid())


def test_no_note_when_the_folder_is_gone_or_full(memory_path):
    place = make_place(memory_path)
    (memory_path / "notes").rmdir()
    assert perform(TASK, FakeAnalysis(), place).parts
    full = memory_path / "full"
    full.symlink_to("/dev/full")
    note = Note(memory_path, "task")
    note.path.unlink()
    note.path = full
    note.chunk(0, 0, None)
    note.close()
    assert not full.is_symlink()


CHILD = """
import sys, time
sys.path[:0] = sys.argv[1:3]
from pathlib import Path
from fakes import FakeAnalysis, make_place, make_plan
from executors.work.layout import Tree
from executors.work.worker import perform

def endless(start, stop):
    if sys.argv[4] == "loop":
        while True:
            pass
    time.sleep(60)

tree = Tree(make_plan((40, 0, 25), chunk=5))
place = make_place(Path(sys.argv[3]), chunk_timeout=0.4)
perform(tree.task(tree.root), FakeAnalysis({("a/2.root", 10): endless}), place)
"""


@pytest.mark.parametrize("how", ["loop", "sleep"])
def test_an_endless_chunk_ends_its_worker_and_leaves_word(memory_path, how):
    tests = Path(__file__).parents[1]
    argv = [sys.executable, "-c", CHILD, tests, tests.parent, memory_path, how]
    began = time.monotonic()
    done = subprocess.run([str(a) for a in argv], capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert time.monotonic() - began < 10
    words = notes.collect(memory_path / "notes", TASK.id)
    assert (words.file, words.chunk, words.kind) == (2, 2, Kind.TIMEOUT)
    assert any("endless" in frame for frame in words.frames)
    assert list((memory_path / "notes").iterdir()) == []


def test_a_quick_chunk_is_not_charged_for_a_slow_one_before(place):
    """The limit is a chunk's, not a task's."""
    slow = make_place(place.run, chunk_timeout=5.0)
    assert len(perform(TASK, FakeAnalysis(busy=0.01), slow).chunks) == 13


def test_a_time_limit_inside_the_runner(memory_path):
    place = make_place(memory_path, chunk_timeout=0.1, inline=True)

    def endless(start, stop):
        while True:
            pass

    receipt = perform(TASK, FakeAnalysis({("a/2.root", 10): endless}), place)
    (failure,) = receipt.failures
    assert (failure.kind, failure.chunk) == (Kind.TIMEOUT, 2)
    with time_limit(None):
        pass
    with pytest.raises(TimeLimitError), time_limit(0.05):
        time.sleep(2)


# -- printing ---------------------------------------------------------------------------------------


def test_a_flood_of_words_is_bounded(place, monkeypatch):
    monkeypatch.setattr(module, "PRINTED_A_TASK", 1000)

    def talk(start, stop):
        for _ in range(100):
            print("x" * 1000)
            print("y" * 1000, file=sys.stderr)

    analysis = FakeAnalysis({("a/0.root", 0): talk})
    for _ in range(100):
        perform(TASK, analysis, place)
    (log,) = (place.run / "logs").iterdir()
    assert 1000 < log.stat().st_size < 70_000
    assert "characters more were printed" in log.read_text()


def test_the_bounded_stream():
    stream = Bounded(5)
    assert stream.write("abc") == 3
    assert stream.write("defg") == 4
    assert stream.text().startswith("abcde\n… 2 characters")
    assert stream.writable()


def test_surrogates_are_printed_somehow(place):
    perform(TASK, FakeAnalysis({("a/0.root", 0): lambda *a: print("\udcff")}), place)
    assert len(list((place.run / "logs").iterdir())) == 1


GREEDY = """
import mmap, sys, tempfile
sys.path[:0] = sys.argv[1:3]
from pathlib import Path
from fakes import FakeAnalysis, make_place, make_plan
from executors.work.layout import Tree
from executors.work.worker import perform

def greedy(start, stop):
    with mmap.mmap(-1, 50 << 20) as fresh:
        for page in range(0, len(fresh), mmap.PAGESIZE):
            fresh[page] = 1

tree = Tree(make_plan((23,), chunk=5))
with tempfile.TemporaryDirectory() as folder:
    analysis = FakeAnalysis({("a/0.root", 9): greedy})
    receipt = perform(tree.task(tree.root), analysis, make_place(Path(folder)))
print(*(record.peak - record.before for record in receipt.chunks))
"""


def test_memory_is_measured_per_chunk():
    if memory.peak() == 0:
        pytest.skip("no memory figures here")
    # In a process of its own: what other tests left in this one's heap may be used, or given back, at any chunk.
    argv = [sys.executable, "-c", GREEDY, str(TESTS), str(TESTS.parent)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    grown = [int(word) >> 20 for word in done.stdout.split()]
    assert 49 <= max(grown) <= 53
    assert sorted(grown)[-2] < 10


# -- merging ----------------------------------------------------------------------------------------


def test_a_merge_names_what_is_damaged(place):
    kids = TREE.children(TREE.root)
    stored = []
    for kid in kids:
        task = TREE.task(kid)
        stored.append((kid, perform(task, FakeAnalysis(), place).parts[0].id))
    task = MergeTask(TREE.id(TREE.root), TREE.root, tuple(stored))
    path = place.store.path(*stored[1])
    path.write_bytes(path.read_bytes()[:-1])
    receipt = merge(task, FakeAnalysis(), place)
    assert receipt.parts == ()
    assert [row[:2] for row in receipt.extra["damaged"]] == [stored[1]]
    perform(TREE.task(kids[1]), FakeAnalysis(), place)
    (part,) = merge(task, FakeAnalysis(), place).parts
    assert (part.node, part.entries) == (TREE.root, 65)
    assert np.array_equal(pack(expected(PLAN)).regions["<f8"], held(Receipt("", (part,), (), ()), place)[0])


def test_chunks_of_one_file_only(place):
    node = Node(0, 0, 1, 4, 8)
    receipt = perform(TREE.task(node), FakeAnalysis(), place)
    assert [p.node for p in receipt.parts] == [node]
    assert [c.chunk for c in receipt.chunks] == [4, 5, 6, 7]


def test_a_worker_whose_files_are_removed_blames_no_chunk(tmp_path, monkeypatch):
    """A batch system cleans up under it: imports fail, temporary files too. It is a worker that is lost."""
    from executors.work import worker as module
    from executors.work.model import Kind

    work = module._Work.__new__(module._Work)
    work.analysis = type("A", (), {"classify": staticmethod(lambda error: Kind.USER)})()
    assert work._kind(ModuleNotFoundError("x")) is Kind.USER
    monkeypatch.setattr(module, "__file__", str(tmp_path / "gone.py"))
    assert work._kind(ModuleNotFoundError("x")) is Kind.LOST
    monkeypatch.undo()
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path / "gone"))
    assert work._kind(FileNotFoundError("x")) is Kind.LOST
    assert work._kind(module.TimeLimitError()) is Kind.TIMEOUT
