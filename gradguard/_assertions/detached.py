"""No tensor of a nested structure takes part in autograd."""

from collections.abc import Collection, Sequence
from types import BuiltinFunctionType, CoroutineType, FrameType, FunctionType, ModuleType
from weakref import ReferenceType

from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.optim import Optimizer

from gradguard._assertions.compiling import UNCOMPILED
from gradguard._core.rank import with_rank
from gradguard._core.text import one_line
from gradguard._core.torch_versions import never_compiled, not_compiled
from gradguard._errors import GradModeError
from gradguard._graph.attributes import (
    attributes,
    besides,
    holds_nothing,
    may_have_attributes,
    module_parts,
    optimizer_parts,
)
from gradguard._graph.listing import MOST_ENTRIES
from gradguard._graph.tensors import Parts, Way, index, item, items, path, walk

# They refer to others, and are code, not data.
_CODE = (type, ModuleType, BuiltinFunctionType, FrameType, ReferenceType)


@not_compiled(UNCOMPILED)
def assert_detached(tree: object) -> None:
    """Check that no tensor of a nested structure carries a graph or requires grad.

    For what outlives its step: logged losses, cached predictions, replay buffers. A tensor kept
    with its graph keeps every activation that the graph saved, until memory runs out.

    Looked into, at any depth and also where they contain themselves: mappings and their keys,
    lists, tuples, named tuples, deques, sets, dict views, dataclasses, and the attributes of any
    other object, also the closure and defaults of functions. The parameters of a module and of an
    optimizer may require grad; a module's buffers and other tensors, and an optimizer's state, may
    carry no graph. In a compiled function it breaks the graph.

    Args:
        tree: a tensor, or anything that holds some; it is not changed.

    Raises:
        GradModeError: names each such tensor by its path, ``["logits"][0]``.
        TypeError: it cannot be looked into: an iterator (looking would use it up), or an object
            without attributes. A check that has looked at nothing never passes.

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
    may_require_grad: set[int] = set()
    reached = list(walk(tree, lambda way, value: _parts(way, value, may_require_grad)))
    wrong = [(way, how) for way, value in reached if (how := _fault(value, may_require_grad))]
    if wrong:
        shown = [(path(way), how) for way, how in wrong[:MOST_ENTRIES]]
        raise GradModeError(with_rank(_attached(shown, len(wrong))))


def _parts(way: Way, value: object, may_require_grad: set[int]) -> Parts | None:
    """Give what a value holds; None for what holds nothing, or is not looked into."""
    if isinstance(value, nn.Module):
        own = (part for part in vars(value).values() if isinstance(part, Tensor))
        may_require_grad.update(map(id, (*value.parameters(), *value.buffers(), *own)))
        return module_parts(value)
    if isinstance(value, Optimizer):
        groups = value.param_groups
        may_require_grad.update(id(p) for group in groups for p in group["params"])
        return optimizer_parts(value)
    structure = items(value)
    if structure is not None:
        return besides(structure, value)
    if holds_nothing(value) or isinstance(value, Node):
        return None
    if not way or way[1] in (index, item):  # an item of a structure, not an object's attribute
        _check_can_be_looked_into(way, value)
    return None if isinstance(value, _CODE) or _is_torchs_own(value) else attributes(value)


def _is_torchs_own(value: object) -> bool:
    """Tell what torch itself keeps, such as what Dynamo has compiled of a module."""
    of = value if isinstance(value, FunctionType) else type(value)
    return str(of.__module__).startswith("torch._")


def _check_can_be_looked_into(way: Way, value: object) -> None:
    name = "" if not way else f" at {path(way)}"
    kind = type(value).__name__
    if hasattr(type(value), "__next__") or isinstance(value, CoroutineType):
        msg = (
            f"assert_detached cannot look into the {kind}{name}: that would use it up. Pass what "
            "it yields, for example list(iterator)."
        )
        raise TypeError(msg)
    is_code = isinstance(value, _CODE)
    nothing = is_code or next(iter(attributes(value)), None) is None
    if nothing and (not way or not (is_code or may_have_attributes(value))):
        msg = (
            f"assert_detached cannot look into the {kind}{name}: it has no attributes. Pass the "
            "tensors, or a structure or object that holds them."
        )
        raise TypeError(msg)


def _fault(value: object, may_require_grad: Collection[int]) -> str | None:
    if isinstance(value, Node):
        return f"is a node of a graph ({type(value).__name__})"
    if not isinstance(value, Tensor) or not value.requires_grad:
        return None
    if value.grad_fn is not None:
        return f"carries a graph ({type(value.grad_fn).__name__})"
    leaf = "requires grad (a leaf, such as a parameter)"
    return None if id(value) in may_require_grad else leaf


def _attached(shown: Sequence[tuple[str, str]], count: int) -> str:
    """Name the first of the tensors, of `count`, each by its path and what is wrong with it."""
    subject = "1 tensor is" if count == 1 else f"{count} tensors are"
    first = (
        f"assert_detached: {subject} still in autograd's graph; keeping one keeps the graph and "
        "all that it saved in memory:"
    )
    rows = [f"  {one_line(path or 'the tensor itself')}: {how}" for path, how in shown]
    more = [f"  and {count - len(shown)} more"] if count > len(shown) else []
    todo = (
        "To do: compute them under gradguard.no_grad(), or keep .detach() of them (.item() of a "
        "scalar)."
    )
    return "\n".join((first, *rows, *more, todo))


never_compiled(globals())


assert_detached.__module__ = "gradguard"
