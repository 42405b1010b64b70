"""The drop-in executor: its sum, its retries, its blame, its account of what is missing."""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import cloudpickle
import loky
import numpy as np
import pytest
from coffea import processor
from coffea.nanoevents import NanoAODSchema
from coffea.processor import IterativeExecutor, Runner
from coffea.processor.executor import ExecutorBase, WorkItem

from executors.coffea import adapter_drive
from executors.coffea.adapter import EngineExecutor, for_coffea
from executors.coffea.adapter_item import StandInError, Step, chain, describe, revive, run_item
from executors.coffea.adapter_merge import Tree, add
from executors.errors import (
    AnalysisError,
    EngineError,
    IncompleteError,
    SiteError,
    UnknownNameError,
    UsageError,
)
from executors.work.model import Kind
from tests.data import KINDS, corrupt, make_fileset

cloudpickle.register_pickle_by_value(sys.modules[__name__])
ROOT = Path(__file__).parents[2]
THREADS = concurrent.futures.ThreadPoolExecutor
PROCESSES = concurrent.futures.ProcessPoolExecutor


def made(pool=THREADS, **fields):
    return for_coffea("test", pool=pool, **{"workers": 2, "status": False, "backoff": 0.001, **fields})


def one(item):
    return {"n": 1, "items": [item]}


class Telling(THREADS):
    """A pool at a batch site, which hears how many calls are to come."""

    def __init__(self, max_workers):
        super().__init__(max_workers)
        self.heard = []

    def need(self, calls):
        self.heard.append(calls)


def test_the_pool_hears_how_much_is_left_of_each_call():
    with Telling(2) as pool:
        executor = made(pool)
        executor(list(range(40)), one, None)
        first = list(pool.heard)
        executor(list(range(30)), one, None)
    assert first[0] == 40
    assert first == sorted(first, reverse=True)
    assert len(first) < 30
    assert pool.heard[len(first)] == 30


# --- the sum ------------------------------------------------------------------------------------


def nested(left, right, _leaves):
    return f"({left}{right})"


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 13, 64, 100])
def test_the_tree_has_one_shape_whatever_the_order(size):
    shapes = set()
    for seed in range(5):
        order = list(range(size))
        random.Random(seed).shuffle(order)
        tree = Tree(size, nested)
        for i in order:
            tree.put(i, f"{i},")
        assert len(tree.held) == 1
        shapes.add(tree.total())
    assert len(shapes) == 1
    assert [int(x) for x in shapes.pop().replace("(", "").replace(")", "").split(",")[:-1]] == list(
        range(size)
    )


def test_a_gap_is_as_good_as_nothing():
    for missing in itertools.combinations(range(6), 3):
        left_out, said = Tree(6, nested), Tree(6, nested)
        for i in range(6):
            if i not in missing:
                left_out.put(i, str(i))
            said.put(i, None if i in missing else str(i))
        total = left_out.total()
        assert total == said.total()
        assert total.replace("(", "").replace(")", "") == "".join(
            str(i) for i in range(6) if i not in missing
        )
    assert Tree(0, nested).total() is None


def test_the_tree_holds_few_sums_however_long_the_first_takes():
    tree = Tree(4096, lambda a, b, _: a + b)
    for i in [*range(1, 4096), 0]:
        tree.put(i, 1)
    assert tree.total() == 4096
    assert tree.most_held <= 2 * 12


def test_the_same_bits_in_any_order(tmp_path):
    rng = np.random.default_rng(3)
    values = rng.normal(0, 1, (37, 50)) * 10 ** rng.uniform(-8, 8, (37, 1))

    def function(i):
        time.sleep(random.random() / 200)
        return {"sum": values[i]}

    def total(pool, workers):
        with made(pool, workers=workers) as executor:
            return executor(range(37), function, None)[0]["sum"].tobytes()

    sums = {total(pool, w) for pool, w in [(THREADS, 1), (THREADS, 7), (PROCESSES, 2), (PROCESSES, 3)]}
    assert len(sums) == 1
    assert np.allclose(np.frombuffer(sums.pop()), values.sum(axis=0))


def test_addition_is_coffeas():
    for left, right in [
        (1, 2.5),
        ("a", "b"),
        ({1}, {2}),
        ([1], [2]),
        (True, True),
        ({"a": 1}, {"b": 2}),
        (None, 3),
    ]:
        for leaves in (True, False):
            assert add(pickle.loads(pickle.dumps(left)), right, leaves) == processor.accumulate([left, right])
    ints, floats = np.array([1, 2]), np.array([0.5, 0.5])
    assert add(ints, floats, True).tolist() == [1.5, 2.5]


def test_a_start_value_is_added_to_as_coffea_does():
    start = processor.set_accumulator({-1})
    out, error = made()(range(3), lambda i: processor.set_accumulator({i}), start)
    assert (out, error) == ({-1, 0, 1, 2}, 0)
    assert out is start


def test_nothing_to_do_starts_nothing():
    executor = made()
    assert executor([], one, {"n": 5}) == ({"n": 5}, 0)
    assert not executor.session.is_open


