"""Which switches of a thread are still open: made, and not switched back so far.

The mode alone does not tell. After `set_grad_enabled(False)` that nobody takes back, any
``with enable_grad():`` brings grad on and then off again: its end must not be taken for the switch
that left grad off, nor its beginning for the one that took it back. So entries and exits of one
guard are paired, and a plain call takes back only plain calls of the same block.
"""

import enum
import threading
from collections import deque
from types import CodeType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from gradguard._trace.switch import Holder, RecordedSwitch

if TYPE_CHECKING:
    from gradguard._core.state import GradState

Role = enum.Enum("Role", "ENTRY EXIT CALL")
_DEEPEST = 1000


class Cause(NamedTuple):
    """What a switch was part of.

    `key` is the same for the entry and the exit of a guard: its id, as the guard must not be kept
    alive (a token of inference mode that is dropped switches the mode). Where a new guard has the
    id of one that was dropped, the modes before and after tell them apart.
    """

    role: Role
    key: int | None = None

    @classmethod
    def by(cls, role: Role, owner: object) -> "Cause":
        """Return what `owner` (a guard, a token, the link of a decorated call) does."""
        return cls(role, id(owner))


def _as_call(cause: Cause) -> Cause:
    return cause if cause.role is Role.CALL else Cause(Role.CALL)


class _Open(NamedTuple):
    """An open switch, or, without a record, an open block whose entry changed nothing."""

    cause: Cause
    before: "GradState"
    record: RecordedSwitch | None


Entry: TypeAlias = "tuple[int, GradState, GradState, CodeType, int, int]"
"""A block just entered: its guard's key, the mode before and after, and the code, instruction and
number of the switch. Most are left again before anybody asks, so no more is made of them."""


