"""What is recorded while any trace is active: one recorder for all threads and all traces.

No lock is taken where a switch is recorded: a process that forks while another thread holds one
would hang in the child, as DataLoader workers do. Appending to a deque, setting and removing a key
of a dict and counting are single steps.
"""

import itertools
import sys
import threading
from collections import deque
from collections.abc import Callable, Collection
from time import perf_counter_ns
from types import CodeType, FrameType
from typing import TYPE_CHECKING, TypeVar

from gradguard._core.frames import USER, Line, frames_of, whose
from gradguard._core.places import written
from gradguard._trace.causes import cause_of, holder_of, is_plain, is_torchs
from gradguard._trace.open_switches import Cause, OpenSwitches, Role
from gradguard._trace.switch import RecordedSwitch, Switch

if TYPE_CHECKING:
    from gradguard._core.state import GradState

T = TypeVar("T")
_MOST_OF_ENDED_THREADS = 1000


class ThreadRecord(threading.local):
    """What is recorded of the thread that asks."""

    def __init__(self, opened: Callable[[], OpenSwitches]) -> None:
        self.opened = opened()
        self.name = threading.current_thread().name
        self.ident = threading.get_ident()
        self.busy = False  # whether a recorded function is running: it may call itself


class Recorder:
    """The rings of the active traces, and the switches that are still open."""

    def __init__(self) -> None:
        self.rings: tuple[deque[RecordedSwitch], ...] = ()
        self.quiet = True  # whether nobody asks for more than what is still open
        self._numbers = itertools.count()
        # The user's functions whose `with` blocks need no look at the frames around them, by id.
        self._plain: dict[int, tuple[CodeType, bool]] = {}
        self.latest = -1  # the number of the last record
        self._alive: dict[int, RecordedSwitch] = {}
        self._ended: deque[RecordedSwitch] = deque(maxlen=_MOST_OF_ENDED_THREADS)
        alive, ended = self._alive, self._ended  # not self: a thread's end must free its part
        self.thread = ThreadRecord(lambda: OpenSwitches(alive, ended))

    def note(self, before: "GradState", after: "GradState", otherwise: Cause) -> None:
        """Record what the caller has done to the mode, if it changed."""
        frame = sys._getframe(1)  # noqa: SLF001 - inspect.currentframe may be None
        now, record = perf_counter_ns(), None
        cause, using = cause_of(frame, otherwise)
        if self.quiet and cause.role is Role.CALL and is_torchs(using):
            return  # an optimizer's step, say: torch switches back whatever happens
        if before != after:
            record = self._record(cause, using or frame, before, after, now)
        opened = self.thread.opened
        opened.follow(cause, after, record, now)
        if record is None and cause.role is Role.ENTRY:
            opened.hold(cause, holder_of(using, cause.role))
        if record is not None:
            self.latest = record.number
            for ring in self.rings:
                ring.append(record)

    def entered(self, key: int, before: "GradState", after: "GradState", frame: FrameType) -> None:
        """Record the entry of a guard that `frame` uses."""
        opened, code = self.thread.opened, frame.f_code
        known = self._plain.get(id(code))
        if known is None or known[0] is not code:
            known = self._plain[id(code)] = code, is_plain(code) and whose(frame) == USER
        if known[1] and before is not after:
            number = self.latest = next(self._numbers)
            opened.enter((key, before, after, code, frame.f_lasti, number))
            return
        cause = Cause(Role.ENTRY, key)
        if before is after:
            opened.follow(cause, after, None, 0)
            opened.hold(cause, holder_of(frame, Role.ENTRY))
        else:
            opened.push(cause, self._record(cause, frame, before, after, 0))

    def exited(self, key: int, before: "GradState", after: "GradState", frame: FrameType) -> None:
        """Record the exit of a guard, where it does not simply end the innermost block."""
        cause = Cause(Role.EXIT, key)
        record = None if before is after else self._record(cause, frame, before, after, 0)
        self.thread.opened.follow(cause, after, record, 0)

    def still_open(self) -> list[RecordedSwitch]:
        """Return the open switches of all threads, those left by ended threads included."""
        return [*snapshot(self._ended), *snapshot(self._alive.values())]

    def _record(
        self, cause: Cause, frame: FrameType, before: "GradState", after: "GradState", now: int
    ) -> RecordedSwitch:
        user, library, outermost = frames_of(frame)
        place, thread = user or library or outermost, self.thread
        inside = library if user is not None else None
        return RecordedSwitch(
            place.f_code,
            place.f_lasti,
            thread.name,
            before,
            after,
            number=next(self._numbers),
            thread_id=thread.ident,
            at=now,
            holder=None if cause.role is Role.EXIT else holder_of(frame, cause.role),
            library_code=None if inside is None else inside.f_code,
            library_instruction=0 if inside is None else inside.f_lasti,
        )


current: Recorder | None = None  # None: no trace is active


def snapshot(items: Collection[T]) -> list[T]:
    """Copy what other threads may be adding to."""
    while True:
        try:
            return list(items)
        except RuntimeError:  # noqa: PERF203 (one was added meanwhile)
            continue


def last_switch(state: "GradState") -> Switch | None:
    """Return the call that switched this thread to `state` and was not taken back, if traced."""
    record = None if current is None else current.thread.opened.last()
    return None if record is None or record.after != state else record.switch


def recorded_origin(state: "GradState") -> str | None:
    """Say which call switched this thread to `state` and was not taken back, if traced.

    None also where the mode was switched since by something that no trace can see.
    """
    record = None if current is None else current.thread.opened.last()
    if record is None or record.after != state:
        return None
    switch = record.switch
    return written(Line(switch.filename, switch.lineno, switch.function, record.library))
