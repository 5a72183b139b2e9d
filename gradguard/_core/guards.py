"""The four guards: torch's names, for `with` blocks and as decorators."""

from typing import Any, overload

from gradguard._core.abandoned import own_cell
from gradguard._core.compiling import compiled_grad, compiled_inference, compiled_set_grad
from gradguard._core.guard_stack import fast
from gradguard._core.guard_types import (
    EnableGrad,
    F,
    Guard,
    NoGrad,
)
from gradguard._core.inference_guards import InferenceOff, InferenceOn
from gradguard._core.set_grad_guard import SetGrad
from gradguard._core.state import is_dynamo_compiling
from gradguard._core.torch_versions import not_compiled

# Dynamo never follows a stored guard of torch's. From 2.14 on it would follow some of gradguard's,
# until a tool replaces their methods, and compile anew for whatever is open outside.
for _guard in (NoGrad, EnableGrad, SetGrad, InferenceOn, InferenceOff):
    not_compiled("the guard was made outside the compiled function")(_guard.__enter__)


@overload
def no_grad(orig_func: None = None) -> Guard: ...
@overload
def no_grad(orig_func: F) -> F: ...
def no_grad(orig_func: Any = None) -> Any:
    """Record nothing for backward: a context manager and decorator.

    Results have ``requires_grad=False`` even where inputs have True; they can be used in recorded
    operations later, unlike those of `inference_mode`. Inside inference mode it stays in inference
    mode. Works as ``with no_grad():``, ``@no_grad()`` and ``@no_grad``, on functions, methods,
    generators, coroutines and async generators, whose bodies keep their own mode while suspended.

    Args:
        orig_func: the callable to decorate; nothing, to get the guard.

    Returns:
        The decorated callable, of the same kind and signature, or the guard.

    Raises:
        TypeError: `orig_func` is a class or cannot be called.

    >>> import gradguard, torch
    >>> weight = torch.ones(2, requires_grad=True)
    >>> with gradguard.no_grad():
    ...     (weight * 2).requires_grad
    False
    >>> @gradguard.no_grad
    ... def double(x):
    ...     return x * 2
    >>> double(weight).requires_grad
    False

    Source: `torch.no_grad`; where torch differs, see the README.
    """
    guard: Any = compiled_grad(False) if is_dynamo_compiling() else NoGrad()
    return guard if orig_func is None else guard(orig_func)


@overload
def enable_grad(orig_func: None = None) -> Guard: ...
@overload
def enable_grad(orig_func: F) -> F: ...
def enable_grad(orig_func: Any = None) -> Any:
    """Record operations for backward, also inside `no_grad` and inside inference mode.

    Inside inference mode (gradguard's or torch's) it leaves that mode for the block, so that
    operations really are recorded; with torch's, ``is_grad_enabled()`` is True there and yet
    nothing is.

    Args:
        orig_func: the callable to decorate; nothing, to get the guard.

    Returns:
        The decorated callable, of the same kind and signature, or the guard.

    Raises:
        TypeError: `orig_func` is a class or cannot be called.

    >>> import gradguard, torch
    >>> weight = torch.ones(2, requires_grad=True)
    >>> with gradguard.inference_mode(), gradguard.enable_grad():
    ...     (weight * 2).requires_grad
    True

    Source: `torch.enable_grad`; `c10::InferenceMode` for what inference mode leaves out.
    """
    guard: Any = compiled_grad(True) if is_dynamo_compiling() else EnableGrad()
    return guard if orig_func is None else guard(orig_func)


def set_grad_enabled(mode: bool) -> Guard:
    """Switch grad mode at once, until an enclosing guard exits; or for a block, or as a decorator.

    As a statement it sets the grad flag alone, as torch's does. The first ``with`` over the object,
    in the thread that made it, brings back the mode from before it was made; every later one the
    mode that it found. As a decorator it changes nothing where it decorates. ``with`` and
    decorator forms with True leave inference mode on entry, as `enable_grad`.

    Args:
        mode: True to record operations, False not to.

    Raises:
        TypeError: `mode` is not a bool.

    >>> import gradguard
    >>> with gradguard.set_grad_enabled(False):
    ...     gradguard.grad_state().grad_enabled
    False
    >>> gradguard.grad_state().grad_enabled
    True

    Source: `torch.set_grad_enabled`.
    """
    if mode is not True and mode is not False:
        raise TypeError(_not_bool("set_grad_enabled", mode, "set_grad_enabled(False)"))
    guard: Any = compiled_set_grad(mode) if is_dynamo_compiling() else SetGrad(mode)
    return guard  # type: ignore[no-any-return]


@overload
def inference_mode(mode: bool = True) -> Guard: ...
@overload
def inference_mode(mode: F) -> F: ...
def inference_mode(mode: Any = True) -> Any:
    """Record nothing and make inference tensors: faster than `no_grad`, and stricter.

    Tensors made inside cannot be saved for backward outside, and a Parameter made inside never
    gets a gradient: see `assert_trainable`. With False it leaves inference mode for the block and
    keeps the grad mode that surrounds the inference block: it never turns grad on inside
    `no_grad`. Where the inference block is torch's own that mode cannot be read, and grad comes
    on, as in torch.

    Args:
        mode: True to enter inference mode, False to leave it, or a callable to decorate with True.

    Returns:
        The guard, or the decorated callable, of the same kind and signature.

    Raises:
        TypeError: `mode` is neither a bool nor a callable, or is a class.

    >>> import gradguard, torch
    >>> @gradguard.inference_mode
    ... def double(x):
    ...     return x * 2
    >>> double(torch.ones(2)).is_inference()
    True

    Source: `torch.inference_mode`.
    """
    if mode is True or mode is False:
        if is_dynamo_compiling():
            return compiled_inference(mode)
        guard = InferenceOn() if mode else InferenceOff()
        try:
            guard.link = fast.cell
        except AttributeError:
            guard.link = own_cell()
        return guard
    if not callable(mode) and not isinstance(mode, (classmethod, property)):
        raise TypeError(_not_bool("inference_mode", mode, "inference_mode()"))
    return inference_mode(True)(mode)


def _not_bool(guard: str, mode: object, decorator: str) -> str:
    from gradguard._core.text import one_line  # loaded where there is something to say

    return (
        f"{guard}(mode) takes True or False, not {one_line(repr(mode))} of type "
        f"{type(mode).__name__}. To decorate a function, write @{decorator}."
    )


for _public in (no_grad, enable_grad, set_grad_enabled, inference_mode):
    _public.__module__ = "gradguard"
