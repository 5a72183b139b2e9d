"""What a trace keeps of each switch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from gradguard._core.frames import Line

if TYPE_CHECKING:  # the pytest plugin reads what is recorded, and must not import torch
    from gradguard._core.state import GradState


class Switch(NamedTuple):
    """One change of the mode: the line that made it, its thread, and the mode before and after.

    The line is that of the first frame outside torch, gradguard and whatever else is installed,
    see `gradguard._core.frames.user_frame`; `thread` is a thread's name.
    """

    filename: str
    lineno: int
    function: str
    thread: str
    before: "GradState"
    after: "GradState"


@dataclass(eq=False, slots=True)
class RecordedSwitch:
    """A switch with what is needed to order, pair and draw it; times in nanoseconds."""

    switch: Switch
    number: int  # over all threads
    thread_id: int
    at: int
    library: Line | None = None  # that of a training library, which the user's line has called
    opens: bool = False  # whether it was one to be switched back
    closed: int | None = None  # when it was
