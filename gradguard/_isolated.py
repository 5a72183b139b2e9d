"""``isolated``: a generator, coroutine or async generator function whose mode stays inside."""

import inspect
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from typing import Any, TypeVar

from typing_extensions import ParamSpec

from gradguard._carried import Carried
from gradguard._decorators import _RUNS_LATER, _code_flags, decorate
from gradguard._messages.crossing import (
    cannot_isolate,
    cannot_isolate_class,
    isolating,
    never_suspended,
)
from gradguard._standin import StandIn

P = ParamSpec("P")
R = TypeVar("R", bound="Iterable[Any] | AsyncIterable[Any] | Awaitable[Any]")


class _Isolating(StandIn):
    """An isolated function: each call carries its caller's mode into the body that it makes."""

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        fn = self.__wrapped__
        return decorate(fn, Carried(isolating(fn)))(*args, **kwargs)

    def __reduce__(self) -> str:
        return self.__qualname__  # by name, as a function


def isolated(fn: Callable[P, R]) -> Callable[P, R]:
    """Keep what a generator, coroutine or async generator switches from ever being seen outside.

    ``with torch.no_grad(): yield`` (or ``await``) switches the whole thread: until the body is
    resumed, its consumer, or every other task of the loop, runs with grad off. An isolated body
    keeps its mode to itself: at each suspension the mode of whoever resumed it comes back, and at
    each resume the body's. It starts in its caller's mode: the one at the line that calls `fn`,
    wherever the generator or coroutine is then first resumed (`asyncio.create_task` is no caller,
    nor is a ``for``). torch's own guards inside are isolated as well as gradguard's.

    Args:
        fn: a generator, coroutine or async generator function; also a method, a
            `functools.partial`, a classmethod or staticmethod, or an object with such a
            ``__call__``.

    Returns:
        A callable of the same kind, name and signature.

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
        same_kind: Any = type(fn)(isolated(fn.__func__))
        return same_kind
    if isinstance(fn, type):
        raise TypeError(cannot_isolate_class(fn))
    if not callable(fn):
        raise TypeError(cannot_isolate(fn))
    if not _code_flags(fn) & (_RUNS_LATER | inspect.CO_ITERABLE_COROUTINE):
        raise TypeError(never_suspended(fn))
    return _Isolating(fn, fn)
