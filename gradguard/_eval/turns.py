"""Turns: of two threads that change the flags of one module, the second waits for the first.

A turn is no lock: a module's own ``train()`` runs within it, and that may wait for anything. So
turns on modules that have nothing in common never meet. And who would wait for ever goes on: behind
a thread that itself waits for this one, in a turn that its own ``train()`` began, or for a lock
that this one has (`stuck_threads`).

Threads meet at single operations on `_turns`, each of which is atomic. A lock around several would
stay locked where an interrupt (Ctrl-C, a signal's handler that raises) arrives before its release.
"""

from threading import Event
from typing import Protocol

from gradguard._core.torch_versions import never_compiled
from gradguard._eval.flags_of_tree import Modules
from gradguard._eval.stuck_threads import Looks, Thread, this_thread

# A thread that waits looks this often, in seconds, whether that can end. The end wakes it, too.
_LOOK_AGAIN = 0.05


class HasModules(Protocol):
    """What a turn is about; its modules may become more while the turn waits."""

    modules: Modules


_turns: dict[HasModules, Thread] = {}  # the thread of each, in the order of their beginning
_ended: dict[HasModules, Event] = {}  # of the turns that somebody waits for
_waits_for: dict[Thread, HasModules] = {}  # whose end, by the thread that waits


def begin(about: HasModules) -> None:
    """Return when no earlier turn of another thread has any of the modules.

    Every call is followed by one of `end`, also where it raises.
    """
    me = _turns[about] = this_thread()
    if len(_turns) == 1:
        return
    looks, in_vain = Looks(), False
    try:
        # Not looked at before somebody has waited in vain: that takes longer than most turns.
        while (other := _in_the_way(about, looks if in_vain else None)) is not None:
            _waits_for[me] = other
            in_vain = not _has_ended(other)
    finally:
        _waits_for.pop(me, None)


def end(about: HasModules) -> None:
    """Let those begin that wait for the turn; one that has ended may be ended again."""
    _turns.pop(about, None)
    # Looked at only now: who made the event after this has seen that the turn has ended.
    if about in _ended:
        _ended.pop(about).set()


def is_in_turn() -> bool:
    """Tell whether this thread has a turn."""
    return this_thread() in _turns.values()


def forget_other_threads() -> list[HasModules]:
    """In a forked child, end the turns of threads that the fork did not take along; return them."""
    me = this_thread()  # whose number the system has changed
    lost = [about for about, thread in _turns.items() if thread.ident != me.ident]
    _turns.update((about, me) for about in _turns.keys() - lost)
    for about in lost:
        del _turns[about]
    _waits_for.clear()
    return lost


def _in_the_way(about: HasModules, looks: Looks | None) -> HasModules | None:
    turns, me = _turns.copy(), this_thread()
    waiting = [thread for thread, other in _waits_for.copy().items() if other in turns]
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
        # One that waits, too, goes on when this one could. So one after the other does.
        if looks is None or thread in waiting or not looks.is_stuck(thread, waiting):
            return other
    return None


def _waits_for_this_thread(thread: Thread) -> bool:
    """Tell whether a thread waits for this one, itself or through others."""
    me, seen = this_thread(), set[Thread]()
    while thread != me and thread not in seen:
        seen.add(thread)
        turn = _waits_for.get(thread)
        thread = thread if turn is None else _turns.get(turn, thread)
    return thread == me


def _has_ended(other: HasModules) -> bool:
    """Wait for the end of a turn, as long as one looks; tell whether it came."""
    ended = _ended.setdefault(other, Event())
    if other in _turns:
        return ended.wait(_LOOK_AGAIN)
    _ended.pop(other, None)
    return True


never_compiled(globals())
