"""Results of one structure of which parts do not simply add: the sum is that of the longer way, to the last bit."""

import hist
import numpy as np
import pytest
from coffea.processor import accumulate, defaultdict_accumulator, value_accumulator

from executors.coffea import pack as module
from executors.coffea.pack import combine, pack, unpack
from executors.errors import AnalysisError


def profile(rng, storage, fills=50):
    one = hist.Hist(hist.axis.Regular(9, 0, 1, name="x"), storage=storage)
    about = {"weight": rng.random(fills)} if "Weighted" in type(storage).__name__ else {}
    return one.fill(rng.random(fills), sample=rng.normal(3, 1, fills), **about)


def weighted(rng):
    one = hist.Hist(hist.axis.Regular(40, 0, 1, name="y"), storage=hist.storage.Weight())
    return one.fill(rng.random(90), weight=rng.random(90))


def unlimited(rng):
    return hist.Hist(hist.axis.Regular(5, 0, 1), storage=hist.storage.Unlimited()).fill(rng.random(30))


def counter(value):
    out = defaultdict_accumulator(float)
    out["n"] = value
    return out


ODD = {
    "mean": lambda rng: profile(rng, hist.storage.Mean()),
    "weighted mean": lambda rng: profile(rng, hist.storage.WeightedMean()),
    "same set": lambda rng: {"a", "b"},
    "value": lambda rng: value_accumulator(float, float(rng.random())),
    "counter": lambda rng: counter(float(rng.random())),
    "list": lambda rng: [1.5, 2.5],
    "unlimited": unlimited,
    "text": lambda rng: "abc",
    "large integer": lambda rng: (1 << 62) + 5,
}


def output(seed, *odd):
    rng = np.random.default_rng(seed)
    out = {"first": weighted(rng), "count": int(rng.integers(9)), "weight": rng.random()}
    out |= {f"odd {name}": {"within": ODD[name](rng), "array": rng.random(4)} for name in odd}
    return out | {
        "last": weighted(rng),
        "single": rng.random(3).astype("f4"),
        "mean at the end": ODD["mean"](rng),
    }


@pytest.mark.parametrize("odd", [(), *[(name,) for name in ODD], tuple(ODD)], ids=str)
def test_the_bits_of_the_longer_way(odd, monkeypatch):
    packed = [pack(output(seed, *odd)) for seed in range(5)]
    quick = [combine(packed[0], packed[1]), combine(packed[2], packed[3])]
    quick.append(combine(*quick))
    quick.append(combine(quick[2], packed[4]))
    monkeypatch.setattr(module, "_combine_alike", lambda left, right: None)
    slow = [combine(packed[0], packed[1]), combine(packed[2], packed[3])]
    slow.append(combine(*slow))
    slow.append(combine(slow[2], packed[4]))
    assert [one.digest() for one in quick] == [one.digest() for one in slow]
    ours, theirs = unpack(quick[0]), accumulate([output(0, *odd), output(1, *odd)])
    assert pack(ours).digest() == pack(theirs).digest()


@pytest.mark.parametrize("odd", [(), ("weighted mean",), ("same set", "counter")], ids=str)
def test_the_quick_way_is_gone(odd, monkeypatch):
    """No walk through the structure of what adds; its odd parts are looked for once."""
    left, right = pack(output(0, *odd)), pack(output(1, *odd))
    monkeypatch.setattr(module, "_merge", None)
    before = [raw.tobytes() for raw in left.regions.values()]
    combine(left, right)
    misses = module._odd_parts.cache_info().misses
    combine(left, right)
    assert module._odd_parts.cache_info().misses == misses
    assert [raw.tobytes() for raw in left.regions.values()] == before  # left is used up by nobody


def test_what_cannot_be_added_is_named():
    left = pack({"a": weighted(np.random.default_rng(0)), "b": {"c": None}})
    with pytest.raises(AnalysisError, match="c"):
        combine(left, left)
