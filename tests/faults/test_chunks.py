"""What happens to single chunks: each kind of failure is tried just so often, and blamed on the right one."""

import random
import threading
from collections import Counter

import pytest
from fakes import (
    FakeAnalysis,
    Garbage,
    WorkerDied,
    chunk_node,
    die,
    drive_to_end,
    fake_sum,
    make_place,
    make_plan,
    pack,
    promise,
    resumed,
    rough_sum,
)

from executors.errors import AnalysisError, EngineError
from executors.work.merge import MergeTask
from executors.work.model import Kind
from executors.work.policy import Limits

LIMITS = Limits(backoff=0.001)


class SiteTrouble(Exception):
    """A credential that has run out, say."""


class Analysis(FakeAnalysis):
    def classify(self, error):
        return Kind.SITE if isinstance(error, SiteTrouble) else super().classify(error)


def runs(analysis, path, start):
    return sum(n for (p, s, _), n in analysis.runs.items() if (p, s) == (path, start))


def dying(folder, table, died, *, note=True, text=""):
    """The engine's view of chunks that end their worker: ``table`` says how often each does it."""
    place, lock = make_place(folder), threading.Lock()

    def wrap(call):
        def called(task):
            if isinstance(task, MergeTask):
                return call(task)
            for piece in task.slices:
                for n, (start, _) in enumerate(piece.ranges):
                    with lock:
                        left = table.get((piece.path, start), 0)
                        table[piece.path, start] = left - 1
                    if left > 0:
                        died[piece.path, start] += 1
                        if note:
                            die(task, place, piece.index, piece.lo + n, text)
                        raise WorkerDied("exit code 1")
            return call(task)

        return called

    return wrap


# -- a language of faults ---------------------------------------------------------------------------

E = {"passing": TimeoutError, "bad": Garbage, "user": ValueError}


@pytest.mark.parametrize(
    ("outcomes", "tried", "lost"),
    [
        (["passing"], 2, None),
        (["passing"] * 3, 4, None),
        (["passing"] * 9, 4, Kind.PASSING),
        (["bad"], 2, None),
        (["bad"] * 9, 2, Kind.BAD),
        (["user"], 1, Kind.USER),
        (["passing", "bad", "passing", "passing"], 5, None),  # each kind has its own count
        (["passing", "bad", "passing", "bad"], 4, Kind.BAD),
        (["passing", "user"], 2, Kind.USER),
        (["bad", "passing", "passing", "passing", "passing"], 5, Kind.PASSING),
    ],
)
def test_each_chunk_runs_just_so_often(memory_path, outcomes, tried, lost):
    plan = make_plan((40, 300), chunk=5)
    analysis = Analysis({("a/1.root", 150): [E[name]("x") for name in outcomes]}, value=rough_sum)
    drive = drive_to_end(plan, memory_path, analysis)
    assert runs(analysis, "a/1.root", 150) == tried
    assert sum(analysis.runs.values()) == 67 + tried
    gone = chunk_node(0, 1, 30)
    promise(drive, plan, [gone] if lost else [], value=rough_sum)
    if lost:
        assert drive.ledger.lost[gone].kind is lost
        assert (drive.ledger.lost[gone].path, drive.ledger.lost[gone].range) == ("a/1.root", (150, 155))
        promise(resumed(plan, memory_path, FakeAnalysis(value=rough_sum)), plan, value=rough_sum)


@pytest.mark.parametrize("retries", [0, 1, 7])
def test_retries_are_the_users_to_choose(memory_path, retries):
    plan = make_plan((100,), chunk=5)
    analysis = Analysis({("a/0.root", 50): [TimeoutError()] * 99})
    limits = Limits(backoff=0.0001, retries=retries)
    promise(drive_to_end(plan, memory_path, analysis, limits=limits), plan, [chunk_node(0, 0, 10)])
    assert runs(analysis, "a/0.root", 50) == retries + 1


def test_a_storm_of_passing_failures(memory_path, scale):
    """Each chunk fails up to three times for a while: all is counted, each just once more than it failed."""
    chunks = scale(200, 2000)
    plan = make_plan((chunks * 5,), chunk=5)
    rng = random.Random(9)
    times = {i * 5: rng.randrange(4) for i in range(chunks)}
    faults = {("a/0.root", start): [TimeoutError()] * n for start, n in times.items()}
    analysis = Analysis(faults, value=rough_sum)
    promise(drive_to_end(plan, memory_path, analysis), plan, value=rough_sum)
    assert all(runs(analysis, "a/0.root", start) == n + 1 for start, n in times.items())


