"""What a trace keeps of each switch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # the pytest plugin reads what is recorded, and must not import torch
    from gradguard._core.state import GradState


class Switch(NamedTuple):
    """One change of the mode: the line that made it, its thread, and the mode before and after.

    The line is that of the first frame outside torch and gradguard; `thread` is a thread's name.
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
    opens: bool = False  # whether it was one to be switched back
    closed: int | None = None  # when it was
