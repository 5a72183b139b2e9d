"""The wrapper that each kind of function needs, so that all of its body runs under a guard."""

import functools
import inspect
import operator
import types
from collections.abc import Callable
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

from gradguard._core import guard_stack
from gradguard._core.body_wrappers import ASYNC_GENERATOR, COROUTINE, GENERATOR, body_wrapper
from gradguard._core.exits import end_call
from gradguard._core.signatures import Parameters, Shape, parameters_of
from gradguard._core.state import is_dynamo_compiling
from gradguard._core.suspendable import Suspendable, has_begun


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


_WRAPPERS = (__name__, f"{__package__}.body_wrappers", f"{__package__}.decorating")
_TEMPLATES = {
    inspect.CO_ASYNC_GENERATOR: ASYNC_GENERATOR,
    inspect.CO_COROUTINE: COROUTINE,
    inspect.CO_GENERATOR: GENERATOR,
}
RUNS_LATER = functools.reduce(operator.or_, _TEMPLATES)


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
    if "_gg_fn" not in names:
        return DecoratedCall(names.get("guard"), names.get("fn"), names.get("link"))
    function = names["_gg_fn"]
    if isinstance(function, _Result):
        function = function.made
    return DecoratedCall(names.get("_gg_guard"), function, None)


def wrapped(fn: Callable[..., Any], flags: int, guard_for: ContextFor) -> Any:
    if not flags & RUNS_LATER:
        return _plain(fn, guard_for)
    takes = Parameters(Shape()) if isinstance(fn, _Result) else parameters_of(fn)
    template = next(text for flag, text in _TEMPLATES.items() if flags & flag)
    wrapper = body_wrapper(template, fn, guard_for, takes)
    return types.coroutine(wrapper) if flags & inspect.CO_ITERABLE_COROUTINE else wrapper


def _plain(fn: Callable[..., Any], guard_for: ContextFor) -> Callable[..., Any]:
    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        guard = guard_for(*args, **kwargs)
        if is_dynamo_compiling():
            with guard.while_compiling():
                return fn(*args, **kwargs)
        below = guard_stack.thread.cell[0]  # by its module: a thread-local cannot be sent
        at_error = None
        try:
            with guard:
                try:
                    result = fn(*args, **kwargs)
                except BaseException:
                    at_error = guard_stack.thread.cell[0]
                    raise
        except BaseException:
            if at_error is None or at_error is guard_stack.thread.cell[0]:
                end_call(guard, below)
            raise
        if type(result) in STILL_TO_RUN:
            run, result = STILL_TO_RUN[type(result)], [result]
            return run(result, guard)
        return result

    return wrapper


class _Result:
    """What a plain function has handed back, in the place of a function that makes it."""

    def __init__(self, made: Any) -> None:
        self.made = made
        self.__name__, self.__qualname__ = made.__name__, made.__qualname__

    def __call__(self) -> Any:
        return self.made


def _references(result: list[Any]) -> int:
    return getrefcount(result[0])


_BY_ITS_LIST_ALONE = _references([(each for each in range(0))])


def _still_to_run(code: str) -> Callable[[list[Any], CallContext], Any]:
    """What makes the body of a result that a plain function hands back run under the guard."""

    def under(passed: list[Any], guard: CallContext) -> Any:
        # In a list, as the count of what is a variable's differs: from Python 3.14 on one that is
        # read may count once less, and where Dynamo runs, one that is an argument once more.
        somebodys = _references(passed) > _BY_ITS_LIST_ALONE
        result = passed.pop()
        if somebodys or has_begun(result):
            return result  # with a life of its own
        its_code: CodeType = getattr(result, code)
        wrapper = wrapped(_Result(result), its_code.co_flags, lambda: guard)
        made = wrapper()
        made.__name__, made.__qualname__ = result.__name__, result.__qualname__
        return made

    return under


# By the type of a result that still has to run: what takes it, in a list that nobody else has, and
# makes it run under the guard.
STILL_TO_RUN: dict[type, Callable[[list[Any], CallContext], Any]] = {
    GeneratorType: _still_to_run("gi_code"),
    CoroutineType: _still_to_run("cr_code"),
    AsyncGeneratorType: _still_to_run("ag_code"),
}