def test_results_that_cannot_be_added_say_so():
    with pytest.raises(AnalysisError, match="cannot be added"):
        made()(range(2), lambda i: {"a": "text" if i else 1}, None)


def test_results_come_back_apart_even_from_threads():
    shared = {"n": 1}
    assert made()(range(8), lambda _: shared, None) == ({"n": 8}, 0)
    assert shared == {"n": 1}


# --- the window ---------------------------------------------------------------------------------


class Inline(concurrent.futures.Executor):
    """Answers when asked to, in an order of its own, and remembers how much was waiting."""

    def __init__(self, max_workers=1, order=min, faults=None):
        self.order, self.faults = order, faults or {}
        self.waiting, self.most, self.runs = {}, 0, []
        self.lock = threading.Lock()
        self.ended = False
        self.thread = threading.Thread(target=self.loop, daemon=True)
        self.thread.start()

    def submit(self, fn, *args):
        future = concurrent.futures.Future()
        with self.lock:
            self.waiting[len(self.runs) + len(self.waiting) + random.random()] = (future, fn, args)
            self.most = max(self.most, len(self.waiting))
        return future

    def loop(self):
        while not self.ended:
            with self.lock:
                key = self.order(self.waiting) if self.waiting else None
                call = self.waiting.pop(key) if key is not None else None
            if call is None:
                time.sleep(0.0005)
                continue
            future, fn, args = call
            index = args[3]
            self.runs.append(index)
            fault = self.faults.get(index)
            if not future.set_running_or_notify_cancel():
                continue
            if fault:
                future.set_exception(fault.pop(0))
            else:
                future.set_result(fn(*args))

    def shutdown(self, wait=True, *, cancel_futures=False):
        self.ended = True


def test_two_thousand_items_pass_through_a_small_window():
    pool = Inline(order=max)
    executor = made(pool, workers=4)
    out, error = executor(range(2000), one, None)
    assert (out["n"], error) == (2000, 0)
    assert out["items"] == list(range(2000))
    assert pool.most <= 2 * 4 + 2
    pool.shutdown()


def test_a_window_of_ones_own():
    pool = Inline()
    made(pool, workers=4, window=3)(range(50), one, None)
    assert pool.most <= 3
    pool.shutdown()


# --- retries ------------------------------------------------------------------------------------


def counted(folder, item):
    """How often an item has run, counted across processes."""
    with (Path(folder) / str(item)).open("a") as file:
        file.write("x")
        file.flush()
        return file.tell()


def runs(folder, item):
    path = Path(folder) / str(item)
    return path.stat().st_size if path.exists() else 0


def failing(folder, item, *, bad, times, error):
    n = counted(folder, item)
    if item in bad and n <= times:
        raise error
    return one(item)


@pytest.mark.parametrize("pool", [THREADS, PROCESSES])
def test_what_can_pass_is_tried_again(tmp_path, pool):
    function = partial(failing, tmp_path, bad={3, 4}, times=2, error=ConnectionResetError(104, "gone"))
    with made(pool, retries=2) as executor:
        out, error = executor(range(8), function, None)
    assert (out["n"], error) == (8, 0)
    assert [runs(tmp_path, i) for i in range(8)] == [1, 1, 1, 3, 3, 1, 1, 1]
    assert len(executor.report.retried) == 4
    assert executor.report.complete


def test_retries_end_and_the_items_are_named(tmp_path):
    function = partial(failing, tmp_path, bad={5}, times=9, error=ConnectionResetError(104, "gone"))
    executor = made(retries=2)
    out, error = executor(range(8), function, None)
    assert runs(tmp_path, 5) == 3
    assert out["items"] == [0, 1, 2, 3, 4, 6, 7]
    assert isinstance(error, IncompleteError)
    assert isinstance(error.__cause__, ConnectionResetError)
    assert error.about["items"] == (5,)
    assert [m.item for m in executor.report.failed] == [5]
    assert executor.report.failed[0].attempts == 3


def test_retries_wait_longer_each_time(tmp_path):
    def function(_item):
        with (tmp_path / "moments").open("a") as file:
            file.write(f"{time.monotonic()}\n")
        raise ConnectionResetError(104, "gone")

    with pytest.raises(IncompleteError):
        made(retries=3, backoff=0.04)([0], function, None)
    moments = [float(line) for line in (tmp_path / "moments").read_text().split()]
    gaps = [b - a for a, b in itertools.pairwise(moments)]
    assert len(gaps) == 3
    assert all(gap >= least for gap, least in zip(gaps, (0.04, 0.08, 0.16), strict=True))


def test_no_retries_means_none(tmp_path):
    function = partial(failing, tmp_path, bad={1}, times=9, error=ConnectionResetError(104, "gone"))
    _, error = made(retries=0)(range(4), function, None)
    assert isinstance(error, IncompleteError)
    assert runs(tmp_path, 1) == 1


