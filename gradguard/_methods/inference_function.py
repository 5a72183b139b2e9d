"""`inference_function`: eval mode, a guard and autocast for each call of a function on models."""

from collections.abc import Callable
from typing import Any, overload

import torch
from torch.nn import Module

from gradguard._core.guard_types import F
from gradguard._methods.arguments import ModulesIn, Named
from gradguard._methods.options import Inference, Mode

_NAME = "inference_function"


@overload
def inference_function(
    function: F,
    *,
    modules: Named = None,
    mode: Mode = "inference_mode",
    autocast: torch.dtype | None = None,
    keep_eval: bool = False,
) -> F: ...
@overload
def inference_function(
    function: None = None,
    *,
    modules: Named = None,
    mode: Mode = "inference_mode",
    autocast: torch.dtype | None = None,
    keep_eval: bool = False,
) -> Callable[[F], F]: ...
def inference_function(
    function: Any = None,
    *,
    modules: Named = None,
    mode: str = "inference_mode",
    autocast: torch.dtype | None = None,
    keep_eval: bool = False,
) -> Any:
    """Run each call of a function with the modules it is given in eval mode and nothing recorded.

    What `inference_method` is for methods, for ``def predict(model, x)``: functions of all kinds,
    generator, ``async`` and async generator functions included. Every `torch.nn.Module` among the
    arguments of the call is put in eval mode, whether it is passed by position, by keyword, in a
    list, tuple or mapping, or is a default. The function keeps its signature and annotations, so
    web frameworks that call it by keyword treat it as before.

    Args:
        function: the function, where the decorator is used without options.
        modules: what to put in eval mode instead: a module that the function closes over, the name
            of a parameter (``"model"``), a dotted path from one (``"pipe.model"``), or a tuple of
            these.
        mode: ``"inference_mode"`` or ``"no_grad"``, whose results may be used in recorded
            operations later.
        autocast: the data type of `torch.autocast`, for the device of the first parameter (or
            buffer) of the modules.
        keep_eval: keep the eval mode while the body is suspended, for modules whose ``train()`` is
            expensive (LoRA layers that merge weights), until it ends or is closed or dropped.

    Returns:
        The decorated function, of the same kind and signature.

    Raises:
        TypeError: an option of the wrong type, or something that is no function; and, from a call,
            no module among its arguments.
        ValueError: an option with an unknown value, or a name that is no parameter.

    >>> import torch
    >>> from gradguard import inference_function
    >>> @inference_function
    ... def predict(model, x):
    ...     return model(x), model.training
    >>> net = torch.nn.Linear(2, 1)
    >>> y, training = predict(x=torch.ones(1, 2), model=net)
    >>> y.requires_grad, training, net.training
    (False, False, True)

    Source: `torch.inference_mode`, `torch.autocast`, `torch.nn.Module.eval`.
    """
    inference = Inference(_NAME, mode, autocast, keep_eval)

    def decorator(function: Any) -> Any:
        if isinstance(function, Module):
            kind = type(function).__name__
            msg = (
                f"{_NAME} decorates a function, not a module, and this is an instance of {kind}. "
                f"Decorate the function that calls it, or a method of {kind} with inference_method."
            )
            raise TypeError(msg)
        return inference.decorate(function, ModulesIn(function, modules))

    return decorator if function is None else decorator(function)


inference_function.__module__ = "gradguard"
