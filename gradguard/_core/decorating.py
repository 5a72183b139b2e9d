"""What is being decorated, and so which wrapper it needs: the one dispatch."""

import functools
import inspect
from collections.abc import Callable
from types import CodeType
from typing import Any

from gradguard._core.text import one_line
from gradguard._core.wrappers import CallContext, wrapped

RUNS_LATER = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


def decorate(fn: Any, guard: CallContext) -> Any:
    """Return `fn`, as the same kind, so that all of its body runs under `guard`.

    Raises:
        TypeError: `fn` is a class or cannot be called.
    """

    def guard_for(*_: Any, **__: Any) -> CallContext:
        return guard

    fast = getattr(guard, "plain_wrapper", None)
    plain = None if fast is None else functools.partial(fast, guard=guard)
    return decorate_each(fn, guard_for, repr(guard), plain)


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


def cannot_decorate_class(name: str, cls: type) -> str:
    """Return the text of the error, also for decorators of other folders."""
    return (
        f"{name} cannot decorate the class {cls.__qualname__}: only its constructor would be "
        f"covered. Decorate the methods that need it, for example __init__ or forward, with {name}."
    )


def _not_callable(name: str, value: object) -> str:
    return (
        f"{name} cannot decorate {one_line(repr(value))} of type {type(value).__name__}, which is "
        "not callable. Decorate a function, a method, a classmethod, staticmethod or property, "
        f"or an object with __call__; to switch the mode for a block, write `with {name}:`."
    )
