"""A scope: what is running now, what it found, and which switches in it are still open.

Nothing here imports torch: a suite may not use it.
"""

import threading
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from gradguard._trace.open_switches import OpenSwitches
    from gradguard._trace.switch import Switch


class ThreadMode(NamedTuple):
    """The mode of this thread, and its innermost open guard of gradguard's.

    The defaults are what torch begins with, in each thread.
    """

    grad_enabled: bool = True
    inference_mode: bool = False
    link: Any = None

    @property
    def mode(self) -> tuple[bool, bool]:
        return self.grad_enabled, self.inference_mode


class Leak(NamedTuple):
    """A mode that was left changed, and has been put back."""

    before: tuple[bool, bool]
    after: tuple[bool, bool]
    switch: "Switch | None"
    left_open: list[str]


class Scope:
    """One fixture or one test's body."""

    __slots__ = ("_inference", "_opened", "before", "holds")

    def __init__(self, before: ThreadMode) -> None:
        self.before = before
        self.holds = False  # whether a fixture's set-up has switched the mode until its tear-down
        self._inference: WeakKeyDictionary[Any, None] | None = None
        self._opened: OpenSwitches | None = None

    @property
    def opened(self) -> "OpenSwitches":
        """The switches in this scope that are still open.

        Each scope has its own, so that one which switches back what an outer one holds is not
        taken for that one's end.
        """
        if self._opened is None:
            from gradguard._trace.open_switches import OpenSwitches

            self._opened = OpenSwitches({}, deque(maxlen=0))
        return self._opened

    @property
    def inference(self) -> "WeakKeyDictionary[Any, None]":
        """Torch's inference guards that were entered, in order.

        They are not kept alive: one that is dropped without an exit takes back what it switched.
        """
        if self._inference is None:
            self._inference = WeakKeyDictionary()
        return self._inference

    def last_switch(self) -> "Switch | None":
        """Return what was switched last and not switched back."""
        last = None if self._opened is None else self._opened.last()
        return None if last is None else last.switch

    def forget_switches(self) -> None:
        """Begin anew: what was left switched has been put back."""
        self._opened = self._inference = None


class _Thread(threading.local):
    def __init__(self) -> None:
        self.scopes: list[Scope] = []  # outermost first


thread = _Thread()
