"""The addition block by block: the bits of the addition in pairs, whatever the shape, the sizes and the damage."""

import errno
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from executors.work import flat
from executors.work import store as stores
from executors.work.flat import Flat, UnlikeError
from executors.work.merge import DamagedPartError, MergeTask, _paired_total, merge, total
from executors.work.model import Node
from executors.work.packed import FRESH, INT, Sink, add_into, same_shape
from executors.work.store import Store
from executors.work.worker import Place


def shape_of(rows, cut):
    """A tree over stored sums, cut as ``cut`` says."""
    if len(rows) == 1:
        return rows[0]
    middle = cut(len(rows))
    return shape_of(rows[:middle], cut), shape_of(rows[middle:], cut)


def halves(length):
    return 1 << ((length - 1).bit_length() - 1)


def packed(rng, cells, *, ints=0, fresh=0, extra=""):
    sink = Sink()
    body = [
        sink.put("<f8", rng.normal(0, 1, cells) * rng.integers(0, 2, cells) * 10.0 ** rng.integers(-9, 9))
    ]
    body += [sink.put(INT, rng.integers(-5, 900, ints)), sink.put(FRESH, np.ones(fresh, "|u1"))]
    body += [
        sink.put("<f4", rng.random(cells // 3).astype("<f4")),
        sink.put("<c16", rng.random(cells // 5) + 1j),
    ]
    return sink.finish(["a", [], body, extra], additive=True)


def put(store, number, one, entries=1):
    node, identity = Node(0, number, number + 1, 0, 1), f"{number:040x}"
    store.put(node, identity, {"entries": entries}, one.sections())
    return node, identity


def exact(left, right):
    """Only along flat arrays: nothing else may be needed here."""
    assert same_shape(left, right)
    return add_into(left, right)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(stores, "BLOCK", 1024)
    monkeypatch.setattr(flat, "BLOCK", 1024)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(1, 12),
    st.integers(0, 900),
    st.integers(0, 300),
    st.integers(0, 9),
    st.randoms(use_true_random=False),
)
def test_the_bits_of_pairs(memory_path, count, cells, ints, fresh, random):
    store = Store(memory_path / f"{random.randrange(1 << 60)}")
    rng = np.random.default_rng(random.randrange(1 << 30))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stores, "BLOCK", random.choice([64, 1024, 1 << 19]))
        patch.setattr(flat, "BLOCK", random.choice([64, 5000]))
        patch.setattr(flat, "MOST_OPEN", random.choice([0, 3, 200]))
        patch.setattr(flat, "HEADERS", random.choice([0, 5000, 1 << 20]))
        rows = [put(store, i, packed(rng, cells, ints=ints, fresh=fresh), entries=i) for i in range(count)]
        shape = shape_of(rows, lambda length: random.randrange(1, length))
        one, events = _paired_total(shape, store, exact)
        with Flat(shape, store) as sums:
            two, entries = sums.whole(), sums.entries
        with Flat(shape, store) as sums:
            raw = b"".join(bytes(block) for block in sums.blocks())
    assert two.digest() == one.digest()
    assert raw == b"".join(bytes(view) for _, view in one.sections())
    assert entries == events == sum(range(count))


def test_more_sums_than_files_may_be_open(memory_path, small_blocks):
    import resource

    store = Store(memory_path / "store")
    rng = np.random.default_rng(1)
    rows = [put(store, i, packed(rng, 400)) for i in range(120)]
    shape = shape_of(rows, halves)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flat, "MOST_OPEN", 20)
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 30, before[1]))
        try:
            found, events = total(shape, store, exact)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert events == 120
    assert found.digest() == _paired_total(shape, store, exact)[0].digest()
    assert not [name for name in map(fd_path, os.listdir("/proc/self/fd")) if str(memory_path) in name]


def fd_path(number):
    try:
        return os.readlink(f"/proc/self/fd/{number}")
    except OSError:
        return ""


