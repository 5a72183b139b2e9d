"""`training_method`: checks around each call of a model's training step."""

import functools
import inspect
import threading
from collections.abc import Callable
from types import CoroutineType
from typing import Any, overload

from torch.nn import Module

from gradguard._assertions.leak_check import leaves_mode
from gradguard._core.body_wrappers import coroutine_function
from gradguard._core.guard_types import F
from gradguard._core.state import grad_state, is_dynamo_compiling
from gradguard._errors import GradModeError
from gradguard._eval.giving_flags_back import threads_in_eval
from gradguard._locate.where import where
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
        kind = type(method).__name__
        msg = (
            f"training_method cannot decorate a {kind} object. Put it below: @{kind} first, and "
            "@training_method next to the def."
        )
        raise TypeError(msg)
    check_method(_NAME, method)
    if inspect.isgeneratorfunction(method) or inspect.isasyncgenfunction(method):
        msg = (
            f"training_method cannot decorate {method.__qualname__}, a generator function: it "
            "returns no loss. Decorate the method that computes the loss of one batch."
        )
        raise TypeError(msg)


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

    async def run(*args: Any, **kwargs: Any) -> Any:
        _check_entry(name, modules := modules_of(args))
        return await awaited(fn(*args, **kwargs), modules)

    return coroutine_function(fn, run) if inspect.iscoroutinefunction(fn) else wrapper


def _check_entry(name: str, modules: tuple[Module, ...]) -> None:
    state = grad_state()
    if state.inference_mode:
        wrong = f"{name} was called in inference mode"
        to_do = (
            "call it outside that block or function. gradguard.enable_grad() leaves inference mode "
            "(torch's does not), but tensors made before in that mode stay inference tensors."
        )
        raise GradModeError(_nothing_recorded(wrong, where(state), to_do))
    if not state.grad_enabled:
        wrong = f"{name} was called with grad mode off (as in no_grad)"
        to_do = "call it outside that block or function, or in `with gradguard.enable_grad():`."
        raise GradModeError(_nothing_recorded(wrong, where(state), to_do))
    for module in modules:
        if not module.training:
            raise GradModeError(_in_eval(name, module))


def _nothing_recorded(wrong: str, lines: list[str], to_do: str) -> str:
    first = f"{wrong}: nothing is recorded, and its loss would have no graph."
    return "\n".join([first, *lines, f"To do: {to_do}"])


def _in_eval(name: str, module: Module) -> str:
    wrong = (
        f"{name} was called while its module ({type(module).__name__}) is in eval mode: dropout "
        "does not act, and BatchNorm uses its running statistics."
    )
    threads = threads_in_eval(module)
    if not threads:
        return (
            f"{wrong}\nIt was put in eval mode by .eval() or .train(False), by no open "
            "gradguard.evaluating block.\nTo do: call .train() on it before the training step."
        )
    here = threading.current_thread().name
    listed = ", ".join("this one" if thread == here else repr(thread) for thread in threads)
    return (
        f"{wrong}\nAn open gradguard.evaluating block, or a running call of inference_method or "
        f"inference_function, has it in eval mode (threads: {listed}).\nTo do: end that before the "
        "training step, or train a copy (copy.deepcopy): one module cannot be in train and in eval "
        "mode at once."
    )


training_method.__module__ = "gradguard"
