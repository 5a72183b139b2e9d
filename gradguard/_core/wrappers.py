"""The wrapper that each kind of function needs, so that all of its body runs under a guard."""

import functools
import inspect
import types
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractContextManager
from sys import getrefcount
from types import (
    AsyncGeneratorType,
    CodeType,
    CoroutineType,
    FrameType,
    GeneratorType,
    TracebackType,
)
from typing import Any, NamedTuple, Protocol, TypeAlias

from gradguard._core.state import is_dynamo_compiling
from gradguard._core.suspendable import Suspendable, drive, first_step, has_begun, has_ended


class CallContext(Protocol):
    """What a decorator puts around each call: a guard, eval mode, or several such things."""

    def __enter__(self) -> object: ...

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
        /,
    ) -> object: ...

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


_WRAPPERS = (__name__, f"{__package__}.decorating")


def is_decorated_call(frame: FrameType) -> bool:
    """Tell whether the frame is that of a wrapper: cheaper than reading what it calls."""
    return frame.f_code.co_name == "wrapper" and frame.f_globals["__name__"] in _WRAPPERS


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


# Both loops stand in one function, since Dynamo follows neither through another generator.
def _generator(  # noqa: C901
    fn: Callable[..., Any], guard_for: ContextFor
) -> Callable[..., Any]:
    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:  # noqa: C901
        guard = guard_for(*args, **kwargs)
        target, body = fn(*args, **kwargs), None
        if not is_dynamo_compiling():
            body = guard.body()
            del args, kwargs  # they are the body's to keep
        # Not `yield from drive(...)`: a body that is closed and goes on would be lost with it; and
        # Dynamo neither sends nor throws through it. Dynamo also loses a StopIteration that leaves
        # a `with` (why it cannot follow torch's wrapper to the end of a generator); up to torch 2.8
        # it fails where any error leaves one, and at a `yield` amid a call.
        call: Any = target.send
        passed: list[Any] = [None]
        interrupted, error = False, None
        while True:
            if body is not None:
                try:
                    passed.append(body.step(call, passed))
                except BaseException as raised:
                    if not interrupted and not has_ended(target):  # as in `drive`
                        interrupted, passed[:], call = True, [raised], target.throw
                        continue
                    if isinstance(raised, StopIteration):
                        return raised.value
                    raise
                interrupted = False
            else:
                with guard.while_compiling():
                    try:
                        passed.append(call(passed.pop()))
                    except StopIteration as stop:
                        return stop.value
                    except BaseException as raised:  # noqa: BLE001 (it is raised below)
                        error = raised
                if error is not None:
                    raise error
            try:
                received = yield passed.pop()
                passed.append(received)
                call, received = target.send, None
            except BaseException as thrown:  # noqa: BLE001 (it is the body's to answer)
                passed[:] = [thrown]
                call = target.throw

    return wrapper


def _coroutine(fn: Callable[..., Any], guard_for: ContextFor) -> Callable[..., Any]:
    @functools.wraps(fn)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        guard = guard_for(*args, **kwargs)
        target = fn(*args, **kwargs)
        del args, kwargs
        return await drive(target, guard.body(), target)

    return wrapper


def _async_generator(fn: Callable[..., Any], guard_for: ContextFor) -> Callable[..., Any]:
    @functools.wraps(fn)
    async def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        guard = guard_for(*args, **kwargs)
        target, body = fn(*args, **kwargs), guard.body()
        del args, kwargs
        step = first_step(target)
        try:
            while True:
                try:
                    yielded = [await drive(step, body, target, more=True)]
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
        if has_begun(result) or getrefcount(result) > _held_by_a_call():
            return result  # it is somebody else's, with a life of its own
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


def _references(result: Any, _: CallContext | None) -> int:
    return getrefcount(result)


def _held_by_a_call() -> int:
    """The references to a result that nobody has but the wrapper that is asking.

    Counted anew each time: once Dynamo has run, CPython passes arguments in another way, which
    holds one more.
    """
    result = (each for each in range(0))
    return _references(result, None)