def test_a_bug_on_the_first_event_costs_a_handful(tmp_path):
    def function(item):
        counted(tmp_path, item)
        time.sleep(0.1)
        raise ZeroDivisionError("oh")

    executor = made(workers=8)
    with pytest.raises(AnalysisError, match="the rest was not run") as caught:
        executor(range(500), function, None)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert len(list(tmp_path.iterdir())) <= adapter_drive.CANARIES
    assert executor.report.not_run >= 495


def test_a_bug_on_some_items_stops_at_the_third(tmp_path):
    function = partial(failing, tmp_path, bad=set(range(20, 500)), times=9, error=ZeroDivisionError("oh"))
    out, error = made(window=4)(range(500), function, None)
    assert isinstance(error, AnalysisError)
    assert len(set(range(20)) & set(out["items"])) >= 20 - 4  # but what was still running
    assert sum(runs(tmp_path, i) for i in range(500)) <= 20 + 3 + 4
    assert all(runs(tmp_path, i) <= 1 for i in range(500))


def test_a_bug_on_one_item_leaves_the_others(tmp_path):
    function = partial(failing, tmp_path, bad={77}, times=9, error=ZeroDivisionError("oh"))
    out, error = made()(range(100), function, None)
    assert isinstance(error, AnalysisError)
    assert error.about["items"] == (77,)
    assert out["n"] == 99
    assert runs(tmp_path, 77) == 1


def test_a_full_disk_stops_the_call(tmp_path):
    function = partial(failing, tmp_path, bad=set(range(9, 200)), times=9, error=OSError(28, "No space left"))
    out, error = made()(range(200), function, None)
    assert isinstance(error, SiteError)
    assert out["n"] >= 9
    assert sum(runs(tmp_path, i) for i in range(200)) < 30


@pytest.mark.parametrize("pool", [THREADS, PROCESSES])
def test_sys_exit_in_the_analysis_is_a_bug_not_an_end(pool):
    with made(pool) as executor, pytest.raises(AnalysisError, match="SystemExit"):
        executor(range(4), lambda _: sys.exit(3), None)


@pytest.mark.parametrize("pool", [THREADS, PROCESSES])
def test_a_result_that_cannot_travel(pool):
    with made(pool) as executor:
        out, error = executor(range(6), lambda i: {"a": [threading.Lock()] if i == 4 else [i]}, None)
    assert isinstance(error, AnalysisError)
    assert "cannot be sent back" in str(error)
    assert out["a"] == [0, 1, 2, 3, 5]


def test_an_item_that_cannot_travel():
    with pytest.raises(AnalysisError, match="cannot be sent"):
        made()([threading.Lock()], one, None)


# --- exceptions on their way --------------------------------------------------------------------


class AwkwardInitError(Exception):
    def __init__(self, path, code):
        super().__init__(f"{path}: {code}")
        self.path, self.code = path, code


class LockedError(Exception):
    def __init__(self, text):
        super().__init__(text)
        self.lock = threading.Lock()


class NoTextError(Exception):
    def __str__(self):
        raise RuntimeError("no text")


class WildReduceError(Exception):
    def __reduce__(self):
        raise RuntimeError("no")


def raised(error, cause=None):
    try:
        raise error from cause
    except BaseException as caught:
        return caught


@pytest.mark.parametrize(
    "error", [AwkwardInitError("a", 5), ValueError("x"), OSError(5, "io", "f"), KeyError("k")]
)
def test_an_exception_arrives_with_class_and_content(error):
    back = revive(pickle.loads(pickle.dumps(describe(raised(error), Step(one)))))
    assert type(back) is type(error)
    assert back.args == error.args
    assert vars(back).keys() >= vars(error).keys() - {"__notes__"}
    assert "raised" in back.__notes__[0]


@pytest.mark.parametrize("error", [LockedError("locked"), NoTextError(), WildReduceError("wild")])
def test_an_exception_that_cannot_travel_is_named(error):
    back = revive(pickle.loads(pickle.dumps(describe(raised(error), Step(one)))))
    assert isinstance(back, StandInError | type(error))
    assert type(error).__name__ in repr(back)


def test_causes_arrive_and_the_kind_is_the_innermost():
    error = raised(Exception("Failed to open file: x"), raised(FileNotFoundError(2, "no", "x.root")))
    trouble = describe(error, Step(one, skip=(FileNotFoundError,)))
    assert (trouble.error, trouble.skippable) == ("FileNotFoundError", True)
    assert [type(e) for e in chain(revive(trouble))] == [Exception, FileNotFoundError]


def test_a_long_story_is_cut():
    def deep(n):
        if n:
            return deep(n - 1)
        raise ValueError("x" * 100_000)

    try:
        deep(300)
    except ValueError as error:
        trouble = describe(error, Step(one))
    assert len(trouble.message) < 3000
    assert len(trouble.trace) <= 8000


def test_a_function_that_cannot_be_loaded_on_the_worker():
    outcome = run_item(b"garbage", b"", "t", 0, None)
    assert outcome.trouble.kind is Kind.USER


@pytest.mark.parametrize("pool", [PROCESSES, loky.ProcessPoolExecutor])
def test_an_exception_that_breaks_other_pools(pool):
    def function(i):
        if i == 2:
            raise AwkwardInitError("a", 5)
        return one(i)

    with made(pool) as executor:
        out, error = executor(range(6), function, None)
    assert out["n"] == 5
    assert type(error.__cause__) is AwkwardInitError
    assert error.__cause__.code == 5


