"""The guards as Dynamo sees them: classes small enough for it to follow.

Dynamo follows a class that calls `torch._C._set_grad_enabled` or `_enter_inference_mode`. It does
not follow subclasses of torch's guards, torch's guard instances that are stored, the shared
instances of `_guards` (a global object used in ``with``), `torch._C._InferenceMode` or
`torch.is_inference_mode_enabled`. So these have the effect of torch's guards, no more.
"""

from collections.abc import Callable
from typing import Any

# Where Dynamo demands it: the only switches of inference mode that it follows inside a class.
from torch.autograd.grad_mode import _enter_inference_mode, _exit_inference_mode

from gradguard._state import is_grad_enabled, set_grad


class TracedGuard:
    """One entry of one guard, made anew each time, as Dynamo cannot follow a shared one."""

    def __init__(self, mode: bool) -> None:
        self.mode = mode

    def __enter__(self) -> None:
        raise NotImplementedError

    def __exit__(self, *exc: object) -> None:
        raise NotImplementedError

    def __call__(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with type(self)(self.mode):
                return fn(*args, **kwargs)

        return wrapper


class TracedGrad(TracedGuard):
    """`no_grad` and `enable_grad`."""

    def __enter__(self) -> None:
        self.found = is_grad_enabled()
        set_grad(self.mode)

    def __exit__(self, *exc: object) -> None:
        set_grad(self.found)


class TracedSetGrad(TracedGuard):
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
        return TracedGrad(self.mode)(fn)


class TracedInference(TracedGuard):
    """`inference_mode`."""

    def __enter__(self) -> None:
        self.token = _enter_inference_mode(self.mode)

    def __exit__(self, *exc: object) -> None:
        _exit_inference_mode(self.token)
