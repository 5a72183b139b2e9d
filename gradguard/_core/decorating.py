"""What is being decorated, and so which wrapper it needs: the one dispatch.

The two decorators that are called most, of plain functions, have their guard's entry and exit
written out: `with guard:` in the wrapper, as every other guard has it, costs two more Python calls,
a third of the whole for `no_grad`, whose two C calls are cheap.

What the wrappers use they look up in its module: cloudpickle sends a function of `__main__` with
the globals that it names, and a thread-local cannot be sent.
"""

import functools
from collections.abc import Callable
from types import CodeType
from typing import Any

from gradguard._core import abandoned, exits, guard_stack, state, wrappers
from gradguard._core.wrappers import RUNS_LATER, CallContext, wrapped
from gradguard._errors import GradModeWarning

refuses_classes = True  # not while gradguard's guards are in torch's places: see `installing`


def decorate(fn: Any, guard: CallContext) -> Any:
    """Return `fn`, as the same kind, so that all of its body runs under `guard`.

    Raises:
        TypeError: `fn` is a class or cannot be called.
    """

    def guard_for(*_: Any, **__: Any) -> CallContext:
        return guard

    if isinstance(fn, type) and not refuses_classes:
        _warn_of_class(repr(guard), fn)
        return wrappers.wrapped(fn, 0, guard_for)
    return decorate_each(fn, guard_for, repr(guard), getattr(guard, "plain_wrapper", None))


def decorate_each(
    fn: Any, guard_for: Callable[..., CallContext], name: str, plain: Any = None
) -> Any:
    """Return `fn`, as the same kind, so that each call runs under what `guard_for` makes of it.

    Args:
        fn: a callable, or a classmethod, staticmethod or property object.
        guard_for: called with the arguments of each call.
        name: what the user calls this decorator, for the errors.
        plain: a faster wrapper for functions whose body cannot be suspended.

    Raises:
        TypeError: `fn` is a class or cannot be called.
    """
    if isinstance(fn, type):
        raise TypeError(cannot_decorate_class(name, fn))
    if isinstance(fn, (classmethod, staticmethod)):
        return type(fn)(decorate_each(fn.__func__, guard_for, name, plain))
    if isinstance(fn, property):
        parts: tuple[Any, ...] = (fn.fget, fn.fset, fn.fdel)
        again = (part and decorate_each(part, guard_for, name, plain) for part in parts)
        getter, setter, deleter = again
        return fn.getter(getter).setter(setter).deleter(deleter)
    if not callable(fn):
        raise TypeError(_not_callable(name, fn))
    flags = code_flags(fn)
    if plain is not None and not flags & RUNS_LATER:
        return plain(fn)
    return wrapped(fn, flags, guard_for)


def code_flags(fn: Any) -> int:
    """The flags of the code that calling `fn` runs.

    Not `inspect.iscoroutinefunction`: a plain function may be marked as one, and its plain code
    must run under the guard, too (the mark is copied to the wrapper with its ``__dict__``).
    """
    while isinstance(fn, functools.partial):
        fn = fn.func
    code = getattr(fn, "__code__", None) or getattr(type(fn).__call__, "__code__", None)
    return code.co_flags if isinstance(code, CodeType) else 0


def _warn_of_class(name: str, cls: type) -> None:
    from gradguard._core.warning import warn  # loaded where there is something to say

    warn(
        f"{name} decorates the class {cls.__qualname__}: as with torch's own guard only its "
        "constructor is covered, and the name is a function now, so isinstance and subclassing "
        f"fail. Decorate the methods that need it, for example __init__ or forward, with {name}.",
        GradModeWarning,
    )


def cannot_decorate_class(name: str, cls: type) -> str:
    """Return the text of the error, also for decorators of other folders."""
    return (
        f"{name} cannot decorate the class {cls.__qualname__}: only its constructor would be "
        f"covered. Decorate the methods that need it, for example __init__ or forward, with {name}."
    )


def _not_callable(name: str, value: object) -> str:
    from gradguard._core.text import one_line  # loaded where there is something to say

    return (
        f"{name} cannot decorate {one_line(repr(value))} of type {type(value).__name__}, which is "
        "not callable. Decorate a function, a method, a classmethod, staticmethod or property, "
        f"or an object with __call__; to switch the mode for a block, write `with {name}:`."
    )


def under_no_grad(fn: Callable[..., Any], guard: Any) -> Callable[..., Any]:
    """Return a wrapper that calls `fn` under `guard`, which is `no_grad()`."""
    ordinary: type | None = None  # the type of the last result, which was not still to run

    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        nonlocal ordinary
        if state.is_dynamo_compiling():
            with guard.while_compiling():
                return fn(*args, **kwargs)
        try:
            cell = guard_stack.fast.cell
        except AttributeError:
            cell = abandoned.own_cell()
        found = state.is_grad_enabled()
        link = (guard, found, None, cell[0])
        result: Any = cell
        try:
            cell[0] = link
            result = link
            if found:
                state.set_grad(False)
            result = fn(*args, **kwargs) if kwargs else fn(*args)
            if cell[0] is link:
                cell[0] = link[3]
                state.set_grad(found)
            else:
                exits.close(guard)  # the body has closed or left open a guard
        except BaseException as error:
            if cell[0] is link:  # an interrupt may come where a function begins
                cell[0] = link[3]
                state.set_grad(found)
            else:
                exits.leave(link, error, in_body=result is link)
            raise
        if result is not None and type(result) is not ordinary:
            if type(result) in wrappers.STILL_TO_RUN:
                run, result = wrappers.STILL_TO_RUN[type(result)], [result]
                return run(result, guard)
            ordinary = type(result)
        return result

    return wrapper


def under_inference(fn: Callable[..., Any], guard: Any) -> Callable[..., Any]:
    """Return a wrapper that calls `fn` under `guard`, which is `inference_mode()`."""
    ordinary: type | None = None  # the type of the last result, which was not still to run

    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        nonlocal ordinary
        if state.is_dynamo_compiling():
            with guard.while_compiling():
                return fn(*args, **kwargs)
        try:
            cell = guard_stack.fast.cell
        except AttributeError:
            cell = abandoned.own_cell()
        below = cell[0]
        found = state.is_grad_enabled() or (None if state.is_inference_mode_enabled() else False)
        link = (guard, found, token := state.enter_inference(True), below)
        result: Any = cell
        try:
            cell[0] = link
            result = link
            result = fn(*args, **kwargs) if kwargs else fn(*args)
            if cell[0] is link:
                cell[0] = below
                state.exit_inference(token, None, None, None)
            else:
                exits.close(guard)  # the body has closed or left open a guard
        except BaseException as error:
            if cell[0] is link:  # as above
                cell[0] = below
                state.exit_inference(token, None, None, None)
            else:
                exits.leave(link, error, in_body=result is link)
            raise
        if result is not None and type(result) is not ordinary:
            if type(result) in wrappers.STILL_TO_RUN:
                run, result = wrappers.STILL_TO_RUN[type(result)], [result]
                return run(result, guard)
            ordinary = type(result)
        return result

    return wrapper
