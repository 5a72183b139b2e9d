"""What each guard does on entry and exit, right under nesting, sharing and any order of exits.

What a guard found lies on its thread's chain (`guard_stack`), so that one object may be entered any
number of times. Each ``no_grad()`` is an object of its own all the same: two that are open are told
apart. The classes do without ``__init__`` where they can: it costs a tenth of the whole `with`.

Where an interrupt (Ctrl-C, the handler of a signal) may come between two bytecodes, CPython looks
for it: at the beginning of a function written in Python, and when a call has returned. So an entry
takes back what it did, and an exit does to the end what it began. The beginning of `__exit__`
itself is out of reach, for torch's guards, too: see `abandoned` and `inference_guards`.
"""

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from gradguard._core.abandoned import own_cell
from gradguard._core.compiling import CompiledGrad
from gradguard._core.exits import close, close_link, exit_again, undo_entry
from gradguard._core.guard_stack import Opener, fast
from gradguard._core.state import (
    enter_inference,
    is_grad_enabled,
    is_inference_mode_enabled,
    set_grad,
)
from gradguard._core.torch_versions import GRAPHS_DEFER_GRAD

if TYPE_CHECKING:
    from collections.abc import Callable

    from gradguard._core.suspendable import Suspendable

Decoratable: TypeAlias = (
    "Callable[..., Any] | classmethod[Any, Any, Any] | staticmethod[Any, Any] | property"
)
F = TypeVar("F", bound=Decoratable)


class Guard(Opener):
    """A context manager and decorator that may be open any number of times, in any thread.

    >>> import gradguard
    >>> isinstance(gradguard.no_grad(), gradguard.Guard)
    True
    """

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        """Tell whether `other` does the same: each ``no_grad()`` is an object of its own."""
        return isinstance(other, Guard) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()

    def clone(self) -> "Guard":  # as torch's guards have it
        return type(self)()

    def while_compiling(self) -> AbstractContextManager[None]:
        """A guard of the same effect that Dynamo can follow."""
        raise NotImplementedError

    def body(self) -> "Suspendable":
        """This guard for one call whose body can be suspended."""
        from gradguard._core.suspended_bodies import Body  # loaded where a body can be suspended

        return Body(self)

    def __enter__(self) -> None:
        """Switch the mode and put this guard on the thread's chain."""
        raise NotImplementedError

    def enter_body(self) -> None:
        """The same as the first guard of a body that can be suspended, which ends all it opened."""
        self.__enter__()

    # Three parameters by name: *exc would cost a tenth of the whole `with`.
    def __exit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc: BaseException | None = None,
        tb: object = None,
    ) -> None:
        try:
            cell = fast.cell
            guard, found, token, below = top = cell[0]
            if guard is self:
                if token is not None:
                    close_link(top)
                    return
                set_grad(found)
                cell[0] = below
                return
        except (AttributeError, TypeError):
            pass  # nothing is open in this thread
        except BaseException:
            exit_again(self, locals().get("top"))
            raise
        guard = None  # whether anybody holds it is counted
        close(self, exc)

    def __call__(self, orig_func: F) -> F:
        from gradguard._core.decorating import decorate  # loaded where something is decorated

        decorated: F = decorate(orig_func, self)
        return decorated


Guard.__module__ = "gradguard"


class NoGrad(Guard):
    """Recording off; inference mode stays as it is."""

    __slots__ = ()
    grad = False

    def plain_wrapper(self, fn: "Callable[..., Any]") -> "Callable[..., Any]":
        from gradguard._core.decorating import under_no_grad  # loaded as in __call__

        return under_no_grad(fn, self)

    def __repr__(self) -> str:
        return "no_grad()"

    def __enter__(self) -> None:
        try:
            cell = fast.cell
        except AttributeError:
            cell = own_cell()
        below = cell[0]
        found = is_grad_enabled()
        try:
            cell[0] = (self, found, None, below)
            if found or GRAPHS_DEFER_GRAD:
                set_grad(False)
        except BaseException:
            undo_entry(below, found)
            raise

    def while_compiling(self) -> AbstractContextManager[None]:
        return CompiledGrad(False)


class LeftInference:
    """Inference mode, left by a guard that has recording on; its exit sets `found` as well.

    The token alone would bring that back, too. But make_fx and torch.export write down each call
    of `set_grad`, and nothing else: in their graphs recording would stay on.
    """

    __slots__ = ("_found", "_token")

    def __init__(self, found: bool) -> None:
        self._found = found
        self._token = enter_inference(False)

    def __exit__(self, *exc: object) -> None:
        self._token.__exit__(*exc)
        set_grad(self._found)


class EnableGrad(Guard):
    """Recording on, leaving inference mode, inside which nothing is recorded."""

    __slots__ = ()
    grad = True
    inference = False

    def __repr__(self) -> str:
        return "enable_grad()"

    def __enter__(self) -> None:
        try:
            cell = fast.cell
        except AttributeError:
            cell = own_cell()
        below, token = cell[0], None
        found = is_grad_enabled()
        try:
            token = LeftInference(found) if is_inference_mode_enabled() else None
            cell[0] = (self, found, token, below)
            if not found or GRAPHS_DEFER_GRAD:
                set_grad(True)
        except BaseException:
            undo_entry(below, found, token)
            raise

    def while_compiling(self) -> AbstractContextManager[None]:
        return CompiledGrad(True)


NO_GRAD = NoGrad()  # for decorators of other folders, around each call