# -- workers that die -------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [0, 250, 495])
def test_a_killer_is_isolated_and_named(memory_path, where):
    plan = make_plan((500, 35), chunk=5)
    died, analysis = Counter(), FakeAnalysis()
    drive = drive_to_end(
        plan, memory_path, analysis, wrap=dying(memory_path, {("a/0.root", where): 10**9}, died)
    )
    gone = chunk_node(0, 0, where // 5)
    promise(drive, plan, [gone])
    failure = drive.ledger.lost[gone]
    assert (failure.kind, failure.path, failure.range) == (Kind.LOST, "a/0.root", (where, where + 5))
    assert failure.host == "host.example"
    assert "exit code -9" in failure.message
    assert died == {("a/0.root", where): 5}
    assert max(analysis.runs.values()) == 1


def test_a_killer_without_notes_is_isolated(memory_path):
    """Where workers leave no notes (they do not see the run's directory), halving finds it."""
    plan = make_plan((500, 35), chunk=5)
    died, analysis = Counter(), FakeAnalysis()
    wrap = dying(memory_path, {("a/0.root", 250): 10**9}, died, note=False)
    drive = drive_to_end(plan, memory_path, analysis, wrap=wrap, shared=False)
    promise(drive, plan, [chunk_node(0, 0, 50)])
    assert died["a/0.root", 250] < 20


def test_several_killers_among_innocents(memory_path, scale):
    count = scale(8, 40)
    plan = make_plan((5 * 400,), chunk=5)
    starts = random.Random(3).sample(range(0, 2000, 5), count)
    died = Counter()
    wrap = dying(memory_path, {("a/0.root", start): 10**9 for start in starts}, died)
    drive = drive_to_end(plan, memory_path, wrap=wrap)
    promise(drive, plan, [chunk_node(0, 0, start // 5) for start in starts])
    assert set(died.values()) == {5}


def test_workers_lost_at_random(memory_path, scale):
    losses, chunks = scale(60, 200), scale(600, 2000)
    plan = make_plan((chunks * 5 // 4,) * 4, chunk=5, fsize=3)
    rng = random.Random(4)
    table = Counter((f"a/{rng.randrange(4)}.root", rng.randrange(chunks // 4) * 5) for _ in range(losses))
    table = Counter({chunk: min(times, 4) for chunk, times in table.items()})
    died, asked = Counter(), table.total()
    drive = drive_to_end(plan, memory_path, wrap=dying(memory_path, table, died), task_seconds=0.01)
    promise(drive, plan)
    assert died.total() == asked > losses * 0.9


def test_an_engine_that_loses_all_workers_says_so(memory_path):
    """Nothing but losses without a note: the engine is at fault, no chunk is."""

    def wrap(call):
        def called(task):
            raise WorkerDied("no machine")

        return called

    plan = make_plan((500,), chunk=5)
    with pytest.raises(EngineError, match="WorkerDied: no machine"):
        drive_to_end(plan, memory_path, wrap=wrap)
    promise(resumed(plan, memory_path), plan)


def test_a_time_limit_is_told_by_the_note(memory_path):
    text = (
        "Timeout (0:00:01)!\nThread 0x00007f (most recent call first):\n"
        '  File "/home/u/dimuon.py", line 12 in wait\n  File "/home/u/dimuon.py", line 7 in process\n'
    )
    plan = make_plan((100, 300), chunk=5)
    died = Counter()
    wrap = dying(memory_path, {("a/1.root", 150): 10**9}, died, text=text)
    drive = drive_to_end(plan, memory_path, wrap=wrap)
    gone = chunk_node(0, 1, 30)
    promise(drive, plan, [gone])
    failure = drive.ledger.lost[gone]
    assert (failure.kind, failure.error) == (Kind.TIMEOUT, "TimeoutError")
    assert failure.frames == ("/home/u/dimuon.py:7 in process", "/home/u/dimuon.py:12 in wait")
    assert died.total() == 2
    assert drive.halted is None


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"file": 99, "chunk": 0}', '{"file": 0}',
                                  '{"file": Infinity, "chunk": 0}', '{"file": 0, "chunk": 7777}', "\x00" * 99])  # fmt: skip
def test_a_damaged_note_blames_nobody(memory_path, text):
    plan = make_plan((100,), chunk=5)
    left, place = [3], make_place(memory_path)

    def wrap(call):
        def called(task):
            if left[0]:
                left[0] -= 1
                (place.run / "notes" / f"{task.id[:32]}.h.1").write_text(text)
                raise WorkerDied
            return call(task)

        return called

    drive = drive_to_end(plan, memory_path, wrap=wrap)
    promise(drive, plan)
    assert drive.ledger.rows()[0].failures == 0


@pytest.mark.parametrize("shared", [True, False])
def test_memory_errors_of_the_engine_split_the_chunk(memory_path, shared):
    """The engine says memory: the chunk that is to blame is processed in pieces, the others are not."""
    plan = make_plan((400_000,), chunk=20_000)
    seen = []

    def wrap(call):
        def called(task):
            if not isinstance(task, MergeTask):
                for piece in task.slices:
                    if (100_000, 120_000) in piece.ranges and piece.parts < 4:
                        seen.append((len(piece.ranges), piece.parts))
                        raise MemoryError("killed above 2 GB")
            return call(task)

        return called

    analysis = FakeAnalysis()
    drive = drive_to_end(plan, memory_path, analysis, wrap=wrap, shared=shared)
    promise(drive, plan)
    pieces = [stop - start for (_, start, stop) in analysis.runs if 100_000 <= start < 120_000]
    assert pieces == [5000] * 4
    assert len(analysis.runs) == 19 + 4
    assert seen[-2:] == [(1, 1), (1, 2)]
    assert len(seen) < 15


def test_memory_at_the_floor_is_given_up(memory_path):
    plan = make_plan((40_000, 8000), chunk=8000)
    analysis = FakeAnalysis({("a/1.root", 0): MemoryError()})
    drive = drive_to_end(plan, memory_path, analysis)
    promise(drive, plan, [chunk_node(0, 1, 0)])
    assert [stop - start for path, start, stop in analysis.runs if path == "a/1.root"] == [
        8000,
        4000,
        2000,
        1000,
    ]


# -- bad inputs -------------------------------------------------------------------------------------


def test_bad_inputs_among_good_ones(memory_path, scale):
    bad, files = scale(60, 1000), scale(300, 5000)
    plan = make_plan((12,) * files, chunk=5, fsize=scale(40, 500), datasets=("a", "bb"))
    rng = random.Random(5)
    chosen = rng.sample([(d, f) for d in ("a", "bb") for f in range(files)], bad)
    faults, lost = {}, []
    per_dataset = -(-files // plan.fsize)
    for number, (dataset, file) in enumerate(chosen):
        split, inside = (dataset == "bb") * per_dataset + file // plan.fsize, file % plan.fsize
        path = f"{dataset}/{file}.root"
        if number % 2:
            faults[path, None] = Garbage("an HTML page")
            lost += [chunk_node(split, inside, chunk) for chunk in range(3)]
        else:
            faults[path, 8] = Garbage("a corrupted basket")
            lost.append(chunk_node(split, inside, 2))
    drive = drive_to_end(plan, memory_path, FakeAnalysis(faults, value=rough_sum))
    promise(drive, plan, lost, value=rough_sum)
    assert {f.path for f in drive.ledger.lost.values()} == {f"{d}/{f}.root" for d, f in chosen}
    assert {f.kind for f in drive.ledger.lost.values()} == {Kind.BAD}
    promise(resumed(plan, memory_path, FakeAnalysis(value=rough_sum)), plan, value=rough_sum)


# -- the user's own mistakes ------------------------------------------------------------------------


def test_the_first_event_raises(memory_path):
    plan = make_plan((50_000,), chunk=5)
    analysis = FakeAnalysis({("a/0.root", s): KeyError("Muonn") for s in range(0, 50_000, 5)})
    drive = drive_to_end(plan, memory_path, analysis)
    assert drive.halted.kind is Kind.USER
    assert (drive.halted.error, drive.halted.message) == ("KeyError", "'Muonn'")
    assert drive.halted.frames == ("fake.py:1 in process",)
    assert sum(analysis.runs.values()) <= 8
    promise(resumed(plan, memory_path), plan)


def test_one_chunk_raises_late(memory_path):
    plan = make_plan((5000,), chunk=5)
    drive = drive_to_end(plan, memory_path, FakeAnalysis({("a/0.root", 2500): ZeroDivisionError()}))
    assert drive.halted is None
    promise(drive, plan, [chunk_node(0, 0, 500)])


def test_three_chunks_raise_and_the_run_stops(memory_path):
    plan = make_plan((50_000,), chunk=5)
    faults = {("a/0.root", s): ZeroDivisionError() for s in range(2500, 50_000, 5)}
    analysis = FakeAnalysis(faults)
    drive = drive_to_end(plan, memory_path, analysis, task_seconds=0.001)
    assert drive.halted.kind is Kind.USER
    assert sum(1 for (_, start, _) in analysis.runs if start >= 2500) < 200
    promise(resumed(plan, memory_path), plan)


class Unpackable(FakeAnalysis):
    def pack(self, value):
        raise TypeError("cannot store a generator")


def test_a_result_that_cannot_be_packed(memory_path):
    plan = make_plan((500,), chunk=5)
    drive = drive_to_end(plan, memory_path, Unpackable())
    assert drive.halted.kind is Kind.USER
    assert "generator" in drive.halted.message
    promise(resumed(plan, memory_path), plan)


@pytest.mark.parametrize("error", [AnalysisError("axes differ"), TypeError("axes differ")])
def test_results_that_cannot_be_merged(memory_path, error):
    """Nothing is lost: each half is kept, and the mistake is said by the merge."""

    class Unmergeable(FakeAnalysis):
        def pack(self, value):
            return pack(value, additive=False)

        def combine(self, left, right):
            raise error

    plan = make_plan((500,), chunk=5)
    drive = drive_to_end(plan, memory_path, Unmergeable())
    assert drive.halted.kind is Kind.USER
    assert "axes differ" in drive.halted.message
    again = FakeAnalysis()
    promise(resumed(plan, memory_path, again), plan)
    assert len(again.runs) < 100


class Broken(Exception):
    def __str__(self):
        raise RuntimeError("no words")


class Odd(BaseException):
    """What ``except Exception`` does not catch."""


@pytest.mark.parametrize(
    "error", [Broken(), SystemExit(3), RecursionError(), StopIteration(), ValueError("\udcff\n\n")]
)
def test_strange_exceptions_are_reported(memory_path, error):
    plan = make_plan((500,), chunk=5)
    drive = drive_to_end(plan, memory_path, FakeAnalysis({("a/0.root", 250): error}))
    promise(drive, plan, [chunk_node(0, 0, 50)])
    assert drive.ledger.lost[chunk_node(0, 0, 50)].error == type(error).__name__


def test_what_is_no_exception_at_all_is_isolated(memory_path):
    plan = make_plan((500,), chunk=5)
    drive = drive_to_end(plan, memory_path, FakeAnalysis({("a/0.root", 250): Odd()}))
    promise(drive, plan, [chunk_node(0, 0, 50)])


def test_trouble_with_the_site_stops_at_once(memory_path):
    plan = make_plan((5000,), chunk=5)
    analysis = Analysis({("a/0.root", 1000): SiteTrouble("the proxy ends in 3 minutes")}, value=rough_sum)
    drive = drive_to_end(plan, memory_path, analysis, task_seconds=0.001)
    assert drive.halted.kind is Kind.SITE
    assert "proxy" in drive.halted.message
    assert not drive.ledger.lost
    promise(resumed(plan, memory_path, FakeAnalysis(value=rough_sum)), plan, value=rough_sum)


def test_all_kinds_at_once(memory_path, scale):
    """A table of everything, over a run that is also killed and resumed: only the hopeless are missing."""
    chunks = scale(400, 3000)
    plan = make_plan((chunks * 5 // 4,) * 4, chunk=5, fsize=2)
    rng = random.Random(6)
    faults, lost = {}, []
    for file in range(4):
        for chunk in range(chunks // 4):
            kind = rng.choices(("well", "passing", "bad once", "bad"), (80, 10, 7, 3))[0]
            place = (f"a/{file}.root", chunk * 5)
            if kind == "passing":
                faults[place] = [TimeoutError()] * rng.randrange(1, 4)
            elif kind == "bad once":
                faults[place] = [Garbage()]
            elif kind == "bad":
                faults[place] = Garbage()
                lost.append(chunk_node(file // 2, file % 2, chunk))
    table = {(f"a/{rng.randrange(4)}.root", rng.randrange(chunks // 4) * 5): 2 for _ in range(chunks // 20)}
    wrap = dying(memory_path, table, Counter())
    drive = drive_to_end(plan, memory_path, FakeAnalysis(faults), wrap=wrap, task_seconds=0.005)
    promise(drive, plan, lost)
    promise(resumed(plan, memory_path), plan)
    assert fake_sum("a/0.root", 0, 5).sum() > 0


def test_limits_are_the_drives_own(memory_path):
    """A limit given in the terms counts, not the default one."""
    plan = make_plan((50,), chunk=5)
    died = Counter()
    drive = drive_to_end(
        plan,
        memory_path,
        wrap=dying(memory_path, {("a/0.root", 25): 99}, died),
        limits=Limits(lost=1, backoff=0.001),
    )
    promise(drive, plan, [chunk_node(0, 0, 5)])
    assert died.total() <= 2
