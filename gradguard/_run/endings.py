"""The ways in which a process ends without Python's help: `os._exit`, `os.exec…`, SIGTERM.

Each is told of before the process is gone, and then goes on as it would have.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    # Given the exit code where there is one: returns the one to end with.
    Conclude = Callable[[int | None], int | None]

_BY_SIGNAL = 128


class Endings:
    """What stands in the place of those ways while a program runs."""

    def __init__(self, conclude: Conclude, hand_over: Callable[[], None]) -> None:
        self._conclude = conclude
        self._hand_over = hand_over
        self._exit = os._exit
        self._replaced: dict[str, Callable[..., Any]] = {}

    def install(self) -> None:
        """Have what was found told before the process ends."""
        self._replace("_exit", self._leave_at_once)
        for name in ("execv", "execve"):  # what every other os.exec… calls
            self._replace(name, self._before(getattr(os, name)))
        self._install_handler()

    def remove(self) -> None:
        """Put back what was there."""
        for name, original in self._replaced.items():
            setattr(os, name, original)

    def _replace(self, name: str, ours: Callable[..., Any]) -> None:
        self._replaced[name] = getattr(os, name)
        setattr(os, name, ours)

    def _leave_at_once(self, status: int) -> NoReturn:
        code = self._conclude(status)
        self._exit(status if code is None else code)

    def _before(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def execute(*args: Any) -> Any:
            self._hand_over()
            return original(*args)

        return execute

    def _install_handler(self) -> None:
        """Take SIGTERM where the program has left it to the system: it may take it back."""
        number = getattr(signal, "SIGTERM", None)
        if number is None or threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, self._terminated)

    def _terminated(self, number: int, _: FrameType | None) -> None:
        self._conclude(_BY_SIGNAL + number)
        die_by(number)


def die_by(number: int) -> None:
    """End by a signal, so that whoever started the process sees that it was one."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def die_interrupted() -> None:
    """End as Python does after Ctrl-C."""
    sys.stdout.flush()
    die_by(signal.SIGINT)


def run_exit_handlers() -> None:
    """Join the threads and call what `atexit` has, as Python does next.

    What was found is told after that: it is there that multiprocessing waits for its children.
    Both names are private, and multiprocessing calls them, too; joining the threads one by one
    would wait for ever for an executor's, which end when `threading._shutdown` tells them.
    """
    threading._shutdown()  # type: ignore[attr-defined]  # noqa: SLF001  # pyright: ignore[reportAttributeAccessIssue]
    atexit._run_exitfuncs()  # noqa: SLF001
