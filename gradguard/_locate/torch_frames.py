"""The frames of torch and gradguard that switch the mode for what they call.

Decorators' wrappers are read through their closures; the autograd engine by what it is running.
"""

from collections.abc import Callable, Iterator
from functools import partial
from inspect import getattr_static
from types import FrameType, FunctionType, MethodType
from typing import Any

from gradguard._core.frames import is_ours, module_of
from gradguard._core.wrappers import DecoratedCall, decorated_call
from gradguard._locate.autograd_frames import READERS, at_user
from gradguard._locate.blocks import Function, UnreadableError, scope_of
from gradguard._locate.enclosing import Block, block_at
from gradguard._locate.guard_expressions import (
    Switch,
    is_a,
    switch_of,
    switch_of_class,
    switch_of_object,
)
from gradguard._locate.names import Names


def origin_of(frame: FrameType, callee: FrameType | None) -> list[Block] | None:
    """Return what this frame switches for its `callee`, or None if it is an ordinary frame."""
    module, name = module_of(frame), frame.f_code.co_name
    if is_ours(module):
        call = decorated_call(frame)
        return [] if call is None else _our_decorated(frame, call)
    read = _READERS.get((module, name))
    return None if read is None else read(frame, callee)


def _torch_decorated(frame: FrameType, _: object) -> list[Block]:
    # Both wrappers in torch/utils/_contextlib.py close over `ctx_factory` and `func`; the factory
    # that torch's guards pass is their own `clone` method.
    factory = frame.f_locals.get("ctx_factory")
    switch = switch_of_object(factory.__self__) if is_a(factory, MethodType) else None
    return _decorated(frame, switch, frame.f_locals.get("func"))


def _our_decorated(frame: FrameType, call: DecoratedCall) -> list[Block]:
    switch = switch_of_object(call.guard)
    # The code of a body that a plain function has handed back to be run.
    handed = type(call.function)
    codes = (getattr_static(handed, f"{kind}_code", None) for kind in ("gi", "cr", "ag"))
    code = next((code.__get__(call.function) for code in codes if code is not None), None)
    if code is None or switch is None:
        return _decorated(frame, switch, call.function)
    return [block_at(code, {}, (code.co_firstlineno, switch, "decorator"))]


def _decorated(frame: FrameType, switch: Switch | None, function: Any) -> list[Block]:
    if switch is None:
        return []
    functions = list(functions_below(function))
    if not functions:  # a built-in, say: named by the line that calls it
        return [at_user(frame, switch)]
    # A guard may stand above a decorator's own wrapper, and that one's `__wrapped__` is innocent.
    lines = ((each, _decorator(each, switch)) for each in functions)
    named, line = next(
        ((each, line) for each, line in lines if line is not None),
        (functions[-1], functions[-1].__code__.co_firstlineno),
    )
    return [block_at(named.__code__, named.__globals__, (line, switch, "decorator"))]


def functions_below(function: Any) -> Iterator[FunctionType]:
    """Yield the functions below wrappers, partials, bound methods and objects with `__call__`."""
    for _ in range(100):  # bounded, as nothing keeps `__wrapped__` from being a ring
        if is_a(function, FunctionType) and not _is_plumbing(function):
            yield function
        if is_a(function, partial):
            function = function.func
        elif is_a(function, MethodType):
            function = function.__func__
        elif (inner := getattr_static(function, "__wrapped__", None)) is not None:
            function = inner
        elif is_a(function, FunctionType):
            return
        else:
            function = getattr_static(type(function), "__call__", None)


def _is_plumbing(function: FunctionType) -> bool:
    module = function.__globals__.get("__name__")
    return is_ours(module) or module in ("torch.utils._contextlib", "contextlib", "functools")


def _decorator(function: FunctionType, switch: Switch) -> int | None:
    """Return the line of the function's decorator with this effect, if there is one."""
    try:
        node = scope_of(function.__code__, function.__globals__)
    except UnreadableError:
        return None
    names = Names.of_function(function)
    for decorator in node.decorator_list if isinstance(node, Function) else []:
        found = switch_of(decorator, names) or switch_of_class(names.value(decorator))
        if found is not None and found.effect == switch.effect:
            return decorator.lineno
    return None


_READERS: dict[tuple[str, str], Callable[[FrameType, FrameType | None], list[Block]]] = {
    ("torch.utils._contextlib", "decorate_context"): _torch_decorated,
    ("torch.utils._contextlib", "generator_context"): _torch_decorated,
    **READERS,
}
