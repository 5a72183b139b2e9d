"""``carry``: the mode taken along to another thread or task."""

from collections.abc import Callable
from functools import partial, update_wrapper
from types import MethodType
from typing import Any, NoReturn, TypeVar

from typing_extensions import ParamSpec, Self

from gradguard._core.decorating import decorate
from gradguard._tasks.carried_mode import Carried
from gradguard._tasks.naming import name_of, of_type

P = ParamSpec("P")
R = TypeVar("R")


class _Carrying(partial[R]):
    """A carried function, which passes for the function: in name, signature and kind.

    Not a function, though, as ``functools.wraps`` makes one: pickle takes every function by its
    name, without asking, and would send a process pool one that carries nothing. Of all objects
    `inspect` looks through partials alone, to see a generator or coroutine function.
    """

    __wrapped__: Callable[..., R]

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        return self if instance is None else MethodType(self, instance)

    def __reduce__(self) -> NoReturn:
        raise TypeError(_cannot_pickle(self.__wrapped__))

    def __copy__(self) -> Self:
        return self  # as a function

    def __deepcopy__(self, memo: object) -> Self:
        return self


def carry(fn: Callable[P, R]) -> Callable[P, R]:
    """Return `fn` to be run, in whatever thread or task, under the mode current here and now.

    Worker threads start with grad on, whatever the mode of the thread that submits the work.
    Both flags are carried, and the grad mode that surrounds an inference block: inside,
    ``inference_mode(False)`` does what it would do here. The worker's own mode comes back after
    each call. A generator or coroutine, which `fn` may also hand back, runs under the carried mode
    wherever it is resumed. As a decorator it carries the mode at the line of the ``def``, which is
    rarely meant. Autocast, which torch also keeps per thread, is not carried.

    Args:
        fn: a callable, for `concurrent.futures` executors, `threading.Thread`,
            `asyncio.to_thread` or ``loop.run_in_executor``. Not for process pools.

    Returns:
        A callable of the same kind, name and signature, for any number of calls.

    Raises:
        TypeError: `fn` is a class or cannot be called; also later, when the result is pickled.

    >>> import gradguard
    >>> from concurrent.futures import ThreadPoolExecutor
    >>> with ThreadPoolExecutor() as pool, gradguard.no_grad():
    ...     pool.submit(gradguard.grad_state).result()
    ...     pool.submit(gradguard.carry(gradguard.grad_state)).result()
    GradState(grad_enabled=True, inference_mode=False)
    GradState(grad_enabled=False, inference_mode=False)

    Source: `torch.no_grad`: "This context manager is thread local".
    """
    if isinstance(fn, type):
        raise TypeError(_cannot_carry_class(fn))
    if not callable(fn):
        raise TypeError(_cannot_carry(fn))
    return update_wrapper(_Carrying(decorate(fn, Carried(_carrying(fn)))), fn)


def _carrying(fn: object) -> str:
    """Return what a carried function's mode is called in lists of open guards."""
    return f"carry({name_of(fn)})"


def _cannot_carry(value: object) -> str:
    """Name the value that cannot be called, and say what to pass."""
    return (
        f"carry() cannot carry a mode into {of_type(value)}, which is not callable. Pass the "
        "function itself, and its arguments to whatever runs it: executor.submit(carry(fn), *args)."
    )


def _cannot_carry_class(cls: type) -> str:
    """Name the class, and say how to carry a method or the construction."""
    name = cls.__qualname__
    return (
        f"carry() cannot carry a mode into the class {name}: only its constructor would be "
        f"covered. Carry a method of an instance, carry({name}(...).method), or, to construct it "
        f"in the other thread, carry(lambda: {name}(...))."
    )


def _cannot_pickle(fn: object) -> str:
    """Say why a carried function stays in its process, and what to do in a process pool."""
    return (
        f"{_carrying(fn)} cannot be pickled: the mode that it carries belongs to a thread of this "
        "process. carry() is for threads and tasks. For a process pool, decorate the function that "
        "runs there with gradguard.no_grad or another guard."
    )


carry.__module__ = "gradguard"
