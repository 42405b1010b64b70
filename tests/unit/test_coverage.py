"""Coverage against the simplest model there is: a set of chunks and a dictionary of nodes."""

from fakes import make_plan
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import PLANS, chunks_of, nodes_below

from executors.work import tree as arithmetic
from executors.work.coverage import Coverage, is_leaf, leaves
from executors.work.layout import Tree
from executors.work.model import Node


class Model:
    """What is stored, by chunks."""

    def __init__(self, tree):
        self.tree, self.stored = tree, {}

    def chunks(self):
        return {c for node in self.stored for c in chunks_of(self.tree, node)}

    def add(self, node):
        if not self.fits(node):
            return False
        self.stored[node] = str(node)
        return True

    def fits(self, node):
        related = (
            arithmetic.contains(node, other) or arithmetic.contains(other, node) for other in self.stored
        )
        return not any(related)


def agree(coverage, model, every):
    assert coverage.stored == model.stored
    done = model.chunks()
    for node in every:
        mine = set(chunks_of(model.tree, node))
        assert coverage.done(node) == len(done & mine)
        below = [n for n in model.stored if arithmetic.contains(node, n)]
        assert coverage.pieces(node) == len(below)
        assert {n for n, _ in coverage.leaves(coverage.shape(node))} == set(below)
        if not any(arithmetic.contains(n, node) and n != node for n in model.stored):
            missing = [c for n in coverage.missing(node) for c in chunks_of(model.tree, n)]
            assert missing == [c for c in chunks_of(model.tree, node) if c not in done]
        assert coverage.complete(node) == (mine <= done)


@settings(deadline=None, max_examples=60)
@given(PLANS, st.data())
def test_against_the_model(plan, data):
    tree = Tree(plan)
    coverage, model = Coverage(tree), Model(tree)
    every = [n for n in nodes_below(tree, tree.root) if tree.size(n)]
    if not every:
        return
    for _ in range(data.draw(st.integers(1, 14))):
        node = data.draw(st.sampled_from(every))
        what = data.draw(st.sampled_from(["add", "add", "add", "remove", "replace"]))
        if what == "add":
            assert coverage.add(node, str(node)) == model.add(node)
        elif what == "remove" and model.stored:
            node = data.draw(st.sampled_from(sorted(model.stored)))
            coverage.remove(node)
            del model.stored[node]
        elif what == "replace" and not any(arithmetic.contains(n, node) for n in model.stored):
            below = [n for n in model.stored if arithmetic.contains(node, n)]
            assert sorted(n for n, _ in coverage.replace(node, str(node))) == sorted(below)
            for n in below:
                del model.stored[n]
            model.stored[node] = str(node)
        agree(coverage, model, every)


def test_nothing_twice():
    tree = Tree(make_plan((80,), chunk=5))
    coverage = Coverage(tree)
    assert coverage.add(Node(0, 0, 1, 4, 6), "x")
    for node in (Node(0, 0, 1, 4, 6), Node(0, 0, 1, 4, 5), Node(0, 0, 1, 4, 8), Node(0, 0, 1, 0, 16)):
        assert not coverage.add(node, "y")
    for wrong in (Node(0, 0, 1, 3, 5), Node(0, 0, 1, 0, 17), Node(1, 0, 1, 0, 1), Node(0, 5, 6, 0, 1)):
        assert not coverage.add(wrong, "y")
        assert coverage.path(wrong) == []
    assert coverage.stored == {Node(0, 0, 1, 4, 6): "x"}


def test_a_node_with_an_unknown_file_is_never_complete():
    plan = make_plan((10, 10), chunk=5)
    from dataclasses import replace

    (dataset,) = plan.datasets
    unknown = replace(dataset, files=(dataset.files[0], replace(dataset.files[1], entries=None, uuid=None)))
    tree = Tree(replace(plan, datasets=(unknown,)))
    coverage = Coverage(tree)
    whole = Node(0, 0, 1, 0, 2)
    assert coverage.add(whole, "x")
    assert coverage.complete(whole)
    assert not coverage.complete(tree.root)
    assert coverage.highest_complete(whole) == whole


def test_shapes():
    one, two = (Node(0, 0, 1, 0, 1), "a"), (Node(0, 0, 1, 1, 2), "b")
    assert is_leaf(one)
    assert not is_leaf((one, two))
    assert not is_leaf(None)
    assert list(leaves((one, (two, one)))) == [one, two, one]
    assert list(leaves(None)) == []


def test_rubbish_before_a_node_does_not_hide_it():
    tree = Tree(make_plan((1,), chunk=1))
    coverage, node = Coverage(tree), Node(0, 0, 1, 0, 1)
    rubbish = [(Node(0, 0, 0, 0, -1), "1" * 40), (Node(0, 0, 0, 0, 0), "1" * 40)]
    assert sorted(coverage.recover([*rubbish, (node, tree.id(node))])) == sorted(rubbish)
    assert coverage.stored == {node: tree.id(node)}


@settings(deadline=None, max_examples=80)
@given(PLANS, st.data())
def test_recovering_all_at_once_is_adding_the_largest_first(plan, data):
    """Whatever a store may hold: nodes below others, other identities, ranges that are no nodes, foreign splits."""
    tree = Tree(plan)
    one, other = Coverage(tree), Coverage(tree)
    every = list(nodes_below(tree, tree.root))
    found = data.draw(st.lists(st.sampled_from(every), max_size=20, unique=True))
    rows = [(node, tree.id(node)) for node in found]
    rows += [(node, "0" * 40) for node in data.draw(st.lists(st.sampled_from(every), max_size=4))]
    wild = st.builds(
        Node,
        st.integers(0, 9),
        st.integers(-1, 9),
        st.integers(-1, 12),
        st.integers(-4, 60),
        st.integers(-1, 60),
    )
    rows += [(node, "1" * 40) for node in data.draw(st.lists(wild, max_size=6)) if node not in found]
    rejected = one.recover(data.draw(st.permutations(rows)))
    # Beside empty files a node may be as large as the one above it.
    for node in sorted(set(found), key=lambda n: (-tree.size(n), len(other.path(n)))):
        # Of nodes without a chunk below, any of two that contain each other may be the one that counts.
        if tree.size(node):
            other.add(node, tree.id(node))
    sized = {node: identity for node, identity in one.stored.items() if tree.size(node)}
    assert sized == other.stored
    assert sorted([*rejected, *one.stored.items()]) == sorted(rows)
    for node in every:
        assert one.done(node) == other.done(node)
    whole = list(one.whole())
    assert sorted(c for n in whole for c in chunks_of(tree, n)) == sorted(
        c for n in one.stored for c in chunks_of(tree, n)
    )
    for node in whole:
        above = one.path(node)[:-1]
        assert not any(one.done(n) == one.size(n) for n in above if one.done(n))
