"""Workers that grow from task to task are noticed; those that warm up, or hold much at times, are not."""

import itertools

import pytest

from executors.work.leaks import LEAST, Leaks

MB = 1 << 20


def fed(values, budget=None):
    leaks = Leaks(budget)
    return [leaks.saw("node", 7, value) for value in values], leaks


def test_steady_growth_is_a_leak():
    found, leaks = fed(200 * MB + n * 20 * MB for n in range(20))
    first = next(i for i, leak in enumerate(found) if leak)
    assert 9 <= first <= 12
    assert leaks.per_task == pytest.approx(20 * MB)
    assert found[first].now - found[first].base >= LEAST


@pytest.mark.parametrize(
    "values",
    [
        [100 * MB, 300 * MB, 500 * MB, *[520 * MB] * 40],  # warms up
        [200 * MB, 400 * MB] * 20,  # large and small tasks
        [200 * MB] * 10 + [300 * MB, 500 * MB, 700 * MB, 210 * MB] * 9,  # freed late
        [200 * MB, 201 * MB, 200 * MB, *[200 * MB + n * MB // 4 for n in range(40)]],  # not worth a worker
        [0] * 40,  # nothing is measured
        [200 * MB] * 10 + [400 * MB] * 30,  # one step
    ],
)
def test_other_growth_is_none(values):
    found, _ = fed(values)
    assert not any(found)


def test_a_large_budget_allows_more():
    found, _ = fed((200 * MB + n * 10 * MB for n in range(30)), budget=4000 * MB)
    assert not any(found)
    found, _ = fed((200 * MB + n * 10 * MB for n in range(100)), budget=4000 * MB)
    assert any(found)


def test_the_new_worker_begins_anew():
    leaks = Leaks()
    for pid in range(3):
        seen = (leaks.saw("node", pid, 200 * MB + n * 20 * MB) for n in itertools.count())
        assert next(leak for leak in seen if leak).pid == pid
    assert leaks.found == 3
