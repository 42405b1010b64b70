"""The policy as a table: kind, how often so far, entries and pieces, and what is done."""

import pytest

from executors.work.model import Kind
from executors.work.policy import (
    LOST_NAMES,
    Action,
    History,
    Limits,
    backoff,
    classify_engine,
    decide,
    stop_for_user,
)

R, S, Q, STOP = Action.RETRY, Action.SPLIT, Action.QUARANTINE, Action.STOP


@pytest.mark.parametrize(
    ("kind", "actions"),
    [
        (Kind.PASSING, [R, R, R, Q]),
        (Kind.BAD, [R, Q]),
        (Kind.TIMEOUT, [R, Q]),
        (Kind.USER, [Q]),
        (Kind.LOST, [R, R, S, R, Q]),
        (Kind.MEMORY, [S, S, S, Q]),
        (Kind.SITE, [STOP, STOP]),
    ],
)
def test_what_follows_what(kind, actions):
    history, limits, done = History(), Limits(), []
    for _ in actions:
        history.add(kind)
        action = decide(kind, history, 8000, limits)
        if action is S:
            history.parts *= 2
            history.silent_splits += kind is Kind.LOST
        done.append(action)
    assert done == actions


@pytest.mark.parametrize(("entries", "parts", "action"), [
    (2000, 1, S), (1999, 1, Q), (4000, 2, S), (3999, 2, Q), (1, 1, Q), (0, 1, Q), (10**9, 2**18, S),
])  # fmt: skip
def test_memory_stops_at_the_floor(entries, parts, action):
    assert decide(Kind.MEMORY, History({Kind.MEMORY: 1}, parts), entries, Limits()) is action


def test_each_kind_has_its_own_count():
    history = History({Kind.PASSING: 3, Kind.LOST: 2, Kind.TIMEOUT: 1})
    history.add(Kind.BAD)
    assert decide(Kind.BAD, history, 1, Limits()) is R


def test_every_kind_comes_to_an_end():
    for kind in Kind:
        for entries in (0, 1, 10**7):
            history = History()
            for n in range(100):
                history.add(kind)
                action = decide(kind, history, entries, Limits())
                if action in (Q, STOP):
                    break
                if action is S:
                    history.parts *= 2
                    history.silent_splits += kind is Kind.LOST
            assert n < 20


@pytest.mark.parametrize(("distinct", "succeeded", "stop"), [
    (0, False, False), (0, True, False), (1, False, True), (1, True, False), (2, True, False), (3, True, True),
])  # fmt: skip
def test_when_the_analysis_is_at_fault(distinct, succeeded, stop):
    assert stop_for_user(distinct, succeeded, Limits()) is stop


def test_backoff_doubles_up_to_a_bound():
    limits = Limits(backoff=1.0, most_backoff=60.0)
    assert [backoff(n, limits) for n in (1, 2, 3, 7, 5000)] == [1, 2, 4, 60, 60]


@pytest.mark.parametrize("name", sorted(LOST_NAMES))
def test_engine_errors_are_known_by_name(name):
    assert classify_engine(type(name, (Exception,), {})()) is LOST_NAMES[name]
    derived = type("Other", (type(name, (Exception,), {}),), {})
    assert classify_engine(derived()) is LOST_NAMES[name]


def test_an_engine_may_say_why():
    error = RuntimeError()
    error.why = Kind.MEMORY.value
    assert classify_engine(error) is Kind.MEMORY
    assert classify_engine(ValueError()) is Kind.LOST


def test_what_cannot_get_smaller_is_tried_where_there_is_more_room():
    history = History()
    history.add(Kind.MEMORY)
    decided = [decide(Kind.MEMORY, history, 1500, Limits(), room=room) for room in (None, 2, 2, 3, 3, 4)]
    assert decided == [Action.QUARANTINE] * 3 + [Action.RETRY, Action.QUARANTINE, Action.RETRY]
