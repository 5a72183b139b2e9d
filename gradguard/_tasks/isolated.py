"""``isolated``: a generator, coroutine or async generator function whose mode stays inside."""

from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from contextlib import nullcontext
from typing import Any, TypeVar, overload

from typing_extensions import ParamSpec, Self

from gradguard._core.decorating import code_flags, decorate_each
from gradguard._core.suspended_bodies import Body
from gradguard._core.wrappers import RUNS_LATER
from gradguard._tasks.naming import name_of, of_type

_SUSPENDED = "a generator, coroutine or async generator function"

P = ParamSpec("P")
M = TypeVar("M", bound="classmethod[Any, Any, Any] | staticmethod[Any, Any]")
R = TypeVar("R", bound="Iterable[Any] | AsyncIterable[Any] | Awaitable[Any]")


class _Isolation(nullcontext[None]):
    """A scope that switches nothing; a body of its own is all there is to it."""

    def while_compiling(self) -> Self:
        return self

    def body(self) -> Body:
        return Body()


_ISOLATION = _Isolation()


@overload
def isolated(fn: M) -> M: ...
@overload
def isolated(fn: Callable[P, R]) -> Callable[P, R]: ...
def isolated(fn: Any) -> Any:
    """Keep what a generator, coroutine or async generator switches from ever being seen outside.

    ``with torch.no_grad(): yield`` (or ``await``) switches the whole thread: until the body is
    resumed, its consumer, or every other task of the loop, runs with grad off. An isolated body
    keeps its mode to itself: at each suspension the mode of whoever resumed it comes back, and at
    each resume the body's. It starts in the mode in which it is first resumed, as its first line
    does without this; a task is first resumed by its loop, which `isolate_tasks` puts right.
    torch's own guards inside are isolated as well as gradguard's, and so is all that it calls.

    Args:
        fn: a generator, coroutine or async generator function; also a method, a
            `functools.partial`, a classmethod or staticmethod, or an object with such a
            ``__call__``.

    Returns:
        A function of the same kind, name and signature.

    Raises:
        TypeError: `fn` is something else; the message says what to use instead.

    >>> import gradguard, torch
    >>> @gradguard.isolated
    ... def predictions(model, batches):
    ...     with torch.no_grad():
    ...         for batch in batches:
    ...             yield model(batch)
    >>> for _ in predictions(torch.nn.Linear(2, 1), torch.ones(1, 3, 2)):
    ...     torch.is_grad_enabled()
    True

    Source: the leak is shown in https://github.com/pytorch/pytorch/pull/49017.
    """
    if isinstance(fn, (classmethod, staticmethod)):
        return type(fn)(isolated(fn.__func__))
    if isinstance(fn, type):
        raise TypeError(_cannot_isolate_class(fn))
    if not callable(fn):
        raise TypeError(_cannot_isolate(fn))
    if not code_flags(fn) & RUNS_LATER:
        raise TypeError(_never_suspended(fn))
    return decorate_each(fn, lambda *_, **__: _ISOLATION, "isolated")


def _cannot_isolate(value: object) -> str:
    """Name the value that cannot be called, and say what to decorate."""
    found = f"{of_type(value)}, which is not callable"
    return f"isolated() cannot isolate {found}. Decorate {_SUSPENDED}."


def _cannot_isolate_class(cls: type) -> str:
    """Name the class, and say what to decorate in it."""
    return (
        f"isolated() cannot isolate the class {cls.__qualname__}. Decorate those of its methods "
        f"that yield or await: each must be {_SUSPENDED}."
    )


def _never_suspended(fn: object) -> str:
    """Name the plain function, and say what to use for what may have been meant."""
    return (
        f"isolated() cannot isolate {name_of(fn)}: it is not {_SUSPENDED}, so it is never "
        "suspended. If it returns one of these running, decorate the function that makes it. To "
        "run it under a mode of its own, decorate it with gradguard.no_grad or another guard; to "
        "run it in another thread under this one's mode, use gradguard.carry; to have a mode that "
        "it leaves switched put back, gradguard.leak_check."
    )


isolated.__module__ = "gradguard"
