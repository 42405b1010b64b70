"""An analysis without physics, engines that lie, a plan without files: the core's tests in milliseconds."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from executors.engines.base import WorkerDied
from executors.work import notes
from executors.work.drive import Drive
from executors.work.journal import Journal
from executors.work.layout import Tree
from executors.work.merge import MergeTask, merge, total
from executors.work.model import Kind, Node
from executors.work.packed import Packed, Sink
from executors.work.plan import Plan, PlannedDataset, PlannedFile
from executors.work.policy import Limits
from executors.work.report import Silent
from executors.work.terms import Terms
from executors.work.worker import Place, perform

BINS = 16


def pack(values: np.ndarray, *, additive: bool = True) -> Packed:
    """A packed array of doubles."""
    sink = Sink()
    return sink.finish(sink.put("<f8", np.array(values, "<f8")), additive=additive)


def truth(plan: Plan) -> np.ndarray:
    """What every event counted exactly once gives."""
    out = np.zeros(BINS)
    for dataset in plan.datasets:
        for file in dataset.files:
            for start, stop in file.ranges(plan.chunk):
                out += fake_sum(file.path, start, stop)
    return out


def fake_sum(path: str, start: int, stop: int) -> np.ndarray:
    events = np.arange(start, stop)
    weight = (len(path) % 7 + 1) / 64
    return np.bincount(events % BINS, minlength=BINS) * weight


def rough_sum(path: str, start: int, stop: int) -> np.ndarray:
    """Numbers whose sum depends on the order in which they are added."""
    return np.sqrt(fake_sum(path, start, stop) + 0.1 + (start % 97)) / 3


def expected(plan: Plan, lost=(), value=fake_sum) -> np.ndarray:
    """What an undisturbed run gives, added by hand along the tree; without the chunks of ``lost``."""
    tree, gone = Tree(plan), set(lost)

    def at(node):
        kids = tree.children(node)
        if not kids:
            if node.hi <= node.lo or node in gone:
                return None
            file = tree.file(node.split, node.first)
            (span,) = file.some_ranges(plan.chunk, node.lo, node.hi)
            return value(file.path, *span)
        left, right = (at(kid) for kid in kids)
        if left is None or right is None:
            return left if right is None else right
        return left + right

    found = at(tree.root) if tree.root is not None else None
    return np.zeros(BINS) if found is None else found


class Garbage(OSError):
    pass


@dataclass
class FakeAnalysis:
    """Sums of known value; ``faults`` maps (path, start) to what happens there."""

    faults: dict = field(default_factory=dict)
    runs: Counter = field(default_factory=Counter)
    value: Callable = fake_sum
    busy: float = 0.0  # seconds that a chunk takes

    @contextlib.contextmanager
    def open(self, dataset, piece):
        fault = self.faults.get((piece.path, None))
        if fault is not None:
            raise fault
        yield FakeFile(self, piece.path)

    def pack(self, value):
        return pack(value)

    def combine(self, left, right):
        return pack(left.regions["<f8"] + right.regions["<f8"])

    def classify(self, error):
        return {
            Garbage: Kind.BAD, TimeoutError: Kind.PASSING, MemoryError: Kind.MEMORY
        }.get(type(error), Kind.USER)  # fmt: skip

    def frames(self, error):
        return ("fake.py:1 in process",)


@dataclass
class FakeFile:
    analysis: FakeAnalysis
    path: str
    bytes_read: int = 0

    def process(self, start, stop):
        self.analysis.runs[self.path, start, stop] += 1
        self.bytes_read += stop - start
        if self.analysis.busy:
            time.sleep(self.analysis.busy)
        fault = self.analysis.faults.get((self.path, start))
        if isinstance(fault, list):
            # A language of faults: one outcome a run, then all is well.
            fault = fault.pop(0) if fault else None
        if callable(fault) and not isinstance(fault, type):
            fault(start, stop)
        elif fault is not None:
            raise fault
        return self.analysis.value(self.path, start, stop)


def make_plan(files=(10, 0, 25, 7), chunk=5, fsize=None, datasets=("a",), fingerprint="f" * 40) -> Plan:
    return Plan(
        workflow="fake",
        fileset="fake",
        chunk=chunk,
        fsize=fsize,
        fingerprint=fingerprint,
        datasets=tuple(
            PlannedDataset(
                name,
                i,
                tuple(PlannedFile(f"{name}/{j}.root", "Events", f"{j:032x}", n) for j, n in enumerate(files)),
            )
            for i, name in enumerate(datasets)
        ),
    )


def auto_plan(files=(1_000_000,), datasets=("a",), **kw) -> Plan:
    """A plan whose sizes follow the memory."""
    plan = make_plan(files, chunk=200_000, datasets=datasets, **kw)
    return replace(
        plan,
        choices={"chunk": "auto"},
        datasets=tuple(replace(d, files=tuple(replace(f, cuts=()) for f in d.files)) for d in plan.datasets),
    )


def make_place(folder: Path, **kw) -> Place:
    place = Place(folder, **kw)
    for name in ("store", "notes", "logs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    return place


def call_for(analysis, place):
    """What the pool runs: a task or a merge."""

    def call(task):
        return merge(task, analysis, place) if isinstance(task, MergeTask) else perform(task, analysis, place)

    return call


def make_drive(
    plan, folder, pool, analysis=None, *, wrap=None, shared=True, sizing=None, ranges=None, hung=None, **terms
):
    """``hung``: seconds after which a chunk hangs, as the driver knows it; no worker ends itself for it."""
    place = make_place(Path(folder), shared=shared)
    analysis = analysis or FakeAnalysis()
    call = call_for(analysis, place)
    terms = {"limits": Limits(backoff=0.001), "slots": 4, "grace": 1.0, **terms}
    return Drive(
        Tree(plan),
        replace(place, chunk_timeout=hung),
        wrap(call) if wrap else call,
        pool,
        Terms(**terms),
        journal=Journal(place.run / "journal.jsonl"),
        observer=Silent(),
        stop=threading.Event(),
        combine_here=None if shared else call_for(analysis, make_place(Path(folder))),
        sizing=sizing,
        ranges=ranges,
    )


def drive_to_end(plan, folder, analysis=None, pool=None, **kw):
    """A whole run, resumed from what the folder holds; the drive, for its ledger."""
    with contextlib.ExitStack() as stack:
        # Workers send what is printed elsewhere; threads that do so at once leave it there.
        stack.enter_context(contextlib.redirect_stdout(sys.stdout))
        stack.enter_context(contextlib.redirect_stderr(sys.stderr))
        if pool is None:
            pool = stack.enter_context(ThreadPoolExecutor(4))
        drive = make_drive(plan, folder, pool, analysis, **kw)
        drive.resume()
        drive.plan_work()
        drive.run()
        drive.sum = drive.total(FakeAnalysis().combine)  # as a runner does, while the pool is open
        drive.journal.close()
    return drive


def result(drive) -> np.ndarray:
    """The merged sum of what is stored."""
    shape = drive.coverage.shape(drive.tree.root)
    if shape is None:
        return np.zeros(BINS)
    packed, _ = total(shape, drive.store, FakeAnalysis().combine)
    return np.asarray(packed.regions["<f8"])


def resumed(plan, folder, analysis=None, **kw):
    """As a runner begins: what dead ones left is swept, then all that is missing is done."""
    place = make_place(Path(folder))
    notes.clear(place.run / "notes")
    place.store.sweep()
    return drive_to_end(plan, folder, analysis, **kw)


def promise(drive, plan, lost=(), value=fake_sum, *, tidy=True):
    """The three assertions: the undisturbed result, every event accounted for, nothing left behind."""
    packed, events = drive.sum if drive.sum is not None else (pack(np.zeros(BINS)), 0)
    assert packed.regions["<f8"].tobytes() == expected(plan, lost, value).tobytes()
    ledger = drive.ledger
    missing = sum(drive.tree.events(node) for node in lost)
    assert set(ledger.lost) == set(lost)
    assert ledger.events_counted == events == ledger.events_planned - missing
    assert ledger.complete == (not missing)
    assert sum(row.events_missing for row in ledger.rows()) == missing
    assert not drive.merging._under_way
    once(drive)
    if tidy:
        nothing_left(drive.place.run)


def once(drive):
    """No chunk lies below two of the nodes that count."""
    seen = set()
    for node in drive.coverage.stored:
        for split, file, lo, hi in drive.tree.pieces(node):
            for chunk in range(lo, hi):
                assert (split, file, chunk) not in seen
                seen.add((split, file, chunk))


def nothing_left(folder: Path):
    """No half-written file, no note of a worker, no thread of a pool."""
    assert not [p for p in (folder / "store").rglob("*") if p.name.endswith(".tmp")]
    assert {p.name for p in (folder / "notes").iterdir()} <= {"stop"}
    assert not [t for t in threading.enumerate() if t.name.startswith("ThreadPoolExecutor")]


def die(task, place, file, chunk, text=""):
    """Leave what a worker leaves that dies in a chunk, and raise what its engine raises."""
    note = place.run / "notes" / f"{task.id[:32]}.host.example.{os.getpid()}"
    note.write_text(f'{{"file":{file},"chunk":{chunk},"since":1.0}}\n{text}')
    raise WorkerDied("exit code -9")


def chunk_node(split, file, chunk):
    """The node of one chunk."""
    return Node(split, file, file + 1, chunk, chunk + 1)
