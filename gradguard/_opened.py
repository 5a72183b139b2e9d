"""Which switches of a thread are still open: made, and not switched back so far.

The mode alone does not tell. After `set_grad_enabled(False)` that nobody takes back, any
``with enable_grad():`` brings grad on and then off again: its end must not be taken for the switch
that left grad off, nor its beginning for the one that took it back. So entries and exits of one
guard are paired, and a plain call takes back only plain calls of the same block.
"""

import enum
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from gradguard._record import Record

if TYPE_CHECKING:
    from gradguard._state import GradState

Role = enum.Enum("Role", "ENTRY EXIT CALL")
_DEEPEST = 1000


class Deed(NamedTuple):
    """What a switch was part of.

    `key` is the same for the entry and the exit of a guard. It does not hold the guard: a token of
    inference mode that is dropped switches the mode. With the type beside the id, a new object at
    the place of a dropped one is seldom taken for it.
    """

    role: Role
    key: tuple[type, int] | None = None

    @classmethod
    def by(cls, role: Role, owner: object) -> "Deed":
        """Return what `owner` (a guard, a token, the link of a decorated call) does."""
        return cls(role, (type(owner), id(owner)))


_CALL = Deed(Role.CALL)


class _Opened(NamedTuple):
    """An open switch, or, without a record, an open block whose entry changed nothing."""

    deed: Deed
    before: "GradState"
    record: Record | None


class Opened:
    """The open switches of one thread, outermost first.

    Args:
        alive: where the open ones of all threads are kept, by number,
        ended: and those that ended threads have left open.

    """

    def __init__(self, alive: dict[int, Record], ended: deque[Record]) -> None:
        self._stack: list[_Opened] = []
        self._alive = alive
        self._ended = ended
        self._call: tuple[_Opened, list[_Opened]] | None = None  # the last, and what it took back

    def __del__(self) -> None:
        """Hand over what is still open: the thread has ended."""
        for opened in self._stack:
            if opened.record is not None:
                self._alive.pop(opened.record.number, None)
                self._ended.append(opened.record)

    def last(self) -> Record | None:
        """Return what was switched last of all that is open."""
        return next((o.record for o in reversed(self._stack) if o.record is not None), None)

    def follow(self, deed: Deed, after: "GradState", record: Record | None, now: int) -> None:
        """Open or close switches; `record` is None where the mode did not change."""
        call, self._call = self._call, None
        before = after if record is None else record.switch.before
        opened = _Opened(deed, before, record)
        if deed.role is Role.ENTRY:
            if record is None and call is not None and call[0].deed.key == deed.key:
                opened = self._reopen(*call)
            self._open(opened)
        elif deed.role is Role.EXIT:
            self._exit(opened, after, now)
        elif record is not None:
            at = self._innermost(after, within_block=True)
            self._call = opened, self._close(at, now)
            if at is None:
                self._open(opened)

    def _reopen(self, call: _Opened, taken_back: list[_Opened]) -> _Opened:
        """Undo a call that made a `set_grad_enabled`, to take it for the entry of its ``with``."""
        if not taken_back:
            self._stack.pop()
        for opened in taken_back:
            self._open(opened)
        return call._replace(deed=Deed(Role.ENTRY, call.deed.key))

    def _exit(self, opened: _Opened, after: "GradState", now: int) -> None:
        """Close the block and all in it.

        That may change nothing: ``with no_grad():`` whose body has switched grad on. An exit
        without an entry (made before the trace, or out of order) takes back what it can.
        """
        key = opened.deed.key
        at = self._innermost(after, key=key)
        if at is None and opened.record is not None:
            at = self._innermost(after)
            if at is None:
                self._open(opened._replace(deed=_CALL))
        if at is None:  # the block is over, and what it switched was left
            self._stack = [o._replace(deed=_CALL) if o.deed.key == key else o for o in self._stack]
        self._close(at, now)

    def _innermost(
        self, before: "GradState", *, key: Any = None, within_block: bool = False
    ) -> int | None:
        """Return the index of the innermost that was opened in the mode `before`."""
        for at in range(len(self._stack) - 1, -1, -1):
            opened = self._stack[at]
            if within_block and opened.deed.role is Role.ENTRY:
                return None
            if opened.before == before and key in (None, opened.deed.key):
                return at
        return None

    def _open(self, opened: _Opened) -> None:
        if len(self._stack) >= _DEEPEST:  # blocks that are never left
            self._stack = [opened for opened in self._stack if opened.record is not None]
        self._stack.append(opened)
        if opened.record is not None:
            opened.record.opens, opened.record.closed = True, None
            self._alive[opened.record.number] = opened.record

    def _close(self, at: int | None, now: int) -> list[_Opened]:
        """Close all from there on; return them."""
        if at is None:
            return []
        closed, self._stack[at:] = self._stack[at:], []
        for opened in closed:
            if opened.record is not None:
                opened.record.closed = now
                self._alive.pop(opened.record.number, None)
        return closed
