"""The merge: many histograms, large outputs, memory, and how small the store is.

``BENCH_FULL=1`` for the full figures (1,000 outputs, a gigabyte each, 10,000 outputs); small ones otherwise.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import hist
import numpy as np
import pytest
from bench.figures import FULL, ROUNDS, Figure, in_turn, median, ratio, report
from coffea.processor import accumulate
from coffea.util import load as coffea_load
from coffea.util import save as coffea_save

from executors.coffea import pack
from executors.work.flat import Flat
from executors.work.merge import total
from executors.work.model import Node
from executors.work.packed import Sink
from executors.work.store import Store

OUTPUTS = int(os.environ.get("BENCH_OUTPUTS", "1000" if FULL else "500"))
SIZE = int(os.environ.get("BENCH_MB", "1024" if FULL else "64")) << 20
MOST = int(os.environ.get("BENCH_MOST", "10000" if FULL else "1000"))


def fixed_tree(leaves):
    """The shape that the fixed tree gives to so many stored sums."""
    if len(leaves) == 1:
        return leaves[0]
    middle = 1 << ((len(leaves) - 1).bit_length() - 1)
    return fixed_tree(leaves[:middle]), fixed_tree(leaves[middle:])


def put_all(store, packed, count):
    nodes = [(Node(0, i, i + 1, 0, 1), f"{i:040x}") for i in range(count)]
    for i, (node, identity) in enumerate(nodes):
        store.put(node, identity, {"entries": 1}, packed[i % len(packed)].sections())
    return fixed_tree(nodes)


def many_histograms(seed, count=200, bins=100):
    """200 weighted histograms of 100 bins, 3,000 fills each."""
    rng = np.random.default_rng(seed)
    out = {}
    for i in range(count):
        one = hist.Hist.new.Reg(bins, 0, 1, name="x", label="x").Weight()
        one.fill(rng.random(3000), weight=rng.normal(1, 0.2, 3000))
        out[f"hist{i}"] = one
    return out


def same(one, two):
    return pack.pack(one).digest() == pack.pack(two).digest()


@pytest.mark.timeout(1800)
def test_many_histograms(tmp_path):
    """1,000 outputs of 200 histograms: from our store, and the adding itself, against coffea's ``accumulate``."""
    values = [many_histograms(i) for i in range(10)]
    packed = [pack.pack(value) for value in values]
    store = Store(tmp_path / "store")
    shape = put_all(store, packed, OUTPUTS)
    files = [str(tmp_path / f"{i}.coffea") for i in range(10)]
    for value, path in zip(values, files, strict=True):
        coffea_save(value, path)
    loaded = [coffea_load(files[i % 10]) for i in range(OUTPUTS)]
    results = {}

    def ours():
        results["ours"] = pack.unpack(total(shape, store, pack.combine)[0])

    def listed():
        results["listed"] = accumulate(loaded)

    def generated():
        results["generated"] = accumulate(coffea_load(files[i % 10]) for i in range(OUTPUTS))

    def adding():
        whole = packed[0]
        for i in range(1, OUTPUTS):
            whole = pack.combine(whole, packed[i % 10])

    rows = in_turn(ROUNDS, ours, listed, generated, adding)
    for name in ("listed", "generated"):
        for key, one in results[name].items():
            assert np.allclose(one.values(), results["ours"][key].values(), rtol=1e-12)
    each = 1e6 / OUTPUTS
    figures = []
    for name, over, under, must, reach in (
        ("merge from the store against accumulate over loaded outputs", 1, 0, 20, ""),
        ("merge from the store against accumulate over a generator", 2, 0, 20, ""),
        ("the adding itself against accumulate over loaded outputs", 1, 3, 20, 400),
    ):
        found, spread = ratio(rows, over, under)
        figures.append(
            Figure(name, f"coffea {each * median(rows, over):,.0f} us an output", f"{each * median(rows, under):.3g} us an output",
                   found, f">= {must}", f">= {reach}" if reach else "", ROUNDS, spread)
        )  # fmt: skip
    report(*figures)
    assert all(figure.ratio >= 20 for figure in figures)


