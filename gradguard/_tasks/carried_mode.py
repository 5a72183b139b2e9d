"""The guard that sets the whole mode of another place."""

from contextlib import AbstractContextManager

from gradguard._core.abandoned import own_cell
from gradguard._core.compiling import compiled_mode
from gradguard._core.exits import undo_entry
from gradguard._core.guard_stack import grad_inside, thread
from gradguard._core.guard_types import Guard
from gradguard._core.state import (
    enter_inference,
    grad_state,
    is_grad_enabled,
    is_inference_mode_enabled,
    set_grad,
)


class Carried(Guard):
    """The mode of the place where it was made, both flags, for wherever it is entered.

    A `GradState` alone would not do: inside an inference block `inference_mode(False)` brings back
    the grad mode that surrounds it, and what surrounds it lies on the chain of the thread left
    behind. So it is asked there, and the link of this guard answers here (`Guard.grad`).
    """

    __slots__ = ("_text", "grad", "inference", "mode")

    def __init__(self, text: str) -> None:
        self._text = text
        self.mode = grad_state()
        self.inference = self.mode.inference_mode
        self.grad = grad_inside(*self.mode)

    def __repr__(self) -> str:
        return self._text

    def __enter__(self) -> None:
        self._enter(token=True)

    def enter_body(self) -> None:
        """Without a token where none is needed: the body would make it anew at each step."""
        self._enter(token=is_inference_mode_enabled() is not self.inference)

    def _enter(self, *, token: bool) -> None:
        below, found, entered = own_cell()[0], is_grad_enabled(), None
        try:
            entered = enter_inference(self.mode.inference_mode) if token else None
            thread.cell[0] = (self, found, entered, below)
            set_grad(self.mode.grad_enabled)
        except BaseException:
            undo_entry(below, found, entered)
            raise

    def while_compiling(self) -> AbstractContextManager[None]:
        return compiled_mode(*self.mode)
