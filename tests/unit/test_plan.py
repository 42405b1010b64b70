"""The plan: equal parts, limits, indices that never move, what changed in words."""

import json
from dataclasses import replace

import pytest
from fakes import make_plan
from hypothesis import given
from hypothesis import strategies as st
from plans import nodes_below

from executors.errors import DamagedError, PlanChangedError
from executors.work.differences import differences
from executors.work.layout import Tree
from executors.work.plan import Plan, PlannedDataset, PlannedFile, equal_parts, limit_chunks


@given(st.integers(0, 10**6), st.integers(0, 3000), st.integers(1, 700))
def test_equal_parts(start, length, most):
    parts = list(equal_parts(start, start + length, most))
    assert [p for a, b in parts for p in (a, b)][1:-1:2] == [a for a, _ in parts][1:]
    if not length:
        assert parts == []
        return
    assert (parts[0][0], parts[-1][1]) == (start, start + length)
    sizes = {b - a for a, b in parts}
    assert max(sizes) <= most
    assert max(sizes) - min(sizes) <= 1
    assert len(parts) == -(-length // most)


@given(
    st.integers(0, 500), st.none() | st.integers(0, 20), st.integers(1, 60),
    st.none() | st.lists(st.tuples(st.integers(0, 200), st.integers(0, 90)), max_size=4), st.data(),
)  # fmt: skip
def test_a_files_chunks_agree_however_they_are_asked_for(entries, limit, chunk, steps, data):
    steps = None if steps is None else tuple((a, a + n) for a, n in steps)
    file = PlannedFile("x", entries=entries, limit=limit, steps=steps)
    ranges = file.ranges(chunk)
    assert file.chunks(chunk) == len(ranges)
    assert file.events(chunk) == sum(b - a for a, b in ranges)
    lo = data.draw(st.integers(0, len(ranges)))
    hi = data.draw(st.integers(lo, len(ranges)))
    assert file.some_ranges(chunk, lo, hi) == ranges[lo:hi]


def test_an_unknown_file_has_nothing_yet():
    file = PlannedFile("x")
    assert (file.ranges(5), file.chunks(5), file.events(5), file.some_ranges(5, 0, 1)) == ((), 0, 0, ())


@pytest.mark.parametrize("missing", [0, 3, 6])
def test_nothing_moves_when_an_unknown_file_is_counted_later(missing):
    whole = make_plan((10, 0, 25, 7, 40, 3, 11), chunk=5, fsize=3, datasets=("a", "b"))

    def without(dataset):
        files = list(dataset.files)
        files[missing] = replace(files[missing], entries=None, uuid=None, error="no such server")
        return replace(dataset, files=tuple(files))

    partial = replace(whole, datasets=tuple(without(d) for d in whole.datasets))
    before, after = Tree(partial), Tree(whole)
    known = {
        n: before.id(n) for n in nodes_below(before, before.root) if before.size(n) and not before.unknown(n)
    }
    assert known
    every = set(nodes_below(after, after.root))
    for node, identity in known.items():
        assert node in every
        assert after.id(node) == identity
    assert [(s.index, s.part) for s in partial.splits()] == [(s.index, s.part) for s in whole.splits()]
    filled = partial.with_counts({(d, missing): whole.datasets[d].files[missing] for d in (0, 1)})
    assert filled == whole


def test_keys_hold_all_that_identifies_events():
    plan = make_plan((10,), chunk=5)
    (dataset,) = plan.datasets
    (file,) = dataset.files

    def key(plan=plan, dataset=dataset, **changes):
        return Tree(replace(plan, datasets=(replace(dataset, files=(replace(file, **changes),)),))).key(0, 0)

    keys = [
        key(), key(path="b"), key(uuid="1" * 32), key(treename="Runs"), key(entries=9),
        key(plan=replace(plan, fingerprint="0")), key(dataset=replace(dataset, name="b")),
        key(dataset=replace(dataset, metadata={"xsec": 1})), key(dataset=replace(dataset, metadata={"xsec": "1"})),
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)
    assert key(size=5, mtime=7, error="x") == key()
    assert key(path="\udcff") != key()


def test_limits_take_the_first_chunks():
    datasets = make_plan((12, 0, 30), chunk=5, datasets=("a", "b")).datasets

    def counts(most, per):
        return [[f.chunks(5) for f in d.files] for d in limit_chunks(datasets, 5, most, per)]

    assert counts(None, None) == [[3, 0, 6], [3, 0, 6]]
    assert counts(4, None) == [[3, 0, 1], [0, 0, 0]]
    assert counts(None, 2) == [[2, 0, 0], [2, 0, 0]]
    assert counts(5, 4) == [[3, 0, 1], [1, 0, 0]]
    assert counts(0, None) == [[0, 0, 0], [0, 0, 0]]
    kept = limit_chunks(datasets, 5, 4, None)
    assert kept[0].files[2].ranges(5) == ((0, 5),)


def test_splits():
    plan = make_plan((1, 2, 3, 4, 5), chunk=5, fsize=2, datasets=("a", "b"))
    assert [(s.dataset, s.part, s.first, len(s.files)) for s in plan.splits()] == [
        (0, 0, 0, 2), (0, 1, 2, 2), (0, 2, 4, 1), (1, 0, 0, 2), (1, 1, 2, 2), (1, 2, 4, 1)
    ]  # fmt: skip
    assert [len(s.files) for s in replace(plan, fsize=None).splits()] == [5, 5]
    empty = replace(plan, datasets=(PlannedDataset("e", 0, ()),))
    assert empty.splits() == ()
    assert Tree(empty).root is None


# -- kept -------------------------------------------------------------------------------------------


def test_kept_and_read_back(tmp_path):
    plan = replace(
        make_plan((10, 0), datasets=("é", "\udcff")), choices={"limit": 3}, fingerprint_parts={"a": "b"}
    )
    steps = replace(plan.datasets[0].files[0], steps=((0, 5), (7, 9)), limit=1, size=5, mtime=3)
    plan = replace(
        plan, datasets=(replace(plan.datasets[0], files=(steps,), metadata={"x": [1, {"y": None}]}),)
    )
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    (tmp_path / ".plan.json.12.tmp").write_text("left by a kill")
    plan.save(tmp_path / "plan.json")
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


def test_another_version_is_said(tmp_path):
    path = tmp_path / "plan.json"
    make_plan().save(path)
    head, _, body = path.read_bytes().partition(b"\n")
    path.write_bytes(json.dumps({**json.loads(head), "version": 99}).encode() + b"\n" + body)
    with pytest.raises(PlanChangedError, match="99"):
        Plan.load(path)


@pytest.mark.parametrize("edit", [('entries": 10', 'entries": 11'), ('"a"', '"b"'), ("}", "} ")])
def test_an_edited_plan_is_refused(tmp_path, edit):
    path = tmp_path / "plan.json"
    make_plan((10,)).save(path)
    text = path.read_text().replace('"entries":10', '"entries": 10')
    path.write_text(text.replace(*edit))
    with pytest.raises(DamagedError, match="damaged"):
        Plan.load(path)


# -- in words ---------------------------------------------------------------------------------------


def changed(plan, **changes):
    return replace(plan, datasets=(replace(plan.datasets[0], **changes), *plan.datasets[1:]))


PLAN = make_plan((10, 20, 30), chunk=5, datasets=("a", "b"))
FILES = PLAN.datasets[0].files


@pytest.mark.parametrize(
    ("new", "words"),
    [
        (PLAN, []),
        (replace(PLAN, chunk=7), ["--chunk was 5 and is now 7"]),
        (replace(PLAN, fsize=3), ["--fsize was not given and is now 3"]),
        (replace(PLAN, choices={"limit": 4}), ["--limit was not given and is now 4"]),
        (replace(PLAN, workflow="w"), ["the workflow was fake and is now w"]),
        (replace(PLAN, datasets=PLAN.datasets[:1]), ["dataset 'b' is gone"]),
        (replace(PLAN, datasets=(*PLAN.datasets, PlannedDataset("c", 2, ()))), ["dataset 'c' is new"]),
        (replace(PLAN, datasets=PLAN.datasets[::-1]), ["the datasets are in another order"]),
        (changed(PLAN, files=FILES[:2]), ["dataset 'a': 0 files are new, 1 are gone (such as a/2.root)"]),
        (changed(PLAN, files=FILES[::-1]), ["dataset 'a': the files are in another order"]),
        (changed(PLAN, files=(replace(FILES[0], steps=((0, 3),)), *FILES[1:])),
         ["dataset 'a': the ranges of its files changed"]),
        (changed(PLAN, metadata={"x": 1}), ["dataset 'a': its metadata changed"]),
        (changed(PLAN, files=tuple(replace(f, entries=None, uuid=None) for f in FILES)), []),
    ],
)  # fmt: skip
def test_differences_in_words(new, words):
    assert differences(PLAN, new) == words


def test_a_file_that_comes_late_takes_what_is_left_of_the_limit():
    def files(*entries):
        return (
            PlannedDataset("a", 0, tuple(PlannedFile(str(i), "E", "0", n) for i, n in enumerate(entries))),
        )

    first = limit_chunks(files(20, None, 20), 5, 7, None)
    assert [f.chunks(5) for f in first[0].files] == [4, 0, 3]
    late = replace(
        first[0], files=(first[0].files[0], replace(first[0].files[1], entries=20), first[0].files[2])
    )
    assert [f.chunks(5) for f in limit_chunks([late], 5, 7, None)[0].files] == [4, 0, 3]
    assert [f.chunks(5) for f in limit_chunks([late], 5, 9, None)[0].files] == [4, 2, 3]
    assert limit_chunks(first, 5, 7, None) == first
