"""The guard that sets the whole mode of another place."""

from contextlib import AbstractContextManager

from gradguard._core.compiling import compiled_mode
from gradguard._core.guard_stack import grad_inside, thread
from gradguard._core.guard_types import Guard
from gradguard._core.state import (
    enter_inference,
    grad_state,
    is_grad_enabled,
    set_grad,
)


class Carried(Guard):
    """The mode of the place where it was made, both flags, for wherever it is entered.

    A `GradState` alone would not do: inside an inference block `inference_mode(False)` brings back
    the grad mode that surrounds it, and what surrounds it lies on the chain of the thread left
    behind. So it is asked there, and the link of this guard answers here (`Guard.grad`).
    """

    __slots__ = ("grad", "mode")

    def __init__(self, text: str) -> None:
        super().__init__(text, text)
        self.mode = grad_state()
        self.grad = grad_inside(*self.mode)

    def __enter__(self) -> None:
        cell = thread.cell
        found = is_grad_enabled()
        cell[0] = (self, found, enter_inference(self.mode.inference_mode), cell[0])
        set_grad(self.mode.grad_enabled)

    def while_compiling(self) -> AbstractContextManager[None]:
        return compiled_mode(*self.mode)
