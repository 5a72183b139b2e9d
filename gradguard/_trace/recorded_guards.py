"""The entries and exits of torch's guards while a trace is active."""

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

from gradguard._core.state import grad_state, is_dynamo_compiling, set_grad
from gradguard._core.torch_versions import TORCH_GUARDS
from gradguard._trace import recorder as _recorder
from gradguard._trace.interrupted import put_right
from gradguard._trace.open_switches import Role

_SET_GRAD = TORCH_GUARDS["set_grad_enabled"]


def _is_no_grads(original: Any, names: tuple[str, ...]) -> bool:
    """Tell whether a method does what no_grad's does in all known versions of torch, no more.

    It builds a `set_grad_enabled` that nobody uses, for a tenth of what a tiny forward takes.
    """
    code = getattr(original, "__code__", None)
    return code is not None and code.co_names == names and not any(code.co_consts)


def recorded_entry(original: Callable[..., Any]) -> Callable[..., Any]:
    """Make the entry of one of torch's guards for a trace of which only the open ones are asked.

    Each switch of any kind is seen in C's two functions; that takes three times as long, as it has
    to be found out what they are called by.
    """
    names = ("torch", "is_grad_enabled", "prev", "set_grad_enabled")
    direct = _is_no_grads(original, names)

    @wraps(original)  # TorchScript compiles the source of what stands here
    def __enter__(guard: Any) -> Any:  # noqa: N807 (its place)
        recorder, before = _recorder.current, None
        try:
            quiet = recorder is not None and recorder.quiet and not recorder.thread.busy
            if recorder is None or not quiet or is_dynamo_compiling():
                before = grad_state()
                return original(guard)
            thread, before = recorder.thread, grad_state()
            thread.busy = True
            try:
                if direct and torch.set_grad_enabled is _SET_GRAD:
                    guard.prev = before.grad_enabled
                    result = set_grad(False)
                else:
                    result = original(guard)
            finally:
                thread.busy = False
            recorder.entered(id(guard), before, grad_state(), sys._getframe(1))  # noqa: SLF001
        except BaseException:
            if recorder is not None and not recorder.thread.busy:
                put_right(recorder.thread, Role.ENTRY, guard, None, before)
            raise
        return result

    return __enter__


def recorded_exit(original: Callable[..., Any]) -> Callable[..., Any]:
    direct = _is_no_grads(original, ("torch", "set_grad_enabled", "prev"))

    @wraps(original)
    def __exit__(guard: Any, *exc: object) -> Any:  # noqa: N807 (its place)
        recorder = _recorder.current
        try:
            quiet = recorder is not None and recorder.quiet and not recorder.thread.busy
            if recorder is None or not quiet or is_dynamo_compiling():
                return original(guard, *exc)
            thread, before = recorder.thread, grad_state()
            thread.busy = True
            try:
                if direct and torch.set_grad_enabled is _SET_GRAD:
                    result = set_grad(guard.prev)
                else:
                    result = original(guard, *exc)
            finally:
                thread.busy = False
            after = grad_state()
            if not thread.opened.leave(id(guard), after):
                recorder.exited(id(guard), before, after, sys._getframe(1))  # noqa: SLF001
        except BaseException:
            if recorder is not None and not recorder.thread.busy:
                put_right(recorder.thread, Role.EXIT, guard, None, None)
            raise
        return result

    return __exit__
