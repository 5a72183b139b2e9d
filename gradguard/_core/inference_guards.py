"""The guards that switch inference mode, on or off."""

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any
from weakref import ref

from typing_extensions import Self

from gradguard._core.abandoned import own_cell
from gradguard._core.compiling import compiled_decorated_inference
from gradguard._core.exits import close, close_link, exit_again
from gradguard._core.guard_stack import Link, Owner, fast, grad_inside, links, thread
from gradguard._core.guard_types import F, Guard
from gradguard._core.state import (
    enter_inference,
    exit_inference,
    is_grad_enabled,
    is_inference_mode_enabled,
    set_grad,
)

if TYPE_CHECKING:
    from collections.abc import Callable


class InferenceMode(Guard, Owner):
    """Inference mode on or off, with a token of torch's that brings back what was before."""

    __slots__ = ()
    mode: bool

    @classmethod
    def of_thread(cls) -> Self:
        """A guard that holds the token of its first entry itself, if that is in this thread.

        Elsewhere it might be entered by two threads at once, and at any other entry hold a token
        already: then the token lies on the chain. (`guards.inference_mode` has this written out.)
        """
        guard = cls()
        guard.link = thread.cell
        return guard

    @classmethod
    def shared(cls) -> Self:
        """A guard that never holds a token."""
        guard = cls()
        guard.link = None
        return guard

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).shared, ()

    def __repr__(self) -> str:
        return f"inference_mode(mode={self.mode})"

    def __call__(self, orig_func: F) -> F:
        if isinstance(self.link, list):
            self.link = None  # it is many calls' now
        return super().__call__(orig_func)

    def clone(self) -> "InferenceMode":
        """Return another guard of the same kind."""
        return type(self).of_thread()

    def _undo(self, cell: list[Link | None], below: Link | None) -> None:
        """Take back an entry that an interrupt has cut short."""
        if cell[0] is not below:
            exit_again(self, cell[0])
        elif all(link is not self.link for link in links()):
            self.link = self.token = None  # dropped, it brings the mode back

    def __exit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc: BaseException | None = None,
        tb: object = None,
    ) -> None:
        try:
            cell = fast.cell
            top = cell[0]
            if top is self.link:
                exit_inference(self.token, None, None, None)
                cell[0] = top[3]
                self.link = None
                return
            if top[0] is self:
                close_link(top)
                return
        except (AttributeError, TypeError):
            pass  # nothing is open in this thread
        except BaseException:
            exit_again(self, locals().get("top"))
            raise
        close(self, exc)


class InferenceOn(InferenceMode):
    """Inference mode on; torch's own switch turns grad mode off with it."""

    __slots__ = ()
    grad = False
    inference = mode = is_inference_block = True

    def plain_wrapper(self, fn: "Callable[..., Any]") -> "Callable[..., Any]":
        from gradguard._core.decorating import under_inference  # loaded where it is decorated

        return under_inference(fn, self)

    def __enter__(self) -> None:
        try:
            cell = fast.cell
        except AttributeError:
            cell = own_cell()
        below = cell[0]
        found = is_grad_enabled() or (None if is_inference_mode_enabled() else False)
        try:
            if self.link is cell:
                itself = ref(self)
                self.token = enter_inference(True)
                self.link = cell[0] = (_ON, found, itself, below)
            else:
                cell[0] = (self, found, enter_inference(True), below)
        except BaseException:
            self._undo(cell, below)
            raise

    def while_compiling(self) -> AbstractContextManager[None]:
        return compiled_decorated_inference(True)


class InferenceOff(InferenceMode):
    """Inference mode off, with the grad mode that surrounds the inference block."""

    __slots__ = ()
    inference = mode = False

    def __enter__(self) -> None:
        try:
            cell = fast.cell
        except AttributeError:
            cell = own_cell()
        below, found = cell[0], is_grad_enabled()
        try:
            grad = grad_inside(found, is_inference_mode_enabled())
            if self.link is cell:
                itself = ref(self)
                self.token = enter_inference(False)
                self.link = cell[0] = (_OFF, found, itself, below)
            else:
                cell[0] = (self, found, enter_inference(False), below)
            set_grad(grad)
        except BaseException:
            self._undo(cell, below)
            raise

    def while_compiling(self) -> AbstractContextManager[None]:
        return compiled_decorated_inference(False)


INFERENCE_ON = InferenceOn.shared()  # for decorators of other folders, around each call
# On the chain in the place of a guard that holds its token itself, and must be free to go.
_ON, _OFF = InferenceOn.shared(), InferenceOff.shared()