# --- dead workers -------------------------------------------------------------------------------


def dying(folder, item, *, killers, times):
    n = counted(folder, item)
    if item in killers and n <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.002)
    return one(item)


@pytest.mark.parametrize("pool", [PROCESSES, loky.ProcessPoolExecutor])
def test_a_worker_killed_once_costs_nothing(tmp_path, pool):
    with made(pool) as executor:
        out, error = executor(range(30), partial(dying, tmp_path, killers={7, 20}, times=1), None)
    assert (error, out["items"]) == (0, list(range(30)))
    assert executor.report.retried


@pytest.mark.parametrize("pool", [PROCESSES, loky.ProcessPoolExecutor])
def test_a_killer_is_isolated_and_named(tmp_path, pool):
    with made(pool) as executor:
        out, error = executor(range(30), partial(dying, tmp_path, killers={7, 20}, times=99), None)
    assert isinstance(error, IncompleteError)
    assert error.about["items"] == (7, 20)
    assert out["items"] == [i for i in range(30) if i not in {7, 20}]
    assert "kills its worker" in str(error)
    assert runs(tmp_path, 7) <= adapter_drive.LOST_TOGETHER + adapter_drive.LOST_ALONE


def test_when_everything_dies_it_is_not_the_items(tmp_path):
    killers = set(range(5, 100))
    with made(PROCESSES) as executor:
        out, error = executor(range(100), partial(dying, tmp_path, killers=killers, times=99), None)
    assert isinstance(error, IncompleteError)
    assert "hardly the items" in str(error)
    assert out["items"] == list(range(5))
    assert sum(runs(tmp_path, i) for i in killers) < 60


def test_a_pool_of_the_users_own_that_breaks_is_said_so(tmp_path):
    with PROCESSES(2) as pool, pytest.raises(EngineError, match="only its maker can mend it"):
        made(pool)(range(30), partial(dying, tmp_path, killers={7}, times=1), None)


class Stillborn(concurrent.futures.Executor):
    made = 0

    def __init__(self, max_workers):
        Stillborn.made += 1

    def submit(self, fn, *args):
        raise BrokenProcessPool("born dead")


def test_a_pool_that_never_works_is_given_up():
    with pytest.raises(EngineError, match="in a row"):
        made(Stillborn)(range(10), one, None)
    assert Stillborn.made == adapter_drive.RENEWALS + 1


@pytest.mark.parametrize("fault", [BrokenProcessPool("dead"), concurrent.futures.CancelledError()])
def test_faults_by_script(fault):
    pool = Inline(faults={3: [fault], 5: [fault, fault], 6: [fault] * 3})
    executor = made(pool)
    out, error = executor(range(10), one, None)
    assert (error, out["n"]) == (0, 10)
    assert [pool.runs.count(i) for i in (3, 5, 6)] == [2, 3, 4]
    pool.shutdown()


def test_an_environment_that_differs_is_not_taken_for_a_dead_worker():
    pool = Inline(faults={0: [ModuleNotFoundError("No module named 'executors'")]})
    with pytest.raises(EngineError, match="same environment"):
        made(pool)(range(10), one, None)
    pool.shutdown()


class Liar(THREADS):
    """Now and then does another item than was asked, or one of an earlier call."""

    def __init__(self, max_workers):
        super().__init__(max_workers)
        self.calls = []

    def submit(self, fn, *args):
        self.calls.append(args)
        return super().submit(fn, *(random.choice(self.calls) if random.random() < 0.3 else args))


def test_an_answer_for_another_item_is_not_accepted():
    with made(Liar) as executor:
        executor(range(300, 400), one, None)
        out, error = executor(range(300), one, None)
    assert (error, out["items"]) == (0, list(range(300)))


# --- with coffea's Runner -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def fileset(tmp_path_factory):
    return make_fileset(tmp_path_factory.mktemp("good"), {"dy": [300, 200, 0], "tt": [250, 170]})


class Spectrum(processor.ProcessorABC):
    def __init__(self, scale=1.0):
        self.scale = scale

    def process(self, events):
        import awkward as ak
        import hist

        name = events.metadata["dataset"]
        h = hist.Hist.new.StrCat([], growth=True, name="d").Reg(20, 0, 200, name="pt").Weight()
        weight = ak.flatten(ak.broadcast_arrays(events.genWeight, events.Muon.pt)[0])
        h.fill(d=name, pt=ak.flatten(events.Muon.pt) * self.scale, weight=weight)
        return {
            name: {"entries": len(events), "sumw": float(ak.sum(events.genWeight))},
            "pt": h,
            "seen": {(name, events.metadata["entrystart"])},
            "starts": [events.metadata["entrystart"]],
            "events": processor.column_accumulator(np.asarray(events.event)),
        }

    def postprocess(self, accumulator):
        accumulator["post"] = accumulator.get("post", 0) + 1
        return accumulator


