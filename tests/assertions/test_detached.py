"""gradguard.assert_detached: no tensor of a structure takes part in autograd."""

import datetime as dt
import logging
import re
import sys
import threading
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gradguard import GradModeError, assert_detached
from gradguard._assertions import detached
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
        inference = torch.ones(1)
    model = nn.Linear(1, 1)
    assert_detached(
        [leaf.detach(), inference, 1.0, "text", b"x", None, Output, model, range(10**9)]
    )
    assert_detached({"logits": model(torch.ones(1, 1)).detach(), **model.state_dict()})


class Plain:
    """An object with attributes."""

    def __init__(self, **attributes):
        vars(self).update(attributes)


class Hidden:
    __slots__ = ("__loss", "unset")

    def __init__(self, loss):
        self.__loss = loss


def closure(value):
    return lambda: value


def keyword(*, value):
    def function(*, default=value):
        return default

    return function


def attributed(value):
    def function():
        pass

    function.value = value
    return function


def array(*values):
    made = np.empty(len(values), dtype=object)
    for at, value in enumerate(values):
        made[at] = value
    return made


def module(**attributes):
    made = nn.Linear(1, 1)
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def normalized(mean):
    made = nn.Sequential(nn.BatchNorm1d(1))
    made[0].running_mean = mean
    return made


def optimizer(state):
    made = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    made.state[made.param_groups[0]["params"][0]] = {"momentum": state}
    return made


class Rows(list):
    """A list that may have attributes, too."""


class Logged(dict):
    """A dict that may have attributes, too."""


@dataclass
class Record:
    step: int


def with_attribute(structure, value):
    structure.last = value
    return structure


@pytest.mark.parametrize(
    ("make", "where"),
    [
        (lambda loss: Plain(log=[loss]), ".log[0]"),
        (lambda loss: {"meter": Plain(sum=loss)}, '["meter"].sum'),
        (Hidden, "._Hidden__loss"),
        (lambda loss: SimpleNamespace(loss=loss), ".loss"),
        (lambda loss: torch.distributions.Normal(loss, 1.0), ".loc"),
        (lambda loss: partial(print, loss), ".args[0]"),
        (lambda loss: Plain(loss=loss).__init__, ".__self__.loss"),
        (closure, "<variable value>"),
        (lambda loss: keyword(value=loss), '.__kwdefaults__["default"]'),
        (lambda loss: lambda at=loss: at, ".__defaults__[0]"),
        (attributed, ".value"),
        (lambda loss: array(1, loss), "<item 1>"),
        (lambda loss: Plain(rest=iter([loss])), ".rest<reference 0>[0]"),
        (lambda loss: module(cache=[loss]), ".cache[0]"),
        (lambda loss: module(last=loss), ".last"),
        (lambda loss: nn.Sequential(module(last=loss)), ".0.last"),
        (normalized, ".0.running_mean"),
        (optimizer, '.state<item 0>["momentum"]'),
        (lambda loss: Plain(node=loss.grad_fn), ".node"),
        (lambda loss: [loss.grad_fn], "[0]"),
        (lambda loss: {"step": 1, loss: 2}, "<key 1>"),
        (lambda loss: {("step", loss): 2}, "<key 0>[1]"),
        (lambda loss: with_attribute(Rows([1]), loss), ".last"),
        (lambda loss: with_attribute(Logged(at=1), loss), ".last"),
        (lambda loss: with_attribute(Record(0), loss), ".last"),
    ],
)
def test_objects_are_looked_into(make, where):
    """Whatever holds a tensor with a graph is looked into, and without the graph it passes."""
    loss = (leaf * 2).sum()
    assert f"  {where}: " in complaint(make(loss))
    if "node" not in where and where != "[0]":
        assert_detached(make(loss.detach()))


