"""``isolate_tasks``: every task of an asyncio loop with a mode of its own."""

import asyncio
import inspect
from collections.abc import Callable, Generator
from typing import Any

from gradguard._core.suspendable import drive
from gradguard._core.suspended_bodies import Body
from gradguard._tasks.carried_mode import Carried
from gradguard._tasks.naming import of_type


class IsolatedCoroutine:
    """A task's coroutine under a mode of its own, which starts as the one where it is wrapped.

    Not a coroutine around it, as the decorators make one: the task's repr and `get_stack` would
    show that coroutine's frame. This shows everything of the user's, by `__getattr__`, and asyncio
    takes it for a coroutine by its four methods. `send` is in a slot because a method around it
    would cost another Python call at each step.
    """

    __slots__ = ("__weakref__", "_coro", "_steps", "send")

    def __init__(self, coro: Any) -> None:
        self._coro = coro
        self._steps: Any = drive(coro, Body(Carried("isolate_tasks()")), coro)
        self.send = self._steps.send

    def throw(self, *exc: Any) -> Any:
        return self._reached().throw(*exc)

    def close(self) -> None:
        self._reached().close()

    def _reached(self) -> Any:
        """What to throw into: before its first step `drive` would not pass it on."""
        created = inspect.getgeneratorstate(self._steps) == inspect.GEN_CREATED
        return self._coro if created else self._steps

    def __await__(self) -> Generator[Any, Any, Any]:
        return (yield from self._steps)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._coro, name)

    def __repr__(self) -> str:
        return f"<isolated {self._coro!r}>"


class _IsolatingFactory:
    """A task factory: that of the loop before it, with isolated coroutines."""

    def __init__(self, factory: Callable[..., Any] | None) -> None:
        self._factory = factory

    def __call__(self, loop: asyncio.AbstractEventLoop, coro: Any, **kwargs: Any) -> Any:
        # What is no coroutine goes on as it is, to the TypeError that asyncio has for it.
        if asyncio.iscoroutine(coro) and not isinstance(coro, IsolatedCoroutine):
            coro = IsolatedCoroutine(coro)
        if self._factory is not None:
            return self._factory(loop, coro, **kwargs)
        task = asyncio.Task(coro, loop=loop, **kwargs)
        _begin_at_the_creator(task)
        return task


def _begin_at_the_creator(task: Any) -> None:
    """Let the repr in debug mode say "created at" the user's line.

    asyncio takes its own frame off likewise, but only where no task factory is set.
    """
    created = task._source_traceback  # noqa: SLF001 (asyncio offers no other way to it)
    while created and created[-1].filename in (__file__, asyncio.base_events.__file__):
        created.pop()


def isolate_tasks(loop: asyncio.AbstractEventLoop | None = None) -> None:
    """Give every task that this asyncio loop creates from now on a mode of its own.

    ``with torch.no_grad(): await …`` switches the whole thread: until that task goes on, all the
    others run with grad off. An isolated task starts in the mode current at `create_task`, and
    what it switches stays in it: at each suspension the loop's mode comes back. This holds for
    whatever creates tasks in the loop (`asyncio.gather`, `TaskGroup`, servers), and for torch's
    own guards. Tasks that exist already are not isolated, the one that calls this included: call
    it first thing in ``main()``. Worker threads are `carry`'s.

    A task factory that is set already makes the tasks as before (eager ones as well), from
    isolated coroutines; one that is set later ends the isolation. ``task.get_coro()`` is an object
    with the attributes of the user's coroutine, not a native coroutine. Calling this again changes
    nothing.

    Args:
        loop: the loop; by default the running one.

    Raises:
        RuntimeError: no loop is named and none is running in this thread.
        TypeError: `loop` is not an asyncio event loop.

    >>> import asyncio, gradguard, torch
    >>> async def serve():
    ...     with torch.no_grad():
    ...         await asyncio.sleep(0)
    >>> async def main():
    ...     gradguard.isolate_tasks()
    ...     task = asyncio.create_task(serve())
    ...     await asyncio.sleep(0)  # the task is inside its no_grad now
    ...     print(torch.is_grad_enabled())
    ...     await task
    >>> asyncio.run(main())
    True
    """
    if loop is None:
        loop = _running()
    if not isinstance(loop, asyncio.AbstractEventLoop):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(_not_a_loop(loop))
    factory = loop.get_task_factory()
    if not isinstance(factory, _IsolatingFactory):
        loop.set_task_factory(_IsolatingFactory(factory))


def _running() -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError(_no_running_loop()) from None


def _no_running_loop() -> str:
    """Say where to call it."""
    return (
        "isolate_tasks() found no running event loop in this thread. Call it in a coroutine that "
        "the loop runs, first thing in main(), or name the loop: isolate_tasks(loop)."
    )


def _not_a_loop(value: object) -> str:
    """Name the value, and say what to pass."""
    return (
        f"isolate_tasks(loop) takes an asyncio event loop, not {of_type(value)}. In a coroutine, "
        "leave it out: isolate_tasks()."
    )


isolate_tasks.__module__ = "gradguard"
