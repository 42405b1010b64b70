"""Packing and combining give what coffea's accumulate gives, class by class and bit by bit."""

from __future__ import annotations

import collections
import contextlib
import enum
import functools
import itertools
import math
import subprocess
import sys
import threading
import time
from fractions import Fraction

import awkward as ak
import boost_histogram as bh
import cloudpickle
import hist
import numpy as np
import pytest
from coffea.processor import (
    AccumulatorABC,
    accumulate,
    column_accumulator,
    defaultdict_accumulator,
    dict_accumulator,
    list_accumulator,
    set_accumulator,
    value_accumulator,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from executors.coffea.pack import combine, pack, unpack
from executors.coffea.places import place
from executors.errors import AnalysisError, DamagedError
from executors.work.packed import EMPTY, Packed, same_shape

few = settings(derandomize=True, max_examples=40, deadline=None)

STORAGES = [
    hist.storage.Double(),
    hist.storage.Int64(),
    hist.storage.AtomicInt64(),
    hist.storage.Unlimited(),
    hist.storage.Weight(),
    hist.storage.Mean(),
    hist.storage.WeightedMean(),
    hist.storage.MultiCell(3),
]
ADDITIVE = {"Double", "Int64", "AtomicInt64", "Weight", "MultiCell"}

AXES = {
    "regular": lambda: hist.axis.Regular(5, -1, 1, name="x", label="$p_T$"),
    "noflow": lambda: hist.axis.Regular(5, -1, 1, name="x", underflow=False, overflow=False),
    "underflow": lambda: hist.axis.Regular(5, -1, 1, name="x", overflow=False),
    "overflow": lambda: hist.axis.Regular(5, -1, 1, name="x", underflow=False),
    "circular": lambda: hist.axis.Regular(5, -1, 1, name="x", circular=True),
    "growing": lambda: hist.axis.Regular(5, -1, 1, name="x", growth=True),
    "log": lambda: hist.axis.Regular(5, 0.1, 1, name="x", transform=hist.axis.transform.log),
    "sqrt": lambda: hist.axis.Regular(5, 0, 1, name="x", transform=hist.axis.transform.sqrt),
    "pow": lambda: hist.axis.Regular(5, 0, 1, name="x", transform=hist.axis.transform.Pow(1 / 3)),
    "variable": lambda: hist.axis.Variable([-1, 0.1, 0.7, 1e300], name="x"),
    "variable circular": lambda: hist.axis.Variable([-1, 0.1, 1], name="x", circular=True),
    "variable growing": lambda: hist.axis.Variable([-1, 0.1, 1], name="x", growth=True),
    "integer": lambda: hist.axis.Integer(-1, 3, name="x"),
    "integer growing": lambda: hist.axis.Integer(0, 1, name="x", growth=True),
    "integer circular": lambda: hist.axis.Integer(0, 3, name="x", circular=True),
    "boolean": lambda: hist.axis.Boolean(name="x"),
    "int category": lambda: hist.axis.IntCategory([1, -1, 0], name="x"),
    "int category growing": lambda: hist.axis.IntCategory([], name="x", growth=True),
    "str category": lambda: hist.axis.StrCategory(["a", "µ", ""], name="x"),
    "str category growing": lambda: hist.axis.StrCategory([], name="x", growth=True),
    "str category noflow": lambda: hist.axis.StrCategory(["a", "b"], name="x", overflow=False),
    "metadata": lambda: hist.axis.Regular(
        3, 0, 1, name="x", metadata={"a": [1, 2.5, (None, True)], "b": b"\0"}
    ),
}


def filled(axis, storage, seed=0, *, extra=True, size=50):
    """A histogram of one axis under test and one plain one, filled."""
    rng = np.random.default_rng(seed)
    second = [hist.axis.Regular(2, 0, 1, name="y")] if extra else []
    h = hist.Hist(axis(), *second, storage=storage, name="n", label="l")
    kind = type(h.axes[0])
    x = {
        hist.axis.StrCategory: lambda: rng.choice(["a", "µ", "b", "c", ""], size).tolist(),
        hist.axis.IntCategory: lambda: rng.integers(-2, 3, size),
        hist.axis.Integer: lambda: rng.integers(-2, 5, size),
        hist.axis.Boolean: lambda: rng.integers(0, 2, size).astype(bool),
    }.get(kind, lambda: rng.normal(0.3, 1, size))()
    args = [x, rng.random(size)] if extra else [x]
    name = type(storage).__name__
    weight = rng.random(size)
    if name == "Mean":
        h.fill(*args, sample=weight)
    elif name == "WeightedMean":
        h.fill(*args, weight=weight, sample=rng.random(size))
    elif name == "MultiCell":
        h.fill(*args, weight=rng.random((size, 3)))
    elif name in ("Double", "Weight"):
        h.fill(*args, weight=weight)
    else:
        h.fill(*args)
    return h


def state(h):
    """All there is of a histogram, as its pickle sees it."""
    whole = h.__getstate__()[1]
    inner = whole.pop("_hist")
    return [type(h), type(inner), plain(whole), [plain(s) for s in inner.__getstate__()]]


def plain(value):
    """A form in which == means: of the same class, in the same order, with the same bits."""
    kind = type(value)
    if isinstance(value, np.ndarray) and value.dtype.hasobject:
        return [kind, value.dtype, value.shape, [plain(v) for v in value.ravel()]]
    if isinstance(value, np.ndarray) and value.dtype.names:
        return [kind, value.dtype, value.shape, [plain(value[n]) for n in value.dtype.names]]
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.char in "gG":
        return [kind, value.dtype, value.shape, repr(value.tolist())]
    if isinstance(value, (np.ndarray, np.generic)):
        return [kind, value.dtype.str, value.shape, value.tobytes()]
    if isinstance(value, float):
        return [kind, value.hex(), math.copysign(1, value)]
    if isinstance(value, dict):
        factory = getattr(value, "default_factory", None)
        return [kind, factory_of(factory), [(plain(k), plain(v)) for k, v in value.items()]]
    if isinstance(value, (set, frozenset)):
        return [kind, sorted(repr(plain(v)) for v in value)]
    if isinstance(value, (list, tuple)):
        return [kind, [plain(v) for v in value]]
    if isinstance(value, bh.Histogram):
        return state(value)
    if isinstance(value, ak.Array):
        return [kind, str(value.type), value.to_list()]
    if isinstance(value, column_accumulator):
        return [kind, plain(value.value)]
    if isinstance(value, value_accumulator):
        return [kind, factory_of(value.default_factory), plain(value.value)]
    if hasattr(value, "__dict__") and not isinstance(value, (type, enum.Enum)):
        return [kind, plain(vars(value))]
    return [kind, value]


def factory_of(factory):
    return factory if isinstance(factory, type) or factory is None else getattr(factory, "__qualname__", "?")


def check_pair(left, right):
    """The sum is coffea's; returns whether it was made without touching an object."""
    one, two = pack(left), pack(right)
    flat = same_shape(one, two)
    want = accumulate([left, right])
    before = two.digest()
    got = combine(one, two)
    assert plain(unpack(got)) == plain(want)
    assert two.digest() == before
    # One result, one flat form: however it came about.
    assert got.digest() == pack(unpack(got)).digest()
    return flat


class Colour(enum.Enum):
    RED = 1


class Own(dict):
    """A mapping of the user's without anything of its own."""


class Longest(dict):
    """A mapping with its own idea of a sum."""

    def __add__(self, other):
        return max(self, other, key=len)


class Sized(dict):
    """A mapping of the user's with something of its own."""

    def __init__(self, *args):
        super().__init__(*args)
        self.unit = "GeV"


class Tally(AccumulatorABC):
    def __init__(self, n=0):
        self.n = n

    def identity(self):
        return Tally()

    def add(self, other):
        self.n += other.n


class Money:
    def __init__(self, cents):
        self.cents = cents

    def __add__(self, other):
        return Money(self.cents + other.cents)


class Broken:
    def __add__(self, other):
        raise KeyError("no such thing")


class Locked:
    def __init__(self):
        self.lock = threading.Lock()


RECORD = np.dtype([("a", "<f4"), ("b", "<i8"), ("c", [("d", "S3"), ("e", ">u2", (2,))])], align=True)


def record(n):
    whole = np.zeros(n, RECORD)
    whole["a"], whole["c"]["d"] = np.arange(n), b"xy"
    return whole


LEAVES = {
    "int": (3, 4),
    "int and float": (3, 4.5),
    "float": (0.1, 0.2),
    "nan": (math.nan, 1.0),
    "inf": (math.inf, -math.inf),
    "minus zero": (-0.0, -0.0),
    "bool": (True, True),
    "bool and int": (True, 5),
    "complex": (1 + 2j, -0.5j),
    "big int": (2**63 - 1, 1),
    "bigger int": (-(2**70), 2**20_000),
    "back to small": (2**63, -5),
    "str": ("2022", "2022"),
    "odd str": ('\ud800\0µ"', "\n"),
    "bytes": (b"\0a", b"b"),
    "list": ([1, "a", [2.5]], [None]),
    "list of floats": ([0.1, -0.0], [math.inf]),
    "list of ints": ([1, 2], [2**63 - 1, 3]),
    "list of big ints": ([1, 2**64], [3]),
    "list of str": (["a", "b"], ["a"]),
    "empty list": ([], []),
    "list and empty": ([1.0], []),
    "tuple": ((1, 2.5), ("a",)),
    "set": ({"a", "b"}, {"b", "c"}),
    "set of tuples": ({(1, 2), (1, 3)}, {(0, 1)}),
    "mixed set": ({1, "a", None, (1, "b"), 2.5, frozenset([1, 2])}, {b"x"}),
    "list_accumulator": (list_accumulator([1, 2.0]), list_accumulator(["a"])),
    "set_accumulator": (set_accumulator({"a"}), set_accumulator({"b", 3})),
    "column": (column_accumulator(np.arange(3.0)), column_accumulator(np.arange(2.0))),
    "column 2d": (column_accumulator(np.ones((3, 2), ">f4")), column_accumulator(np.ones((1, 2), ">f4"))),
    "column of records": (column_accumulator(record(2)), column_accumulator(record(3))),
    "column of str": (column_accumulator(np.array(["a"])), column_accumulator(np.array(["bcd"]))),
    "column of awkward": (column_accumulator(ak.Array([[1], []])), column_accumulator(ak.Array([[2, 3]]))),
    "value": (value_accumulator(int, 3), value_accumulator(int, 4)),
    "value float": (value_accumulator(float, 0.5), value_accumulator(float, 0.25)),
    "value int in float": (value_accumulator(float, 2), value_accumulator(float, 3)),
    "value list": (value_accumulator(list, [1]), value_accumulator(list, [2])),
    "value array": (value_accumulator(int, np.array([True])), value_accumulator(int, np.array([True]))),
    "ddict": (collections.defaultdict(int, a=1), collections.defaultdict(int, a=2, b=3)),
    "ddict same": (collections.defaultdict(float, a=1.5), collections.defaultdict(float, a=2.0)),
    "ddict and dict": (collections.defaultdict(int, a=1), {"a": 2}),
    "dict and ddict": ({"a": 2}, collections.defaultdict(int, a=1)),
    "ddict of ddicts": (
        collections.defaultdict(lambda: collections.defaultdict(int), a=collections.defaultdict(int, b=1)),
        collections.defaultdict(lambda: collections.defaultdict(int), a=collections.defaultdict(int, b=1)),
    ),
    "ddict without": (collections.defaultdict(None, a=1), collections.defaultdict(None, a=1)),
    "defaultdict_accumulator": (defaultdict_accumulator(int, a=1), defaultdict_accumulator(int, a=2, b=3)),
    "same defaultdict_accumulator": (
        defaultdict_accumulator(float, a=1.5, b=2.5),
        defaultdict_accumulator(float, a=1.5, b=2.5),
    ),
    "int in defaultdict_accumulator(float)": (
        defaultdict_accumulator(float, a=1),
        defaultdict_accumulator(float, a=1),
    ),
    "flags in defaultdict_accumulator": (
        defaultdict_accumulator(int, a=np.array([True]), b=np.bool_(True)),
        defaultdict_accumulator(int, a=np.array([True]), b=np.bool_(True)),
    ),
    "float32 in defaultdict_accumulator(float)": (
        defaultdict_accumulator(float, a=np.float32(0.1), b=np.arange(2), c=np.int16(4)),
        defaultdict_accumulator(float, a=np.float32(0.1), b=np.arange(2), c=np.int16(4)),
    ),
    "a factory that does not begin at zero": (
        defaultdict_accumulator(functools.partial(float, 1.5), a=2.0),
        defaultdict_accumulator(functools.partial(float, 1.5), a=2.0),
    ),
    "nested defaultdict_accumulator": (
        defaultdict_accumulator(
            functools.partial(defaultdict_accumulator, int), a=defaultdict_accumulator(int, x=1)
        ),
        defaultdict_accumulator(
            functools.partial(defaultdict_accumulator, int), b=defaultdict_accumulator(int, x=1)
        ),
    ),
    "dict_accumulator": (
        dict_accumulator(a=value_accumulator(int, 1), b=set_accumulator({1})),
        dict_accumulator(a=value_accumulator(int, 2), c=column_accumulator(np.arange(2))),
    ),
    "same dict_accumulator": (
        dict_accumulator(a=value_accumulator(int, 1), b=defaultdict_accumulator(int, x=1)),
        dict_accumulator(a=value_accumulator(int, 2), b=defaultdict_accumulator(int, x=4)),
    ),
    "own dict": (Own(a=1), Own(a=2, b=3)),
    "dict with a sum of its own": (Longest(a=1), Longest(a=2, b=3)),
    "same dict with a sum of its own": (Longest(a=1), Longest(a=2)),
    "dict with attributes": (Sized({"a": 1}), Sized({"a": 2, "b": 3})),
    "ordered": (collections.OrderedDict(b=1, a=2), collections.OrderedDict(c=1, b=2)),
    "counter": (collections.Counter(a=1, b=-1), collections.Counter(a=2)),
    "keys": (
        {1: 1, (2, "a"): 2, None: 3, 1.5: 4, np.int64(7): 5, np.str_("q"): 6, Colour.RED: 7, b"x": 8},
        {None: 1, True: 2, frozenset([1]): 3, Colour.RED: 4, np.float32(0.5): 5, (2, "a"): 6},
    ),
    "other order": ({"a": 1, "b": 2.5}, {"b": 0.5, "a": 3}),
    "float16": (np.float16(0.1), np.float16(0.2)),
    "float64": (np.float64(0.1), np.float64(0.2)),
    "longdouble": (np.longdouble(0.1), np.longdouble(0.2)),
    "np.bool": (np.True_, np.True_),
    "np.int64 and int": (np.int64(1), 2),
    "np.str": (np.str_("a"), np.str_("b")),
    "timedelta": (np.timedelta64(3, "s"), np.timedelta64(4, "s")),
    "accumulator": (Tally(3), Tally(4)),
    "addable": (Money(3), Money(4)),
    "fraction": (Fraction(1, 3), Fraction(1, 6)),
    "awkward": (ak.Array([[1.5, 2], [], [3]]), ak.Array([[1, 2], [], [3]])),
    "bh": (
        bh.Histogram(bh.axis.Regular(3, 0, 1, metadata="m")).fill([0.5]),
        bh.Histogram(bh.axis.Regular(3, 0, 1, metadata="m")).fill([0.1, 0.9]),
    ),
    "named": (
        hist.NamedHist(hist.axis.Regular(3, 0, 1, name="a")).fill(a=0.5),
        hist.NamedHist(hist.axis.Regular(3, 0, 1, name="a")).fill(a=0.7),
    ),
    "hist and number": (hist.Hist(hist.axis.Regular(3, 0, 1, name="a")), 3),
}

ARRAYS = {
    **{t: np.arange(6).reshape(2, 3).astype(t) for t in ["?", "i1", "u1", "<i4", ">i4", "<u8", "<f2", ">f8"]},
    "c": np.array([1j, 2]),
    "m": np.array([1, 5], "m8[ms]"),
    "U": np.array(["a", "bc"]),
    "object": np.array([1, "a", 2**70], dtype=object),
    "0-d": np.array(1.5),
    "empty": np.zeros((0, 3)),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "strided": np.arange(20.0)[::-3],
    "transposed": np.arange(24).reshape(2, 3, 4).transpose(2, 0, 1),
    "longdouble": np.array([1, 2], "g") / 3,
    "nan": np.array([np.nan, -np.inf, -0.0, np.inf]),
}


@pytest.mark.parametrize("name", LEAVES)
def test_leaf_by_leaf_as_coffea(name):
    left, right = LEAVES[name]
    for value in (left, right):
        assert plain(unpack(pack(value))) == plain(value)
    check_pair(left, right)
    check_pair({"a": left, "only": left}, {"b": right, "a": right})


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_as_coffea(name):
    array = ARRAYS[name]
    want = np.ascontiguousarray(array) if array.ndim else array
    assert plain(unpack(pack(array))) == plain(want)
    check_pair(array, array[()].copy() if array.ndim else array)
    check_pair({"x": [array], "y": array}, {"y": array})


@pytest.mark.parametrize(
    "array",
    [
        record(3),
        record(1)[0:1].reshape(()),
        np.array(["2026-01-01", "NaT"], "M8[D]"),
        np.array([b"a\0b"]),
        np.void(b"abc"),
        np.datetime64("2026-11-21T03:00"),
        np.ma.masked_array([1, 2], [True, False]),
        np.array(["a", "long" * 9], dtype=np.dtypes.StringDType()),
    ],
    ids=lambda a: str(a.dtype)[:20],
)
def test_what_cannot_be_added_is_stored_all_the_same(array):
    back = unpack(pack({"x": array}))["x"]
    assert plain(back) == plain(array)
    assert back.dtype == array.dtype


def test_padding_never_reaches_the_digest():
    clean, dirty = np.zeros(2, RECORD), np.zeros(2, RECORD)
    dirty.view("u1")[...] = 255
    long, same = np.zeros(2, "g"), np.zeros(2, "g")
    long.view("u1").reshape(2, -1)[:, 12] = 7
    dirty[...] = clean
    for name in RECORD.names:
        dirty[name] = clean[name]
    assert pack(clean).digest() == pack(dirty).digest()
    assert pack(long).digest() == pack(same).digest()


@pytest.mark.parametrize("storage", STORAGES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("axis", AXES)
def test_histograms_as_coffea(axis, storage):
    one, two = (filled(AXES[axis], storage, seed) for seed in (1, 2))
    assert state(unpack(pack(one))) == state(one)
    again = filled(AXES[axis], storage, 1)
    assert check_pair(one, again) == (type(storage).__name__ in ADDITIVE)
    try:
        want = one + two
    except ValueError:  # growing regular axes of different length: hist itself cannot
        with pytest.raises(AnalysisError, match=r"out\['h'\]: cannot be merged: Hist of .* not mergable"):
            combine(pack({"h": one}), pack({"h": two}))
        return
    assert state(unpack(combine(pack(one), pack(two)))) == state(want)
    check_pair({"h": one, "k": one}, {"k": two})


@pytest.mark.parametrize("storage", STORAGES, ids=lambda s: type(s).__name__)
def test_large_histograms_take_the_other_way_in_and_out(storage):
    def wide():
        return hist.axis.Regular(9000, -1, 1, name="x")

    one, two = (filled(wide, storage, seed, size=500) for seed in (1, 2))
    assert state(unpack(pack(one))) == state(one)
    check_pair(one, two)


@pytest.mark.parametrize("storage", STORAGES, ids=lambda s: type(s).__name__)
def test_cells_survive_to_the_bit(storage):
    h = hist.Hist(hist.axis.Regular(3, 0, 1, name="x"), storage=storage)
    if type(storage).__name__ in ("Int64", "AtomicInt64"):
        h.view(flow=True)[...] = [-(2**63), 2**63 - 1, -1, 0, 7]
    elif type(storage).__name__ != "Unlimited":
        cells = h.view(flow=True).view(np.ndarray)
        odd = np.array([np.nan, -0.0, np.inf, 5e-324, -np.inf])
        for name in cells.dtype.names or [...]:
            cells[name] = odd
    assert state(unpack(pack(h))) == state(h)


def test_unlimited_storage_is_left_as_it_is():
    h = hist.Hist(hist.axis.Regular(3, 0, 1, name="x"), storage=hist.storage.Unlimited()).fill([0.1] * 300)
    before = state(h)
    big = h
    for _ in range(80):
        big = big + big  # beyond 64 bits: cells of any length
    whole = state(big)
    assert state(unpack(pack(big))) == whole == state(big)
    pack(h)
    assert state(h) == before
    check_pair(h, big)


def test_variances_are_known_as_after_a_sum():
    h = hist.Hist(hist.axis.Regular(3, 0, 1, name="x")).fill([0.5])
    assert unpack(pack(h)).variances() is not None
    assert accumulate([h, h]).variances() is None
    assert unpack(combine(pack(h), pack(h))).variances() is None


def test_merged_and_new_are_of_the_same_shape():
    h = hist.Hist(hist.axis.Regular(3, 0, 1, name="x")).fill([0.5])
    two = combine(pack(h), pack(h))
    assert same_shape(two, pack(h))
    three = combine(combine(pack(h), pack(h)), pack(h))
    assert state(unpack(three)) == state(accumulate([h, h, h]))


def test_own_metadata_of_a_histogram_survives():
    h = hist.Hist(hist.axis.Regular(3, 0, 1, name="x"), name="n", label="l", metadata={"k": (1, [2.0])})
    h.lumi = np.float32(59.7)
    h.axes[0].unit = "GeV"
    h.axes[0].edges_of_old = np.arange(3)
    back = unpack(pack(h))
    assert state(back) == state(h)
    assert back.axes[0].unit == "GeV"


def test_nothing_is_shared_with_the_result():
    h = hist.Hist(hist.axis.Regular(3, 0, 1, name="x"), storage="weight").fill([0.5])
    a = np.arange(3.0)
    packed = pack({"h": h, "a": a, "b": a[:1]})
    digest = packed.digest()
    h.fill([0.5])
    a += 1
    out = unpack(packed)
    out["a"] += 1
    out["h"].fill([0.5])
    out["h"].axes[0].label = "changed"
    assert packed.digest() == digest
    assert plain(unpack(packed)["a"]) == plain(np.arange(3.0))


def test_none_is_skipped_at_the_top_only():
    one = pack({"a": 1})
    assert pack(None).digest() == EMPTY.digest()
    assert unpack(combine(EMPTY, one)) == unpack(combine(one, pack(None))) == {"a": 1}
    assert unpack(combine(EMPTY, EMPTY)) is None
    assert unpack(pack({"a": None})) == {"a": None}
    with pytest.raises(AnalysisError, match=r"out\['a'\]: cannot be merged: NoneType None with int 1"):
        combine(pack({"a": None}), one)


@pytest.mark.parametrize(
    ("left", "right", "words"),
    [
        (np.zeros(3), np.zeros(4), "array of float64, shape (3,) with array of float64, shape (4,)"),
        ("a", 1, "str 'a' with int 1"),
        ({"z": 1}, 1, "dict {'z': 1} with int 1"),
        (Own(a=1), collections.OrderedDict(a=1), "cannot be merged"),
        (Broken(), Broken(), "no such thing"),
        (
            filled(AXES["regular"], STORAGES[0]),
            filled(AXES["regular"], STORAGES[4]),
            "different storage types",
        ),
        (filled(AXES["regular"], STORAGES[0]), filled(AXES["log"], STORAGES[0]), "axes not mergable"),
    ],
    ids=range(7),
)
def test_what_cannot_be_merged_is_named(left, right, words):
    with pytest.raises(AnalysisError) as caught:
        combine(pack({"dy": {"x": left}}), pack({"dy": {"x": right}}))
    assert caught.value.message.startswith("out['dy']['x']: cannot be merged: ")
    assert words in caught.value.message
    assert caught.value.about["path"] == "out['dy']['x']"


@pytest.mark.parametrize(
    "value",
    [Locked(), (n for n in ()), sys.stdout, threading.Lock(), subprocess],
    ids=lambda v: type(v).__name__,
)
def test_what_cannot_be_stored_is_named(value):
    if value is subprocess:  # a module can be: by reference
        assert unpack(pack({"m": value}))["m"] is value
        return
    with pytest.raises(AnalysisError, match=r"out\['dy'\]\[0\]: cannot be stored: "):
        pack({"dy": [value, 1]})


def test_circles_and_towers_are_refused():
    ring: list = []
    ring.append(ring)
    tower: dict = {}
    for _ in range(5000):
        tower = {"x": tower}
    for value in (ring, tower):
        with pytest.raises(AnalysisError, match="contains itself, or is nested too deep"):
            pack({"x": value})


def test_what_can_be_packed_can_be_merged_however_deep():
    merged = 0
    for depth in range(50, 1000, 30):
        tower: dict = {"n": 1}
        for _ in range(depth):
            tower = {"x": tower, "y": 1}
        with contextlib.suppress(AnalysisError):
            one, other = pack(tower), pack({**tower, "z": 1})
            assert unpack(combine(one, other))["y"] == 2
            merged = depth
    assert 100 < merged < 900


def test_sides_of_a_failed_sum_are_said_whatever_they_are():
    for value in (2**50_000, np.zeros(1), "x" * 10**6, filled(AXES["regular"], STORAGES[0]), object()):
        with pytest.raises(AnalysisError, match="cannot be merged") as caught:
            combine(pack({"a": value}), pack({"a": {"b": 1}}))
        assert len(caught.value.message) < 2000


def test_awkward_arrays_keep_what_their_structure_refers_to():
    class Vector(ak.Record):
        pass

    plain_array = ak.Array([[1.5], []], behavior={"unrelated": 1})
    named = ak.Array([{"x": 1}, {"x": 2}], with_name="Vector", behavior={"Vector": Vector})
    marked = ak.Array([1, 2], attrs={"unit": "GeV"})
    text = ak.Array(["a", None, "µ"])
    for array in (plain_array, named, marked, text):
        back = unpack(pack({"x": array}))["x"]
        assert plain(back) == plain(array)
        assert pack({"x": back}).digest() == pack({"x": array}).digest()
    assert not pack(plain_array).opaque
    assert unpack(pack(named)).behavior.keys() == {"Vector"}
    assert unpack(pack(marked)).attrs["unit"] == "GeV"
    both = combine(pack(column_accumulator(named)), pack(column_accumulator(named)))
    assert unpack(both).value.x.to_list() == [1, 2, 1, 2]


def test_a_slice_packs_what_it_shows():
    flat = np.arange(100_000.0)
    jagged = ak.unflatten(flat, 10)
    for array in (ak.Array(flat)[:3], jagged[-3:], jagged[::5000], flat[:3]):
        assert pack(array).nbytes < 3000


def test_a_class_that_cannot_be_read_back_is_found_at_once():
    with pytest.raises(AnalysisError, match=r"out\['e'\]: cannot be stored: Unreadable"):
        pack({"e": Unreadable(1)})


class Unreadable:
    def __init__(self, n):
        self.n = n

    def __reduce__(self):
        return (Unreadable, ())


def test_memory_errors_keep_their_kind():
    with pytest.raises(MemoryError):
        pack({"x": Greedy()})


class Greedy:
    def __reduce__(self):
        raise MemoryError


def test_place():
    assert place(()) == "out"
    assert place(("dy", 3, (1, "a"))) == "out['dy'][3][(1, 'a')]"


# ---- generated accumulators -----------------------------------------------------------------------------

numbers = st.floats(width=32)
whole = st.integers(-(2**64), 2**64)
texts = st.text(max_size=3)


def weighted(values):
    h = hist.Hist(hist.axis.Regular(3, 0, 1, name="x"), storage=hist.storage.Weight())
    return h.fill(x=np.array(values, float) % 1, weight=np.array(values, float))


def categories(values):
    h = hist.Hist(hist.axis.StrCategory([], growth=True, name="c"), storage=hist.storage.Int64())
    return h.fill(c=values) if values else h


def profile(values):
    return hist.Hist(hist.axis.Boolean(name="b"), storage=hist.storage.Mean()).fill(
        b=np.array([v > 0 for v in values], bool), sample=np.array(values, float)
    )


finite = st.lists(st.floats(-10, 10, width=32), max_size=4)
KINDS = {
    "int": whole,
    "float": numbers,
    "number": whole | numbers.filter(math.isfinite),
    "array": st.lists(numbers, min_size=3, max_size=3).map(np.array),
    "ints": st.lists(st.integers(-128, 127), min_size=2, max_size=2).map(lambda v: np.array(v, "i1")),
    "list": st.lists(whole | numbers | texts | st.none(), max_size=3),
    "set": st.sets(whole | texts, max_size=4),
    "column": finite.map(lambda v: column_accumulator(np.array(v))),
    "cutflow": st.dictionaries(texts, st.integers(), max_size=3).map(
        lambda d: defaultdict_accumulator(int, d)
    ),
    "hist": finite.map(weighted),
    "growing": st.lists(texts, max_size=4).map(categories),
    "profile": finite.map(profile),
}
keys = texts | st.integers(0, 3) | st.tuples(texts, st.booleans()) | st.none()
shapes = st.recursive(
    st.sampled_from(sorted(KINDS)),
    lambda inner: (
        st.dictionaries(keys, inner, max_size=4).map(lambda d: (dict, d))
        | st.dictionaries(texts, inner, max_size=3).map(lambda d: (collections.defaultdict, d))
    ),
    max_leaves=8,
)


@st.composite
def accumulators(draw, n, whole_keys=False):
    """``n`` accumulators that can be added: of one shape, each with some of its keys."""
    shape = draw(st.dictionaries(keys, shapes, max_size=4).map(lambda d: (dict, d)))

    def build(part):
        if isinstance(part, str):
            return draw(KINDS[part])
        kind, entries = part
        kept = [k for k in entries if whole_keys or draw(st.integers(0, 3))]
        out = kind(None) if kind is collections.defaultdict else kind()
        out.update({k: build(entries[k]) for k in kept})
        return out

    return [build(shape) for _ in range(n)]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@few
@given(accumulators(2) | accumulators(2, whole_keys=True))
def test_any_tree_as_coffea(pair):
    left, right = pair
    for value in pair:
        assert plain(unpack(pack(value))) == plain(value)
    check_pair(left, right)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@few
@given(accumulators(4))
def test_the_same_tree_gives_the_same_bits(four):
    a, b, c, d = map(pack, four)
    digests = set()
    for _ in range(2):
        copies = [Packed.from_sections({n: bytes(raw) for n, raw in p.sections()}) for p in (a, b, c, d)]
        digests.add(combine(combine(*copies[:2]), combine(*copies[2:])).digest())
    fresh = [pack(unpack(p)) for p in (a, b, c, d)]
    left = pack(unpack(combine(*fresh[:2])))
    digests.add(combine(left, combine(*fresh[2:])).digest())
    assert len(digests) == 1


@pytest.mark.parametrize("storage", STORAGES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(
    "axis", ["regular", "str category growing", "int category growing", "integer growing"]
)
def test_the_grouping_does_not_matter_where_sums_are_exact(axis, storage):
    """Sums of integers do not round; means always do, so there only the grouping's own bits hold."""
    parts = []
    for seed in range(3):
        h = filled(AXES[axis], storage, seed, size=4)
        if type(storage).__name__ in ("Double", "Weight", "MultiCell"):
            cells = h.view(flow=True).view(np.ndarray)
            for name in cells.dtype.names or [...]:
                cells[name] = np.round(cells[name] * 16)
        parts.append(pack({"h": h}))
    a, b, c = parts

    def copy(p):
        return Packed(p.skeleton, {n: r.copy() for n, r in p.regions.items()}, p.opaque)

    one = combine(combine(copy(a), b), c)
    two = combine(copy(a), combine(copy(b), c))
    if "Mean" in type(storage).__name__:
        h, k = unpack(one)["h"], unpack(two)["h"]
        assert list(h.axes[0]) == list(k.axes[0])
        np.testing.assert_allclose(h.values(flow=True), k.values(flow=True), rtol=1e-12)
    else:
        assert one.digest() == two.digest()


@few
@given(accumulators(1), st.integers(0, 10**6), st.integers(0, 7))
def test_a_damaged_structure_is_damaged_and_nothing_else(one, at, bit):
    packed = pack(one[0])
    skeleton = bytearray(packed.skeleton)
    skeleton[at % len(skeleton)] ^= 1 << bit
    sections = dict(packed.sections()) | {"skeleton": bytes(skeleton)}
    with contextlib.suppress(DamagedError, AnalysisError):
        unpack(Packed.from_sections(sections))


# ---- determinism across processes -----------------------------------------------------------------------

PROGRAM = """
import collections, hashlib, threading, types, cloudpickle, hist, numpy as np
from coffea.processor import set_accumulator, column_accumulator
from executors.coffea.pack import pack, unpack, combine
from executors.errors import AnalysisError
def value(n):
    h = hist.Hist(hist.axis.StrCategory([], growth=True, name="x"), storage="weight")
    h.fill([f"c{n}", "d"])
    return {"x": h, "s": {f"k{i}" for i in range(30)}, "t": {(1, "a"), (n, "b"), None},
        "n": set_accumulator({"x", "y", "z", n}), "d": collections.defaultdict(lambda: {"q", "r", 1}, x=1),
        "c": column_accumulator(np.arange(n)), "x2": h.copy(), "z": frozenset("abcdef")}
a, b = value(1), value(2)
del b["z"], b["d"]
packed = combine(pack(a), pack(b))
print(pack(a).digest(), packed.digest())
try:
    pack({"lock": threading.Lock()})
except AnalysisError as error:
    print(error.message)
own = types.SimpleNamespace(kinds={int: range(3), "f": len}, of=(type(None), slice(1), NotImplemented, ..., ValueError(1)))
print(pack({"o": own}).digest())
"""


def test_digests_do_not_depend_on_the_process():
    """Nor on what else is imported in it: dill and tblib, which workers have, change how Python pickles."""
    seen = set()
    for seed, first in (
        ("0", ""),
        ("1", ""),
        ("77", ""),
        ("0", "import dill"),
        ("0", "import distributed, parsl"),
    ):
        run = subprocess.run(
            [sys.executable, "-c", first + PROGRAM],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            timeout=100,
            check=True,
        )
        seen.add(run.stdout)
    assert len(seen) == 1


def test_unpacking_twice_gives_equal_pickles():
    packed = pack({name: pair for name, pair in LEAVES.items() if not {"set", "mixed set"} & {name}})
    again = Packed.from_sections({n: bytes(raw) for n, raw in packed.sections()})
    assert cloudpickle.dumps(unpack(packed)) == cloudpickle.dumps(unpack(again))


# ---- speed, with room for a busy machine ----------------------------------------------------------------


def best(function, repeat=7):
    times = []
    for _ in range(repeat):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return min(times)


def test_two_hundred_small_histograms_are_quick():
    def output(seed):
        rng = np.random.default_rng(seed)
        out: dict = {}
        for i in range(200):
            h = hist.Hist(hist.axis.Regular(100, 0, 1, name=f"x{i % 7}"), storage=hist.storage.Weight())
            out.setdefault(f"set{i % 5}", {})[f"h{i}"] = h.fill(rng.random(9), weight=rng.random(9))
        return out

    value, other = output(0), pack(output(1))
    left = pack(value)
    adding = best(lambda: combine(left, other), 200)
    coffea = best(lambda: accumulate([value, value]))
    assert adding < coffea / 50
    assert best(lambda: pack(value)) < coffea
    assert best(lambda: unpack(left)) < 2 * coffea


def test_every_kind_of_pair_is_tried():
    assert {type(s).__name__ for s in STORAGES} == set(hist.storage.__all__) - {"Storage"}
    assert len(list(itertools.product(AXES, STORAGES))) > 150
