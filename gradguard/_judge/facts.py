"""What feeders tell the judge."""

from dataclasses import dataclass, field
from types import FrameType
from typing import NamedTuple

from torch import nn

from gradguard._core.state import GradState
from gradguard._judge.lines import Line


class Left(NamedTuple):
    """A mode that no open block, decorator or call explains.

    Attributes:
        state: the mode.
        line: the switch, None where nobody has seen it.
        number: tells this switch from every other.
        returned: whether the function that switched it has returned.
        constant: whether the switch is written with a constant, not with a flag of the program's.

    """

    state: GradState
    line: Line | None
    number: int
    returned: bool
    constant: bool = False


@dataclass(slots=True)
class Forward:
    """One forward that the program itself called, rather than another module.

    Attributes:
        module: the module called.
        training: its flag.
        recorded: whether operations were being recorded.
        frame: the caller's.
        left: the mode left switched, if it was.
        differentiated: whether autograd was asked for gradients inside.

    """

    module: nn.Module
    training: bool
    recorded: bool
    frame: FrameType | None
    left: Left | None = None
    differentiated: bool = False
    # The modules seen inside in these modes: what is known is looked at no more.
    inside: set[int] = field(default_factory=set)
