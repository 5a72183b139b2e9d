"""What a loss reaches, and the tensors that autograd never reaches."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from torch import Tensor
from torch.autograd.graph import Node
from torch.nn.parameter import is_lazy

from gradguard._core.torch_versions import never_compiled


class Reached(NamedTuple):
    """What the graph of one loss leads to.

    Attributes:
        leaves: the `id` of every leaf tensor that backward would give a gradient. It holds as long
            as the loss does, which owns the graph, which owns the leaves.
        checkpoints: the kinds of node met that may hide a further graph (see `reached_from`).

    """

    leaves: frozenset[int]
    checkpoints: frozenset[str]


def reached_from(loss: Tensor) -> Reached:
    """Walk the graph of a loss down to its leaves, each node once.

    A reentrant checkpoint is one node, written in Python: it records what is inside it only while
    backward runs. Other libraries' (fairscale, DeepSpeed, Megatron) are built alike and named
    alike, so the word "Checkpoint" in the node's kind tells them.
    """
    if loss.grad_fn is None:
        return Reached(frozenset({id(loss)} if loss.requires_grad else ()), frozenset())
    leaves: set[int] = set()
    checkpoints: set[str] = set()
    for node in nodes(loss.grad_fn):
        # Not `hasattr(node, "variable")`: a custom Function may have set its ctx.variable.
        kind = type(node).__name__
        if kind == "AccumulateGrad":
            leaves.add(id(node.variable))  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
        elif "Checkpoint" in kind:
            checkpoints.add(kind)
    return Reached(frozenset(leaves), frozenset(checkpoints))


def nodes(root: Node) -> Iterator[Node]:
    # The nodes themselves are in `seen`, not their ids: their Python objects are made on demand,
    # and the id of one that was dropped is given to the next. A recursive walk would end at
    # Python's recursion limit, some hundred layers deep.
    seen = {root}
    stack = [root]
    while stack:
        node = stack.pop()
        yield node
        for child, _ in node.next_functions:
            if child is not None and child not in seen:  # None: no gradient goes there
                seen.add(child)
                stack.append(child)


def inference_tensors(named: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Name the tensors created in inference mode, of ``named_parameters()`` and the like."""
    return [name for name, tensor in named if is_inference(tensor)]


def is_inference(tensor: Tensor) -> bool:
    """Tell whether a parameter or buffer was created in inference mode.

    Also where it was converted outside since (``.double()``): it is no inference tensor any more
    then, but has no version counter, and backward refuses it.

    One of a lazy module that has not run yet is not a tensor to torch either, and cannot be asked.
    """
    return not is_lazy(tensor) and (tensor.is_inference() or not _has_version_counter(tensor))


def _has_version_counter(tensor: Tensor) -> bool:
    try:
        tensor._version  # noqa: B018, SLF001 (torch documents it, and offers no other way to ask)
    except RuntimeError:
        return False
    return True


never_compiled(globals())