def test_what_belongs_to_modules_and_optimizers_may_require_grad():
    """Parameters, wherever they are held besides, and a module's other leaves are no graph."""
    model = module(scale=torch.ones(1, requires_grad=True))
    trainer = Plain(
        parameters=list(model.parameters()),
        optimizer=torch.optim.Adam(model.parameters()),
        model=model,
        compiled=torch.compile(model, backend="eager"),
        log=logging.getLogger(__name__),
        lock=threading.Lock(),
        stream=sys.stdout,
    )
    trainer.compiled(torch.ones(1)).sum().backward()
    trainer.optimizer.step()
    assert_detached(trainer)
    assert "carries a graph" not in complaint([nn.Parameter(torch.ones(1))])


@pytest.mark.parametrize(
    ("tree", "kind", "at"),
    [
        ((x for x in [leaf]), "generator", ""),
        (map(abs, [leaf]), "map", ""),
        ({"batches": iter([leaf])}, "list_iterator", r' at \["batches"\]'),
        ([zip([leaf], [1], strict=True)], "zip", r" at \[0\]"),
    ],
)
def test_iterators_are_refused(tree, kind, at):
    """An iterator is not used up and not passed: the error says where it is and what to pass."""
    with pytest.raises(TypeError, match=rf"cannot look into the {kind}{at}: .*list\(iterator\)"):
        assert_detached(tree)


@pytest.mark.parametrize(
    "tree",
    [object(), Plain(), SimpleNamespace(), Plain, torch, len, lambda: None, threading.Lock()],
    ids=lambda tree: type(tree).__name__,
)
def test_what_has_nothing_to_look_into_is_refused(tree):
    """A check that has looked at nothing does not pass."""
    with pytest.raises(TypeError, match=r"cannot look into the .*: it has no attributes"):
        assert_detached(tree)


@pytest.mark.parametrize("tree", [[object()], {"lock": threading.Lock()}], ids=["object", "lock"])
def test_an_item_that_cannot_be_looked_into_is_refused(tree):
    """Within a structure it is named by its path."""
    with pytest.raises(TypeError, match=r"cannot look into the .* at .*: it has no attributes"):
        assert_detached(tree)


@pytest.mark.parametrize(
    "value",
    [
        1,
        1.5,
        1j,
        True,
        None,
        "text",
        b"bytes",
        dt.date(2000, 1, 1),
        np.zeros(2),
        np.float32(1),
        torch.float32,
        torch.device("cpu"),
        torch.Size([1]),
        Path("x"),
        re.compile("x"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_can_hold_no_tensor_passes(value):
    """Numbers, text, arrays and the like need not be looked into, by themselves or within."""
    assert_detached(value)
    assert_detached({"value": [value]})


def test_code_within_a_structure_passes():
    """Functions, classes and slices in a configuration hold no tensors."""
    assert_detached({"fn": torch.relu, "f": nn.functional.relu, "at": slice(0, 3), "of": nn.Linear})
    assert_detached([Plain()])


def test_the_rank_is_told(process_group):
    """While a process group is initialized the message says the rank."""
    assert complaint(leaf).startswith("rank 0 of 1: assert_detached: ")


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


def test_tensors_at_every_depth(monkeypatch):
    """Of ten thousand tensors, each deeper than the last, only the paths shown are written."""
    written = []
    monkeypatch.setattr(detached, "path", lambda way: written.append(way) or path(way))
    tree = leaf
    for _ in range(10_000):
        tree = [leaf, tree]
    assert "10001 tensors are" in complaint(tree)
    assert len(written) == 10


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


@pytest.mark.parametrize("kept", [leaf, leaf.detach()], ids=["attached", "detached"])
def test_it_is_checked_in_a_compiled_function(kept):
    """In a compiled step it breaks the graph and is checked there, and is not passed over."""
    torch._dynamo.reset()

    @torch.compile(backend="eager")
    def step(x):
        y = x * 2
        assert_detached({"kept": y * kept})
        return y

    if kept is leaf:
        with pytest.raises(GradModeError, match="carries a graph"):
            step(torch.ones(1))
    else:
        assert step(torch.ones(1)) == 2


def test_in_a_full_graph_it_is_refused():
    """With fullgraph=True compiling fails, rather than leave the check out."""
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend="eager")
    def step(x):
        assert_detached(x)
        return x * 2

    with pytest.raises(torch._dynamo.exc.Unsupported, match="disable"):
        step(torch.ones(1))
