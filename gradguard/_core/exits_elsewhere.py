"""Exits that are tried in another thread than the entry was made in, or outside its body.

Frameworks run the two halves of a `yield` dependency in two threads of a pool. From the second
thread the first cannot be switched; but it can be told that the block is over. And a generator
that began a block inside a body may go on, or be closed, while the body is suspended.
"""

import inspect
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from gradguard._core.guard_stack import (
    ChainOfThread,
    Link,
    Opener,
    chains,
    guards_of,
    is_entry_of,
    links_from,
    suspended_in_blocks,
    thread,
)

USE_WITH = "Use `with`, which exits each guard in the block and the thread that entered it."


def open_elsewhere(guard: Opener) -> str | None:
    """The name of another thread in which `guard` is open, where its exit is tried in this one.

    That thread cannot be switched from here. It is to look at its chain, and exits the guard itself
    if nobody else can.
    """
    others = _threads_of(guard)
    if not others:
        return None
    certain = _is_exit_of_block()
    if certain or not strays_of(guard, others[0]):
        others[0].strays.append((guard, certain))
    others[0].suspect()
    return " or ".join(sorted(other.name for other in others))


def close_outside_body(
    guard: Opener, close: Callable[[Any], None], chain: list[Link], elsewhere: str | None
) -> None:
    """Close `guard`, which is not open in this thread, in the body that is suspended in its block.

    So it is where the collector closes a body and the generator that it runs. Where that generator
    outlives the body, its block has ended with it, and its exit has nothing left to do.
    """
    if elsewhere is not None or not _ends_block_of_body():
        raise RuntimeError(_not_open(guard, chain, elsewhere))
    bodies = [each for each in list(suspended_in_blocks) if each.holds(guard)]
    if len(bodies) > 1:
        raise RuntimeError(_in_one_of(guard, len(bodies)))
    for body in bodies:
        body.step(close, [None])


def strays_of(guard: Opener | None, seen: ChainOfThread | None = None) -> int:
    """How many exits of `guard`, open in this thread or that, were tried in another."""
    return sum(stray is guard for stray, _ in list((seen or thread.seen_by_others).strays))


def ended_elsewhere(guard: Opener) -> bool:
    """Tell whether as many blocks of `guard` have ended in other threads as entries are open."""
    threads = list(chains)
    strays = [stray for seen in threads for stray in list(seen.strays)]
    ended = sum(certain and stray is guard for stray, certain in strays)
    return ended >= sum(_entries(guard, seen) for seen in threads)


def forget_stray(guard: Opener | None) -> None:
    """Keep one stray less of `guard`: the entry is off this thread's chain."""
    strays = thread.seen_by_others.strays
    for at, (stray, _) in enumerate(strays):
        if stray is guard:
            del strays[at]
            return


def pass_strays_on() -> None:
    """Keep none of a guard that this thread has exited itself: it was another thread's."""
    seen = thread.seen_by_others
    for guard, certain in list(seen.strays):
        if not _entries(guard, seen):
            forget_stray(guard)
            for other in _threads_of(guard)[:certain]:
                other.strays.append((guard, certain))
                other.suspect()
    if seen.strays:
        seen.suspect()  # to look again


def _threads_of(guard: Opener) -> list[ChainOfThread]:
    """The other threads that have `guard` open, first those that may be waiting for its exit."""
    others = [each for each in list(chains) if each.cell is not thread.cell]
    found = [each for each in others if _entries(guard, each)]
    return sorted(found, key=lambda each: strays_of(guard, each) >= _entries(guard, each))


def _entries(guard: Opener, seen: ChainOfThread) -> int:
    return sum(is_entry_of(link, guard) for link in links_from(seen.cell[0]))


_RUNS_IN_ANY_THREAD = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


def _is_exit_of_block() -> bool:
    """Tell whether who tries the exit ends a block of his own, entered in another thread.

    A ``with`` whose halves run in two threads stands in a body that can be suspended, and an exit
    stack exits only what it has entered. A call of ``__exit__`` by hand may be a mistake.
    """
    frame = _who_exits()
    return _is_contextlib(frame) or _is_with_in_body(frame)


def _ends_block_of_body() -> bool:
    """Tell whether the exit is that of a ``with`` in a body that can be suspended."""
    frame = _who_exits()
    while frame.f_back is not None and (
        _is_contextlib(frame) or frame.f_code.co_name in ("__exit__", "__aexit__")
    ):
        frame = frame.f_back
    return _is_with_in_body(frame)


def _who_exits() -> FrameType:
    frame = sys._getframe()  # noqa: SLF001 (inspect.currentframe() may be None)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("gradguard."):
        frame = frame.f_back
    return frame


def _is_contextlib(frame: FrameType) -> bool:
    return bool(frame.f_globals.get("__name__") == "contextlib")


def _is_with_in_body(frame: FrameType) -> bool:
    code = frame.f_code
    return bool(code.co_flags & _RUNS_IN_ANY_THREAD) and "__exit__" not in code.co_names


def _not_open(guard: Opener, chain: list[Link], elsewhere: str | None) -> str:
    here = ", ".join(map(repr, guards_of(chain))) or "none"
    if elsewhere is not None:
        return (
            f"{guard!r} was entered in another thread ({elsewhere}) and cannot be exited in this "
            f"one, whose mode is unchanged (open here, outermost first: {here}). Frameworks run "
            "the two halves of a `yield` dependency in two threads of a pool. Decorate the "
            f"function that needs the mode, for example the endpoint, with {guard!r}; or take the "
            "mode along to another thread with gradguard.carry(fn)."
        )
    return (
        f"{guard!r} is not open in this thread (open here, outermost first: {here}), so it "
        "cannot be exited; the mode is unchanged. It was never entered, or was exited already. "
        f"{USE_WITH}"
    )


def _in_one_of(guard: Opener, bodies: int) -> str:
    return (
        f"{guard!r} is open in {bodies} suspended generators or coroutines, and its exit here ends "
        "its block in one of them, but nothing tells in which; the mode is unchanged. Enter a "
        "guard of its own in each."
    )
