"""The mode of this thread, where no block, decorator or call that is still open made it."""

import sys
from typing import TYPE_CHECKING

from gradguard._core.frames import outwards
from gradguard._core.state import GradState, grad_state
from gradguard._judge.facts import Left
from gradguard._judge.lines import Line
from gradguard._locate.enclosing import Block
from gradguard._locate.paired_calls import is_between_switches
from gradguard._locate.unread_blocks import is_in_unread_block
from gradguard._locate.where import decisive, enclosing, last_switch

if TYPE_CHECKING:
    from types import CodeType

_FALSE = "False"  # as the switch is written
_RECORDING = GradState(grad_enabled=True, inference_mode=False)


class LeftModes:
    """Tells a mode that was left from one that a block on the stack has made."""

    def __init__(self) -> None:
        self._number = 0
        self._open_in: list[tuple[CodeType, int]] = []  # where the mode is known to be a block's

    def still_left(self) -> tuple[int, ...]:
        """Return the number of the switch that nothing has taken back, if there is one."""
        return () if grad_state() == _RECORDING else (self._number,)

    def now(self) -> Left | None:
        """Return the mode left switched; None where operations are recorded, or a block is open."""
        state = grad_state()
        if state == _RECORDING:
            self._number += 1
            return None
        frame = sys._getframe(1)  # noqa: SLF001 - inspect.currentframe may be None
        stack = [(each.f_code, each.f_lasti) for each in outwards(frame)]
        if stack == self._open_in:  # a loop that predicts inside no_grad comes here each time
            return None
        block = decisive(enclosing(frame), state)
        if block is not None and block.how != "statement":
            if block.certain and _is_literal(block):
                self._open_in = stack
            return None
        if is_in_unread_block(frame) or is_between_switches(frame):
            self._open_in = stack
            return None
        known = last_switch(state)
        line = None if known is None else Line(*known[:3])
        if line is None and block is not None:
            line = Line(*block.line[:3])
        constant = block is not None and f"({_FALSE})" in block.kind
        return Left(state, line, self._number, returned=block is None, constant=constant)


def _is_literal(block: Block) -> bool:
    """Whether the same place means the same guard: a decorator, or one called in the ``with``."""
    guard = block.kind.partition("(")[0].rpartition(".")[2]
    return block.how == "decorator" or f"{guard}(" in (block.source or "")
