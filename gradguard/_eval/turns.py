"""Turns: of two threads that change the flags of one module, the second waits for the first.

A turn is no lock: a module's own ``train()`` runs within it, and that may wait for anything. So
turns on modules that have nothing in common never meet. And who would wait for ever goes on: behind
a thread that itself waits for this one, in a turn that its own ``train()`` began, or for a lock
that this one has. No lock says who waits for it, but a thread that waits uses no processor time.

Threads meet at single operations on `_turns`, each of which is atomic. A lock around several would
stay locked where an interrupt (Ctrl-C, a signal's handler that raises) arrives before its release.
"""

import sys
import time
from collections import Counter
from threading import Event, get_ident
from typing import Any, Protocol

from gradguard._core.torch_versions import never_compiled
from gradguard._eval.training_flags import Modules

# A thread that waits looks this often, in seconds, whether that can end. The end wakes it, too.
_LOOK_AGAIN = 0.05
# After as many looks at which another thread has used no processor time, it counts as stuck. One
# that computes or waits for Python's own lock does use some.
_LOOKS_UNTIL_STUCK = 10


class HasModules(Protocol):
    """What a turn is about; its modules may become more while the turn waits."""

    modules: Modules


_turns: dict[HasModules, int] = {}  # the thread of each, in the order of their beginning
_ended: dict[HasModules, Event] = {}  # of the turns that somebody waits for
_waits_for: dict[int, HasModules] = {}  # by thread


def begin(about: HasModules) -> None:
    """Return when no earlier turn of another thread has any of the modules.

    Every call is followed by one of `end`, also where it raises.
    """
    _turns[about] = get_ident()
    if len(_turns) > 1:
        looks: Counter[Any] = Counter()
        while (other := _in_the_way(about, looks)) is not None:
            looks[other, _processor_time(_turns.get(other))] += 1
            _wait(other)


def end(about: HasModules) -> None:
    """Let those begin that wait for the turn; one that has ended may be ended again."""
    _turns.pop(about, None)
    # Looked at only now: who made the event after this has seen that the turn has ended.
    if about in _ended:
        _ended.pop(about).set()


def is_in_turn() -> bool:
    """Tell whether this thread has a turn."""
    return get_ident() in _turns.values()


def forget_other_threads() -> list[HasModules]:
    """In a forked child, end the turns of threads that the fork did not take along; return them."""
    lost = [about for about, thread in _turns.items() if thread != get_ident()]
    for about in lost:
        del _turns[about]
    _waits_for.clear()
    return lost


def _in_the_way(about: HasModules, looks: "Counter[Any]") -> HasModules | None:
    turns, me = _turns.copy(), get_ident()
    # Turns in which this one began, by an override of train(): their modules are this thread's.
    around = [mine for mine, thread in turns.items() if thread == me and mine is not about]
    modules = set(about.modules).difference(*(mine.modules for mine in around))
    for other, thread in turns.items():
        if other is about:
            break
        if thread == me or modules.isdisjoint(other.modules):
            continue
        if around and _waits_for_this_thread(thread):
            continue
        if looks[other, _processor_time(thread)] < _LOOKS_UNTIL_STUCK:
            return other
    return None


def _processor_time(thread: int | None) -> float | None:
    """Return what a thread has used, in seconds; it counts on where that cannot be known."""
    if thread not in sys._current_frames():  # noqa: SLF001 (documented); a thread that has ended
        return None
    try:
        return time.clock_gettime(time.pthread_getcpuclockid(thread))
    except (AttributeError, OSError):  # not on Windows and macOS: there it is waited for
        return time.monotonic()


def _waits_for_this_thread(thread: int) -> bool:
    """Tell whether a thread waits for this one, itself or through others."""
    seen: set[int] = set()
    while thread not in seen:
        seen.add(thread)
        thread = _turns.get(_waits_for.get(thread), thread)  # type: ignore[arg-type]
    return thread == get_ident()


def _wait(other: HasModules) -> None:
    ended = _ended.setdefault(other, Event())
    _waits_for[get_ident()] = other
    try:
        if other in _turns:
            ended.wait(_LOOK_AGAIN)
        else:
            _ended.pop(other, None)
    finally:
        _waits_for.pop(get_ident(), None)


never_compiled(globals())
