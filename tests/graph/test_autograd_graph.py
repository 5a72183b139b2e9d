"""gradguard._graph.autograd_graph: what a loss reaches, and inference tensors."""

import gc
import sys
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from gradguard._graph.autograd_graph import inference_tensors, is_inference, nodes, reached_from

contexts = []


class Double(torch.autograd.Function):
    """A custom Function that keeps a name of its own on its context."""

    @staticmethod
    def forward(ctx, x):
        ctx.variable = "not a tensor"
        contexts.append(weakref.ref(ctx))
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return grad * 2


def reaches(loss, *tensors):
    return [id(tensor) in reached_from(loss).leaves for tensor in tensors]


def chain(length, x):
    for _ in range(length):
        x = x * 1.0
    return x.sum()


def test_leaves_are_those_that_backward_gives_a_gradient():
    """The leaves reached are exactly the tensors whose grad backward fills."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.LayerNorm(4), nn.Linear(4, 2))
    unused = nn.Linear(2, 2)
    model[2].bias.requires_grad_(False)
    loss = model(torch.ones(2, 3)).sum()
    every = [*model.parameters(), *unused.parameters()]
    expected = reaches(loss, *every)
    loss.backward()
    assert [parameter.grad is not None for parameter in every] == expected


@given(st.lists(st.lists(st.integers(0, 20), max_size=3), min_size=1, max_size=15))
def test_any_graph_is_walked_to_the_leaves_that_backward_finds(inputs_of):
    """Whatever the shape of the graph, walk and backward agree on the leaves."""
    leaves = [torch.ones(1, requires_grad=True) for _ in range(5)]
    made = list(leaves)
    for inputs in inputs_of:
        made.append(sum((made[at % len(made)] for at in inputs), torch.zeros(1)) * 2)
    loss = made[-1].sum()
    if not loss.requires_grad:
        assert reached_from(loss).leaves == frozenset()
        return
    expected = reaches(loss, *leaves)
    loss.backward()
    assert [leaf.grad is not None for leaf in leaves] == expected


def test_loss_that_is_itself_a_leaf():
    """A leaf that requires grad reaches itself; one that does not reaches nothing."""
    leaf = nn.Parameter(torch.ones(1))
    assert reaches(leaf, leaf) == [True]
    assert reached_from(torch.ones(1)).leaves == frozenset()


def test_ten_thousand_layers_without_recursion():
    """A graph far deeper than the recursion limit is walked to its end."""
    x = torch.ones(1, requires_grad=True)
    assert sys.getrecursionlimit() < 10_000
    assert reaches(chain(10_000, x), x) == [True]


def test_shared_layers_are_walked_once():
    """A layer used over and over doubles the paths, not the work."""
    x = torch.ones(1, requires_grad=True)
    y = x
    for _ in range(100):  # 2 ** 100 paths
        y = y + y
    assert reaches(y.sum(), x) == [True]


def test_each_node_is_met_once():
    """However many ways lead to a node, the walk comes to it once."""
    x = torch.ones(1, requires_grad=True)
    y = x
    for _ in range(10):
        y = y + y
    met = list(nodes(y.sum().grad_fn))
    assert len(met) == len(set(met)) == 12  # ten sums, that of the loss, and the leaf's


def test_custom_function_is_passed_through():
    """A custom Function hides nothing, and an attribute of its context is not taken for a leaf."""
    x = torch.ones(1, requires_grad=True)
    reached = reached_from(Double.apply(x).sum())
    assert reached.leaves == {id(x)}
    assert reached.checkpoints == frozenset()


def test_nothing_of_the_graph_is_kept_alive():
    """When the caller drops the loss, the graph goes at once, without the garbage collector."""
    x = torch.ones(1, requires_grad=True)
    loss = Double.apply(x).sum()
    context = contexts[-1]
    reached = reached_from(loss)
    gc.disable()
    try:
        assert context() is not None
        del loss
        assert context() is None
    finally:
        gc.enable()
    assert reached.leaves == {id(x)}


def test_walk_leaves_backward_as_it_was():
    """The graph can be walked, run backward and walked again."""
    x = torch.ones(1, requires_grad=True)
    loss = Double.apply(x).sum()
    assert reaches(loss, x) == [True]
    loss.backward()
    assert x.grad is not None
    assert reaches(loss, x) == [True]


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint(use_reentrant):
    """A non-reentrant checkpoint is seen through; a reentrant one is named as hiding its inside."""
    layer = nn.Linear(2, 2)
    x = torch.ones(1, 2, requires_grad=True)
    loss = checkpoint(layer, x, use_reentrant=use_reentrant).sum()
    assert reaches(loss, layer.weight, x) == [not use_reentrant, True]
    names = {"CheckpointFunctionBackward"} if use_reentrant else set()
    assert reached_from(loss).checkpoints == names


class OffloadedCheckpoint(Double):
    """As libraries of others name what records its inside during backward only."""


def test_checkpoints_of_other_libraries_are_named():
    """Whatever node has "Checkpoint" in its name may hide something, and is named as it is."""
    x = torch.ones(1, requires_grad=True)
    loss = (OffloadedCheckpoint.apply(x) + checkpoint(torch.sin, x, use_reentrant=True)).sum()
    names = {"OffloadedCheckpointBackward", "CheckpointFunctionBackward"}
    assert reached_from(loss).checkpoints == names


def test_views_and_compiled_functions():
    """Leaves are found behind views and behind what AOTAutograd compiled."""
    layer = nn.Linear(2, 2)
    assert reaches(layer.weight.view(4)[:2].sum(), layer.weight) == [True]
    compiled = torch.compile(layer, backend="aot_eager")
    assert reaches(compiled(torch.ones(1, 2)).sum(), layer.weight, layer.bias) == [True, True]


def test_inference_tensors_are_named():
    """Of named tensors, those created in inference mode are named."""
    with torch.inference_mode():
        made = torch.ones(1)
    assert inference_tensors([("a", torch.ones(1)), ("b", made)]) == ["b"]


def test_a_tensor_without_version_counter_was_created_in_inference_mode():
    """A parameter that was converted outside is told by its missing version counter."""
    with torch.inference_mode():
        layer = nn.Linear(1, 1)
    layer.double()
    assert not layer.weight.is_inference()
    assert is_inference(layer.weight)
    assert not is_inference(nn.Linear(1, 1).double().weight)


def test_uninitialized_tensors_are_not_inference_tensors():
    """The parameters and buffers of a lazy module, which cannot be asked, count as ordinary."""
    lazy = nn.LazyBatchNorm1d()
    for tensor in (*lazy.parameters(), *lazy.buffers()):
        assert not is_inference(tensor)
