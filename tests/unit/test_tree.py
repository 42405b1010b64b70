"""The tree's arithmetic, by its properties, on plans of every form."""

from fakes import make_plan
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import PLANS, chunks_of, nodes_below

from executors.work import tree as arithmetic
from executors.work.coverage import uncovered
from executors.work.layout import Tree
from executors.work.model import Node


@given(st.integers(0, 10**6), st.integers(2, 10**9))
def test_middle_lies_inside_and_is_aligned(lo, length):
    cut = arithmetic.middle(lo, lo + length)
    assert lo < cut < lo + length
    left = cut - lo
    assert left & (left - 1) == 0
    assert left >= length - left


@settings(deadline=None, max_examples=60)
@given(PLANS)
def test_children_partition_their_node(plan):
    tree = Tree(plan)
    for node in nodes_below(tree, tree.root):
        kids = tree.children(node)
        if kids:
            assert [c for kid in kids for c in chunks_of(tree, kid)] == chunks_of(tree, node)
            assert all(arithmetic.contains(node, kid) and not arithmetic.contains(kid, node) for kid in kids)
            assert not arithmetic.contains(*kids)
            assert not arithmetic.contains(*kids[::-1])
        else:
            assert tree.size(node) <= 1
        assert tree.size(node) == len(chunks_of(tree, node))
        ranges = [tree.file(s, f).ranges(plan.chunk)[n] for s, f, n in chunks_of(tree, node)]
        assert tree.events(node) == sum(stop - start for start, stop in ranges)


@settings(deadline=None, max_examples=60)
@given(PLANS)
def test_the_path_reaches_every_node_and_nothing_else(plan):
    tree = Tree(plan)
    every = list(nodes_below(tree, tree.root))
    assert len(set(every)) == len(every)
    for node in every:
        path = list(arithmetic.path_to(tree.root, node, tree))
        assert path[0] == tree.root
        assert path[-1] == node
        assert all(low in tree.children(high) for high, low in zip(path, path[1:], strict=False))
    for node in every[:20]:
        for wrong in (node._replace(lo=node.lo + 1), node._replace(hi=node.hi + 3), node._replace(last=node.last + 1),
                      node._replace(split=node.split + 1), node._replace(first=node.first + 1)):  # fmt: skip
            if wrong not in every:
                assert list(arithmetic.path_to(tree.root, wrong, tree))[-1:] != [wrong]


@settings(deadline=None, max_examples=40)
@given(PLANS)
def test_a_worker_gives_every_node_the_drivers_identity(plan):
    tree = Tree(plan)
    for split in range(len(tree.splits)):
        root = tree.split_root(split)
        if not tree.size(root):
            continue
        task = tree.task(root)
        for node in nodes_below(tree, root):
            if tree.size(node):
                assert arithmetic.id_within(node, task.slices) == tree.id(node) == tree.task(node).id


@settings(deadline=None, max_examples=40)
@given(PLANS)
def test_identities_differ_where_events_differ(plan):
    tree = Tree(plan)
    seen = {}
    for node in nodes_below(tree, tree.root):
        content = tuple(chunks_of(tree, node))
        assert seen.setdefault(tree.id(node), content) == content


@settings(deadline=None, max_examples=60)
@given(PLANS, st.data())
def test_uncovered_and_covered_partition(plan, data):
    tree = Tree(plan)
    split = data.draw(st.integers(0, len(tree.splits) - 1))
    root = tree.split_root(split)
    every = list(nodes_below(tree, root))
    chosen = data.draw(st.lists(st.sampled_from(every), max_size=6))
    covered = [n for n in chosen if not any(m != n and arithmetic.contains(m, n) for m in chosen)]
    rest = list(uncovered(root, covered, tree))
    both = [c for n in {*covered} for c in chunks_of(tree, n)] + [c for n in rest for c in chunks_of(tree, n)]
    assert sorted(both) == chunks_of(tree, root)
    assert all(n in every for n in rest)


def test_the_largest_uncovered_nodes():
    tree = Tree(make_plan((80,), chunk=5))
    root = tree.root
    assert list(uncovered(root, [Node(0, 0, 1, 0, 1)], tree)) == [
        Node(0, 0, 1, 1, 2), Node(0, 0, 1, 2, 4), Node(0, 0, 1, 4, 8), Node(0, 0, 1, 8, 16)
    ]  # fmt: skip
    assert list(uncovered(root, [], tree)) == [root]
    assert list(uncovered(root, [root], tree)) == []
    # A range that is no node covers nothing: what it claims is done again.
    assert set(chunks_of(tree, root)) == {
        c for n in uncovered(root, [Node(0, 0, 1, 3, 7)], tree) for c in chunks_of(tree, n)
    }


def test_the_tree_is_fixed():
    """Changing these identities makes every stored result of every user worthless: do it knowingly."""
    tree = Tree(make_plan((10, 0, 25, 7), chunk=5, fsize=3, datasets=("a", "bb")))
    assert tree.root == Node(0, -1, 4, 0, -1)
    assert tree.id(tree.root) == "5a2eb6ac2fa50095b838b26dd15beba03b64f493"
    assert tree.id(Node(0, 2, 3, 0, 4)) == "b25b95206c2db4ea79c889fcdb76bc7b0d7b68b8"