def runner(executor, **fields):
    NanoAODSchema.warn_missing_crossrefs = False
    return Runner(
        **{"schema": NanoAODSchema, "chunksize": 90, "metadata_cache": {}, "executor": executor, **fields}
    )


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key in ("dy", "tt", "starts", "seen", "post", "pt"):
        assert ours[key] == theirs[key], key
    assert ours["events"].value.tolist() == theirs["events"].value.tolist()


@pytest.fixture(scope="module")
def expected(fileset):
    return runner(IterativeExecutor(status=False))(fileset, treename="Events", processor_instance=Spectrum())


FIELDS = {
    "as it is": ({}, {}),
    "no compression": ({"compression": None}, {}),
    "much compression": ({"compression": 9}, {}),
    "no retries": ({"retries": 0}, {}),
    "small window": ({"window": 1}, {}),
    "with a bar": ({"status": True, "desc": "D", "unit": "u"}, {}),
    "processor as it is": ({}, {"processor_compression": None}),
    "processor squeezed": ({}, {"processor_compression": 9}),
    "skip bad": ({}, {"skipbadfiles": True}),
    "skip some": ({}, {"skipbadfiles": (OSError, ValueError)}),
    "result type": ({}, {"skipbadfiles": True, "use_result_type": True}),
    "result type and metrics": (
        {},
        {"skipbadfiles": (OSError,), "use_result_type": True, "savemetrics": True},
    ),
    "metrics": ({}, {"savemetrics": True}),
    "clusters": ({}, {"align_clusters": True}),
    "cache": ({}, {"cachestrategy": dict}),
    "timeout": ({}, {"xrootdtimeout": 5}),
}


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
def test_equal_to_coffeas_own(fileset, fields):
    ours, theirs = fields
    with made(PROCESSES, **ours) as executor:
        out = runner(executor, **theirs)(fileset, treename="Events", processor_instance=Spectrum())
    ref = runner(IterativeExecutor(status=False), **theirs)(
        fileset, treename="Events", processor_instance=Spectrum()
    )
    if theirs.get("use_result_type"):
        assert type(out) is type(ref)
        out, ref = out.unwrap(), ref.unwrap()
    if theirs.get("savemetrics"):
        for key in ("columns", "entries", "chunks", "bytesread"):
            a, b = out[1][key], ref[1][key]
            assert (sorted(a), len(a)) == (sorted(b), len(b)) if key == "columns" else a == b
        assert out[1].keys() == ref[1].keys()
        out, ref = out[0], ref[0]
    same(out, ref)
    assert executor.report.complete


def test_it_is_one_of_coffeas(fileset):
    executor = made()
    assert isinstance(executor, ExecutorBase)
    copy = executor.copy(unit="chunk")
    assert type(copy) is EngineExecutor
    assert (copy.unit, copy.report is executor.report, copy.session is executor.session) == (
        "chunk",
        True,
        True,
    )
    assert executor.copy(workers=5).session is not executor.session


def test_only_for_the_preprocessing(fileset, expected):
    with made() as executor:
        out = runner(IterativeExecutor(status=False), pre_executor=executor)(
            fileset, treename="Events", processor_instance=Spectrum()
        )
        assert executor.report.done == 5
        same(out, expected)
        other = runner(executor, pre_executor=IterativeExecutor(status=False))(
            fileset, treename="Events", processor_instance=Spectrum()
        )
        same(other, expected)


def test_one_pool_for_all_calls(fileset, expected):
    opened = []

    def pool(max_workers):
        opened.append(max_workers)
        return THREADS(max_workers)

    with made(pool) as executor:
        for _ in range(3):
            same(runner(executor)(fileset, treename="Events", processor_instance=Spectrum()), expected)
        assert opened == [2]
    assert not executor.session.is_open
    same(runner(executor)(fileset, treename="Events", processor_instance=Spectrum()), expected)
    assert opened == [2, 2]
    executor.close()
    executor.close()


def test_two_runners_in_two_threads_share_one(fileset, expected):
    with made(PROCESSES) as executor, THREADS(2) as outer:
        calls = [
            outer.submit(runner(executor), fileset, treename="Events", processor_instance=Spectrum())
            for _ in range(4)
        ]
        for call in calls:
            same(call.result(), expected)


def test_a_plain_function_as_processor(fileset):
    with made(PROCESSES) as executor:
        assert runner(executor)(
            fileset, treename="Events", processor_instance=lambda events: {"n": len(events)}
        ) == {"n": 920}


def test_work_items_and_processed(fileset, expected):
    with made() as executor:
        r = runner(executor)
        items = list(r.preprocess(fileset, treename="Events"))
        out = r.run(items, Spectrum())
    assert out["processed"] == set(items)
    assert out["exception"] == 0
    same(out["out"], expected)


def test_a_processor_that_keeps_state_counts_once(fileset):
    class Keeps(processor.ProcessorABC):
        def __init__(self):
            self.sum = {"n": 0}

        def process(self, events):
            self.sum["n"] += len(events)
            return self.sum

        def postprocess(self, accumulator):
            return accumulator

    for compression in (1, None):
        with made(PROCESSES) as executor:
            out = runner(executor, processor_compression=compression)(
                fileset, treename="Events", processor_instance=Keeps()
            )
        assert out == {"n": 920}