@pytest.mark.parametrize("which", [0, 4, 7])
def test_damage_in_any_block_names_the_part(memory_path, small_blocks, which):
    store = Store(memory_path / "store")
    rng = np.random.default_rng(1)
    rows = [put(store, i, packed(rng, 700)) for i in range(8)]
    path = store.path(*rows[which])
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)
    with pytest.raises(DamagedPartError) as caught:
        total(shape_of(rows, halves), store, exact)
    assert (caught.value.node, caught.value.identity) == rows[which]
    task = MergeTask("f" * 40, Node(0, 0, 8, 0, -1), shape_of(rows, halves))
    place = Place(memory_path)
    receipt = merge(task, Adding(), place)
    assert [row[:2] for row in receipt.extra["damaged"]] == [rows[which]]
    assert sorted(p.name for p in (memory_path / "store" / "000000").iterdir()) == sorted(
        store.path(*row).name for row in rows
    )


class Adding:
    @staticmethod
    def combine(left, right):
        return add_into(left, right) if same_shape(left, right) else left


def test_unlike_sums_and_integers_beyond_64_bits_go_the_longer_way(memory_path, small_blocks):
    store = Store(memory_path / "store")
    rng = np.random.default_rng(1)
    same = packed(rng, 300)
    rows = [put(store, 0, same), put(store, 1, packed(rng, 300, extra="another structure"))]
    with pytest.raises(UnlikeError), Flat(shape_of(rows, halves), store) as sums:
        sums.whole()
    seen = []
    total(shape_of(rows, halves), store, lambda left, right: seen.append(1) or left)
    assert seen == [1]
    rows = [put(store, i, big([1] * 400 + [1 << 62])) for i in (2, 3)]
    with pytest.raises(OverflowError), Flat(shape_of(rows, halves), store) as sums:
        list(sums.blocks())
    receipt = merge(
        MergeTask("f" * 40, Node(0, 0, 9, 0, -1), shape_of(rows, halves)), Exact(), Place(memory_path)
    )
    assert receipt.parts[0].entries == 2
    assert [p.name for p in (memory_path / "store" / "000000").iterdir() if p.name.startswith(".")] == []


def big(numbers):
    sink = Sink()
    return sink.finish(["i", [], [sink.put(INT, np.array(numbers))]], additive=True)


class Exact:
    @staticmethod
    def combine(left, right):
        return left


def test_a_sum_that_is_written_as_it_is_made(memory_path, small_blocks):
    """The stored sum is the sum, its account is right, and what it was made of is not touched."""
    store = Store(memory_path / "store")
    rng = np.random.default_rng(2)
    rows = [put(store, i, packed(rng, 900, ints=100, fresh=3), entries=10**i) for i in range(9)]
    shape = shape_of(rows, halves)
    node = Node(0, 0, 9, 0, -1)
    receipt = merge(MergeTask("f" * 40, node, shape), Adding(), Place(memory_path))
    (part,) = receipt.parts
    header, sections = store.get(node, "f" * 40)
    assert header.about["entries"] == part.entries == 111_111_111
    assert (header.stamp.digest, header.stamp.size) == (part.digest, part.size)
    expected, _ = _paired_total(shape, store, exact)
    assert {name: bytes(raw) for name, raw in sections.items()} == {
        n: bytes(v) for n, v in expected.sections()
    }


def test_sums_without_a_number(memory_path):
    store = Store(memory_path / "store")
    empty = Sink().finish(["d", [], []], additive=True)
    rows = [put(store, i, empty, entries=5) for i in range(4)]
    found, events = total(shape_of(rows, halves), store, exact)
    assert events == 20
    assert found.skeleton == empty.skeleton


@pytest.mark.parametrize(("number", "kind"), [(errno.EIO, DamagedPartError), (errno.ENOMEM, OSError)])
def test_a_disk_that_does_not_give_a_block_back(memory_path, small_blocks, monkeypatch, number, kind):
    """That is damage of one part, which is made again; a machine that is short of something is none."""
    store = Store(memory_path / "store")
    rng = np.random.default_rng(1)
    rows = [put(store, i, packed(rng, 700)) for i in range(8)]
    real, bad = {name: getattr(os, name) for name in ("pread", "preadv")}, store.path(*rows[5])

    def broken(name):
        def call(fd, what, offset):
            if fd_path(fd) == str(bad) and offset > 4096:
                raise OSError(number, os.strerror(number))
            return real[name](fd, what, offset)

        return call

    for name in real:
        monkeypatch.setattr(os, name, broken(name))
    with pytest.raises(kind) as caught:
        total(shape_of(rows, halves), store, exact)
    if kind is DamagedPartError:
        assert (caught.value.node, caught.value.identity) == rows[5]
    else:
        assert caught.value.errno == number
