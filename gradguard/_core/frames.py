"""Frames: whose code they run, and which one is the user's."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

# Modules whose frames are never the line to blame: they only call what the user gave them.
_PLUMBING = (
    "torch",
    "asyncio",
    "concurrent.futures",
    "contextlib",
    "functools",
    "threading",
    "unittest.mock",
)


def user_frame(frame: FrameType | None = None) -> FrameType:
    """Return the first frame, from `frame` (the caller) outwards, that is the user's.

    Frames of torch, gradguard and the standard library's plumbing are passed over. Where there is
    nothing else, as when torch's own code is the program, it is the outermost frame.
    """
    last = frame = frame or sys._getframe(1)  # noqa: SLF001 - inspect.currentframe may be None
    for last in outwards(frame):
        if not _is_plumbing(last):
            break
    return last


def outwards(frame: FrameType | None) -> Iterator[FrameType]:
    """Yield the frame and those that called it."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_plumbing(frame: FrameType) -> bool:
    name = module_of(frame)
    if name.startswith("gradguard."):
        return is_ours(name)
    if any(name == module or name.startswith(f"{module}.") for module in _PLUMBING):
        return True
    # By file as well: a module that is run as the program is called `__main__`, and what torch.fx
    # generates belongs to no module.
    return frame.f_code.co_filename.startswith(("<eval_with_key>", *_directories()))


def _directories() -> Iterator[str]:
    for module in ("torch", "gradguard"):
        file = getattr(sys.modules.get(module), "__file__", None)
        if file:
            yield f"{Path(file).parent}{os.sep}"


def is_ours(module: object) -> bool:
    """Tell whether a module is part of gradguard; its demo stands for a user's script."""
    if type(module) is not str or module.startswith("gradguard._demo"):
        return False
    return module.startswith("gradguard.")


def module_of(frame: FrameType) -> str:
    """Return the name of the module the frame's code belongs to, "" if it has none."""
    name = frame.f_globals.get("__name__")
    return name if type(name) is str else ""