class Broken(Spectrum):
    """Raises on one dataset, or on one chunk of it."""

    def __init__(self, error, start=None):
        super().__init__()
        self.error, self.start = error, start

    def process(self, events):
        name, start = events.metadata["dataset"], events.metadata["entrystart"]
        if name == "tt" and (self.start is None or start == self.start):
            raise self.error
        return super().process(events)


def test_a_bug_reaches_the_user_with_what_was_done(fileset):
    with made() as executor, pytest.raises(AnalysisError, match=r"tt .*nano_0.root \[0, 84\)") as caught:
        runner(executor)(fileset, treename="Events", processor_instance=Broken(ZeroDivisionError("oh")))
    assert any(isinstance(e, ZeroDivisionError) for e in chain(caught.value))
    assert caught.value.partial_output["dy"]["entries"] >= 300
    notes = "".join(note for e in chain(caught.value) for note in getattr(e, "__notes__", []))
    assert "raise self.error" in notes


def test_the_items_of_an_error_can_be_run_again(fileset, expected):
    with made() as executor, pytest.raises(AnalysisError) as caught:
        runner(executor)(
            fileset, treename="Events", processor_instance=Broken(ZeroDivisionError("oh"), start=84)
        )
    error = caught.value
    assert not error.about["not_run"]
    assert all(isinstance(item, WorkItem) for item in error.about["items"])
    again = runner(made()).run(list(error.about["items"]), Spectrum())
    out = processor.accumulate([error.partial_output, again["out"]])
    assert out["tt"] == expected["tt"]


def test_the_users_own_missing_file_is_never_skipped(fileset):
    """coffea takes any OSError for a bad input file, and hands out a smaller sum without a word."""
    broken = Broken(FileNotFoundError(2, "no such correction", "/corrections.json"), start=84)
    with made() as executor, pytest.raises(AnalysisError) as caught:
        runner(executor, skipbadfiles=True)(fileset, treename="Events", processor_instance=broken)
    assert caught.value.partial_output["dy"]["entries"] == 500
    assert not executor.report.skipped


def test_result_type_hands_over_what_was_done(fileset):
    broken = Broken(KeyError("oh"), start=84)
    with made() as executor:
        out = runner(executor, skipbadfiles=(KeyError,), use_result_type=True)(
            fileset, treename="Events", processor_instance=broken
        )
    assert out.is_err()
    assert out.value["dy"]["entries"] == 500
    assert any(isinstance(e, KeyError) for e in chain(out.exception))


def test_result_type_when_nothing_worked(fileset):
    with made() as executor:
        out = runner(executor, skipbadfiles=(KeyError,), use_result_type=True)(
            {"tt": fileset["tt"]}, treename="Events", processor_instance=Broken(KeyError("oh"))
        )
    assert out.is_err()


def test_result_type_lets_other_errors_pass(fileset):
    with made() as executor, pytest.raises(AnalysisError):
        runner(executor, skipbadfiles=True, use_result_type=True)(
            fileset, treename="Events", processor_instance=Broken(KeyError("oh"))
        )


def test_what_the_user_allows_is_skipped_and_said(fileset):
    broken = Broken(KeyError("oh"), start=84)
    with made() as executor, pytest.warns(UserWarning, match="1 of 11 chunks skipped"):
        out = runner(executor, skipbadfiles=(Exception,))(
            fileset, treename="Events", processor_instance=broken
        )
    assert out["dy"]["entries"] == 500
    assert {m.item.entrystart for m in executor.report.skipped} == {84}
    assert "KeyError" in str(executor.report)
    assert not executor.report.complete


def test_everything_skipped_is_coffeas_error(fileset):
    with (
        made() as executor,
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(ValueError, match="No chunks"),
    ):
        runner(executor, skipbadfiles=(KeyError,))(
            {"tt": fileset["tt"]}, treename="Events", processor_instance=Broken(KeyError("oh"))
        )


def test_a_processor_that_returns_nothing(fileset):
    class Nothing(Spectrum):
        def process(self, events):
            return None

    with made() as executor, pytest.raises(AnalysisError, match="should not be None"):
        runner(executor)(fileset, treename="Events", processor_instance=Nothing())


# --- bad files ----------------------------------------------------------------------------------


@pytest.fixture
def spoilt(tmp_path):
    def spoil(kind):
        fileset = make_fileset(tmp_path, {"dy": [100, 100, 100], "tt": [50]})
        path = list(fileset["dy"]["files"])[1]
        corrupt(kind, Path(path))
        return fileset, path

    return spoil


# Another file than was planned: here it is the one that is planned.
DAMAGE = [kind for kind in KINDS if kind != "changed"]


def run_spoilt(fileset, **fields):
    with made(**{k: v for k, v in fields.items() if k == "retries"}) as executor:
        call = runner(executor, **{k: v for k, v in fields.items() if k != "retries"})
        return executor, call(fileset, treename="Events", processor_instance=Spectrum())


