"""Large plans and full directories: everything still adds up; how long it takes is printed, not judged."""

import time

from fakes import FakeAnalysis, make_drive, make_place, make_plan, promise, resumed

from executors.work.coverage import Coverage
from executors.work.layout import Tree
from executors.work.ledger import Ledger
from executors.work.model import Node
from executors.work.plan import Plan


class Clock:
    def __init__(self):
        self._last = time.perf_counter()

    def say(self, what):
        now = time.perf_counter()
        print(f"{what}: {now - self._last:.2f} s")
        self._last = now


def test_a_large_plan(memory_path, scale):
    files = scale(200, 10_000)
    plan = make_plan((100 * 1000,) * files, chunk=1000)
    clock = Clock()
    plan.save(memory_path / "plan.json")
    clock.say(f"{files * 100} chunks: written")
    plan = Plan.load(memory_path / "plan.json")
    clock.say("read")
    tree, coverage = Tree(plan), None
    ledger, coverage = Ledger(tree), Coverage(tree)
    clock.say("tree and ledger")
    assert ledger.chunks_planned == files * 100
    for file in range(files):
        assert coverage.add(Node(0, file, file + 1, 0, 100), "x")
    clock.say("all files counted")
    assert coverage.complete(tree.root)
    assert list(coverage.missing(tree.root)) == []
    tree.id(tree.root)
    clock.say("identity of the whole")


def test_a_large_directory_is_resumed_by_names(memory_path, scale):
    """Nothing is opened: a hundred thousand stored sums are counted in seconds."""
    chunks = scale(5000, 100_000)
    plan = make_plan((5 * 50,) * (chunks // 50), chunk=5, fsize=20)
    tree, place = Tree(plan), make_place(memory_path)
    clock = Clock()
    for split in range(len(tree.splits)):
        (memory_path / "store" / f"{split:06d}").mkdir()
        for file in range(tree.files(split)):
            for chunk in range(50):
                node = Node(split, file, file + 1, chunk, chunk + 1)
                place.store.path(node, tree.id(node)).touch()
    clock.say(f"{chunks} names made")
    drive = make_drive(plan, memory_path, None)
    assert drive.resume() == 5 * chunks
    clock.say("resumed")
    drive.plan_work()
    clock.say("nothing left to do")
    assert drive.ledger.chunks_done == chunks
    assert not drive._stack


def test_what_the_driver_costs_a_chunk(memory_path, scale):
    chunks = scale(1000, 5000)
    for seconds in (0.0, 0.05):
        plan = make_plan((5 * chunks // 10,) * 10, chunk=5)
        clock = Clock()
        drive = resumed(plan, memory_path / str(seconds), FakeAnalysis(), task_seconds=seconds)
        clock.say(f"{chunks} chunks of no work, tasks of {seconds} s")
        promise(drive, plan)
