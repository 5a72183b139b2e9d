"""The guards that switch inference mode, on or off."""

from contextlib import AbstractContextManager
from weakref import ref

from gradguard._core.abandoned import own_cell
from gradguard._core.compiling import compiled_decorated_inference
from gradguard._core.decorating import under_inference
from gradguard._core.exits import close, exit_again
from gradguard._core.guard_stack import Link, Owner, fast, grad_inside, thread
from gradguard._core.guard_types import F, Guard
from gradguard._core.state import (
    enter_inference,
    exit_inference,
    is_grad_enabled,
    is_inference_mode_enabled,
    set_grad,
)


class InferenceMode(Guard, Owner):
    """Inference mode on or off, with a token of torch's that brings back what was before."""

    __slots__ = ("_maker",)
    mode: bool

    def __init__(self, maker: list[Link | None] | None = None) -> None:
        """Make the guard; in the thread of `maker`, its cell, it may hold the token of an entry."""
        self._maker = maker
        self.link = self.token = None

    def __repr__(self) -> str:
        return f"inference_mode(mode={self.mode})"

    def __call__(self, orig_func: F) -> F:
        self._maker = None  # it is many calls' now
        return super().__call__(orig_func)

    def clone(self) -> "InferenceMode":
        """Return another guard of the same kind."""
        return type(self)(thread.cell)

    def _open(self, cell: list[Link | None], found: bool | None) -> None:
        """Switch inference mode, and link this entry.

        The token lies on the chain where the guard holds that of another entry, or might be
        entered by two threads at once.
        """
        below = cell[0]
        if self._maker is cell and self.link is None:
            itself = ref(self)
            self.token = enter_inference(self.mode)
            cell[0] = self.link = (_IN_THE_PLACE_OF[self.mode], found, itself, below)
        else:
            cell[0] = (self, found, enter_inference(self.mode), below)

    def __exit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc: BaseException | None = None,
        tb: object = None,
    ) -> None:
        try:
            cell = fast.cell
            top = cell[0]
            if top is self.link and top is not None:
                exit_inference(self.token, None, None, None)
                cell[0] = top[3]
                self.link = self.token = None
                return
        except AttributeError:
            pass  # nothing is open in this thread
        except BaseException:
            exit_again(self, self.link)
            raise
        close(self, exc)


class InferenceOn(InferenceMode):
    """Inference mode on; torch's own switch turns grad mode off with it."""

    __slots__ = ()
    grad = False
    inference = mode = is_inference_block = True
    plain_wrapper = staticmethod(under_inference)

    def __enter__(self) -> None:
        try:
            cell = fast.cell
        except AttributeError:
            cell = own_cell()
        self._open(cell, is_grad_enabled() or (None if is_inference_mode_enabled() else False))

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
            self._open(cell, found)
            set_grad(grad)
        except BaseException:
            if cell[0] is not below:
                exit_again(self, cell[0])
            raise

    def while_compiling(self) -> AbstractContextManager[None]:
        return compiled_decorated_inference(False)


INFERENCE_ON = InferenceOn()  # for decorators of other folders, around each call
# On the chain in the place of a guard that holds its token itself, and must be free to go.
_IN_THE_PLACE_OF: dict[bool, Guard] = {True: InferenceOn(), False: InferenceOff()}