def test_a_chunk_that_failed_is_skipped_as_bad_input(spoilt, monkeypatch):
    fileset, path = spoilt("missing")
    with pytest.warns(UserWarning, match=r"1 of 4 files skipped"):
        executor, out = run_spoilt(fileset, skipbadfiles=True)
    assert out["dy"]["entries"] == 200
    assert [m.item.filename for m in executor.report.skipped] == [path]
    assert executor.report.skipped[0].step == "preprocessing"


def test_a_bad_file_is_an_error_that_names_it(spoilt):
    fileset, path = spoilt("missing")
    with pytest.raises(IncompleteError, match=r"nano_1\.root") as caught:
        run_spoilt(fileset)
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    assert path in str(caught.value)


def test_a_bad_file_with_result_type(spoilt):
    fileset, _ = spoilt("missing")
    _, out = run_spoilt(fileset, skipbadfiles=True, use_result_type=True)
    assert out.is_err()


def test_a_bad_file_and_a_tuple(spoilt):
    fileset, _ = spoilt("missing")
    with pytest.warns(UserWarning, match="skipped"):
        _, out = run_spoilt(fileset, skipbadfiles=(FileNotFoundError,))
    assert out["dy"]["entries"] == 200
    with pytest.raises(IncompleteError):
        run_spoilt(fileset, skipbadfiles=(KeyError,))


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.filterwarnings("ignore:.*skipped")
def test_every_kind_of_damage_is_skipped_or_harmless(spoilt, kind):
    fileset, path = spoilt(kind)
    executor, out = run_spoilt(fileset, skipbadfiles=True)
    lost = {m.item.filename for m in executor.report.skipped}
    if lost:
        assert lost == {path}
        assert out["dy"]["entries"] < 300
    else:
        assert out["dy"]["entries"] == 300
    assert out["tt"]["entries"] == 50


@pytest.mark.parametrize("kind", DAMAGE)
def test_no_kind_of_damage_passes_in_silence(spoilt, kind):
    fileset, path = spoilt(kind)
    executor = out = None
    with contextlib.suppress(IncompleteError):
        executor, out = run_spoilt(fileset)
    if out is None:
        with pytest.raises(IncompleteError, match=re.escape(path)):
            run_spoilt(fileset)
    else:
        assert out["dy"]["entries"] == 300
        assert executor.report.complete


def test_a_file_that_is_back_at_the_second_try(spoilt, monkeypatch):
    fileset, path = spoilt("missing")
    hidden = make_fileset(Path(path).parent / "again", {"dy": [100]})
    source = next(iter(hidden["dy"]["files"]))
    over = threading.Event()
    with made(retries=3, backoff=0.6) as executor:

        def bring_back():
            while not executor.report.retried and not over.wait(0.01):
                pass
            os.link(source, path)

        threading.Thread(target=bring_back).start()
        try:
            out = runner(executor)(fileset, treename="Events", processor_instance=Spectrum())
        finally:
            over.set()
    assert out["dy"]["entries"] == 300
    assert executor.report.retried[0].error == "FileNotFoundError"


@pytest.mark.parametrize("entries", [60, 100, 400])
def test_a_file_that_changed_since_it_was_looked_at(tmp_path, entries):
    """coffea clamps the range in silence, or leaves out what is new; the cache is as in a long session."""
    fileset, cache = make_fileset(tmp_path / "a", {"dy": [100, 100]}), {}
    with made() as executor:
        runner(executor, metadata_cache=cache)(fileset, treename="Events", processor_instance=Spectrum())
        path = list(fileset["dy"]["files"])[1]
        other = make_fileset(tmp_path / "b", {"dy": [entries]}, seed=9)
        Path(next(iter(other["dy"]["files"]))).replace(path)
        for compression in (1, None):
            with pytest.raises(IncompleteError, match="not the file that was looked at before") as caught:
                runner(executor, metadata_cache=cache, processor_compression=compression)(
                    fileset, treename="Events", processor_instance=Spectrum()
                )
            assert path in str(caught.value)
        again = runner(executor)(fileset, treename="Events", processor_instance=Spectrum())
    assert again["dy"]["entries"] == 100 + entries


# --- coffea's checkpointer ----------------------------------------------------------------------


def test_a_checkpointer_resumes(fileset, expected, tmp_path):
    def chunks():
        return len(list((tmp_path / "points").rglob("*.coffea")))

    points = processor.SimpleCheckpointer(str(tmp_path / "points"))
    with made(PROCESSES) as executor:
        with pytest.raises(AnalysisError):
            runner(executor, checkpointer=points)(
                fileset, treename="Events", processor_instance=Broken(KeyError("oh"))
            )
        before = chunks()
        assert 0 < before < 12
        out = runner(executor, checkpointer=points)(fileset, treename="Events", processor_instance=Spectrum())
        same(out, expected)
        again = runner(executor, checkpointer=points)(
            fileset, treename="Events", processor_instance=Broken(KeyError("never called"))
        )
        same(again, expected)


