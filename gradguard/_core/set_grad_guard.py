"""`set_grad_enabled`, which switches as soon as it is made."""

from contextlib import AbstractContextManager
from typing import Any

from gradguard._core.abandoned import own_cell
from gradguard._core.compiling import CompiledGrad
from gradguard._core.exits import undo_entry
from gradguard._core.guard_stack import Link, fast, thread
from gradguard._core.guard_types import F, Guard, LeftInference
from gradguard._core.state import is_grad_enabled, is_inference_mode_enabled, set_grad


class SetGrad(Guard):
    """torch's `set_grad_enabled`: it acts when it is made, and may be entered later.

    The first entry in the thread that made it counts as made at construction. The thread is known
    by its cell, which, unlike a thread's number, is never given to another thread.
    """

    __slots__ = ("_before", "_maker", "grad", "inference")
    grad: bool

    def __init__(self, mode: bool) -> None:
        self.grad = mode  # pyright: ignore[reportIncompatibleVariableOverride]
        self.inference = False if mode else None
        self._maker: list[Link | None] | None = own_cell()
        self._before = is_grad_enabled()
        try:
            set_grad(mode)
        except BaseException:  # an interrupt: nobody will have the guard that takes it back
            set_grad(self._before)
            raise

    @property
    def mode(self) -> bool:  # as torch's has it
        return self.grad

    def __repr__(self) -> str:
        return f"set_grad_enabled(mode={self.grad})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _set_later, (self.grad,)

    def clone(self) -> "SetGrad":  # it acts at once, as torch's does
        return SetGrad(self.grad)

    def __enter__(self) -> None:
        try:
            try:
                cell = fast.cell
            except AttributeError:
                cell = own_cell()
            below, found, token = cell[0], is_grad_enabled(), None
            if self._maker is cell:
                found, self._maker = self._before, None
            token = LeftInference(found) if self.grad and is_inference_mode_enabled() else None
            cell[0] = (self, found, token, below)
            set_grad(self.grad)
        except BaseException:
            self.undo(locals())
            raise

    def undo(self, known: dict[str, Any]) -> None:
        """Take back an entry that an interrupt has cut short, of which so much is known."""
        if self._maker is thread.cell:
            known["found"], self._maker = self._before, None
        if "found" in known:
            undo_entry(known.get("below", thread.cell[0]), known["found"], known.get("token"))

    def while_compiling(self) -> AbstractContextManager[None]:
        return CompiledGrad(self.grad)

    def __call__(self, orig_func: F) -> F:
        if self._maker is thread.cell:
            set_grad(self._before)
            self._maker = None
        return super().__call__(orig_func)


def _set_later(mode: bool) -> SetGrad:
    """A `SetGrad` that has switched nothing: what a copy or a pickle is remade by."""
    made = SetGrad.__new__(SetGrad)
    made.grad, made.inference = mode, False if mode else None
    made._before, made._maker = mode, None  # noqa: SLF001 (its own)
    return made
