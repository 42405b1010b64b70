"""Plans of every form for property tests, and what lies below a node, the slow and certain way."""

from __future__ import annotations

from fakes import make_plan
from hypothesis import strategies as st

FILES = st.lists(st.integers(0, 60), min_size=1, max_size=9)
PLANS = st.builds(
    lambda files, chunk, fsize, datasets: make_plan(files, chunk, fsize, datasets),
    FILES, st.integers(1, 25), st.none() | st.integers(1, 5), st.sampled_from([("a",), ("a", "bb"), ("a", "b", "c")]),
)  # fmt: skip


def nodes_below(tree, node):
    yield node
    for kid in tree.children(node):
        yield from nodes_below(tree, kid)


def chunks_of(tree, node):
    return [(split, file, n) for split, file, lo, hi in tree.pieces(node) for n in range(lo, hi)]
