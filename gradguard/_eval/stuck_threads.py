"""Whether threads go on or wait: no lock says who waits for it, but the system counts switches.

A thread that waits is asleep and stays so. One that computes, waits for Python's own lock, or only
waits for a processor on a busy machine is running, or has been switched since the last look.
"""

import re
from collections.abc import Collection, Hashable, Iterable
from pathlib import Path
from threading import get_ident, get_native_id
from typing import NamedTuple

# Of /proc/[pid]/task/[tid]/status, https://man7.org/linux/man-pages/man5/proc_pid_status.5.html.
_STATUS = re.compile(r"^(?:State|(?:non)?voluntary_ctxt_switches):\t(\w+)", re.MULTILINE)
_TASKS = Path("/proc/self/task")

# After as many looks in a row at which nothing in the whole process did anything but look, a thread
# counts as stuck: nobody is left who could wake it. After more it does so although others go on,
# for they may have nothing to do with it.
_LOOKS_AT_ALL = 10
_LOOKS_AT_ONE = 100

# Removed by the one thread that goes on behind a stuck one; the others look anew. Mostly one of
# them alone has what is waited for, and who else is let go on may meet the stuck one, awake again.
_next_to_go_on: list[object] = [object()]


class Thread(NamedTuple):
    """A thread, by Python's number and by the system's."""

    ident: int
    native_id: int


def this_thread() -> Thread:
    """Return the thread that is running."""
    return Thread(get_ident(), get_native_id())


class Looks:
    """What one waiting thread has seen of those it waits for."""

    def __init__(self) -> None:
        """Begin with nothing seen."""
        self._in_a_row: dict[Thread | None, tuple[Hashable, int]] = {}
        self._behind: dict[Thread, Hashable] = {}  # whom this thread has gone on behind

    def is_stuck(self, thread: Thread, waiting: Iterable[Thread]) -> bool:
        """Look, and tell whether a thread waits for what will not come, and this one may go on.

        Args:
            thread: whom to look at.
            waiting: threads that look, too, and have nothing else to do.
        """
        progress = _progress(thread.native_id)
        if thread in self._behind and self._behind[thread] == progress:
            return True
        turn = next(iter(_next_to_go_on), None)
        at_one = self._again(thread, (turn, progress))
        if at_one == 1:  # it goes on, and so the process does: who else does need not be read
            self._in_a_row.pop(None, None)
            return False
        looking = {get_native_id(), *(other.native_id for other in waiting)}
        at_all = self._again(None, (turn, _progress_of_others(looking)))
        if (at_one > _LOOKS_AT_ONE or at_all > _LOOKS_AT_ALL) and _is_taken(turn):
            self._behind[thread] = progress
            return True
        return False

    def _again(self, of: Thread | None, seen: Hashable) -> int:
        last, count = self._in_a_row.get(of, (None, 0))
        count = count + 1 if seen == last else 1
        self._in_a_row[of] = seen, count
        return count


def _is_taken(turn: object) -> bool:
    try:
        _next_to_go_on.remove(turn)
    except ValueError:  # another thread was faster
        pass
    else:
        return True
    finally:
        if not _next_to_go_on:
            _next_to_go_on.append(object())
    return False


def _progress(native_id: int) -> Hashable:
    """Return what is equal at two looks only if the thread has waited all the time between them."""
    try:
        status = (_TASKS / str(native_id) / "status").read_text("ascii", "replace")
    except (FileNotFoundError, ProcessLookupError):  # ended, or no /proc: then it is waited for
        return None if _TASKS.exists() else object()
    state, *switches = _STATUS.findall(status)
    return object() if state == "R" else tuple(switches)


def _progress_of_others(looking: Collection[int]) -> Hashable:
    if not _TASKS.exists():
        return object()
    tasks = {int(task.name) for task in _TASKS.iterdir()}.difference(looking)
    return frozenset((task, _progress(task)) for task in tasks)
