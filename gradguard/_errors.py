"""The two errors and the warning that gradguard raises."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradguard._findings.finding import Finding


class GradModeError(AssertionError):
    """A grad mode, an eval mode or a gradient is not what the code at this line needs.

    It is an `AssertionError`, so test runners report it as a failure; it is raised by ordinary
    calls, so ``python -O`` keeps it. The message says what is wrong, where the mode was switched
    and what to do; usually that is to end the guard it names before the failing line.

    Attributes:
        finding: what a watch found, field by field; None for the assertions.

    """

    finding: "Finding | None" = None


class GradLeakError(GradModeError):
    """A mode (or a ``training`` flag) was left other than it was found; it has been put back.

    Use ``with`` or the decorator form at the line that the message names, so that the mode ends
    with its block.
    """


class GradModeWarning(UserWarning):
    """Something is wrong with a grad mode, but the program can go on.

    Each warning points at the first line outside torch and gradguard. To find the culprit with a
    full traceback, run with ``-W error::gradguard.GradModeWarning``.
    """


def add_note(error: BaseException, note: str) -> None:
    """Add a note as Python 3.11 does; 3.10 keeps it, too, though its tracebacks do not show it."""
    notes: list[str] = getattr(error, "__notes__", [])
    vars(error)["__notes__"] = [*notes, note]


for _public in (GradModeError, GradLeakError, GradModeWarning):
    _public.__module__ = "gradguard"
del _public
