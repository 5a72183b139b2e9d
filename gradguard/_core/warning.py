"""Warnings that point at the user's line."""

import sys
import warnings

from gradguard._core.frames import module_of, user_frame


def warn(message: str, category: type[Warning]) -> None:
    """Warn at the line of the first frame outside torch and gradguard, once as Python does."""
    frame = user_frame(sys._getframe(1))  # noqa: SLF001 - as in user_frame
    warnings.warn_explicit(
        message,
        category,
        frame.f_code.co_filename,
        frame.f_lineno,
        module=module_of(frame) or "<string>",
        registry=frame.f_globals.setdefault("__warningregistry__", {}),
        module_globals=frame.f_globals,
    )
