"""No tensor of a nested structure takes part in autograd."""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, ValuesView
from collections.abc import Set as AbstractSet
from typing import Any

import torch
from torch import Tensor

from gradguard._assertions import parameter_texts as texts
from gradguard._errors import GradModeError
from gradguard._graph.listing import MOST_ENTRIES

Way = tuple[Any, ...]
"""The way to a tensor: (way to its container, how a step is written, key); () is the root."""


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


def tensors(tree: object) -> Iterator[tuple[Way, Tensor]]:
    """Yield the tensors of a structure with the way to each, in order, each container once.

    Not `torch.utils._pytree`: it is private, recursive, and does not end on a cycle.
    """
    # Containers are kept, not their ids alone: a mapping may make its values as they are asked
    # for, and the id of one that was dropped is given to the next.
    seen: dict[int, object] = {}
    stack: list[tuple[Way, object]] = [((), tree)]
    while stack:
        way, value = stack.pop()
        if isinstance(value, Tensor):
            yield way, value
        elif id(value) not in seen and (items := _items(value)):
            seen[id(value)] = value
            write, pairs = items
            stack.extend(((way, write, key), child) for key, child in reversed(list(pairs)))


def _items(value: object) -> tuple[Callable[[Any], str], Iterable[tuple[Any, object]]] | None:
    """Give what a container holds by key, and how the key is written; None for anything else."""
    if isinstance(value, Mapping):
        return texts.index, value.items()
    if isinstance(value, tuple) and (fields := getattr(value, "_fields", None)):
        return texts.attribute, zip(fields, value, strict=False)
    if isinstance(value, (list, tuple, deque)):
        return texts.index, enumerate(value)
    if isinstance(value, (AbstractSet, ValuesView)):
        return texts.item, enumerate(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = (field.name for field in dataclasses.fields(value))
        return texts.attribute, ((name, getattr(value, name, None)) for name in names)
    return None


def path(way: Way) -> str:
    """Write the way to a tensor as Python would reach it, such as ``["logits"][0]``."""
    steps: list[str] = []
    while way:
        way, write, key = way
        steps.append(write(key))
    return "".join(reversed(steps))
