"""What a trace keeps of each switch."""

from dataclasses import dataclass
from types import CodeType
from typing import TYPE_CHECKING, NamedTuple

from gradguard._core.frames import Line

if TYPE_CHECKING:  # the pytest plugin reads what is recorded, and must not import torch
    from gradguard._core.state import GradState


class Switch(NamedTuple):
    """One change of the mode: the line that made it, its thread, and the mode before and after.

    The line is that of the first frame outside torch, gradguard and whatever else is installed,
    unless that is the program itself; `thread` is a thread's name.

    >>> import gradguard, torch
    >>> with gradguard.trace() as switches, torch.no_grad():
    ...     pass
    >>> first, second = switches
    >>> first.before.grad_enabled, first.after.grad_enabled
    (True, False)
    """

    filename: str
    lineno: int
    function: str
    thread: str
    before: "GradState"
    after: "GradState"


class Holder(NamedTuple):
    """A function that is in the block that a switch has opened.

    Attributes:
        code: its code.
        entry: the instruction of a ``with`` that enters a context manager of the user's, which may
            not switch back; None where the block ends with the function, or by a guard's exit.

    """

    code: CodeType
    entry: int | None = None


@dataclass(eq=False, slots=True)
class RecordedSwitch:
    """A switch with what is needed to order, pair and draw it; times in nanoseconds.

    It keeps the code and the instruction of its line: to find the number of a line takes longer
    than all the rest, and most switches are taken back before anybody asks.
    """

    code: CodeType
    instruction: int
    thread: str
    before: "GradState"
    after: "GradState"
    number: int  # over all threads
    thread_id: int
    at: int
    holder: Holder | None  # whose block it opens, while it runs; None for a plain call
    library_code: CodeType | None = None  # of a training library that the line has called
    library_instruction: int = 0
    opens: bool = False  # whether it was one to be switched back
    closed: int | None = None  # when it was

    @property
    def switch(self) -> Switch:
        """What is told of it."""
        code = self.code
        line = lineno_of(code, self.instruction)
        return Switch(code.co_filename, line, code.co_name, self.thread, self.before, self.after)

    @property
    def library(self) -> Line | None:
        """That of a training library, which the user's line has called."""
        code = self.library_code
        if code is None:
            return None
        return Line(code.co_filename, lineno_of(code, self.library_instruction), code.co_name)


def lineno_of(code: CodeType, instruction: int) -> int:
    """Return the line of an instruction."""
    for start, end, line in code.co_lines():
        if start <= instruction < end and line is not None:
            return line
    return code.co_firstlineno


Switch.__module__ = "gradguard"
