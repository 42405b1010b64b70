"""The flat form: sections there and back, adding, and refusing whatever is not one."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from executors.errors import DamagedError
from executors.work import packed as module
from executors.work.packed import (
    EMPTY,
    FRESH,
    INT,
    Packed,
    Sink,
    Source,
    add_into,
    add_region,
    region_dtype,
    same_shape,
)

few = settings(derandomize=True, max_examples=200, deadline=None)


def make(floats=(1.5, 2.5), ints=(3,), blobs=(), *, additive=True, tree="t"):
    sink = Sink()
    sink.put("<f8", np.array(floats, "<f8"))
    sink.put(INT, np.array(ints, "<i8"))
    sink.put(FRESH, np.array([1], "|u1"))
    for blob in blobs:
        sink.put_blob(blob)
    return sink.finish(tree, additive=additive)


def again(packed):
    return Packed.from_sections({name: bytes(raw) for name, raw in packed.sections()})


def test_sections_there_and_back():
    packed = make(blobs=(b"", b"abc"), additive=False)
    names = [name for name, _ in packed.sections()]
    assert names == ["skeleton", "region <f8", "region fresh", "region int", "blob 0", "blob 1"]
    back = again(packed)
    assert back.digest() == packed.digest()
    assert back.opaque == (b"", b"abc")
    assert back.nbytes == packed.nbytes == sum(raw.nbytes for _, raw in packed.sections())
    assert not back.additive


def test_sections_are_not_copies():
    packed = make()
    raw = dict(packed.sections())["region <f8"]
    packed.regions["<f8"][0] = 7
    assert np.frombuffer(raw, "<f8")[0] == 7


def test_every_type_of_region_has_a_section():
    sink = Sink()
    for name in ["|b1", "|i1", "|u1", "<i4", "<u8", "<f2", "<f4", "<f8", "<c8", "<c16", "<m8[ns]", ">f8"]:
        sink.put(name, np.array([1]).astype(name))
    packed = sink.finish([], additive=False)
    assert again(packed).digest() == packed.digest()


def test_the_digest_sees_every_part():
    digests = {
        p.digest()
        for p in (
            make(),
            make(floats=(1.5, -2.5)),
            make(ints=(4,)),
            make(tree="u"),
            make(blobs=(b"a",), additive=False),
            make(blobs=(b"b",), additive=False),
            make(blobs=(b"", b"a"), additive=False),
            make(blobs=(b"a", b""), additive=False),
        )
    }
    assert len(digests) == 8


def test_the_digest_tells_minus_zero_from_zero():
    assert make(floats=(0.0,)).digest() != make(floats=(-0.0,)).digest()


def test_adding():
    left, right = make(), make(floats=(10, 20), ints=(4,))
    assert same_shape(left, right)
    mine = left.regions["<f8"]
    total = add_into(left, right)
    assert total is left
    assert total.regions["<f8"] is mine
    assert total.regions["<f8"].tolist() == [11.5, 22.5]
    assert total.regions[INT].tolist() == [7]
    assert total.regions[FRESH].tolist() == [0]
    assert right.regions[FRESH].tolist() == [1]


def test_adding_into_what_cannot_be_written():
    left = again(make())
    assert not left.regions["<f8"].flags.writeable
    assert add_into(left, make()).regions["<f8"].tolist() == [3, 5]


@pytest.mark.parametrize("other", [make(tree="u"), make(floats=(1,)), make(additive=False), EMPTY])
def test_only_equal_shapes_are_added(other):
    assert not same_shape(make(), other)
    with pytest.raises(ValueError, match="same shape"):
        add_into(make(), other)


def test_what_is_not_additive_is_not_added_to_its_like():
    assert not same_shape(make(additive=False), make(additive=False))


@few
@given(st.lists(st.tuples(*[st.integers(-(2**63), 2**63 - 1)] * 2), min_size=1))
def test_integers_never_wrap(pairs):
    left, right = make(ints=[a for a, _ in pairs]), make(ints=[b for _, b in pairs])
    want = [a + b for a, b in pairs]
    if all(-(2**63) <= total < 2**63 for total in want):
        assert add_into(left, right).regions[INT].tolist() == want
        return
    before = left.digest()
    with pytest.raises(OverflowError):
        add_into(left, right)
    assert left.digest() == before


def test_blocks_of_regions_add_as_wholes_do():
    left, right = make(floats=range(10)), make(floats=range(10, 20))
    blocks = left.regions["<f8"].copy()
    for at in range(0, 10, 3):
        add_region("<f8", blocks[at : at + 3], right.regions["<f8"][at : at + 3])
    assert blocks.tolist() == add_into(left, right).regions["<f8"].tolist()


@pytest.mark.parametrize("kind", ["|b1", "|u1", "|i1", "<i8", "<f2", "<f4", "<f8", "<c16", "<m8[s]"])
def test_addition_is_numpys(kind):
    rng = np.random.default_rng(1)
    one, two = (rng.integers(0, 255, 100).astype("u1").astype(kind) for _ in range(2))
    with np.errstate(all="ignore"):
        want = one + two
    add_region(kind, one, two)
    assert one.dtype == want.dtype
    assert one.tobytes() == want.tobytes()


def test_infinities_add_without_a_warning():
    left = np.array([np.inf, 1e308])
    add_region("<f8", left, np.array([-np.inf, 1e308]))
    assert np.isnan(left[0])
    assert np.isinf(left[1])


def test_the_sink_copies_and_takes_any_layout():
    data = np.arange(24.0).reshape(2, 3, 4)
    sink = Sink()
    sink.put("<f8", data.transpose(2, 0, 1))
    sink.put("<f8", data[:, ::2, ::-1])
    sink.put("<f8", np.zeros((0, 3)))
    sink.put("<f8", np.array(5.0))
    packed = sink.finish(None, additive=True)
    want = [*data.transpose(2, 0, 1).ravel(), *data[:, ::2, ::-1].ravel(), 5.0]
    assert packed.regions["<f8"].tolist() == want
    data += 1
    assert packed.regions["<f8"].tolist() == want


def test_the_source_hands_out_in_order():
    source = Source(make(blobs=(b"a", b"b"), additive=False))
    assert source.take("<f8", 1).tolist() == [1.5]
    fork = source.fork()
    assert source.take("<f8", 1).tolist() == fork.take("<f8", 1).tolist() == [2.5]
    assert source.take("<f8", 0).size == 0
    assert source.take_blob() + source.take_blob() == b"ab"
    with pytest.raises(DamagedError, match="ends early"):
        source.take("<f8", 1)


def test_the_identity():
    assert EMPTY.empty
    assert not make().empty
    assert again(EMPTY).empty


@pytest.mark.parametrize(
    "name",
    ["", "O", "<U3", "S4", "V8", "f8", "float64", "<f8,<f8", "2<f8", "<M8[s]", "no", "<m8[", "\0"],
)
def test_names_that_no_region_has(name):
    with pytest.raises(DamagedError, match="not the name of a region"):
        region_dtype(name)


def head(**changes):
    packed = make()
    line, _, tree = packed.skeleton.partition(b"\n")
    parts = json.loads(line) | changes
    return {
        **dict(packed.sections()),
        "skeleton": json.dumps(parts, separators=(",", ":")).encode() + b"\n" + tree,
    }


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"skeleton": b""},
        {"skeleton": b"\n"},
        {"skeleton": b"[]\n"},
        {"skeleton": b"\xff\n"},
        {"skeleton": b"[" * 100_000 + b"\n"},
        {"skeleton": make().skeleton},
        {**dict(make().sections()), "region <f4": b"0000"},
        {**dict(make().sections()), "region <f8": b"0" * 15},
        {**dict(make().sections()), "region <f8": b"0" * 24},
        {**dict(make().sections()), "blob 0": b""},
        head(cells={"<f8": 2, "fresh": 1}),
        head(cells={"<f8": -2, "fresh": 1, "int": 1}),
        head(cells={"<f8": 2.0, "fresh": 1, "int": 1}),
        head(cells={"<f8": 2, "fresh": 1, "int": True}),
        head(cells=[]),
        head(blobs=1),
        head(blobs=-1),
        head(blobs=10**12),
        head(blobs=False),
        head(additive=1),
        head(additive="yes"),
        head(more=1),
        head(blobs=1) | {"blob 0": b""},
    ],
    ids=range(24),
)
def test_nonsense_is_damaged(sections):
    with pytest.raises(DamagedError):
        Packed.from_sections(sections)


@few
@given(st.integers(0, 10**6), st.integers(0, 7), st.sampled_from(["flip", "cut", "insert"]))
def test_any_damage_is_damage_or_another_result(at, bit, kind):
    packed = make(blobs=(b"xyz",), additive=False)
    sections = {name: bytes(raw) for name, raw in packed.sections()}
    name = sorted(sections)[at % len(sections)]
    raw = bytearray(sections[name])
    spot = at // len(sections) % len(raw)
    if kind == "flip":
        raw[spot] ^= 1 << bit
    elif kind == "cut":
        del raw[spot:]
    else:
        raw.insert(spot, 1 << bit)
    try:
        back = Packed.from_sections(sections | {name: bytes(raw)})
    except DamagedError:
        return
    assert back.digest() != packed.digest()


def test_nothing_is_unpickled_here():
    assert "pickle" not in vars(module)
    bomb = make(blobs=(b"cos\nsystem\n(S'exit 1'\ntR.",), additive=False)
    assert again(bomb).digest() == bomb.digest()


def test_adding_is_quick():
    rng = np.random.default_rng(0)
    left, right = (make(floats=rng.random(1_000_000)) for _ in range(2))
    plain, other = left.regions["<f8"].copy(), right.regions["<f8"]

    def best(function):
        times = []
        for _ in range(15):
            began = time.perf_counter()
            function()
            times.append(time.perf_counter() - began)
        return min(times)

    assert best(lambda: add_into(left, right)) < 2 * best(lambda: np.add(plain, other, out=plain)) + 1e-4
