"""The guards as Dynamo sees them: torch's own, made anew, or classes small enough for it to follow.

It does not follow subclasses of torch's guards, torch's guard instances that are stored, the shared
instances of `guard_types` (a global object used in ``with``), `torch._C._InferenceMode` or
`torch.is_inference_mode_enabled`. It does follow a class that calls `torch._C._set_grad_enabled`,
or `switch_inference` where it is new enough (`torch_versions`); but only a block of torch's own
guards can it split where its body has a graph break: around any other, the whole frame would run
uncompiled. And it knows torch's guards by their names in `torch`: a project that rebinds these to
gradguard's gets the classes.
"""

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import enable_grad, inference_mode, no_grad, set_grad_enabled

from gradguard._core.state import is_grad_enabled, set_grad
from gradguard._core.torch_versions import (
    DYNAMO_FOLLOWS_CONTEXTMANAGER,
    DYNAMO_FOLLOWS_INFERENCE,
    switch_inference,
    switch_inference_back,
)


def compiled_grad(mode: bool) -> AbstractContextManager[None]:
    """`enable_grad` or `no_grad`."""
    if mode and torch.enable_grad is enable_grad:
        return enable_grad()
    if not mode and torch.no_grad is no_grad:
        return no_grad()
    return CompiledGrad(mode)


def compiled_set_grad(mode: bool) -> AbstractContextManager[None]:
    """`set_grad_enabled`, which acts when it is made."""
    own = torch.set_grad_enabled is set_grad_enabled
    return set_grad_enabled(mode) if own else CompiledSetGrad(mode)


def compiled_inference(mode: bool) -> AbstractContextManager[None]:
    """`inference_mode`."""
    own = torch.inference_mode is inference_mode
    return inference_mode(mode) if own else compiled_decorated_inference(mode)


def compiled_decorated_inference(mode: bool) -> AbstractContextManager[None]:
    """`inference_mode` around a function that is called, not a block.

    torch's own would split the wrapper, too, at a graph break in the function: more recompilations.
    """
    if DYNAMO_FOLLOWS_INFERENCE:
        return CompiledInference(mode)
    return _in_a_block(mode) if DYNAMO_FOLLOWS_CONTEXTMANAGER else inference_mode(mode)


def compiled_mode(grad: bool, inference: bool) -> AbstractContextManager[None]:
    """Both flags at once, around a function that is called."""
    if DYNAMO_FOLLOWS_INFERENCE:
        return CompiledMode(grad, inference)
    # A class cannot enter torch's guard there; but inference mode, on or off, switches the grad
    # mode to the opposite, which is all that is wanted of most modes.
    return inference_mode(inference) if grad is not inference else _in_two_blocks(grad, inference)


@contextmanager
def _in_a_block(inference: bool) -> Generator[None]:
    with inference_mode(inference):
        yield


@contextmanager
def _in_two_blocks(grad: bool, inference: bool) -> Generator[None]:
    # On a torch that does not follow it the graph breaks here.
    with inference_mode(inference), CompiledGrad(grad):
        yield


YIELDED, RETURNED, RAISED = range(3)


def compiled_step(
    target: Generator[Any, Any, Any], passed: list[Any], *, thrown: bool
) -> tuple[int, Any]:
    """Step a generator with what is `passed`; return what it did, and the value or the error.

    An error must not leave a ``with`` by itself: Dynamo loses a StopIteration so (why it cannot
    follow torch's wrapper to the end of a generator), and up to torch 2.8 fails at any. And up to
    2.12 it mistakes the variables of a generator that is sent None.
    """
    value = passed.pop()
    try:
        if thrown:
            return YIELDED, target.throw(value)
        if value is None:
            return YIELDED, next(target)
        return YIELDED, target.send(value)
    except StopIteration as stop:
        return RETURNED, stop.value
    except BaseException as raised:  # noqa: BLE001 (the caller raises it)
        return RAISED, raised


class CompiledGuard:
    """One entry of one guard, made anew each time, as Dynamo cannot follow a shared one."""

    def __init__(self, mode: bool) -> None:
        self.mode = mode

    def __enter__(self) -> None:
        raise NotImplementedError

    def __exit__(self, *exc: object) -> None:
        raise NotImplementedError

    def again(self) -> "CompiledGuard":
        """Make another; by name, as up to torch 2.6 Dynamo makes no object of a ``type(self)``."""
        raise NotImplementedError

    def __call__(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with self.again():
                return fn(*args, **kwargs)

        return wrapper


class CompiledGrad(CompiledGuard):
    """`no_grad` and `enable_grad`."""

    def __enter__(self) -> None:
        self.found = is_grad_enabled()
        set_grad(self.mode)

    def __exit__(self, *exc: object) -> None:
        set_grad(self.found)

    def again(self) -> CompiledGuard:
        return CompiledGrad(self.mode)


class CompiledSetGrad(CompiledGuard):
    """`set_grad_enabled`, which acts when it is made."""

    def __init__(self, mode: bool) -> None:
        self.mode = mode
        self.found = is_grad_enabled()
        set_grad(mode)

    def __enter__(self) -> None:
        set_grad(self.mode)

    def __exit__(self, *exc: object) -> None:
        set_grad(self.found)

    def __call__(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        set_grad(self.found)
        return CompiledGrad(self.mode)(fn)


class CompiledInference(CompiledGuard):
    """`inference_mode`."""

    def __enter__(self) -> None:
        self.token: Any = switch_inference(self.mode)  # type: ignore[no-untyped-call]

    def __exit__(self, *exc: object) -> None:
        switch_inference_back(self.token)  # type: ignore[no-untyped-call]

    def again(self) -> CompiledGuard:
        return CompiledInference(self.mode)


class CompiledMode(CompiledGuard):
    """Both flags at once."""

    def __init__(self, grad: bool, inference: bool) -> None:
        self.inference = CompiledInference(inference)
        self.grad = CompiledGrad(grad)

    def __enter__(self) -> None:
        self.inference.__enter__()
        self.grad.__enter__()

    def __exit__(self, *exc: object) -> None:
        self.grad.__exit__(None, None, None)
        self.inference.__exit__(None, None, None)
