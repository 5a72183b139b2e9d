"""What an expression or an object switches: torch's guards, recognised without running anything."""

import ast
import inspect
from dataclasses import dataclass, replace
from types import BuiltinFunctionType
from typing import Any, NamedTuple, TypeGuard, TypeVar

from gradguard._core import guards
from gradguard._core.guard_stack import Boundary, Opener
from gradguard._core.torch_versions import TORCH_GUARDS
from gradguard._locate.names import UNKNOWN, Names
from gradguard._locate.where_text import read
from gradguard._tasks.carried_mode import Carried

T = TypeVar("T")
GUARDS = ("no_grad", "enable_grad", "set_grad_enabled", "inference_mode")
_BOTH = (True, False)


class Guard(NamedTuple):
    """Which of the eight: ``library`` is torch or gradguard."""

    library: str
    name: str


@dataclass(frozen=True)
class Switch:
    """What a guard does: `grad` and `inference` hold the values it may set the flag to.

    An empty tuple leaves the flag alone; both values mean that its argument could not be read.
    """

    kind: str
    grad: tuple[bool, ...]
    inference: tuple[bool, ...]
    certain: bool = True

    @property
    def effect(self) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
        """What it sets, without how it is written."""
        return self.grad, self.inference


def is_a(value: Any, kind: type[T]) -> TypeGuard[T]:
    """Tell as isinstance does, without asking the object's own ``__class__`` (a property?)."""
    return issubclass(type(value), kind)


def guard_called(target: Any) -> Guard | None:
    """Return the guard that calling `target` makes, or switches at once.

    By what it is, whatever its name: a project may have rebound torch's names to gradguard's.
    """
    if is_a(target, BuiltinFunctionType) and target.__name__ == "_set_grad_enabled":
        return Guard("torch", "set_grad_enabled")
    for name in GUARDS:
        if target is vars(guards)[name]:
            return Guard("gradguard", name)
        if is_a(target, type) and issubclass(target, TORCH_GUARDS[name]):
            return Guard("torch", name)
    return None


def switch_of_class(target: Any) -> Switch | None:
    """Return what a guard that is used without arguments switches: ``@torch.no_grad``."""
    guard = guard_called(target)
    return None if guard is None else _switch(guard, guard.name == "inference_mode", "")


def switch_of_object(value: Any) -> Switch | None:
    """Return what entering this already existing object switches."""
    if is_a(value, Carried):
        grad, inference = value.mode
        return Switch(f"gradguard.{value!r}", (grad,), (inference,))
    if is_a(value, Opener) and not is_a(value, Boundary):
        return Switch(f"gradguard.{value!r}", _values(value.grad), _values(value.inference))
    guard = guard_called(type(value))
    if guard is None:
        return None
    mode = inspect.getattr_static(value, "mode", UNKNOWN)
    return _switch(guard, mode, repr(mode) if type(mode) is bool else "")


def _values(flag: bool | None) -> tuple[bool, ...]:
    return () if flag is None else (flag,)


def switch_of(node: ast.expr, names: Names) -> Switch | None:
    """Return what entering (or decorating with) the value of this expression switches."""
    if isinstance(node, ast.NamedExpr):
        node = node.value
    if isinstance(node, ast.IfExp):
        return _switch_of_choice(node, names)
    if isinstance(node, ast.Call):
        guard = guard_called(names.value(node.func))
        return None if guard is None else _switch_of_call(guard, node, names)
    return switch_of_object(names.value(node))


def _switch_of_choice(node: ast.IfExp, names: Names) -> Switch | None:
    """``torch.no_grad() if quick else nullcontext()``: the branch taken, else "it may"."""
    taken = names.plain(node.test)
    if taken is not UNKNOWN:
        return switch_of(node.body if taken else node.orelse, names)
    switch = switch_of(node.body, names) or switch_of(node.orelse, names)
    return None if switch is None else replace(switch, certain=False)


def _switch_of_call(guard: Guard, node: ast.Call, names: Names) -> Switch:
    given = [*node.args, *(keyword.value for keyword in node.keywords)]
    if not given:
        return _switch(guard, guard.name == "inference_mode", "")
    mode, shown = names.plain(given[0]), ast.unparse(given[0])
    note = "" if isinstance(given[0], ast.Constant) else read(shown, mode)
    return _switch(guard, mode, shown, note)


def _switch(guard: Guard, mode: Any, argument: str, note: str = "") -> Switch:
    modes = (mode,) if type(mode) is bool else _BOTH
    kind = f"{guard.library}.{guard.name}({argument}){note}"
    return Switch(kind, *_effect(guard, modes))


def _effect(guard: Guard, modes: tuple[bool, ...]) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
    """Return the values that the guard may set the grad flag and the inference flag to.

    torch's inference mode sets the grad flag to the opposite, and its other guards leave inference
    mode alone. gradguard's leave it to record, and its inference_mode(False) keeps the grad flag.
    """
    ours = guard.library == "gradguard"
    if guard.name == "inference_mode":
        return tuple(not mode for mode in modes if mode or not ours), modes
    if guard.name != "set_grad_enabled":
        modes = (guard.name == "enable_grad",)
    return modes, (False,) if ours and modes == (True,) else ()
