"""How blocks are kept: whatever the bytes, they come back to the last bit, and what is not a block is refused."""

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from executors.errors import DamagedError
from executors.work import codec
from executors.work.packed import add_region

RNG = np.random.default_rng(5)
ODD = np.array(
    [
        0.0,
        -0.0,
        np.nan,
        -np.nan,
        np.inf,
        -np.inf,
        5e-324,
        -1.0,
        255.0,
        256.0,
        65535.0,
        65536.0,
        0.1,
        2.0**24,
        2.0**24 + 1,
        1e300,
    ],
    "<f8",
)
SIGNALLING = np.array([0x7FF0000000000001, 0xFFF4000000000123, 0x7FF8000000000777], "<u8").view("<f8")


def sparse(values, size=20_000):
    out = np.zeros(size, "<f8")
    out[RNG.choice(size, len(values), replace=False)] = values
    return out


NUMBERS = {
    "counts": (RNG.poisson(20, 5000).astype("<f8"), 1),
    "larger counts": (RNG.poisson(9000, 5000).astype("<f8"), 2),
    "halves": (RNG.integers(-9, 9, 5000) / 2, 3),
    "integers": (RNG.integers(0, 200, 5000), 4),
    "larger integers": (RNG.integers(0, 60_000, 5000), 5),
    "negative integers": (RNG.integers(-(2**30), 2**30, 5000), 6),
    "weights": (RNG.random(5000), 0),
    "one odd number": (np.concatenate([np.ones(5000), [0.1]]), 0),
    "a negative zero": (np.concatenate([np.ones(5000), [-0.0]]), 3),
    "signalling": (np.concatenate([np.ones(5000), SIGNALLING]), 0),
    "odd": (np.resize(ODD, 4000), 0),
    "zeros": (np.zeros(5000), 1),
    "few counts": (sparse(RNG.poisson(20, 500) + 1.0), 1),
    "few weights": (sparse(RNG.random(500)), 0),
    "few odd": (sparse(np.concatenate([ODD, SIGNALLING])), 0),
    "far apart": (sparse(np.ones(3), 300_000), 1),
    "one at the end": (np.eye(1, 9000, 8999).ravel(), 1),
}


def back(raw, **kw):
    form, stored = codec.encode(memoryview(raw))
    return form, codec.decode(form, bytes(stored), np.full(len(raw), 7, "u1"), **kw)


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_come_back_to_the_last_bit(name):
    numbers, narrow = NUMBERS[name]
    form, found = back(numbers.tobytes())
    assert found.tobytes() == numbers.tobytes()
    assert form & 15 == narrow
    assert bool(form & codec.SPARSE) == (name.startswith(("few", "far", "one at", "zeros")))


@pytest.mark.parametrize("name", NUMBERS)
def test_narrow_numbers_add_as_the_wide_ones_do(name):
    numbers, _ = NUMBERS[name]
    if numbers.dtype != "<f8":
        return
    _, found = back(numbers.tobytes(), adding="<f8")
    left = np.resize(np.concatenate([RNG.normal(0, 1e3, 900), ODD]), len(numbers))
    one, two = left.copy(), left.copy()
    add_region("<f8", one, numbers)
    add_region("<f8", two, found.view("<f8") if len(found) == 8 * len(numbers) else found)
    assert one.tobytes() == two.tobytes()


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=3000), st.integers(1, 40))
def test_any_bytes_come_back(raw, times):
    assert back(raw * times)[1].tobytes() == raw * times


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(width=64) | st.integers(0, 300).map(float), max_size=400), st.integers(0, 4000))
def test_any_doubles_come_back(numbers, zeros):
    raw = np.concatenate([np.array(numbers, "<f8"), np.zeros(zeros)]).tobytes()
    assert back(raw)[1].tobytes() == raw


def test_smaller_where_that_can_be():
    size = {
        name: len(codec.encode(memoryview(numbers.tobytes()))[1]) / numbers.nbytes
        for name, (numbers, _) in NUMBERS.items()
    }
    assert size["counts"] < 0.1
    assert size["few counts"] < 0.012
    assert size["few weights"] < 0.035
    assert size["weights"] == 1


def test_what_is_no_block_is_refused():
    """A checksum stands before this: it is for what only looks right, and must not write beyond the block."""
    rng = np.random.default_rng(6)
    blocks = [codec.encode(memoryview(numbers.tobytes())) for numbers, _ in NUMBERS.values()]
    for form, stored in blocks:
        for _ in range(40):
            data = bytearray(stored)
            for at in rng.integers(0, len(data), rng.integers(1, 4)):
                data[at] ^= 1 << int(rng.integers(8))
            wrong = form if rng.random() < 0.5 else int(rng.integers(256))
            cut = bytes(data[: rng.integers(len(data) + 1)]) if rng.random() < 0.3 else bytes(data)
            guarded = np.full(40_000 + 64, 7, "u1")
            with contextlib.suppress(DamagedError):
                codec.decode(wrong, cut, guarded[32 : 32 + 40_000])
            assert bytes(guarded[:32]) == bytes(guarded[-32:]) == b"\x07" * 32
    with pytest.raises(DamagedError, match="not known"):
        codec.decode(15, b"", np.zeros(8, "u1"))