def test_many_histograms_and_a_profile():
    """One of 201 histograms does not simply add (a mean): that costs its own sum, and not that of all others."""
    values = [many_histograms(i) for i in range(4)]
    for i, value in enumerate(values):
        rng = np.random.default_rng(i)
        value["profile"] = hist.Hist.new.Reg(100, 0, 1, name="x").Mean()
        value["profile"].fill(rng.random(3000), sample=rng.random(3000))
    packed = [pack.pack(value) for value in values]
    count = 40

    def ours():
        whole = packed[0]
        for i in range(1, count):
            whole = pack.combine(whole, packed[i % 4])

    rows = in_turn(ROUNDS, ours, lambda: accumulate(values[i % 4] for i in range(count)))
    found, spread = ratio(rows, 1, 0)
    each = [1e6 * median(rows, column) / count for column in (0, 1)]
    report(
        Figure("the adding itself, a profile among 200 histograms", f"coffea {each[1]:,.0f} us an output", f"{each[0]:.3g} us an output",
               found, ">= 20", "", ROUNDS, spread)
    )  # fmt: skip
    assert found >= 10


KINDS = {
    "counts": lambda rng, n: rng.poisson(20, n).astype("<f8"),
    "counts, 5 % filled": lambda rng, n: bumps(rng, n, lambda m: rng.poisson(20, m)),
    "weights, 5 % filled": lambda rng, n: bumps(rng, n, rng.random),
    "weights, all filled": lambda rng, n: rng.random(n),
}


def bumps(rng, cells, content):
    """Histograms of 10,000 bins, of which 500 beside each other are filled."""
    out = np.zeros(cells)
    for at in range(0, cells, 10_000):
        size = min(500, cells - at)
        out[at : at + size] = content(size)
    return out


def flat(array):
    sink = Sink()
    return sink.finish(sink.put("<f8", array), additive=True)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", KINDS)
