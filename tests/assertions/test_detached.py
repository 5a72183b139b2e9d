"""gradguard.assert_detached: no tensor of a structure takes part in autograd."""

import sys
import time
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gradguard import GradModeError, assert_detached
from gradguard._graph.tensors import path, tensors

leaf = torch.ones(1, requires_grad=True)


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclass
class Output:
    logits: object = leaf
    unset: object = field(init=False)


@dataclass(frozen=True)
class Slotted:
    __slots__ = ("loss",)
    loss: object


class Broken:
    def __repr__(self):
        msg = "no"
        raise RuntimeError(msg)


def complaint(tree):
    with pytest.raises(GradModeError) as caught:
        assert_detached(tree)
    return str(caught.value)


@pytest.mark.parametrize(
    ("tree", "where"),
    [
        (leaf, "the tensor itself"),
        ({"logits": [leaf]}, '["logits"][0]'),
        ({1: {("a", 2): leaf}}, "[1][('a', 2)]"),
        ({'"': leaf}, """['"']"""),
        ((None, leaf), "[1]"),
        (Pair(1, right=[leaf]), ".right[0]"),
        (Output({"x": leaf}), '.logits["x"]'),
        (Slotted(leaf), ".loss"),
        (OrderedDict(a=leaf), '["a"]'),
        (MappingProxyType({"a": leaf}), '["a"]'),
        (deque([1, leaf]), "[1]"),
        ({leaf}, "<item 0>"),
        ({"a": leaf}.values(), "<item 0>"),
        (torch.return_types.max((torch.ones(1), leaf)), "[1]"),
        (nn.utils.rnn.pack_sequence([leaf * 2]), ".data"),
    ],
)
def test_containers_are_looked_into(tree, where):
    """Every kind of container is looked into, and the tensor named by the way to it."""
    assert f"  {where}: " in complaint(tree)


def test_detached_structures_pass():
    """Tensors without a graph, numbers, strings, modules and nothing at all pass."""
    with torch.inference_mode():
        born = torch.ones(1)
    model = nn.Linear(1, 1)
    assert_detached([leaf.detach(), born, 1.0, "text", b"x", None, Output, model, range(10**9)])
    assert_detached({"logits": model(torch.ones(1, 1)).detach(), **model.state_dict()})


def test_message_says_what_each_is_and_what_to_do():
    """A graph is named by its last operation, a leaf is said to require grad."""
    text = complaint({"loss": leaf.exp(), "weight": leaf})
    assert text.startswith("assert_detached: 2 tensors are still in autograd's graph; keeping one")
    assert '  ["loss"]: carries a graph (ExpBackward0)' in text
    assert '  ["weight"]: requires grad (a leaf, such as a parameter)' in text
    assert "gradguard.no_grad()" in text.splitlines()[-1]
    assert ".detach()" in text.splitlines()[-1]


def test_one_tensor_is_named_under_each_of_its_places():
    """A tensor that stands in two places is reported for both."""
    text = complaint({"a": leaf, "b": leaf})
    assert '["a"]' in text
    assert '["b"]' in text


def test_ten_are_named_and_the_rest_counted():
    """Of many tensors the first ten are named, in order."""
    lines = complaint([leaf] * 1000).splitlines()
    assert [line.split(":")[0] for line in lines[1:11]] == [f"  [{at}]" for at in range(10)]
    assert lines[11] == "  and 990 more"
    assert len(lines) == 13


def test_structures_that_contain_themselves():
    """A cycle ends, and what hangs on it is found once."""
    tree = {"loss": leaf}
    tree["self"] = [tree]
    text = complaint(tree)
    assert text.startswith("assert_detached: 1 tensor is")


def test_structures_deeper_than_the_recursion_limit():
    """Depth is no limit, and the path stays one line."""
    tree = leaf
    for _ in range(10 * sys.getrecursionlimit()):
        tree = [tree]
    assert max(map(len, complaint(tree).splitlines())) < 300


def test_tensors_at_every_depth():
    """Ten thousand tensors, each deeper than the last, take no quadratic time to report."""
    tree = leaf
    for _ in range(10_000):
        tree = [leaf, tree]
    start = time.perf_counter()
    assert "10001 tensors are" in complaint(tree)
    assert time.perf_counter() - start < 2


def test_key_whose_repr_fails():
    """The path says that the repr of a key failed, and the message comes out."""
    assert "  [<Broken: repr raises RuntimeError>]: " in complaint({Broken(): leaf})


def test_mapping_that_makes_its_values_on_demand():
    """Containers that live only while they are asked for are each looked into."""

    class Lazy(dict):
        def items(self):
            return [("made", [leaf])]

    assert complaint([Lazy() for _ in range(50)]).startswith("assert_detached: 50 tensors are")


trees = st.recursive(
    st.booleans(),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(st.text(max_size=9) | st.integers(), children, max_size=3)
        | st.tuples(children, children)
        | st.builds(Pair, children, children)
    ),
)


def planted(tree, found):
    """Replace each True by a tensor that requires grad, each False by one that does not."""
    if isinstance(tree, bool):
        found.append(tree)
        return torch.zeros(1, requires_grad=tree)
    if isinstance(tree, dict):
        return {key: planted(value, found) for key, value in tree.items()}
    items = [planted(value, found) for value in tree]
    return Pair(*items) if isinstance(tree, Pair) else type(tree)(items)


@given(trees)
def test_every_tensor_of_any_tree_is_found_at_its_path(tree):
    """Whatever the structure, each tensor is found once, and its path leads to it."""
    expected = []
    tree = planted(tree, expected)
    found = list(tensors(tree))
    assert [tensor.requires_grad for _, tensor in found] == expected
    for way, tensor in found:
        assert eval(f"tree{path(way)}", {"tree": tree}) is tensor  # noqa: S307  # our own paths


def test_nothing_is_checked_while_dynamo_compiles():
    """A compiled step with the assertion has no graph break."""

    @torch.compile(fullgraph=True, backend="eager")
    def step(x):
        assert_detached({"x": x})
        return x * 2

    assert step(leaf).requires_grad
