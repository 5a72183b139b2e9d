"""Following what the program starts: forks, and new interpreters."""

from __future__ import annotations

import atexit
import os
import sys

from gradguard._run.endings import Endings
from gradguard._run.process import WatchedProcess
from gradguard._run.settings import handed_on


def follow() -> None:
    """Watch this interpreter, which a program under `gradguard run` has started."""
    settings = handed_on()
    if settings is None:
        return
    process = WatchedProcess(settings)
    # First, so that it is called last: what the program does at its exit is watched.
    atexit.register(conclude_child, process)
    endings = Endings(lambda code: process.conclude(code, crashed=crashed()), process.hand_over)
    endings.install()
    follow_forks(process)
    process.watch()


def follow_forks(process: WatchedProcess) -> None:
    """Have what this process forks watched as well; multiprocessing's end by `os._exit`."""
    if hasattr(os, "register_at_fork"):  # Windows has no fork
        os.register_at_fork(after_in_child=process.forked)


def conclude_child(process: WatchedProcess) -> None:
    """Leave what was found."""
    process.conclude(None, crashed=crashed())


def crashed() -> bool:
    """Tell whether the program ends by an exception that nobody caught."""
    return hasattr(sys, "last_value")
