"""What feeders tell the judge."""

from types import FrameType
from typing import NamedTuple

from torch import nn

from gradguard._core.state import GradState
from gradguard._core.torch_versions import next_sequence_number
from gradguard._judge.lines import Line


class Left(NamedTuple):
    """A mode that no open block, decorator or call explains.

    Attributes:
        state: the mode.
        line: the switch, None where nobody has seen it.
        number: tells this switch from every other.
        returned: whether the function that switched it has returned.
        constant: whether the switch is written with a constant, not with a flag of the program's.
        suspended: whether its block is that of a generator or coroutine, which is suspended in it.

    """

    state: GradState
    line: Line | None
    number: int
    returned: bool
    constant: bool = False
    suspended: bool = False


class Forward:
    """One forward that the program itself called, rather than another module.

    Attributes:
        module: the module called.
        training: its flag.
        recorded: whether operations were being recorded.
        frame: the caller's.
        left: the mode left switched, if it was.
        differentiated: whether autograd was asked for gradients inside.
        since: the sequence number of the first operation that it may record.

    """

    __slots__ = ("differentiated", "frame", "left", "module", "recorded", "since", "training")

    def __init__(
        self,
        module: nn.Module,
        training: bool,
        recorded: bool,
        frame: FrameType | None,
        left: Left | None = None,
    ) -> None:
        self.module = module
        self.training = training
        self.recorded = recorded
        self.frame = frame
        self.left = left
        self.differentiated = False
        self.since = next_sequence_number() if recorded else 0
