"""What is being decorated, and the wrapper that each kind of function needs: the one dispatch."""

import functools
import inspect
import sys
import types
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractContextManager
from functools import partial
from types import AsyncGeneratorType, CodeType, CoroutineType, GeneratorType
from typing import Any, Protocol

from gradguard._core.fast_wrappers import under_inference, under_no_grad
from gradguard._core.guard_types import INFERENCE_ON, NO_GRAD
from gradguard._core.state import is_dynamo_compiling
from gradguard._core.suspended_bodies import Suspendable, advance, drive
from gradguard._core.texts import cannot_decorate, cannot_decorate_class


class Scope(Protocol):
    """What a decorator puts around each call: a guard, eval mode, or several such things."""

    def __enter__(self) -> object: ...

    def __exit__(self, exc_type: object, exc: object, tb: object, /) -> object: ...

    def traced(self) -> AbstractContextManager[object]:
        """The same while Dynamo is compiling."""
        ...

    def body(self) -> Suspendable:
        """The same for one call whose body can be suspended."""
        ...


def decorate(fn: Any, guard: Scope) -> Any:
    """Return `fn`, as the same kind, so that all of its body runs under `guard`.

    Raises:
        TypeError: `fn` is a class or cannot be called.
    """

    def guard_for(*_: Any, **__: Any) -> Scope:
        return guard

    if guard is NO_GRAD:
        return decorate_each(fn, guard_for, repr(guard), partial(under_no_grad, guard=NO_GRAD))
    if guard is INFERENCE_ON:
        return decorate_each(
            fn, guard_for, repr(guard), partial(under_inference, guard=INFERENCE_ON)
        )
    return decorate_each(fn, guard_for, repr(guard))


def decorate_each(fn: Any, guard_for: Callable[..., Scope], name: str, plain: Any = None) -> Any:
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
        raise TypeError(cannot_decorate_class(name, fn.__qualname__))
    if isinstance(fn, (classmethod, staticmethod)):
        return type(fn)(decorate_each(fn.__func__, guard_for, name, plain))
    if isinstance(fn, property):
        parts: tuple[Any, ...] = (fn.fget, fn.fset, fn.fdel)
        again = (part and decorate_each(part, guard_for, name, plain) for part in parts)
        getter, setter, deleter = again
        return fn.getter(getter).setter(setter).deleter(deleter)
    if not callable(fn):
        raise TypeError(cannot_decorate(name, repr(fn), type(fn).__name__))
    flags = code_flags(fn)
    if plain is not None and not flags & RUNS_LATER:
        return plain(fn, still_to_run=STILL_TO_RUN)
    return _wrap(fn, flags, guard_for)


def code_flags(fn: Any) -> int:
    """The flags of the code that calling `fn` runs.

    Not `inspect.iscoroutinefunction`: a plain function may be marked as one, and its plain code
    must run under the guard, too (the mark is copied to the wrapper with its ``__dict__``).
    """
    while isinstance(fn, functools.partial):
        fn = fn.func
    code = getattr(fn, "__code__", None) or getattr(type(fn).__call__, "__code__", None)
    return code.co_flags if isinstance(code, CodeType) else 0


def _wrap(fn: Callable[..., Any], flags: int, guard_for: Callable[..., Scope]) -> Any:
    if flags & inspect.CO_ASYNC_GENERATOR:
        return _async_generator(fn, guard_for)
    if flags & inspect.CO_COROUTINE:
        return _coroutine(fn, guard_for)
    if flags & inspect.CO_ITERABLE_COROUTINE:
        return types.coroutine(_generator(fn, guard_for))
    if flags & inspect.CO_GENERATOR:
        return _generator(fn, guard_for)
    return _plain(fn, guard_for)


def _plain(fn: Callable[..., Any], guard_for: Callable[..., Scope]) -> Callable[..., Any]:
    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        guard = guard_for(*args, **kwargs)
        if is_dynamo_compiling():
            with guard.traced():
                return fn(*args, **kwargs)
        with guard:
            result = fn(*args, **kwargs)
        if type(result) in STILL_TO_RUN:
            return STILL_TO_RUN[type(result)](result, guard)
        return result

    return wrapper


def _generator(fn: Callable[..., Any], guard_for: Callable[..., Scope]) -> Callable[..., Any]:
    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        guard = guard_for(*args, **kwargs)
        target, body = fn(*args, **kwargs), None
        if not is_dynamo_compiling():
            body = guard.body()
            del args, kwargs  # they are the body's to keep
        # Not `yield from drive(...)`: a body that is closed and goes on would be lost with it; and
        # Dynamo neither sends nor throws through it. Dynamo also loses a StopIteration that leaves
        # a `with` (why it cannot follow torch's wrapper to the end of a generator).
        step: Any = target.send
        passed: list[Any] = [None]
        while True:
            if body is not None:
                try:
                    advance(step, passed, body)
                except StopIteration as stop:
                    return stop.value
            else:
                with guard.traced():
                    try:
                        passed.append(step(passed.pop()))
                    except StopIteration as stop:
                        return stop.value
            try:
                passed.append((yield passed.pop()))
                step = target.send
            except BaseException as thrown:  # noqa: BLE001 (it is the body's to answer)
                passed.append(thrown)
                step = target.throw

    return wrapper


def _coroutine(fn: Callable[..., Any], guard_for: Callable[..., Scope]) -> Callable[..., Any]:
    @functools.wraps(fn)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        guard = guard_for(*args, **kwargs)
        target = fn(*args, **kwargs)
        del args, kwargs
        return await drive(target, guard.body())

    return wrapper


def _async_generator(fn: Callable[..., Any], guard_for: Callable[..., Scope]) -> Callable[..., Any]:
    @functools.wraps(fn)
    async def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        guard = guard_for(*args, **kwargs)
        target, body = fn(*args, **kwargs), guard.body()
        del args, kwargs
        step = _first_step(target)
        try:
            while True:
                try:
                    yielded = [await drive(step, body, more=True)]
                except StopAsyncIteration:
                    return
                step = None  # it holds what was sent or thrown in
                try:
                    step = target.asend((yield yielded.pop()))
                except BaseException as thrown:  # noqa: BLE001 (it is the body's to answer)
                    step = target.athrow(thrown)
        finally:
            del step  # an exception thrown in would keep this frame, and itself, alive

    return wrapper


def _first_step(target: AsyncGenerator[Any, Any]) -> Any:
    """Begin `target` without its loop's knowledge.

    A loop that shuts down closes each async generator it knows, all at once: it would run the
    body's end outside its mode, and amid the wrapper's own closing of it.
    """
    hooks = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(None, None)
    try:
        return target.asend(None)
    finally:
        sys.set_asyncgen_hooks(*hooks)


def _still_to_run(code: str) -> Callable[[Any, Scope], Any]:
    """What makes the body of a result that a plain function hands back run under the guard."""

    def under(result: Any, guard: Scope) -> Any:
        wrapped = _wrap(lambda: result, getattr(result, code).co_flags, lambda: guard)()
        wrapped.__name__, wrapped.__qualname__ = result.__name__, result.__qualname__
        return wrapped

    return under


# By the type of a result that still has to run: what makes it run under the guard.
STILL_TO_RUN: dict[type, Callable[[Any, Scope], Any]] = {
    GeneratorType: _still_to_run("gi_code"),
    CoroutineType: _still_to_run("cr_code"),
    AsyncGeneratorType: _still_to_run("ag_code"),
}
RUNS_LATER = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
