"""`training_method`: checks around each call of a model's training step."""

import functools
import inspect
import threading
from collections.abc import Callable
from types import CoroutineType
from typing import Any, overload

from torch.nn import Module

from gradguard._assertions.leak_check import leaves_mode
from gradguard._core.guard_types import F
from gradguard._core.state import grad_state, is_dynamo_compiling
from gradguard._errors import GradModeError
from gradguard._eval.scopes import holders
from gradguard._locate.where import where
from gradguard._methods import training_texts as messages
from gradguard._methods.loss import check_loss
from gradguard._methods.target import ModulesOf, Named, check_method, modules_of

_NAME = "training_method"


@overload
def training_method(method: F, *, module: Named = None) -> F: ...
@overload
def training_method(method: None = None, *, module: Named = None) -> Callable[[F], F]: ...
def training_method(method: Any = None, *, module: Named = None) -> Any:
    """Check in each call of a training step that it can train, and that its loss does.

    On entry: grad mode is on, inference mode is off, and the module itself (not its submodules,
    which may be frozen in eval) is in train mode. On return: the mode is what it was, otherwise it
    is put back before the error is raised; and the loss has a graph. The loss is a returned tensor,
    the ``"loss"`` of a mapping, the attribute ``loss``, or the first element of a tuple; None is
    accepted. An exception of the method is passed on; a mode that it left changed is put back then,
    too, and named in a note.

    An ``async`` method starts in its caller's mode and keeps its own while it waits; it is checked
    when it is first run and when it returns. While Dynamo is compiling there are no checks.

    Args:
        method: the method, where the decorator is used without options.
        module: where the object that has the method is no module itself, the name of the attribute
            that is; a dotted path, or a tuple for several, may be given.

    Returns:
        The decorated method, of the same kind and signature.

    Raises:
        TypeError: something that is not a method, a generator function or a `module` that is not a
            name; and, from a call, a module that cannot be found: the attribute is named.
        ValueError: a `module` that is no dotted path.
        GradModeError: from a call, where a check fails.
        GradLeakError: from a call that left the mode changed.

    >>> import torch
    >>> from gradguard import GradModeError, training_method
    >>> class Net(torch.nn.Linear):
    ...     @training_method
    ...     def step(self, x):
    ...         return self(x).mean().detach()
    >>> try:
    ...     Net(2, 1).step(torch.ones(1, 2))
    ... except GradModeError as error:
    ...     print(str(error).split(":")[0])
    Net.step returned a loss without a graph

    Source: Lightning's ``training_step`` and transformers' ``ModelOutput`` for the losses.
    """

    def decorator(method: Any) -> Any:
        _check_kind(method)
        # The loss is looked at last: where the method turned grad off, that is the cause.
        return _checked(leaves_mode(_NAME, method), modules_of(_NAME, method, module))

    return decorator if method is None else decorator(method)


def _check_kind(method: Any) -> None:
    if isinstance(method, (classmethod, staticmethod, property)):
        raise TypeError(messages.put_below(type(method).__name__))
    check_method(_NAME, method)
    if inspect.isgeneratorfunction(method) or inspect.isasyncgenfunction(method):
        raise TypeError(messages.no_loss_to_return(method.__qualname__))


def _checked(fn: Callable[..., Any], modules_of: ModulesOf) -> Callable[..., Any]:
    name = modules_of.function

    async def awaited(coroutine: Any, modules: tuple[Module, ...]) -> Any:
        result = await coroutine
        check_loss(result, name, modules)
        return result

    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if is_dynamo_compiling():
            return fn(*args, **kwargs)
        _check_entry(name, modules := modules_of(args))
        result = fn(*args, **kwargs)
        if type(result) is CoroutineType:  # handed back by a plain function
            return awaited(result, modules)
        check_loss(result, name, modules)
        return result

    @functools.wraps(fn)
    async def async_wrapper(*args: Any, **kwargs: Any) -> Any:
        _check_entry(name, modules := modules_of(args))
        return await awaited(fn(*args, **kwargs), modules)

    return async_wrapper if inspect.iscoroutinefunction(fn) else wrapper


def _check_entry(name: str, modules: tuple[Module, ...]) -> None:
    state = grad_state()
    if state.inference_mode:
        raise GradModeError(messages.inference_on(name, where(state)))
    if not state.grad_enabled:
        raise GradModeError(messages.grad_off(name, where(state)))
    for module in modules:
        if not module.training:
            here = threading.current_thread().name
            kind = type(module).__name__
            raise GradModeError(messages.in_eval(name, kind, holders(module), here))
