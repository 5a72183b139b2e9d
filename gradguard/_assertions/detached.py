"""No tensor of a nested structure takes part in autograd."""

import torch
from torch import Tensor

from gradguard._assertions import parameter_texts as texts
from gradguard._errors import GradModeError
from gradguard._graph.listing import MOST_ENTRIES
from gradguard._graph.tensors import path, tensors


def assert_detached(tree: object) -> None:
    """Check that no tensor of a nested structure carries a graph or requires grad.

    For what outlives its step: logged losses, cached predictions, replay buffers. A tensor kept
    with its graph keeps every activation that the graph saved, until memory runs out.

    Looked into, at any depth and also where they contain themselves: mappings, lists, tuples,
    named tuples, deques, sets and dict views, and instances of dataclasses. Any other object
    (a module, a distribution, an iterator) is taken for a leaf and not looked into. While Dynamo
    compiles, nothing is checked.

    Args:
        tree: a tensor or a structure of them; it is not changed.

    Raises:
        GradModeError: names each such tensor by its path, ``["logits"][0]``.

    Example:
        >>> import torch
        >>> from gradguard import assert_detached
        >>> loss = torch.ones(2, requires_grad=True).sum()
        >>> assert_detached({"loss": loss.item(), "logits": [loss.detach()]})
        >>> assert_detached({"loss": loss})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        gradguard.GradModeError: assert_detached: 1 tensor is still in autograd's graph...
          ["loss"]: carries a graph (SumBackward0)...

    """
    __tracebackhide__ = True
    if torch.compiler.is_dynamo_compiling():
        return
    found = [(way, tensor) for way, tensor in tensors(tree) if tensor.requires_grad]
    if found:
        shown = [(path(way), _how(tensor)) for way, tensor in found[:MOST_ENTRIES]]
        raise GradModeError(texts.attached(shown, len(found)))


def _how(tensor: Tensor) -> str:
    if tensor.grad_fn is None:
        return "requires grad (a leaf, such as a parameter)"
    return f"carries a graph ({type(tensor.grad_fn).__name__})"
