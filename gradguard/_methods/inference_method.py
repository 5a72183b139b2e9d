"""`inference_method`: eval mode, a guard and autocast for each call of a model's method."""

from collections.abc import Callable
from typing import Any, overload

import torch

from gradguard._core.guard_types import F
from gradguard._methods.options import Inference, Mode
from gradguard._methods.target import Named, check_method, modules_of

_NAME = "inference_method"


@overload
def inference_method(
    method: F,
    *,
    mode: Mode = "inference_mode",
    module: Named = None,
    autocast: torch.dtype | None = None,
    keep_eval: bool = False,
) -> F: ...
@overload
def inference_method(
    method: None = None,
    *,
    mode: Mode = "inference_mode",
    module: Named = None,
    autocast: torch.dtype | None = None,
    keep_eval: bool = False,
) -> Callable[[F], F]: ...
def inference_method(
    method: Any = None,
    *,
    mode: str = "inference_mode",
    module: Named = None,
    autocast: torch.dtype | None = None,
    keep_eval: bool = False,
) -> Any:
    """Run each call of a method with its module in eval mode and nothing recorded.

    For the call the module and all its submodules are in eval mode (see `evaluating`: counted over
    all threads, and every submodule gets its own flag back), the guard is on and, with `autocast`,
    so is `torch.autocast`. Generator, ``async`` and async generator methods have all three while
    their body runs; at each suspension (``yield``, ``await``) the outside's come back, and the
    body's come again on resume.

    The module is looked up in each call, so copies of the object, and attributes that are assigned
    anew, wrapped by `torch.compile` or by ``DistributedDataParallel``, work. It decorates
    properties and classmethods, too; for a classmethod the first argument is what counts, the
    class. For functions that are no methods there is `inference_function`.

    In a function that `torch.compile` compiles, a module that is in eval mode already needs no
    change. Otherwise the call runs uncompiled, or, with ``fullgraph=True``, compiling fails with an
    error that says to put it around the compiled call.

    Args:
        method: the method, where the decorator is used without options.
        mode: ``"inference_mode"`` or ``"no_grad"``, whose results may be used in recorded
            operations later.
        module: where the object that has the method is no module itself, the name of the attribute
            that is; a dotted path, or a tuple for several, may be given.
        autocast: the data type of `torch.autocast`, for the device of the first parameter (or
            buffer) of the modules.
        keep_eval: keep the eval mode while the body is suspended, for modules whose ``train()`` is
            expensive (LoRA layers that merge weights), until it ends or is closed or dropped.

    Returns:
        The decorated method, of the same kind and signature.

    Raises:
        TypeError: an option of the wrong type, or something that is not a method; and, from a
            call, a module that cannot be found: the attribute is named.
        ValueError: an option with an unknown value.

    >>> import torch
    >>> from gradguard import inference_method
    >>> class Net(torch.nn.Linear):
    ...     @inference_method
    ...     def predict(self, x):
    ...         return self(x), self.training
    >>> net = Net(2, 1)
    >>> y, training = net.predict(torch.ones(1, 2))
    >>> y.requires_grad, training, net.training
    (False, False, True)

    Source: `torch.inference_mode`, `torch.autocast`, `torch.nn.Module.eval`.
    """
    inference = Inference(_NAME, mode, autocast, keep_eval)

    def decorator(method: Any) -> Any:
        check_method(_NAME, method)
        return inference.decorate(method, modules_of(_NAME, method, module))

    return decorator if method is None else decorator(method)


inference_method.__module__ = "gradguard"
