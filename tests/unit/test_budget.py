"""What a worker has, what a run will need, and what is refused before anything is submitted."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from fakes import auto_plan, make_plan

from executors.errors import SiteError, UsageError
from executors.memory import budget, footprints
from executors.memory.budget import Budget
from executors.options import Settings
from executors.work.footprint import Fit

GB = 10**9
FIT = Fit(200_000_000, 10_000.0, 0.1, 40, None, 60_000)


@pytest.mark.parametrize(
    ("given", "known", "chosen"),
    [
        ({}, None, 100_000),
        ({}, Budget(GB, ""), "auto"),
        ({"chunk": 500}, Budget(GB, ""), 500),
        ({"chunk": "auto"}, None, "auto"),
        ({"max": 3}, Budget(GB, ""), 100_000),
        ({"max_per_dataset": 3}, Budget(GB, ""), 100_000),
        ({"ranges": Path("x")}, None, "auto"),
    ],
)
def test_sizes_follow_the_memory_where_it_is_known(given, known, chosen):
    assert budget.chosen(Settings(**given), known) == chosen


@pytest.mark.parametrize("given", [{"chunk": "auto", "max": 3}, {"chunk": 5, "ranges": Path("x")}])
def test_what_contradicts_itself(given):
    with pytest.raises(UsageError):
        budget.chosen(Settings(**given), None)


def test_what_cannot_fit_is_refused_with_what_would():
    plan = make_plan((300_000,), chunk=100_000)
    with pytest.raises(
        SiteError, match=r"(?s)a: 1.3 GB a worker at chunks of 100000 .*--chunk 45000.*--memory .* 1.9 GB"
    ) as told:
        budget.refuse(plan, {"a": FIT}, Budget(GB, "a job at lpc"))
    assert "a job at lpc" in str(told.value)


@pytest.mark.parametrize(
    ("plan", "fits", "have"),
    [
        (make_plan((300_000,), chunk=100_000), {}, Budget(GB, "")),
        (make_plan((300_000,), chunk=100_000), {"a": FIT}, None),
        (make_plan((300_000,), chunk=70_000), {"a": FIT}, Budget(GB, "")),
        (make_plan((3_000,), chunk=100_000), {"a": FIT}, Budget(GB, "")),  # no file has so many events
        (auto_plan((300_000,)), {"a": FIT}, Budget(GB, "")),
        (make_plan((300_000,), chunk=100_000), {"b": FIT}, Budget(GB, "")),
    ],
)
def test_what_fits_or_is_not_known_goes_on(plan, fits, have):
    budget.refuse(plan, fits, have)


def test_where_the_fixed_part_is_too_large_no_size_helps():
    with pytest.raises(SiteError) as told:
        budget.refuse(auto_plan((300_000,)), {"a": FIT}, Budget(150_000_000, ""))
    assert "--chunk" not in str(told.value)


def test_fits_are_remembered(tmp_path):
    footprints.remember("f" * 40, {"a": FIT}, tmp_path)
    footprints.remember("f" * 40, {"b": replace(FIT, fixed=1)}, tmp_path)
    assert footprints.recall("f" * 40, tmp_path) == {"a": FIT, "b": replace(FIT, fixed=1)}
    assert footprints.recall("0" * 40, tmp_path) == {}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 3}', '{"a": {"fixed": "x"}}', "null", "\x00"])
def test_a_damaged_memory_is_passed_over(tmp_path, text):
    footprints.remember("f" * 40, {"a": FIT}, tmp_path)
    (path,) = (tmp_path / "footprints").iterdir()
    path.write_text(text)
    assert footprints.recall("f" * 40, tmp_path) == {}
    footprints.remember("f" * 40, {"a": FIT}, tmp_path)
    assert footprints.recall("f" * 40, tmp_path) == {"a": FIT}


def test_nowhere_to_remember(tmp_path):
    (tmp_path / "file").write_text("")
    footprints.remember("f" * 40, {"a": FIT}, tmp_path / "file")
    assert footprints.recall("f" * 40, tmp_path / "file") == {}
