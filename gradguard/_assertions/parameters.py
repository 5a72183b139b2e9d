"""Assertions on what training reaches: parameters, and their gradients."""

from collections.abc import Iterable
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gradguard._assertions import parameter_texts as texts
from gradguard._core.state import grad_state
from gradguard._errors import GradModeError
from gradguard._graph.autograd_graph import inference_tensors, is_inference, reached_from
from gradguard._graph.parameters import Named, matcher, parameters_of
from gradguard._graph.tensors import path, tensors
from gradguard._locate.where import where


def assert_trainable(module: nn.Module, *, frozen: Iterable[str] = ()) -> None:
    """Check that a model can be trained as asked, before it is.

    No parameter is frozen (has ``requires_grad`` False) except those that ``frozen`` names, those
    are frozen, and no parameter or buffer is an inference tensor. Such a tensor is born when a
    module is made, first run (lazy modules), copied, converted or loaded with ``assign=True`` in
    inference mode. A parameter that is one still says ``requires_grad`` True, but backward can
    succeed and leave its ``grad`` None, and then the optimizer skips it silently
    (https://docs.pytorch.org/docs/stable/notes/autograd.html#inference-mode).

    A tied parameter counts as named when any of its names is. A lazy module that has not run yet
    passes: check again after its first forward. While Dynamo compiles, nothing is checked.

    Args:
        module: the model.
        frozen: globs (`fnmatch.fnmatchcase`) on names as ``named_parameters()`` gives them, where
            ``*`` matches dots too; one string is one glob.

    Raises:
        GradModeError: names the parameters and buffers.
        ValueError: if a glob matches no parameter, or the module has none.
        TypeError: if ``module`` is not a module, or a glob not a string.

    Example:
        >>> from torch import nn
        >>> from gradguard import assert_trainable
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        >>> _ = model[0].requires_grad_(False)
        >>> assert_trainable(model, frozen=["0.*"])
        >>> assert_trainable(model)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        gradguard.GradModeError: assert_trainable: ...(requires_grad False)...
          0.weight
          0.bias
        ...

    """
    __tracebackhide__ = True
    if torch.compiler.is_dynamo_compiling():
        return
    every = parameters_of(module, "assert_trainable")
    named = matcher(every, frozen, "frozen")
    on_purpose = [one for one in every if named(one)]
    others = [one for one in every if not named(one)]
    unready = texts.Unready(
        frozen=[one.names for one in others if not one.parameter.requires_grad],
        thawed=[one.names for one in on_purpose if one.parameter.requires_grad],
        inference=[one.names for one in every if is_inference(one.parameter)],
        buffers=[(name,) for name in inference_tensors(module.named_buffers())],
    )
    if any(unready):
        names = [one.names for one in every]
        buffers = [(name,) for name, _ in module.named_buffers()]
        raise GradModeError(texts.not_trainable(type(module).__name__, names, buffers, unready))


def assert_parameters_used(loss: Tensor, module: nn.Module, *, allow: Iterable[str] = ()) -> None:
    """Check before backward that the loss reaches every trainable parameter.

    What it does not reach gets no gradient and is not trained; DistributedDataParallel calls these
    unused parameters. Reaching is a matter of the graph: a custom Function that returns None for
    an input is passed through, and `assert_gradients` finds that.

    What runs in a *reentrant* checkpoint has no graph before backward. Where the loss passes
    through one, parameters that may be hidden in it are reported like the others, and the error
    says so. Parameters with no elements are left out. The walk takes time in proportion to the
    graph, some hundredths of what backward takes, and keeps nothing of it alive. While Dynamo
    compiles, nothing is checked.

    Args:
        loss: the tensor on which ``backward()`` will be called.
        module: the model.
        allow: globs on the names of parameters that need not be reached, as for
            `assert_trainable`; they may be.

    Raises:
        GradModeError: names the parameters, inference tensors first; or says why the loss has no
            graph at all.
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
    if torch.compiler.is_dynamo_compiling():
        return
    every = _trainable(module, allow, "assert_parameters_used")
    if not isinstance(loss, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        inside = (path(way) for way, _ in islice(tensors(loss), 10))
        raise TypeError(texts.not_a_loss(type(loss).__name__, inside))
    kind = type(module).__name__
    if not loss.requires_grad:
        raise GradModeError(texts.no_graph(kind, *_why_no_graph(loss, module)))
    leaves, checkpoints = reached_from(loss)
    missed = [one for one in every if id(one.parameter) not in leaves]
    if missed:
        names = [one.names for one in every]
        raise GradModeError(texts.unused(kind, names, _by_cause(missed), checkpoints))


def assert_gradients(module: nn.Module, *, allow: Iterable[str] = ()) -> None:
    """Check after backward that every trainable parameter has a gradient.

    A gradient is a ``grad`` that is not None, dense or sparse. One that was zeroed in place or is
    left over from an earlier step cannot be told from a new one: call
    ``zero_grad(set_to_none=True)``, the default, before each backward. Parameters with no elements
    are left out; a module with everything frozen passes (`assert_trainable` finds that). While
    Dynamo compiles, nothing is checked.

    Args:
        module: the model.
        allow: globs on the names of parameters that need not have one, as for `assert_trainable`;
            they may have one.

    Raises:
        GradModeError: names the parameters, first those that are inference tensors.
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
        Inference tensors, born in inference mode: autograd left them out (1):
          weight
        ...

    """
    __tracebackhide__ = True
    if torch.compiler.is_dynamo_compiling():
        return
    every = _trainable(module, allow, "assert_gradients")
    missed = [one for one in every if one.parameter.grad is None]
    if missed:
        names = [one.names for one in every]
        raise GradModeError(texts.no_gradient(type(module).__name__, names, _by_cause(missed)))


def _trainable(module: nn.Module, allow: Iterable[str], asker: str) -> list[Named]:
    every = parameters_of(module, asker)
    allowed = matcher(every, allow, "allow")
    return [one for one in every if one.can_learn and not allowed(one)]


def _by_cause(missed: Iterable[Named]) -> texts.Missed:
    causes = texts.Missed([], [], [])
    for names, parameter in missed:
        if is_lazy(parameter):
            causes.lazy.append(names)
        elif parameter.is_inference():
            causes.inference.append(names)
        else:
            causes.other.append(names)
    return causes


def _why_no_graph(loss: Tensor, module: nn.Module) -> tuple[str, list[str]]:
    """Return the reason and, if that is the mode at this line, where it was switched."""
    state = grad_state()
    if loss.is_inference():
        return texts.INFERENCE_LOSS, []
    if state.inference_mode:
        return texts.INFERENCE_ON, where(state)
    if not state.grad_enabled:
        return texts.GRAD_OFF, where(state)
    frozen = not any(parameter.requires_grad for parameter in module.parameters())
    return texts.ALL_FROZEN if frozen else texts.DETACHED, []