def test_large_outputs(tmp_path, kind):
    """Outputs of a gigabyte, read from the store, verified and added, against ``numpy.add`` of them in memory."""
    count = 3
    rng = np.random.default_rng(1)
    piece = KINDS[kind](rng, 10_000_000)  # a gigabyte of random numbers would take a minute
    arrays = [np.resize(np.roll(piece, i), SIZE // 8) for i in range(count)]
    store = Store(tmp_path / "store")
    shape = put_all(store, [flat(array) for array in arrays], count)
    stored = sum(path.stat().st_size for path in (tmp_path / "store").rglob("*.part")) / count
    whole = arrays[0].copy()
    results = {}

    def ours():
        results["ours"] = total(shape, store, pack.combine)[0]

    def streamed():
        # As a merge does it that writes the sum as it is made: here without the writing.
        with Flat(shape, store) as sums:
            results["events"] = sum(len(block) for block in sums.blocks())

    def numpy():
        np.add(whole, arrays[1], out=whole)
        np.add(whole, arrays[2], out=whole)
        np.add(whole, arrays[1], out=whole)

    rows = in_turn(ROUNDS, numpy, streamed, ours)
    expected = (arrays[0] + arrays[1]) + arrays[2]
    assert results["ours"].regions["<f8"].tobytes() == expected.tobytes()
    found, spread = ratio(rows, 0, 1)
    rate = [count * SIZE / 1e9 / median(rows, column) for column in (0, 1, 2)]
    again, spread_again = ratio(rows, 0, 2)
    report(
        Figure(f"merge of outputs of {SIZE >> 20} MB: {kind} (on disk 1/{SIZE / stored:.1f})", f"numpy.add {rate[0]:.1f} GB/s",
               f"{rate[1]:.1f} GB/s", found, ">= 0.5", ">= 0.9", ROUNDS, spread),
        Figure("the same, the sum kept in memory", f"numpy.add {rate[0]:.1f} GB/s", f"{rate[2]:.1f} GB/s", again, "", "",
               ROUNDS, spread_again),
    )  # fmt: skip
    assert found >= 0.5 or not FULL


MEMORY = """
import json, os, sys
sys.path[:0] = [{root!r}, {tests!r}]
from pathlib import Path
from bench.test_merge import fixed_tree
from executors.coffea import pack
from executors.work.merge import MergeTask, merge
from executors.work.model import Node
from executors.work.store import Store
from executors.work.worker import Place
from executors.coffea.pack import combine

def status(key):
    return int(Path("/proc/self/status").read_text().split(key + ":")[1].split()[0]) << 10

class Adding:
    combine = staticmethod(combine)

count, folder, group = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
nodes = [(Node(0, i, i + 1, 0, 1), f"{{i:040x}}") for i in range(count)]
task = MergeTask("f" * 40, Node(0, 0, count, 0, -1), fixed_tree(nodes))
if group:
    Path(group, "cgroup.procs").write_text(str(os.getpid()))  # what is charged from here on
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
receipt = merge(task, Adding(), Place(folder))
assert receipt.parts and receipt.parts[0].entries == count, receipt
print(json.dumps({{"above": status("VmHWM") - before}}))
"""


@contextlib.contextmanager
def memory_group(limit):
    """A control group (version 1) that kills what is charged with more, files' pages included; "" where none can be."""
    own = [
        line.split(":", 2)[2]
        for line in Path("/proc/self/cgroup").read_text().splitlines()
        if ":memory:" in line
    ]
    group = Path("/sys/fs/cgroup/memory" + (own[0] if own else "")) / f"merge-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(limit))
    except OSError:
        yield ""
        return
    try:
        yield str(group)
    finally:
        group.rmdir()


@pytest.mark.timeout(3600)
def test_memory(tmp_path):
    """The highest memory of a merging process, mapped pages counted: the same for ten outputs and ten thousand.

    Where a control group can be made, it is also done within one that is charged with files' pages, too.
    """
    root = Path(__file__).resolve().parents[2]
    size = 32 << 20
    rng = np.random.default_rng(1)
    packed = [flat(bumps(rng, size // 8, lambda m: rng.poisson(20, m))) for _ in range(4)]
    put_all(Store(tmp_path / "store"), packed, MOST)
    script = MEMORY.format(root=str(root), tests=str(root / "tests"))
    found, within = {}, ""
    for count in sorted({10, 100, 1000, MOST}):
        with memory_group(int(1.1 * size)) as group:
            argv = [sys.executable, "-c", script, str(count), str(tmp_path), group]
            done = subprocess.run(argv, capture_output=True, text=True, timeout=1800, check=False)
            within = ", in a control group of 1.1 outputs" if group else ""
        assert done.returncode == 0, done.stderr[-3000:]
        found[count] = json.loads(done.stdout)["above"]
    report(
        *(
            Figure(f"memory of a merge of {count:,} outputs of {size >> 20} MB{within}", "one output", f"{above / 2**20:.1f} MB",
                   above / size, "<= 2.2 outputs + 64 MB", "<= 1.1 outputs")
            for count, above in found.items()
        )
    )  # fmt: skip
    assert max(found.values()) <= 2.2 * size + (64 << 20)


def one_axis(rng):
    one = hist.Hist.new.Reg(10_000, 0, 1, name="x").Double()
    one.view()[:] = bumps(rng, 10_000, lambda m: rng.poisson(20, m))
    return one


def two_axes(rng, weight=None):
    one = hist.Hist.new.Reg(100, 0, 1, name="x").Reg(100, 0, 1, name="y")
    one = one.Double() if weight is None else one.Weight()
    return one.fill(*rng.normal(0.3, 0.04, (2, 20_000)), weight=weight)


FILLED = {
    "counts": one_axis,
    "counts of two axes": two_axes,
    "weights of two axes": lambda rng: two_axes(rng, rng.random(20_000)),
}


@pytest.mark.parametrize("content", FILLED)
def test_size_of_sparse_histograms(memory_path, content):
    """200 histograms of 10,000 bins, 5 % filled: in our store against coffea's own file."""
    rng = np.random.default_rng(1)
    out = {f"h{i}": FILLED[content](rng) for i in range(200)}
    filled = np.mean([np.count_nonzero(one.values()) / one.size for one in out.values()])
    coffea_save(out, str(memory_path / "one.coffea"))
    theirs = (memory_path / "one.coffea").stat().st_size
    sections = pack.pack(out).sections()
    ours = Store(memory_path / "store").put(Node(0, 0, 1, 0, 1), "0" * 40, {"entries": 1}, sections).size
    report(
        Figure(f"size of an output, {content}, {100 * filled:.0f} % filled", f"coffea.util.save {theirs / 1e3:,.0f} kB",
               f"{ours / 1e3:,.0f} kB", ours / theirs, "<= 0.5", "<= 0.25")
    )  # fmt: skip
    # Random weights are as long packed as not: there is nothing to be gained by anybody.
    assert ours <= (1.0 if content.startswith("weights") else 0.5) * theirs
