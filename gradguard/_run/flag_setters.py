"""`train()`, `eval()` and `requires_grad`, replaced so that the line that sets a flag is known."""

import functools
import sys
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any, TypeVar

from torch import Tensor, nn

from gradguard._core.state import is_dynamo_compiling
from gradguard._judge.judge import Judge
from gradguard._judge.lines import here, line_at, user_frame
from gradguard._run.left_mode_recorded import left
from gradguard._run.module_calls import Running
from gradguard._trace.patching import Patches

T = TypeVar("T")
_NAME = "requires_grad"


def train(
    judge: Judge, running: Running, original: Callable[..., T], attempt: Callable[..., None]
) -> Callable[..., T]:
    """Make what stands in the place of `nn.Module.train`; `eval` calls it."""

    def note(module: nn.Module, mode: bool, frame: FrameType) -> None:
        user = _outside(frame, module)
        if user is not None:
            line = line_at(user)
            if mode:
                judge.train_called(module, line, left())
            else:
                judge.eval_called(module, line)

    @functools.wraps(original)
    def replaced(self: nn.Module, mode: bool = True) -> T:
        if running.flags or is_dynamo_compiling():
            return original(self, mode)
        attempt(note, self, mode, sys._getframe(1))  # noqa: SLF001 - inspect.currentframe may be None
        running.flags = True
        try:
            return original(self, mode)
        finally:
            running.flags = False

    return replaced


def _outside(frame: FrameType, module: nn.Module) -> FrameType | None:
    """Return the user's frame that set the flag, outside the module's own overrides."""
    found = user_frame(frame)
    while found is not None and _is_override(found, module):
        found = user_frame(found.f_back)
    return found


def _is_override(frame: FrameType, module: nn.Module) -> bool:
    return frame.f_code.co_name in ("train", "eval") and frame.f_locals.get("self") is module


class _Flag:
    """`requires_grad` of modules: torch has none, so setting it makes a plain attribute."""

    def __init__(self, judge: Judge, attempt: Callable[..., None]) -> None:
        self._judge = judge
        self._attempt = attempt

    def __get__(self, module: nn.Module | None, _: object = None) -> Any:
        if module is None:
            return self
        try:
            return vars(module)["requires_grad"]
        except KeyError:
            raise AttributeError(name="requires_grad", obj=module) from None

    def __set__(self, module: nn.Module, value: object) -> None:
        vars(module)["requires_grad"] = value
        frame = sys._getframe(1)  # noqa: SLF001 - inspect.currentframe may be None
        self._attempt(self._judge.no_effect.flag_on_module, module, value, frame)

    def __delete__(self, module: nn.Module) -> None:
        vars(module).pop("requires_grad", None)


def flag_of_modules(judge: Judge, attempt: Callable[..., None]) -> Callable[[], None]:
    """See `requires_grad` set on modules; return what ends that."""
    if "requires_grad" in vars(nn.Module):
        return lambda: None
    flag = _Flag(judge, attempt)
    listed = nn.Module.__dir__

    def __dir__(self: nn.Module) -> Iterable[str]:  # noqa: N807 (its place)
        # Dynamo, as others, asks for all that is listed.
        names: list[str] = listed(self)  # type: ignore[no-untyped-call]
        return [name for name in names if name != _NAME or _NAME in vars(self)]

    def end() -> None:
        if vars(nn.Module).get(_NAME) is flag:
            delattr(nn.Module, _NAME)
        if nn.Module.__dir__ is __dir__:
            nn.Module.__dir__ = listed  # type: ignore[method-assign]

    setattr(nn.Module, _NAME, flag)
    nn.Module.__dir__ = __dir__  # type: ignore[method-assign]
    return end


def flag_of_parameters(patches: Patches, judge: Judge, attempt: Callable[..., None]) -> None:
    """See `requires_grad` set on parameters."""

    def note(parameter: Tensor, value: bool) -> None:
        if not is_dynamo_compiling():
            attempt(lambda: judge.flag_set(parameter, here(), trainable=value))

    def attribute(original: Any) -> property:
        def set_flag(parameter: Tensor, value: bool) -> None:
            original.__set__(parameter, value)
            note(parameter, bool(value))

        # The getter is torch's own, in C: reading the flag costs what it did.
        return property(original.__get__, set_flag)

    def method(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def requires_grad_(parameter: Tensor, requires_grad: bool = True) -> Tensor:
            result = original(parameter, requires_grad)
            note(parameter, requires_grad)
            return result

        return requires_grad_

    patches.replace(nn.Parameter, "requires_grad", attribute)
    patches.replace(nn.Parameter, "requires_grad_", method)
