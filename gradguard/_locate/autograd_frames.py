"""The frames inside which autograd itself decides the mode: forwards, backwards and hooks."""

from collections.abc import Callable, Iterator, Mapping
from inspect import getattr_static
from types import CodeType, FrameType

from torch.autograd import Function

from gradguard._core.frames import user_frame
from gradguard._locate.enclosing import Block, block_at
from gradguard._locate.guard_expressions import Switch
from gradguard._locate.where_text import backward, forward


def at_user(frame: FrameType, switch: Switch) -> Block:
    """Name a switch inside torch by the user's line that called torch."""
    user = user_frame(frame)
    return block_at(user.f_code, user.f_globals, (user.f_lineno, switch, "call"))


def forwards() -> dict[CodeType, type]:
    """Return each `autograd.Function` by the code of its forward."""
    return {code: each for each in _functions() if (code := _forward_of(each)) is not None}


def _functions() -> Iterator[type]:
    classes: list[type] = [Function]
    for each in classes:
        classes += each.__subclasses__()
        # What torch.func generates around a function only dispatches to it.
        if not each.__module__.startswith("torch._functorch"):
            yield each


def _forward_of(function: type) -> CodeType | None:
    method = getattr_static(function, "forward", None)
    code = getattr(getattr(method, "__func__", method), "__code__", None)
    return code if isinstance(code, CodeType) else None


def function_forward(frame: FrameType, functions: Mapping[CodeType, type]) -> list[Block]:
    """Return what `apply` has switched for the forward that this frame runs, if it runs one.

    The frame of the forward is all that every torch shows: since 2.14 `apply` is written in C.
    """
    if (function := functions.get(frame.f_code)) is None or (caller := frame.f_back) is None:
        return []
    applied = _applied_with(frame)
    if applied is None and not (_is_given_no_ctx(function) and _may_apply(caller.f_code)):
        return []
    if applied is not None and _forward_of(applied) is not frame.f_code:
        return []  # the forward of a base class, called by one that was applied
    name = (applied or function).__name__
    return [at_user(caller, Switch(forward(name), (False,), ()))]


def _applied_with(frame: FrameType) -> type | None:
    """Return the function for which torch has made the ctx that a forward was given, if any."""
    code = frame.f_code
    ctx = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
    made_for: type | None = getattr_static(type(ctx), "_forward_cls", None)
    return made_for


def _is_given_no_ctx(function: type) -> bool:
    inherited = getattr_static(Function, "setup_context")
    return getattr_static(function, "setup_context", None) is not inherited


def _may_apply(caller: CodeType) -> bool:
    """Tell a call of `apply` from ``Function.forward(…)``, which switches nothing."""
    return "forward" not in caller.co_names or "apply" in (*caller.co_names, caller.co_name)


def function_backward(frame: FrameType, callee: FrameType | None) -> list[Block]:
    # Usually called by the engine, which says it all; a thread of an accelerator's begins here.
    if frame.f_back is not None or callee is None:
        return []
    # Coverage does not trace such a thread, so it says that no test comes here; one does.
    switch = Switch(backward(None), (True, False), ())
    return [block_at(callee.f_code, callee.f_globals, (callee.f_lineno, switch, "call"))]


def engine(frame: FrameType, _: object) -> list[Block]:
    # Both callers, `backward` and `grad`, have the argument that decides under this name.
    caller = frame.f_back.f_locals if frame.f_back is not None else {}
    create_graph = caller.get("create_graph")
    modes = (create_graph,) if type(create_graph) is bool else (True, False)
    switch = Switch(backward(create_graph), modes, ())
    return [at_user(frame, switch)]


READERS: dict[tuple[str, str], Callable[[FrameType, FrameType | None], list[Block]]] = {
    ("torch.autograd.function", "apply"): function_backward,
    ("torch.autograd.graph", "_engine_run_backward"): engine,
}
