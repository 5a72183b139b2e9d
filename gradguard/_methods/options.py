"""The options that the decorators of this folder share: what they accept, and what they do."""

from collections.abc import Callable
from difflib import get_close_matches
from reprlib import repr as shortened
from typing import Any, Literal, TypeAlias

import torch
from torch.nn import Module

from gradguard._core.decorating import decorate, decorate_each
from gradguard._core.guard_types import NO_GRAD
from gradguard._core.inference_guards import INFERENCE_ON
from gradguard._core.torch_versions import never_compiled
from gradguard._core.wrappers import CallContext
from gradguard._eval.evaluating import EvalBody, evaluating
from gradguard._methods.autocast import Autocast, device_of

Mode: TypeAlias = Literal["inference_mode", "no_grad"]
# Finds the modules of a call, from its arguments.
FindModules: TypeAlias = Callable[[tuple[Any, ...], dict[str, Any]], tuple[Module, ...]]

_GUARDS = {"inference_mode": INFERENCE_ON, "no_grad": NO_GRAD}
_DTYPES = (torch.bfloat16, torch.float16)
_GOOD_MODES = " or ".join(f'"{mode}"' for mode in _GUARDS)
_GOOD_DTYPES = f"{', '.join(map(str, _DTYPES))} or None (no autocast)"


class _KeptEval(evaluating[Any]):
    """Eval mode that a body keeps while it is suspended."""

    def body(self) -> EvalBody:
        return EvalBody(self._modules, keep_eval=True)


class Inference:
    """Eval mode, guard and autocast for each call of what it decorates."""

    def __init__(self, decorator: str, mode: object, autocast: object, keep_eval: object) -> None:
        self._decorator = decorator
        self._guard = _GUARDS[_checked_mode(decorator, mode)]
        self._dtype = _checked_dtype(decorator, autocast)
        if not isinstance(keep_eval, bool):
            raise TypeError(bad_option(decorator, "keep_eval", keep_eval, "True or False"))
        self._evaluating = _KeptEval if keep_eval else evaluating

    def decorate(self, fn: Any, find_modules: FindModules) -> Any:
        scope, dtype = self._evaluating, self._dtype

        def eval_for(*args: Any, **kwargs: Any) -> CallContext:
            return scope(*find_modules(args, kwargs))

        name = self._decorator
        decorate_each(fn, eval_for, name)  # its errors are to name this decorator, not the guard
        wrapped = decorate(fn, self._guard)
        if dtype is not None:
            wrapped = decorate_each(wrapped, _autocast_for(find_modules, dtype), name)
        # Outermost, so that a module's own train() runs outside the guard: what it assigns (merged
        # weights, say) would otherwise be inference tensors.
        return decorate_each(wrapped, eval_for, name)


def _autocast_for(find_modules: FindModules, dtype: torch.dtype) -> Callable[..., CallContext]:
    def autocast_for(*args: Any, **kwargs: Any) -> CallContext:
        return Autocast(device_of(find_modules(args, kwargs)), dtype)

    return autocast_for


def _checked_mode(decorator: str, mode: object) -> str:
    if not isinstance(mode, str):
        raise TypeError(bad_option(decorator, "mode", mode, _GOOD_MODES))
    if mode not in _GUARDS:
        close = get_close_matches(mode, _GUARDS, 1)
        meant = f' Did you mean "{close[0]}"?' if close else ""
        raise ValueError(bad_option(decorator, "mode", mode, _GOOD_MODES) + meant)
    return mode


def _checked_dtype(decorator: str, dtype: object) -> torch.dtype | None:
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(bad_option(decorator, "autocast", dtype, _GOOD_DTYPES))
    if dtype is not None and dtype not in _DTYPES:
        raise ValueError(bad_option(decorator, "autocast", dtype, _GOOD_DTYPES))
    return dtype


def bad_option(decorator: str, option: str, value: object, good: str) -> str:
    """Name an option's bad value and list the good ones."""
    given = f"{shortened(value)} of type {type(value).__name__}"
    return f"{decorator}({option}={shortened(value)}): {option} takes {good}, not {given}."


never_compiled(globals())
