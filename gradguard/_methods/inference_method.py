"""`inference_method`: eval mode, a guard and autocast for each call of a model's method."""

from collections.abc import Callable
from typing import Any, Literal, overload

import torch

from gradguard._core.decorating import decorate, decorate_each
from gradguard._core.guard_types import INFERENCE_ON, NO_GRAD, F
from gradguard._core.wrappers import CallContext
from gradguard._eval.evaluating import EvalBody, evaluating
from gradguard._methods import texts as messages
from gradguard._methods.autocast import Autocast, device_of
from gradguard._methods.target import ModulesOf, Named, check_method, modules_of

_GUARDS = {"inference": INFERENCE_ON, "no_grad": NO_GRAD}
_DTYPES = (torch.bfloat16, torch.float16)
_NAME = "inference_method"


@overload
def inference_method(
    method: F,
    *,
    mode: Literal["inference", "no_grad"] = "inference",
    module: Named = None,
    autocast: torch.dtype | None = None,
    hold: bool = False,
) -> F: ...
@overload
def inference_method(
    method: None = None,
    *,
    mode: Literal["inference", "no_grad"] = "inference",
    module: Named = None,
    autocast: torch.dtype | None = None,
    hold: bool = False,
) -> Callable[[F], F]: ...
def inference_method(
    method: Any = None,
    *,
    mode: str = "inference",
    module: Named = None,
    autocast: torch.dtype | None = None,
    hold: bool = False,
) -> Any:
    """Run each call of a method with its module in eval mode and nothing recorded.

    For the call the module and all its submodules are in eval mode (see `evaluating`: counted over
    all threads, and every submodule gets its own flag back), the guard is on and, with `autocast`,
    so is `torch.autocast`. Generator, ``async`` and async generator methods have all three while
    their body runs; at each suspension (``yield``, ``await``) the outside's come back, and the
    body's come again on resume.

    The module is looked up in each call, so copies of the object, and attributes that are assigned
    anew, wrapped by `torch.compile` or by ``DistributedDataParallel``, work. It decorates
    properties and classmethods, too; for a classmethod or a plain function the first argument is
    what counts, the class or whatever is passed.

    While Dynamo is compiling the guard and autocast act, and the eval mode is left to whoever
    calls the compiled function: no flag is changed.

    Args:
        method: the method, where the decorator is used without options.
        mode: ``"inference"`` for `inference_mode`, ``"no_grad"`` for `no_grad`, whose results may
            be used in recorded operations later.
        module: where the object that has the method is no module itself, the name of the attribute
            that is; a dotted path, or a tuple for several, may be given.
        autocast: the data type of `torch.autocast`, for the device of the first parameter (or
            buffer) of the modules.
        hold: keep the eval mode while the body is suspended, for modules whose ``train()`` is
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
    _check(mode, autocast, hold)

    def decorator(method: Any) -> Any:
        check_method(_NAME, method)
        modules = modules_of(_NAME, method, module)
        wrapped = decorate(method, _GUARDS[mode])
        if autocast is not None:
            wrapped = decorate_each(wrapped, _autocast_for(modules, autocast), _NAME)
        # Outermost, so that a module's own train() runs outside the guard: what it assigns (merged
        # weights, say) would otherwise be inference tensors.
        return decorate_each(wrapped, _eval_for(modules, hold=hold), _NAME)

    return decorator if method is None else decorator(method)


class _Held(evaluating):
    """Eval mode that a body keeps while it is suspended."""

    def body(self) -> EvalBody:
        return EvalBody(self._modules, hold=True)


def _eval_for(modules: ModulesOf, *, hold: bool) -> Callable[..., CallContext]:
    scope = _Held if hold else evaluating

    def eval_for(*args: Any, **_: Any) -> CallContext:
        return scope(*modules(args))

    return eval_for


def _autocast_for(modules: ModulesOf, dtype: torch.dtype) -> Callable[..., CallContext]:
    def autocast_for(*args: Any, **_: Any) -> CallContext:
        return Autocast(device_of(modules(args)), dtype)

    return autocast_for


def _check(mode: object, autocast: object, hold: object) -> None:
    if not isinstance(mode, str):
        raise TypeError(messages.bad_mode(mode))
    if mode not in _GUARDS:
        raise ValueError(messages.bad_mode(mode))
    if autocast is not None and not isinstance(autocast, torch.dtype):
        raise TypeError(messages.bad_autocast(autocast))
    if autocast is not None and autocast not in _DTYPES:
        raise ValueError(messages.bad_autocast(autocast))
    if not isinstance(hold, bool):
        raise TypeError(messages.bad_hold(hold))
