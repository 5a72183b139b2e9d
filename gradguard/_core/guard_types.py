"""What each guard does on entry and exit, right under nesting, sharing and any order of exits.

`no_grad()` and the others return the same object each time: it has no state of its own, what it
found on entry lies on the thread's chain (`_stack`). A class whose ``__new__`` is written in
Python, as torch's is, costs half as much again.
"""

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from gradguard._core.compiling import CompiledGrad, compiled_decorated_inference
from gradguard._core.decorating import decorate
from gradguard._core.guard_stack import Link, Opener, close_out_of_order, grad_inside, thread
from gradguard._core.state import (
    enter_inference,
    is_grad_enabled,
    is_inference_mode_enabled,
    set_grad,
)
from gradguard._core.suspended_bodies import Body, Suspendable
from gradguard._core.wrappers import under_inference, under_no_grad

if TYPE_CHECKING:
    from collections.abc import Callable

Decoratable: TypeAlias = (
    "Callable[..., Any] | classmethod[Any, Any, Any] | staticmethod[Any, Any] | property"
)
F = TypeVar("F", bound=Decoratable)


class Guard(Opener):
    """A context manager and decorator that may be open any number of times, in any thread."""

    __slots__ = ("_name", "_text")

    def __init__(self, text: str, name: str) -> None:
        self._text = text
        self._name = name

    def __repr__(self) -> str:
        return self._text

    def __reduce__(self) -> str | tuple[Any, ...]:
        return self._name  # a copy or a pickle of a shared guard is that guard

    def while_compiling(self) -> AbstractContextManager[None]:
        """A guard of the same effect that Dynamo can follow."""
        raise NotImplementedError

    def body(self) -> Suspendable:
        """This guard for one call whose body can be suspended."""
        return Body(self)

    def __enter__(self) -> None:
        """Switch the mode and put this guard on the thread's chain."""
        raise NotImplementedError

    # Three parameters by name: *exc would cost a tenth of the whole `with`.
    def __exit__(self, exc_type: object = None, exc: object = None, tb: object = None) -> None:
        cell = thread.cell
        top = cell[0]
        if top is None or top[0] is not self:
            close_out_of_order(self)
            return
        _, found, token, cell[0] = top
        if token is None:
            set_grad(found)  # type: ignore[arg-type]  # None comes with a token
        else:
            token.__exit__(None, None, None)

    def __call__(self, orig_func: F) -> F:
        decorated: F = decorate(orig_func, self)
        return decorated


class _NoGrad(Guard):
    """Recording off; inference mode stays as it is."""

    __slots__ = ()
    grad = False
    plain_wrapper = staticmethod(under_no_grad)

    def __enter__(self) -> None:
        cell = thread.cell
        found = is_grad_enabled()
        cell[0] = (self, found, None, cell[0])
        if found:
            set_grad(False)

    def while_compiling(self) -> AbstractContextManager[None]:
        return CompiledGrad(False)


class _Left:
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


class _EnableGrad(Guard):
    """Recording on, leaving inference mode, inside which nothing is recorded."""

    __slots__ = ()
    grad = True

    def __enter__(self) -> None:
        cell = thread.cell
        found = is_grad_enabled()
        token = _Left(found) if is_inference_mode_enabled() else None
        cell[0] = (self, found, token, cell[0])
        if not found:
            set_grad(True)

    def while_compiling(self) -> AbstractContextManager[None]:
        return CompiledGrad(True)


class _InferenceOn(Guard):
    """Inference mode on; torch's own switch turns grad mode off with it."""

    __slots__ = ()
    grad = False
    enters_inference = True
    plain_wrapper = staticmethod(under_inference)

    def __enter__(self) -> None:
        cell = thread.cell
        found = is_grad_enabled() or (None if is_inference_mode_enabled() else False)
        cell[0] = (self, found, enter_inference(True), cell[0])

    def while_compiling(self) -> AbstractContextManager[None]:
        return compiled_decorated_inference(True)


class _InferenceOff(Guard):
    """Inference mode off, with the grad mode that surrounds the inference block."""

    __slots__ = ()
    grad = None

    def __enter__(self) -> None:
        cell = thread.cell
        found = is_grad_enabled()
        grad = grad_inside(found, is_inference_mode_enabled())
        cell[0] = (self, found, enter_inference(False), cell[0])
        set_grad(grad)

    def while_compiling(self) -> AbstractContextManager[None]:
        return compiled_decorated_inference(False)


class SetGrad(Guard):
    """torch's `set_grad_enabled`: it acts when it is made, and may be entered later.

    The first entry in the thread that made it counts as made at construction. The thread is known
    by its cell, which, unlike a thread's number, is never given to another thread.
    """

    __slots__ = ("_before", "_maker", "grad")

    def __init__(self, mode: bool) -> None:  # no super(): a plain call must be cheap
        self.grad = mode
        self._before = is_grad_enabled()
        self._maker: list[Link | None] | None = thread.cell
        set_grad(mode)

    def __repr__(self) -> str:
        return f"set_grad_enabled(mode={self.grad})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _set_later, (self.grad,)

    def __enter__(self) -> None:
        cell = thread.cell
        found = is_grad_enabled()
        if self._maker is cell:
            found, self._maker = self._before, None
        token = _Left(found) if self.grad and is_inference_mode_enabled() else None
        cell[0] = (self, found, token, cell[0])
        set_grad(bool(self.grad))

    def while_compiling(self) -> AbstractContextManager[None]:
        return CompiledGrad(bool(self.grad))

    def __call__(self, orig_func: F) -> F:
        if self._maker is thread.cell:
            set_grad(self._before)
            self._maker = None
        return super().__call__(orig_func)


def _set_later(mode: bool) -> SetGrad:
    """A `SetGrad` that has switched nothing: what a copy or a pickle is remade by."""
    made = SetGrad.__new__(SetGrad)
    made.grad, made._before, made._maker = mode, mode, None  # noqa: SLF001 (its own)
    return made


NO_GRAD = _NoGrad("no_grad()", "NO_GRAD")
ENABLE_GRAD = _EnableGrad("enable_grad()", "ENABLE_GRAD")
INFERENCE_ON = _InferenceOn("inference_mode(mode=True)", "INFERENCE_ON")
INFERENCE_OFF = _InferenceOff("inference_mode(mode=False)", "INFERENCE_OFF")