# --- how it is made -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"worker": 2}, "did you mean 'workers'"),
        ({"workers": 0}, "workers=0"),
        ({"workers": "2"}, "whole number"),
        ({"retries": -1}, "retries=-1"),
        ({"window": 0}, "window=0"),
        ({"backoff": -1}, "backoff=-1"),
        ({"session": 1}, "unknown option"),
    ],
)
def test_nonsense_is_refused_at_once(fields, said):
    with pytest.raises(UsageError, match=said):
        for_coffea("test", pool=THREADS, **fields)


def test_a_misspelt_engine_is_refused_at_once():
    pytest.importorskip("executors.registry")
    with pytest.raises(UnknownNameError, match="futures"):
        for_coffea("futurs")


def test_it_can_be_copied_and_pickled():
    import copy

    executor = made(workers=3)
    executor([1], one, None)
    for other in (copy.deepcopy(executor), cloudpickle.loads(cloudpickle.dumps(executor))):
        assert other.workers == 3
        assert not other.session.is_open
        assert other([1, 2], one, None)[0]["n"] == 2
        other.close()
    executor.close()


def test_forgotten_is_closed():
    ended = threading.Event()

    class Pool(THREADS):
        def shutdown(self, *args, **kwargs):
            ended.set()
            super().shutdown(*args, **kwargs)

    executor = made(Pool)
    executor([1], one, None)
    copy = executor.copy()
    del executor
    assert not ended.is_set()
    del copy
    assert ended.wait(5)


# --- scripts, notebooks, Ctrl-C -----------------------------------------------------------------

SCRIPT = """
import sys
from coffea import processor
from coffea.nanoevents import NanoAODSchema
from executors.coffea.adapter import for_coffea
from concurrent.futures import ProcessPoolExecutor
import loky, json

NanoAODSchema.warn_missing_crossrefs = False
SCALE = 3

class Counts(dict):
    pass

class Mine(processor.ProcessorABC):
    def process(self, events):
        return Counts({"n": SCALE * len(events)})
    def postprocess(self, accumulator):
        pass

fileset = json.loads(FILESET)
for pool in (ProcessPoolExecutor, loky.ProcessPoolExecutor):
    run = processor.Runner(executor=for_coffea("x", pool=pool, workers=2, status=False), chunksize=90,
                           schema=NanoAODSchema, metadata_cache={})
    out = run(fileset, treename="Events", processor_instance=Mine())
    assert type(out) is Counts, type(out)
    print(out["n"])
"""


def python(*arguments, stdin=None, **options):
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        **options,
    )


@pytest.mark.parametrize("way", ["file", "stdin", "command", "cell"])
def test_a_class_of_main(fileset, tmp_path, way):
    import json

    script = f"FILESET = {json.dumps(fileset)!r}\n" + SCRIPT
    if way == "cell":
        script = f"exec(compile({script!r}, '<cell 1>', 'exec'), globals())"
    if way == "file":
        (tmp_path / "script.py").write_text(script)
        process = python(str(tmp_path / "script.py"))
    elif way == "command":
        process = python("-c", script)
    else:
        process = python("-")
    out, err = process.communicate(script if way in {"stdin", "cell"} else None, timeout=100)
    assert process.returncode == 0, err
    assert out.split() == [str(3 * 920)] * 2


@pytest.mark.parametrize("pool", ["ProcessPoolExecutor", "loky.ProcessPoolExecutor"])
def test_ctrl_c_stops_promptly_and_leaves_nothing(tmp_path, pool):
    import psutil

    script = textwrap.dedent(f"""
        import os, sys, time
        from concurrent.futures import ProcessPoolExecutor
        import loky
        from executors.coffea.adapter import for_coffea

        def slow(item):
            open({str(tmp_path)!r} + f"/{{item}}-{{os.getpid()}}", "w").close()
            time.sleep(30)

        for_coffea("x", pool={pool}, workers=2, status=False)(range(50), slow, None)
        """)
    process = python("-c", script, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        children = psutil.Process(process.pid).children(recursive=True)
        started = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert time.monotonic() - started < 10
        assert "KeyboardInterrupt" in err
        assert not psutil.wait_procs(children, timeout=5)[1]
        assert len(list(tmp_path.iterdir())) <= 4
    finally:
        process.kill()


def test_ctrl_c_in_a_notebook_leaves_the_executor_usable():
    def slow(item):
        if item == 3:
            time.sleep(60)
        return one(item)

    executor = made(PROCESSES)
    timer = threading.Timer(0.5, lambda: signal.raise_signal(signal.SIGINT))
    timer.start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        executor(range(20), slow, None)
    assert time.monotonic() - started < 5
    assert not executor.session.is_open
    assert executor(range(5), one, None)[0]["n"] == 5
    executor.close()


def test_the_bar_counts_to_the_end_and_is_silent_when_off():
    from coffea.util import coffea_console

    with coffea_console.capture() as captured:
        made(status=False)(range(5), one, None)
    assert captured.get() == ""
    with coffea_console.capture() as captured:
        made(status=True, desc="Here")(range(5), one, None)
    assert "Here" in captured.get()
    assert "5/5" in captured.get()
