"""Chunks as memory allows: measured, fitted, cut; what is cut stays, whatever dies."""

import itertools
import json
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from fakes import FakeAnalysis, auto_plan, drive_to_end, expected, make_plan, promise

from executors.work.footprint import Fit, Footprint
from executors.work.plan import Plan
from executors.work.policy import Limits
from executors.work.ranges import Ranges, beside
from executors.work.sizing import FIRST, GROWTH, Sizing, shared

MB = 1 << 20


class Hungry(FakeAnalysis):
    """Needs known memory, and raises where there is less."""

    def __init__(self, per_event, *, fixed=200 * MB, limit=1 << 40, heavy=(), value=None):
        super().__init__(**({} if value is None else {"value": value}))
        self.per_event, self.fixed, self.limit, self.heavy = per_event, fixed, limit, heavy
        self.asked = []  # events of each call, and whether it fitted

    def need(self, path, start, stop):
        each = self.per_event if not callable(self.per_event) else self.per_event(path)
        factor = next((f for at, f in self.heavy if start <= at < stop), 1)
        return int(self.fixed + each * factor * (stop - start))

    def open(self, dataset, piece):
        for at, fault in [(k, v) for k, v in self.faults.items() if k[1] is None]:
            if at[0] == piece.path:
                raise fault
        return _Open(self, piece.path)

    def measured(self, call):
        """The call, with the memory that the chunks would have taken."""

        def measuring(task):
            receipt = call(task)
            spans = {
                (p.index, p.lo + i): (p, span)
                for p in getattr(task, "slices", ())
                for i, span in enumerate(p.ranges)
            }
            records = []
            for record in receipt.chunks:
                piece, (start, stop) = spans[record.file, record.chunk]
                length = -(-(stop - start) // piece.parts)
                records.append(
                    replace(record, peak=self.need(piece.path, start, start + length), before=self.fixed)
                )
            return replace(receipt, chunks=tuple(records))

        return measuring


class _Open:
    def __init__(self, analysis, path):
        self.analysis, self.path, self.bytes_read = analysis, path, 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False

    def process(self, start, stop):
        fits = self.analysis.need(self.path, start, stop) <= self.analysis.limit
        self.analysis.asked.append((self.path, start, stop, fits))
        if not fits:
            raise MemoryError("too much")
        return self.analysis.value(self.path, start, stop)


def run(folder, plan, analysis, *, budget=None, known=None, stop_after=None, **kw):
    path = folder / "plan.json"
    if not path.exists():
        plan.save(path)
    plan = Plan.load(path)
    ranges = Ranges(beside(path))
    sizing = Sizing([d.name for d in plan.datasets], budget=budget, known=known)
    try:
        drive = drive_to_end(
            plan, folder, analysis, wrap=analysis.measured, sizing=sizing, ranges=ranges, **kw
        )
    finally:
        ranges.close()
    assert Plan.load(path).digest() == drive.tree.planned().digest()
    return drive


def whole(drive):
    promise(drive, drive.tree.planned())
    return drive


def biggest(analysis):
    return max(stop - start for _, start, stop, _ in analysis.asked)


def test_sizes_follow_the_memory(tmp_path):
    hungry = Hungry(10_000)
    drive = whole(run(tmp_path, auto_plan((300_000, 300_000)), hungry, budget=700 * MB))
    # 70 % of 700 MB, less the fixed 200, at 10 kB an event: some 30,000.
    assert 20_000 < biggest(hungry) <= 31_000
    assert max(drive.ledger.peak) <= 0.7 * 700 * MB
    assert min(stop for _, start, stop, _ in hungry.asked if not start) == FIRST


def test_in_the_runner_itself(tmp_path):
    class Inline(ThreadPoolExecutor):
        def submit(self, fn, *args):
            future = Future()
            future.set_result(fn(*args))
            return future

    hungry = Hungry(10_000)
    with Inline(1) as pool:
        whole(
            run(
                tmp_path,
                auto_plan((300_000, 300_000)),
                hungry,
                budget=700 * MB,
                pool=pool,
                inline=True,
                slots=1,
            )
        )
    assert 20_000 < biggest(hungry) <= 31_000


def test_nothing_is_tried_that_is_much_larger_than_what_was_measured(tmp_path):
    hungry = Hungry(100)
    whole(run(tmp_path, auto_plan((3_000_000,)), hungry, budget=1 << 34))
    sizes = [stop - start for _, start, stop, _ in hungry.asked]
    grown = list(itertools.accumulate(sizes, max))
    assert all(later <= GROWTH * max(before, FIRST) for before, later in itertools.pairwise(grown))
    assert 180_000 < biggest(hungry) <= 200_000


def test_each_dataset_has_its_own_size(tmp_path):
    plan = auto_plan((400_000,) * 3, datasets=("light", "heavy"))
    hungry = Hungry(lambda path: 20_000 if path.startswith("heavy") else 2_000, limit=700 * MB)
    drive = whole(run(tmp_path, plan, hungry, budget=700 * MB))
    sizes = {
        name: max(stop - start for path, start, stop, _ in hungry.asked if path.startswith(name))
        for name in ("light", "heavy")
    }
    assert sizes["light"] > 5 * sizes["heavy"]
    assert all(fits for *_, fits in hungry.asked)
    assert not drive.ledger.halved()


def test_what_was_remembered_needs_no_canary(tmp_path):
    known = {"a": Fit(200 * MB, 10_000.0, 0.0, 10, None, 20_000)}
    hungry = Hungry(10_000)
    whole(run(tmp_path, auto_plan((300_000,) * 4), hungry, budget=700 * MB, known=known))
    assert min(stop - start for _, start, stop, _ in hungry.asked) > 10 * FIRST


def test_a_late_spike_is_halved_and_what_comes_later_is_smaller(tmp_path):
    plan = auto_plan((300_000,) * 6)
    hungry = Hungry(10_000, limit=700 * MB, heavy=[(299_999, 4)])
    drive = run(tmp_path, plan, hungry, budget=700 * MB, limits=Limits(backoff=0.001))
    assert drive.ledger.complete
    assert np.array_equal(drive.sum[0].regions["<f8"], expected(drive.tree.planned()))
    failed = [(path, start, stop) for path, start, stop, fits in hungry.asked if not fits]
    assert failed
    assert len(failed) == len(set(failed))  # nothing failed twice at the same size


def test_small_files_need_no_ladder(tmp_path):
    hungry = Hungry(1_000)
    drive = whole(run(tmp_path, auto_plan((300,) * 50), hungry, budget=1 << 33))
    assert len(hungry.asked) == 50
    assert drive.ledger.chunks_planned == 50


def test_files_of_all_lengths(tmp_path):
    whole(run(tmp_path, auto_plan((0, 5, 0, 999, 1000, 1001, 250_000, 0)), Hungry(5_000), budget=800 * MB))


def test_a_bad_first_file_does_not_stop_the_others(tmp_path):
    from fakes import Garbage

    hungry = Hungry(5_000)
    hungry.faults["a/0.root", None] = Garbage("torn")
    drive = run(tmp_path, auto_plan((50_000, 50_000)), hungry, budget=800 * MB)
    assert drive.ledger.events_counted == 50_000
    assert {drive.tree.file(n.split, n.first).path for n in drive.ledger.lost} == {"a/0.root"}
    assert sum(drive.tree.events(n) for n in drive.ledger.lost) == 50_000


def test_what_never_fits_is_named(tmp_path):
    hungry = Hungry(10, fixed=900 * MB, limit=800 * MB)
    drive = run(tmp_path, auto_plan((10_000,)), hungry, budget=800 * MB)
    assert not drive.ledger.complete
    assert {str(f.kind) for f in drive.ledger.lost.values()} == {"memory"}
    assert drive.ledger.events_counted == 0


class Killed(Exception):
    pass


@pytest.mark.parametrize("after", [1, 2, 3, 4, 7, 10])
def test_a_killed_run_goes_on_with_the_ranges_that_were_fixed(tmp_path, after):
    plan = auto_plan((150_000, 40_000, 300_000), datasets=("a", "b"))
    calls = itertools.count()

    class Fatal(ThreadPoolExecutor):
        def submit(self, fn, *args):
            if next(calls) >= after:
                raise Killed
            return super().submit(fn, *args)

    with pytest.raises(Killed), Fatal(1) as pool:
        run(tmp_path, plan, Hungry(5_000), budget=800 * MB, pool=pool)
    fixed = Plan.load(tmp_path / "plan.json")
    hungry = Hungry(5_000)
    drive = whole(run(tmp_path, plan, hungry, budget=800 * MB))
    now = drive.tree.planned()
    for before, later in zip(fixed.datasets, now.datasets, strict=True):
        for old, new in zip(before.files, later.files, strict=True):
            assert new.cuts[: len(old.cuts)] == old.cuts
    again = Hungry(5_000)
    whole(run(tmp_path, plan, again, budget=800 * MB))
    assert not again.asked


def test_a_torn_line_costs_work_and_nothing_else(tmp_path):
    plan = auto_plan((150_000, 40_000))
    whole(run(tmp_path, plan, Hungry(5_000), budget=800 * MB))
    kept = beside(tmp_path / "plan.json")
    lines = kept.read_bytes().splitlines()
    kept.write_bytes(b"\n".join(lines[:-1]) + b"\n" + lines[-1][:7])
    hungry = Hungry(5_000)
    drive = whole(run(tmp_path, plan, hungry, budget=800 * MB))
    kept = json.loads(lines[0])
    assert drive.tree.planned().datasets[kept[0]].files[kept[1]].cuts[0] == tuple(kept[2][0])


@pytest.mark.parametrize(
    "line", [b"[0,0,[[5,1]]]", b"[0,9,[[5,1]]]", b"[0,0,[[2000,0]]]", b"{}", b"\xff", b"[0,0,[[99999999,5]]]"]
)
def test_lines_that_do_not_fit_are_passed_over(tmp_path, line):
    plan = auto_plan((3_000,))
    whole(run(tmp_path, plan, Hungry(5_000), budget=800 * MB))
    before = Plan.load(tmp_path / "plan.json").digest()
    with beside(tmp_path / "plan.json").open("ab") as out:
        out.write(line + b"\n")
    assert Plan.load(tmp_path / "plan.json").digest() == before


def test_the_same_ranges_give_the_same_bits(tmp_path):
    """What the sizes were is in the plan: the tree over it is as for a plan that was cut at once."""
    from fakes import rough_sum

    plan = auto_plan((150_000, 40_000), datasets=("a", "b"))
    hungry = Hungry(5_000, value=rough_sum)
    drive = run(
        tmp_path / "one" if (tmp_path / "one").mkdir() is None else None, plan, hungry, budget=800 * MB
    )
    fixed = drive.tree.planned()
    (tmp_path / "two").mkdir()
    again = drive_to_end(fixed, tmp_path / "two", FakeAnalysis(value=rough_sum), slots=3)
    assert drive.sum[0].regions["<f8"].tobytes() == again.sum[0].regions["<f8"].tobytes()


def test_ranges_of_another_run(tmp_path):
    from executors.planning import cut_like

    other = drive_to_end(make_plan((50_000, 7, 0, 300), chunk=8_000), tmp_path).tree.planned()
    cut, left = cut_like(auto_plan((50_000, 7, 0, 300)), other)
    assert not left
    assert [f.ranges(1) for f in cut.datasets[0].files] == [f.ranges(8_000) for f in other.datasets[0].files]
    assert not any(f.open for f in cut.datasets[0].files)
    _, left = cut_like(auto_plan((50_001, 7, 0, 300, 5)), other)
    assert left == 2


# -- the line ----------------------------------------------------------------------------------------


def test_the_line_through_peaks():
    print_ = Footprint()
    for events in (1000, 8000, 64_000) * 5:
        print_.add(events, 200 * MB + 5_000 * events, 190 * MB)
    fit = print_.fit()
    assert abs(fit.fixed - 200 * MB) < 2 * MB
    assert abs(fit.per_event - 5_000) < 50
    assert fit.widest == 64_000
    assert fit.within(fit.upper(10_000)) == pytest.approx(10_000, rel=0.01)
    assert Fit.from_row(json.loads(json.dumps(fit.as_row()))) == fit


def test_one_size_is_fitted_from_what_was_there_before():
    print_ = Footprint()
    for extra in range(40):
        print_.add(10_000, 200 * MB + 50 * MB + extra * MB, 200 * MB)
    fit = print_.fit()
    assert fit.fixed == 200 * MB
    assert fit.upper(10_000) >= 285 * MB  # the upper ones, not the mean
    assert fit.within(fit.fixed - 1) == 0


def test_the_footprint_stays_small():
    print_ = Footprint()
    for n in range(50_000):
        print_.add(1 + n * 37 % 200_000, 200 * MB + n, 100 * MB)
    assert len(print_.points) < 4000
    assert print_.fit().points == 50_000


def test_every_worker_gets_some():
    assert shared(200_000, 400_000, 4) == 50_000
    assert shared(200_000, 100_000, 4) == 20_000
    assert shared(5_000, 100_000, 40) == 5_000
    assert shared(200_000, 1 << 40, 400) == 200_000
