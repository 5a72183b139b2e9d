"""The frames of torch and gradguard that switch the mode for what they call.

Decorators' wrappers are read through their closures; the autograd engine by what it is running.
"""

from collections.abc import Callable
from functools import partial
from inspect import getattr_static
from types import CodeType, FrameType, FunctionType, MethodType
from typing import Any

import torch

from gradguard._core.frames import is_ours, module_of, user_frame
from gradguard._core.torch_versions import APPLY_HAS_A_FRAME
from gradguard._core.wrappers import DecoratedCall, decorated_call
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
from gradguard._locate.where_text import backward, forward


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
    function = _unwrapped(function)
    if not is_a(function, FunctionType):  # a built-in, say: named by the line that calls it
        return [_at_user(frame, switch)]
    line = _decorator_line(function, switch)
    return [block_at(function.__code__, function.__globals__, (line, switch, "decorator"))]


def _at_user(frame: FrameType, switch: Switch) -> Block:
    """Name a switch inside torch by the user's line that called torch."""
    user = user_frame(frame)
    return block_at(user.f_code, user.f_globals, (user.f_lineno, switch, "call"))


def _unwrapped(function: Any) -> Any:
    """Return the function below wrappers, partials, bound methods and objects with `__call__`."""
    for _ in range(100):  # bounded, as nothing keeps `__wrapped__` from being a ring
        if is_a(function, partial):
            function = function.func
        elif is_a(function, MethodType):
            function = function.__func__
        elif (inner := getattr_static(function, "__wrapped__", None)) is not None:
            function = inner
        elif is_a(function, FunctionType):
            break
        else:
            function = getattr_static(type(function), "__call__", None)
    return function


def _decorator_line(function: FunctionType, switch: Switch) -> int:
    """Return the line of the decorator with this effect, else the first line of the function."""
    code = function.__code__
    try:
        node = scope_of(code, function.__globals__)
    except UnreadableError:
        return code.co_firstlineno
    names = Names.of_function(function)
    for decorator in node.decorator_list if isinstance(node, Function) else []:
        found = switch_of(decorator, names) or switch_of_class(names.value(decorator))
        if found is not None and found.effect == switch.effect:
            return decorator.lineno
    return code.co_firstlineno


def _function_forward(frame: FrameType, callee: FrameType | None) -> list[Block]:
    # `Function.apply` of torch/autograd/function.py: with a functorch transform active it only
    # dispatches (to a `__call__`), and another `apply` further in runs the forward.
    name = getattr(frame.f_locals.get("cls"), "__name__", None)
    if name is None:
        return _function_backward(frame, callee)
    if callee is None or callee.f_code.co_name == "__call__":
        return []
    switch = Switch(forward(name), (False,), ())
    return [_at_user(frame, switch)]


def forward_called(frame: FrameType, callee: FrameType | None) -> list[Block]:
    """Return the switch of `Function.apply` between these two frames, where it is C (2.14)."""
    if APPLY_HAS_A_FRAME or callee is None or is_ours(module_of(callee)):
        return []
    name = _function_of(callee)
    return [] if name is None else [_at_user(frame, Switch(forward(name), (False,), ()))]


def _function_of(callee: FrameType) -> str | None:
    """The name of the autograd.Function whose forward this frame runs, called by `apply`.

    Called by hand it has no ctx that was made for it, unless its class has a `setup_context`.
    """
    code = callee.f_code
    ctx = callee.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
    made_for = getattr_static(type(ctx), "_forward_cls", None)
    classes: list[type] = [torch.autograd.Function if made_for is None else made_for]
    for each in classes:
        by_apply = made_for is not None or _has_setup_context(each)
        if by_apply and _forwards(each, code):
            return each.__name__
        classes += each.__subclasses__() if made_for is None else []
    return None


def _has_setup_context(cls: type) -> bool:
    inherited = getattr_static(torch.autograd.Function, "setup_context")
    return getattr_static(cls, "setup_context", None) is not inherited


def _forwards(cls: type, code: CodeType) -> bool:
    forward = getattr_static(cls, "forward", None)
    function = forward.__func__ if is_a(forward, staticmethod) else forward
    return is_a(function, FunctionType) and function.__code__ is code


def _function_backward(frame: FrameType, callee: FrameType | None) -> list[Block]:
    # Usually called by the engine, which says it all; a thread of an accelerator's begins here.
    if frame.f_back is not None or callee is None:
        return []
    # Coverage does not trace such a thread, so it says that no test comes here; one does.
    switch = Switch(backward(None), (True, False), ())
    return [block_at(callee.f_code, callee.f_globals, (callee.f_lineno, switch, "call"))]


def _engine(frame: FrameType, _: object) -> list[Block]:
    # Both callers, `backward` and `grad`, have the argument that decides under this name.
    caller = frame.f_back.f_locals if frame.f_back is not None else {}
    create_graph = caller.get("create_graph")
    modes = (create_graph,) if type(create_graph) is bool else (True, False)
    switch = Switch(backward(create_graph), modes, ())
    return [_at_user(frame, switch)]


_READERS: dict[tuple[str, str], Callable[[FrameType, FrameType | None], list[Block]]] = {
    ("torch.utils._contextlib", "decorate_context"): _torch_decorated,
    ("torch.utils._contextlib", "generator_context"): _torch_decorated,
    ("torch.autograd.function", "apply"): _function_forward,
    ("torch.autograd.graph", "_engine_run_backward"): _engine,
}
