"""Assertions on what training reaches: parameters, and their gradients."""

from collections.abc import Iterable
from itertools import islice

from torch import Tensor, nn

from gradguard._assertions.compiling import UNCOMPILED
from gradguard._assertions.missing import Missing, by_cause, cannot_have_one, trainable
from gradguard._core.rank import with_rank
from gradguard._core.state import grad_state
from gradguard._core.text import one_line
from gradguard._core.torch_versions import never_compiled, not_compiled
from gradguard._errors import GradModeError
from gradguard._graph.advice import FIND
from gradguard._graph.autograd_graph import reached_from
from gradguard._graph.listing import MOST_ENTRIES, Section, listed
from gradguard._graph.parameters import NamedParameter
from gradguard._graph.tensors import path, tensors
from gradguard._locate.where import where


@not_compiled(UNCOMPILED)
def assert_parameters_used(loss: Tensor, module: nn.Module, *, allow: Iterable[str] = ()) -> None:
    """Check before backward that the loss reaches every trainable parameter.

    What it does not reach gets no gradient and is not trained; DistributedDataParallel calls these
    unused parameters. Reaching is a matter of the graph: a custom Function that returns None for
    an input is passed through, and `assert_gradients` finds that.

    What runs in a *reentrant* checkpoint has no graph before backward. Where the loss passes
    through one, parameters that may be hidden in it are reported like the others, and the error
    says so. Parameters with no elements are left out. The walk takes time in proportion to the
    graph, some hundredths of what backward takes, and keeps nothing of it alive. In a compiled
    function it breaks the graph.

    Args:
        loss: the tensor on which ``backward()`` will be called.
        module: the model.
        allow: globs on the names of parameters that need not be reached, as for
            `assert_trainable`; they may be.

    Raises:
        GradModeError: names the parameters, those created in inference mode first; or says why
            the loss has no graph at all.
        ValueError: if a glob matches no parameter, or the module has none.
        TypeError: if ``loss`` is not a tensor (it says which of its items are), ``module`` not a
            module, or a glob not a string.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from gradguard import assert_parameters_used
        >>> model = nn.ModuleDict({"body": nn.Linear(2, 2), "head": nn.Linear(2, 1)})
        >>> loss = model["body"](torch.ones(1, 2)).sum()
        >>> assert_parameters_used(loss, model, allow=["head.*"])
        >>> assert_parameters_used(loss, model)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        gradguard.GradModeError: ...does not reach 2 of 4 trainable parameters of ModuleDict...
          head.weight
          head.bias
        ...

    """
    __tracebackhide__ = True
    every = trainable(module, allow, "assert_parameters_used")
    if not isinstance(loss, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(_not_a_loss(loss))
    if not loss.requires_grad:
        raise GradModeError(with_rank(_no_graph(loss, module)))
    leaves, checkpoints = reached_from(loss)
    missing = [one for one in every if id(one.parameter) not in leaves]
    if missing:
        causes = by_cause(missing)
        first = (
            f"assert_parameters_used: the loss does not reach {len(missing)} of {len(every)} "
            f"trainable parameters of {type(module).__name__}; backward() would give them no "
            'gradient (DistributedDataParallel: "parameters that were not used in producing loss").'
        )
        hidden = [_hidden(checkpoints)] if causes.other and checkpoints else []
        raise GradModeError(with_rank(_listed([first, *hidden], every, causes, "Not in the graph")))


@not_compiled(UNCOMPILED)
def assert_gradients(module: nn.Module, *, allow: Iterable[str] = ()) -> None:
    """Check after backward that every trainable parameter has a gradient.

    A gradient is a ``grad`` that is not None, dense or sparse. One that was zeroed in place or is
    left over from an earlier step cannot be told from a new one: call
    ``zero_grad(set_to_none=True)``, the default, before each backward. Parameters with no elements
    are left out; a module with everything frozen passes (`assert_trainable` finds that). In a
    compiled function it breaks the graph.

    Args:
        module: the model.
        allow: globs on the names of parameters that need not have one, as for `assert_trainable`;
            they may have one.

    Raises:
        GradModeError: names the parameters, first those created in inference mode.
        ValueError: if a glob matches no parameter, or the module has none.
        TypeError: if ``module`` is not a module, or a glob not a string.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from gradguard import assert_gradients
        >>> with torch.inference_mode():
        ...     model = nn.Linear(2, 1)
        >>> model(torch.ones(1, 2)).sum().backward()  # no error from torch
        >>> assert_gradients(model)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        gradguard.GradModeError: assert_gradients: no gradient for 1 of 2 trainable parameters...
        Created in inference mode, so that autograd leaves them out (1):
          weight
        ...

    """
    __tracebackhide__ = True
    every = trainable(module, allow, "assert_gradients")
    missing = [one for one in every if one.parameter.grad is None]
    if missing:
        first = (
            f"assert_gradients: no gradient for {len(missing)} of {len(every)} trainable "
            f"parameters of {type(module).__name__}; an optimizer step skips them without an error."
        )
        causes = by_cause(missing)
        raise GradModeError(with_rank(_listed([first], every, causes, "Not reached by a backward")))


_TO_DO = {
    "Not in the graph": (
        "use them for the loss, without detach() and with grad mode on, or name them in allow=."
    ),
    "Not reached by a backward": (
        "call this after backward() and before zero_grad(). If it is: the forward does not use "
        "them, detaches what they made, or uses them with grad mode off."
    ),
}


def _listed(first: list[str], every: list[NamedParameter], causes: Missing, heading: str) -> str:
    names = [one.names for one in every]
    reached = Section(heading, causes.other, names, f"{_TO_DO[heading]} {FIND}")
    return listed(first, [*cannot_have_one(causes, names), reached])


def _hidden(checkpoints: Iterable[str]) -> str:
    return (
        f"Some may be hidden: the loss passes through {', '.join(sorted(checkpoints)[:3])}, "
        "and what runs in a reentrant checkpoint has no graph before backward. Check them "
        "with assert_gradients after backward(), or use checkpoint(..., use_reentrant=False)."
    )


def _not_a_loss(loss: object) -> str:
    kind = type(loss).__name__
    inside = [one_line(path(way)) for way, _ in islice(tensors(loss), MOST_ENTRIES)]
    if inside:
        hint = f"It holds tensors at {', '.join(inside)}: pass the one backward() is called on."
    elif kind in {"float", "int", "bool"}:
        hint = "A number has no graph: pass the tensor from before .item() or float()."
    else:
        hint = "Pass the tensor that backward() is called on."
    return f"assert_parameters_used needs the loss as a torch.Tensor, got {kind}. {hint}"


def _no_graph(loss: Tensor, module: nn.Module) -> str:
    reason, lines = _why_no_graph(loss, module)
    first = (
        "assert_parameters_used: the loss has no graph, so backward() reaches no parameter of "
        f'{type(module).__name__} and raises ("element 0 of tensors does not require grad and does '
        f'not have a grad_fn"): {reason}.'
    )
    todo = "To do: compute the loss with grad mode on, and keep it a tensor."
    return "\n".join((first, *lines, todo if lines else f"{todo} {FIND}"))


def _why_no_graph(loss: Tensor, module: nn.Module) -> tuple[str, list[str]]:
    """Return the reason and, if that is the mode at this line, where it was switched."""
    state = grad_state()
    if loss.is_inference():
        return "it is an inference tensor, computed in inference mode", []
    if state.inference_mode:
        now = "inference mode is on at this line, so operations are not recorded"
        return now, where(state)
    if not state.grad_enabled:
        return "grad mode is off at this line, so operations are not recorded", where(state)
    if not any(parameter.requires_grad for parameter in module.parameters()):
        return "no parameter of the module has requires_grad True (see assert_trainable)", []
    detached = (
        "nothing it was made from requires grad: it was detached (.detach(), .data, "
        "torch.tensor(...)), or computed under a no_grad that has ended since"
    )
    return detached, []


never_compiled(globals())


for _public in (assert_parameters_used, assert_gradients):
    _public.__module__ = "gradguard"
del _public