class OpenSwitches:
    """The open switches of one thread, outermost first.

    Args:
        alive: where the open ones of all threads are kept, by number,
        ended: and those that ended threads have left open.

    """

    def __init__(self, alive: dict[int, RecordedSwitch], ended: deque[RecordedSwitch]) -> None:
        self._stack: list[_Open] = []
        self._entered: list[Entry] = []  # within all that is in the stack
        self._thread = threading.current_thread().name, threading.get_ident()
        self._alive = alive
        self._ended = ended
        self._call: tuple[_Open, list[_Open]] | None = None  # the last, and what it took back
        self.exit: RecordedSwitch | None = None  # the last change, if an exit made it

    def __del__(self) -> None:
        """Hand over what is still open: the thread has ended."""
        self._settle()
        for opened in self._stack:
            if opened.record is not None:
                self._alive.pop(opened.record.number, None)
                self._ended.append(opened.record)

    def last(self) -> RecordedSwitch | None:
        """Return what was switched last of all that is open."""
        self._settle()
        for opened in reversed(self._stack):
            if opened.record is not None:
                return opened.record
        return None

    def is_held_by(self, code: CodeType) -> bool:
        """Tell whether the innermost block is one that this function has entered itself."""
        return bool(self._entered) and self._entered[-1][3] is code

    def enter(self, entry: Entry) -> None:
        """Open a block whose entry has switched, in a function that will leave it."""
        self._call = self.exit = None
        self._entered.append(entry)

    def leave(self, key: int, after: "GradState") -> bool:
        """Close the innermost block, if it is this guard's and brings back what it found."""
        entered = self._entered
        if entered:
            innermost = entered[-1]
            if innermost[0] == key and innermost[1] is after:
                self._call = self.exit = None
                entered.pop()
                return True
            self._settle()
        return self._pop(key, after)

    def push(self, cause: Cause, record: RecordedSwitch) -> None:
        """Open a block whose entry has switched: what `follow` does then, and no more."""
        self._settle()
        self._call = self.exit = None
        self._open(_Open(cause, record.before, record))

    def forget(self, key: int) -> None:
        """Drop the innermost block if it is this guard's, whose entry or exit was interrupted."""
        self._settle()
        top = self._stack[-1] if self._stack else None
        if top is not None and top.cause == Cause(Role.ENTRY, key):
            self._close(len(self._stack) - 1, 0)

    def _settle(self) -> None:
        """Put what was just entered in the stack."""
        if self._entered:
            entered, self._entered = self._entered, []
            for key, before, after, code, instruction, number in entered:
                record = RecordedSwitch(
                    code,
                    instruction,
                    self._thread[0],
                    before,
                    after,
                    number=number,
                    thread_id=self._thread[1],
                    at=0,
                    holder=Holder(code),
                )
                self._open(_Open(Cause(Role.ENTRY, key), before, record))

    def _pop(self, key: int, after: "GradState") -> bool:
        top = self._stack[-1] if self._stack else None
        if top is None or top.cause.key != key or top.cause.role is not Role.ENTRY:
            return False
        if top.before != after:
            return False
        self._call = self.exit = None
        self._stack.pop()
        if top.record is not None:
            self._alive.pop(top.record.number, None)
        return True

    def hold(self, cause: Cause, holder: Holder | None) -> None:
        """Give the block of a ``set_grad_enabled(…)`` that was entered after it had switched."""
        self._settle()
        top = self._stack[-1] if self._stack else None
        if top is not None and top.record is not None and top.cause.key == cause.key:
            top.record.holder = holder

    def follow(
        self, cause: Cause, after: "GradState", record: RecordedSwitch | None, now: int
    ) -> None:
        """Open or close switches; `record` is None where the mode did not change."""
        self._settle()
        call, self._call = self._call, None
        before = after if record is None else record.before
        if record is not None:
            self.exit = record if cause.role is Role.EXIT else None
        if cause.role is Role.ENTRY:
            opened = _Open(cause, before, record)
            if record is None and call is not None and call[0].cause.key == cause.key:
                opened = self._reopen(*call)
            self._open(opened)
        elif cause.role is Role.EXIT and (at := self._entry_of(cause, after)) is not None:
            self._close(at, now)
        elif record is not None:
            self._follow_call(_Open(_as_call(cause), before, record), after, now)

    def _follow_call(self, opened: _Open, after: "GradState", now: int) -> None:
        at = self._innermost(after, within_block=True)
        if at is None:
            self._open(opened)
        self._call = opened, [] if at is None else self._close(at, now)

    def _reopen(self, call: _Open, taken_back: list[_Open]) -> _Open:
        """Undo a call that made a `set_grad_enabled`, to take it for the entry of its ``with``."""
        if not taken_back:
            self._stack.pop()
        for opened in taken_back:
            self._open(opened)
        return call._replace(cause=Cause(Role.ENTRY, call.cause.key))

    def _entry_of(self, cause: Cause, after: "GradState") -> int | None:
        """Return the index of the block that this exit ends.

        It may have changed nothing and yet ends all that is in it: ``with no_grad():`` whose body
        has switched grad on. Without an entry (made before the trace, out of order, or of a
        decorated call that had nothing to switch) an exit is as good as a call.
        """
        at = self._innermost(after, key=cause.key)
        if at is None:  # the block is over, but what it switched was left
            self._stack = [
                opened._replace(cause=_as_call(cause)) if opened.cause.key == cause.key else opened
                for opened in self._stack
                if opened.cause.key != cause.key or opened.record is not None
            ]
        return at

    def _innermost(
        self, before: "GradState", *, key: Any = None, within_block: bool = False
    ) -> int | None:
        """Return the index of the innermost that was opened in the mode `before`."""
        for at in range(len(self._stack) - 1, -1, -1):
            opened = self._stack[at]
            if within_block and opened.cause.role is Role.ENTRY:
                return None
            if opened.before == before and key in (None, opened.cause.key):
                return at
        return None

    def _open(self, opened: _Open) -> None:
        if len(self._stack) >= _DEEPEST:  # blocks that are never left
            self._stack = [opened for opened in self._stack if opened.record is not None]
        self._stack.append(opened)
        if opened.record is not None:
            opened.record.opens, opened.record.closed = True, None
            self._alive[opened.record.number] = opened.record

    def _close(self, at: int, now: int) -> list[_Open]:
        """Close all from there on; return them."""
        closed, self._stack[at:] = self._stack[at:], []
        for opened in closed:
            if opened.record is not None:
                opened.record.closed = now
                self._alive.pop(opened.record.number, None)
        return closed
