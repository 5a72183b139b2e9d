"""The wrapper that each kind of function needs, so that all of its body runs under a guard.

Of `no_grad` and `inference_mode`, which decorate most, the wrapper of a plain function has the
guard's entry and exit written out: `with guard:` costs two more Python calls, a third of the whole
for `no_grad`, whose two C calls are cheap.
"""

import functools
import inspect
import sys
import types
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractContextManager
from types import AsyncGeneratorType, CodeType, CoroutineType, FrameType, GeneratorType
from typing import Any, NamedTuple, Protocol, TypeAlias

from gradguard._core.guard_stack import fast, thread
from gradguard._core.state import (
    enter_inference,
    exit_inference,
    is_dynamo_compiling,
    is_grad_enabled,
    is_inference_mode_enabled,
    set_grad,
)
from gradguard._core.suspended_bodies import Suspendable, advance, drive


class CallContext(Protocol):
    """What a decorator puts around each call: a guard, eval mode, or several such things."""

    def __enter__(self) -> object: ...

    def __exit__(self, exc_type: object, exc: object, tb: object, /) -> object: ...

    def while_compiling(self) -> AbstractContextManager[object]:
        """The same while Dynamo is compiling."""
        ...

    def body(self) -> Suspendable:
        """The same for one call whose body can be suspended."""
        ...


ContextFor: TypeAlias = Callable[..., CallContext]  # called with the arguments of each call


class DecoratedCall(NamedTuple):
    """One call of a decorated function.

    Attributes:
        guard: what the call runs under, a guard or another `CallContext`.
        function: what was decorated; where a plain function has handed back a generator, coroutine
            or async generator to be run under the guard, that.
        link: the call's link on the thread's chain of open guards, where the wrapper has it.

    """

    guard: Any
    function: Any
    link: Any


def is_decorated_call(frame: FrameType) -> bool:
    """Tell whether the frame is that of a wrapper: cheaper than reading what it calls."""
    return frame.f_globals is globals() and frame.f_code.co_name == "wrapper"


def decorated_call(frame: FrameType) -> DecoratedCall | None:
    """Return what the frame of a wrapper calls; None for any other frame.

    A frame does not lead to the function that it runs, so this reads the wrappers' variables
    `guard`, `fn` and `link`, here and nowhere else.
    """
    if not is_decorated_call(frame):
        return None
    names = frame.f_locals
    function = names.get("fn")
    if isinstance(function, _Result):
        function = function.made
    return DecoratedCall(names.get("guard"), function, names.get("link"))


def wrapped(fn: Callable[..., Any], flags: int, guard_for: ContextFor) -> Any:
    if flags & inspect.CO_ASYNC_GENERATOR:
        return _async_generator(fn, guard_for)
    if flags & inspect.CO_COROUTINE:
        return _coroutine(fn, guard_for)
    if flags & inspect.CO_ITERABLE_COROUTINE:
        return types.coroutine(_generator(fn, guard_for))
    if flags & inspect.CO_GENERATOR:
        return _generator(fn, guard_for)
    return _plain(fn, guard_for)


def _plain(fn: Callable[..., Any], guard_for: ContextFor) -> Callable[..., Any]:
    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        guard = guard_for(*args, **kwargs)
        if is_dynamo_compiling():
            with guard.while_compiling():
                return fn(*args, **kwargs)
        with guard:
            result = fn(*args, **kwargs)
        if type(result) in STILL_TO_RUN:
            return STILL_TO_RUN[type(result)](result, guard)
        return result

    return wrapper


def _generator(fn: Callable[..., Any], guard_for: ContextFor) -> Callable[..., Any]:
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
                with guard.while_compiling():
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


def _coroutine(fn: Callable[..., Any], guard_for: ContextFor) -> Callable[..., Any]:
    @functools.wraps(fn)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        guard = guard_for(*args, **kwargs)
        target = fn(*args, **kwargs)
        del args, kwargs
        return await drive(target, guard.body())

    return wrapper


def _async_generator(fn: Callable[..., Any], guard_for: ContextFor) -> Callable[..., Any]:
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


def under_no_grad(fn: Callable[..., Any], guard: Any) -> Callable[..., Any]:
    """Return a wrapper that calls `fn` under `guard`, which is `no_grad()`."""
    ordinary: type | None = None  # the type of the last result, which was not still to run

    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        nonlocal ordinary
        if is_dynamo_compiling():
            with guard.while_compiling():
                return fn(*args, **kwargs)
        try:
            cell = fast.cell
        except AttributeError:  # this thread's first entry
            cell = thread.cell
        below = cell[0]
        found = is_grad_enabled()
        cell[0] = link = (guard, found, None, below)
        if found:
            set_grad(False)
        try:
            result = fn(*args, **kwargs) if kwargs else fn(*args)
        finally:
            if cell[0] is link:
                cell[0] = below
                set_grad(found)
            else:
                guard.__exit__()  # the body has closed or left open a guard
        if result is not None and type(result) is not ordinary:
            if type(result) in STILL_TO_RUN:
                return STILL_TO_RUN[type(result)](result, guard)
            ordinary = type(result)
        return result

    return wrapper


def under_inference(fn: Callable[..., Any], guard: Any) -> Callable[..., Any]:
    """Return a wrapper that calls `fn` under `guard`, which is `inference_mode()`."""
    ordinary: type | None = None  # the type of the last result, which was not still to run

    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        nonlocal ordinary
        if is_dynamo_compiling():
            with guard.while_compiling():
                return fn(*args, **kwargs)
        try:
            cell = fast.cell
        except AttributeError:  # this thread's first entry
            cell = thread.cell
        below = cell[0]
        cell[0] = link = (
            guard,
            is_grad_enabled() or (None if is_inference_mode_enabled() else False),
            token := enter_inference(True),
            below,
        )
        try:
            result = fn(*args, **kwargs) if kwargs else fn(*args)
        finally:
            if cell[0] is link:
                cell[0] = below
                exit_inference(token, None, None, None)
            else:
                guard.__exit__()  # the body has closed or left open a guard
        if result is not None and type(result) is not ordinary:
            if type(result) in STILL_TO_RUN:
                return STILL_TO_RUN[type(result)](result, guard)
            ordinary = type(result)
        return result

    return wrapper


class _Result:
    """What a plain function has handed back, in the place of a function that makes it."""

    def __init__(self, made: Any) -> None:
        self.made = made
        self.__name__, self.__qualname__ = made.__name__, made.__qualname__

    def __call__(self) -> Any:
        return self.made


def _still_to_run(code: str) -> Callable[[Any, CallContext], Any]:
    """What makes the body of a result that a plain function hands back run under the guard."""

    def under(result: Any, guard: CallContext) -> Any:
        its_code: CodeType = getattr(result, code)
        wrapper = wrapped(_Result(result), its_code.co_flags, lambda: guard)
        made = wrapper()
        made.__name__, made.__qualname__ = result.__name__, result.__qualname__
        return made

    return under


# By the type of a result that still has to run: what makes it run under the guard.
STILL_TO_RUN: dict[type, Callable[[Any, CallContext], Any]] = {
    GeneratorType: _still_to_run("gi_code"),
    CoroutineType: _still_to_run("cr_code"),
    AsyncGeneratorType: _still_to_run("ag_code"),
}
