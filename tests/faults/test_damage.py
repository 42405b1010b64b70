"""Stored objects and the journal, damaged in every way: never in the result, always made again."""

import random
import shutil
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from fakes import FakeAnalysis, drive_to_end, make_drive, make_plan, promise, resumed, rough_sum

from executors.errors import DamagedError, PlanChangedError
from executors.work import journal
from executors.work.merge import MergeTask
from executors.work.model import Kind
from executors.work.plan import Plan

FILES = (40, 0, 25, 7)


def pieces_of(folder, plan, shared=True):
    """A directory with every chunk stored by itself: the most there is to damage."""
    drive_to_end(
        plan, folder, FakeAnalysis(value=rough_sum), merging=False, task_seconds=0.0, canaries=99, slots=99,
        shared=shared,
    )  # fmt: skip
    return sorted((folder / "store").rglob("*.part"))


def flip(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def end(plan, folder, **kw):
    drive = resumed(plan, folder, FakeAnalysis(value=rough_sum), **kw)
    promise(drive, plan, value=rough_sum)
    return drive


@pytest.mark.parametrize("merging", [True, False])
def test_flipped_bits_through_a_resumed_run(memory_path, scale, merging):
    plan = make_plan(FILES, chunk=5)
    paths = pieces_of(memory_path / "good", plan)
    assert len(paths) == 15
    rng = random.Random(3)
    for number in range(scale(15, 130)):
        folder = memory_path / f"run{number}"
        shutil.copytree(memory_path / "good", folder)
        hit = rng.sample(paths, rng.randrange(1, 15))
        for path in hit:
            path = folder / path.relative_to(memory_path / "good")
            flip(path, rng.randrange(path.stat().st_size * 8))
        again = FakeAnalysis(value=rough_sum)
        drive = resumed(plan, folder, again, merging=merging)
        promise(drive, plan, value=rough_sum)
        assert set(again.runs.values()) <= {1}
        assert len(again.runs) <= len(hit)  # a skeleton that is not needed is not read
        assert len(list((folder / "damaged").glob("*"))) == len(again.runs)
        shutil.rmtree(folder)


def test_every_truncation_of_the_merged_sum(memory_path, scale):
    plan = make_plan((10, 5), chunk=5)
    drive_to_end(plan, memory_path, FakeAnalysis(value=rough_sum))
    (path,) = (memory_path / "store").rglob("*.part")
    whole = path.read_bytes()
    for size in range(0, len(whole), scale(41, 1)):
        path.write_bytes(whole[:size])
        again = FakeAnalysis(value=rough_sum)
        promise(resumed(plan, memory_path, again), plan, value=rough_sum)
        assert sum(again.runs.values()) == 3
    assert path.read_bytes()[-100:] == whole[-100:]


def test_swapped_appended_and_foreign(memory_path):
    plan = make_plan(FILES, chunk=5)
    paths = pieces_of(memory_path, plan)
    one, two, three, four, five, six = paths[:6]
    other, aside = paths[8], memory_path / "aside"
    one.rename(aside), two.rename(one), aside.rename(two)
    with three.open("ab") as out:
        out.write(b"\0")
    four.write_bytes(b"not ours")
    five.unlink()
    five.mkdir()
    shutil.copyfile(other, six)
    end(plan, memory_path)


def test_pieces_of_another_analysis_are_dropped(memory_path):
    drive_to_end(
        make_plan(FILES, chunk=5, fingerprint="0" * 40), memory_path, task_seconds=0.0, merging=False
    )
    drive = end(make_plan(FILES, chunk=5), memory_path)
    assert len(list(drive.store.scan())) == 1


def test_names_that_are_no_nodes_are_dropped(memory_path):
    """A name may claim any range; only a node of this tree, under its own identity, counts."""
    plan = make_plan((100,), chunk=5)
    drive = drive_to_end(plan, memory_path)
    tree = drive.tree
    ((node, identity),) = drive.coverage.stored.items()
    whole = drive.store.path(node, identity).read_bytes()
    drive.store.drop(node, identity)
    for wrong in (node._replace(lo=1), node._replace(lo=3, hi=7), node._replace(hi=19), node._replace(last=9),
                  node._replace(split=7), node._replace(first=-1, last=1, lo=0, hi=-1), node._replace(lo=-4),
                  node._replace(hi=10**7), node._replace(first=3, last=2, lo=0, hi=-1)):  # fmt: skip
        try:
            own = tree.id(wrong)
        except IndexError:
            own = identity
        drive.store.put(wrong, own, {"entries": 5}, [("skeleton", memoryview(whole))])
    again = FakeAnalysis(value=rough_sum)
    drive = resumed(plan, memory_path, again)
    promise(drive, plan, value=rough_sum)
    assert len(again.runs) == 20
    assert len(list(drive.store.scan())) == 1


def test_overlapping_pieces_count_once(memory_path):
    """A kill between the merge and the removal of what it holds leaves both."""
    plan = make_plan((80, 30), chunk=5)
    small = pieces_of(memory_path / "pieces", plan)
    drive_to_end(plan, memory_path / "whole", FakeAnalysis(value=rough_sum))
    for path in small[3:9]:
        shutil.copyfile(path, memory_path / "whole" / "store" / path.parent.name / path.name)
    again = FakeAnalysis(value=rough_sum)
    drive = resumed(plan, memory_path / "whole", again)
    promise(drive, plan, value=rough_sum)
    assert not again.runs
    assert len(list(drive.store.scan())) == 1


def test_a_store_that_does_not_keep_what_it_is_given_stops_the_run(memory_path, monkeypatch):
    plan = make_plan((500,), chunk=5)
    drive_to_end(plan, memory_path, merging=False, task_seconds=0.0)
    real = resumed.__globals__["perform"]

    def rotten(task, analysis, place):
        receipt = real(task, analysis, place)
        for part in receipt.parts:
            path = place.store.path(part.node, part.id)
            flip(path, path.stat().st_size * 8 - 3)  # in the data: the header is still right
        return receipt

    with monkeypatch.context() as patch:
        patch.setitem(resumed.__globals__, "perform", rotten)
        for path in (memory_path / "store").rglob("*.part"):
            flip(path, path.stat().st_size * 8 - 3)
        drive = resumed(plan, memory_path)
        assert drive.sum is None
        assert drive.halted.kind is Kind.SITE
    promise(resumed(plan, memory_path), plan)


def test_an_old_directory_may_be_damaged_all_over(memory_path):
    """However much has rotted since: it is made again in one go, each piece once."""
    plan = make_plan((500,), chunk=5)
    for path in pieces_of(memory_path, plan):
        flip(path, path.stat().st_size * 8 - 3)
    again = FakeAnalysis(value=rough_sum)
    drive = resumed(plan, memory_path, again)
    promise(drive, plan, value=rough_sum)
    assert len(again.runs) == again.runs.total() == 100


def test_a_sum_made_before_one_of_its_parts_was_found_damaged(memory_path):
    """The merge is under way and has read the part; then the part is found damaged, and done again."""
    plan = make_plan((80,), chunk=5)
    pieces_of(memory_path, plan)
    held = []

    class Holding(ThreadPoolExecutor):
        def submit(self, fn, task):
            if not isinstance(task, MergeTask):
                return super().submit(fn, task)
            future = Future()
            held.append((future, fn(task)))
            return future

    with Holding(2) as pool:
        drive = make_drive(plan, memory_path, pool, FakeAnalysis(value=rough_sum), patience=99)
        drive.resume()
        drive.merging.consider(next(iter(drive.coverage.stored)))
        ((future, receipt),) = held
        lost = list(drive.coverage.stored.items())[3:5]
        for node, identity in lost:
            drive.merging.lost_part(node, identity, "a bit")
        assert drive.ledger.events_counted == 70
        future.set_result(receipt)
        drive.run()
        drive.sum = drive.total(FakeAnalysis().combine)
        drive.journal.close()
    promise(drive, plan, value=rough_sum)


# -- the journal ------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["gone", "folder", "empty", "noise", "flips", "torn", "no folder"])
def test_the_journal_is_never_needed(memory_path, damage):
    plan = make_plan(FILES, chunk=5)
    pieces_of(memory_path, plan)
    path = memory_path / "journal.jsonl"
    whole = path.read_bytes()
    assert whole.count(b"\n") >= 15
    rng = random.Random(4)
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage == "flips":
        data = bytearray(whole)
        for _ in range(500):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
    elif damage != "gone":
        path.write_bytes({"empty": b"", "noise": rng.randbytes(9999), "torn": whole[:-7]}.get(damage, whole))
    again = FakeAnalysis(value=rough_sum)
    promise(resumed(plan, memory_path, again), plan, value=rough_sum)
    assert not again.runs
    list(journal.read(path))


def test_journal_every_flip_and_truncation(memory_path, scale):
    path = memory_path / "j"
    log = journal.Journal(path)
    for n in range(5):
        log.write("task", n=n, text="\udcff\n")
    log.close()
    whole = path.read_bytes()
    good = list(journal.read(path))
    assert [row["n"] for row in good] == list(range(5))
    for bit in range(0, len(whole) * 8, scale(3, 1)):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        found = list(journal.read(path))
        assert all(row in good for row in found)
        assert len(found) >= 3
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        found = list(journal.read(path))
        assert found == good[: len(found)]


def test_a_torn_line_does_not_take_the_next_one_along(memory_path):
    path = memory_path / "j"
    path.write_bytes(b'00000000 {"torn":')
    log = journal.Journal(path)
    log.write("next")
    log.close()
    assert [row["event"] for row in journal.read(path)] == ["next"]


def test_a_journal_on_a_full_disk_is_given_up(memory_path):
    import os

    full = memory_path / "full"
    os.symlink("/dev/full", full)
    log = journal.Journal(full)
    for _ in range(3000):
        log.write("task", text="x" * 100)
    log.close()
    assert log.failed is not None


# -- the plan ---------------------------------------------------------------------------------------


def test_plan_every_flip_and_truncation(memory_path, scale):
    plan = make_plan(FILES, chunk=5, datasets=("a", "b"))
    path = memory_path / "plan.json"
    plan.save(path)
    whole = path.read_bytes()
    assert Plan.load(path) == plan
    rng = random.Random(5)
    for bit in (*range(200 * 8), *(rng.randrange(len(whole) * 8) for _ in range(scale(300, 2000)))):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        try:
            assert Plan.load(path) == plan, bit
        except (DamagedError, PlanChangedError) as error:
            assert "plan.json" in str(error)
    for size in range(0, len(whole) - 1, scale(7, 1)):
        path.write_bytes(whole[:size])
        with pytest.raises(DamagedError, match="--overwrite"):
            Plan.load(path)
    for other in (b"[]\n[]\n", b"null\n", b'{"digest": 3, "version": 1}\n{}\n', b"\xff" * 50, b"\n\n"):
        path.write_bytes(other)
        with pytest.raises(DamagedError):
            Plan.load(path)
