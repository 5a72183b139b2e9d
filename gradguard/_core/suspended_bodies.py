"""Stepping a generator, coroutine or async generator under its own mode.

One mechanism for every body that can be suspended: a `Body` holds the mode in which the body was
left, and `drive` brings it back before each step and the resumer's after it. What does not work:

- A ``with`` around each step, as torch does: the body loses the mode of its inner guards.
- Leaving the body's inference tokens at each suspension, and making new ones: those of torch's
  own guards are out of reach.
- Holding back a mode by setting the flags alone: inference mode is a whole dispatch state, which
  only a token can bring back, and a token dropped without its exit does so at a random time.
- Bringing back the dispatch state in which the body was left: it holds more than inference mode,
  and a `TorchDispatchMode` that has ended since would be asked and fail.

So where the two differ in inference mode, a token made at the resume is exited at the suspension,
if nothing but inference mode can have changed; otherwise inference mode alone is switched.
"""

import types
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeAlias

from gradguard._core.guard_stack import Boundary, Link, Opener, grad_inside, links, thread
from gradguard._core.state import (
    InferenceToken,
    enter_inference,
    is_any_autocast_enabled,
    is_grad_enabled,
    is_inference_mode_enabled,
    set_grad,
    set_inference,
)


class Suspendable(Protocol):
    """What a body runs under: taken up before each of its steps, laid down after it."""

    def resume(self) -> None: ...

    def suspend(self) -> None: ...

    def finish(self) -> None:
        """Lay down for good: the body has returned, raised or been closed."""
        ...


# A link without what lies below it, which changes from step to step.
Opened: TypeAlias = tuple[Opener, bool | None, InferenceToken | None]


class Body(Boundary):
    """The own mode of one body, and the guards that it has open, while it is suspended.

    It starts in the mode of its first resumer, or in what `guard` makes of that.
    """

    __slots__ = ("_autocast", "_base", "_guard", "_holds", "_mode", "_opened", "_outside", "_top")

    def __init__(self, guard: AbstractContextManager[object] | None = None) -> None:
        self._guard = guard
        self._mode: tuple[bool, bool] | None = None  # a GradState costs four times as much
        self._opened: tuple[Opened, ...] = ()  # outermost first
        self._base: Link | None = None  # on which the body's own links lie
        self._top: Link | None = None
        self._holds = False  # whether a token is among them: it brings back an earlier step's state
        self._autocast = False

    def resume(self) -> None:
        """Bring back the body's mode and its open guards, on top of the resumer's."""
        cell = thread.cell
        found, outside = is_grad_enabled(), is_inference_mode_enabled()
        self._outside, mode, token = outside, self._mode, None
        if mode is None:
            self.grad = grad_inside(found, outside)
        else:
            grad, inference = mode
            if self._holds or inference is not outside:
                self._autocast = is_any_autocast_enabled()
                token = enter_inference(inference)
            set_grad(grad)
        top: Link = (self, found, token, cell[0])
        self._base = top
        for guard, its_found, its_token in self._opened:
            top = (guard, its_found, its_token, top)
        self._top = cell[0] = top
        if mode is None and self._guard is not None:
            self._guard.__enter__()

    def suspend(self) -> None:
        """Bring back the resumer's mode and guards, keeping the body's."""
        self._mode = is_grad_enabled(), is_inference_mode_enabled()
        opened, base = self._split()
        if opened is not self._opened:
            self._opened, self._holds = opened, bool(_tokens(opened))
        self._leave(base)

    def finish(self) -> None:
        """Bring back the resumer's mode and guards; guards that the body left open are closed."""
        opened, base = self._split()
        tokens = _tokens(opened)
        self._opened = ()
        if self._mode is None or base is not self._base:  # all made in this step, on this thread
            while tokens:
                tokens.pop().__exit__(None, None, None)
        self._leave(base, tokens)

    def _split(self) -> tuple[tuple[Opened, ...], Link]:
        """The body's own links, outermost first, and the one on which they lie."""
        if self._base is not None and thread.cell[0] is self._top:
            return self._opened, self._base  # nothing opened or closed in this step
        chain = links()
        at = next(at for at, link in enumerate(chain) if link[0] is self)
        return tuple(link[:3] for link in reversed(chain[:at])), chain[at]

    def _leave(self, base: Link, spent: Sequence[InferenceToken] = ()) -> None:
        relinked = base is not self._base  # the body closed a guard of the resumer
        self._base = self._top = None  # they would keep the resumer's links alive
        _, found, token, thread.cell[0] = base
        if token is not None:
            if relinked or not (spent or self._autocast or is_any_autocast_enabled()):
                token.__exit__(None, None, None)
                set_grad(found is True)  # make_fx and torch.export see no other way back
                return
            spent = (*spent, token)
        if spent or is_inference_mode_enabled() is not self._outside:
            set_inference(self._outside, spent)
        set_grad(found is True)

    def __del__(self) -> None:
        # Dropped without having been closed: a loop has gone, or the body refused.
        # Dynamo makes a body without running its __init__.
        if spent := _tokens(getattr(self, "_opened", [])):
            grad = is_grad_enabled()
            set_inference(is_inference_mode_enabled(), spent)
            set_grad(grad)


def _tokens(opened: Sequence[Opened]) -> list[InferenceToken]:
    return [token for _, _, token in opened if token is not None]


def advance(step: Any, passed: list[Any], body: Suspendable, *, more: bool = False) -> None:
    """Take one step (`send` or `throw`) of a body, with what is `passed` to it, and from it.

    In a list, because the variables of a frame keep alive what nobody else needs any more; and an
    error that was thrown in would keep the frame, and so itself.

    Raises:
        StopIteration: the body has returned. `more` says that this is only a suspension: what steps
            an async generator returns what the generator has yielded.
    """
    body.resume()
    try:
        passed.append(step(passed.pop()))
    except StopIteration:
        (body.suspend if more else body.finish)()
        raise
    except BaseException:
        body.finish()
        raise
    finally:
        del step  # that of an async generator holds the error, too
    body.suspend()


@types.coroutine
def drive(target: Any, body: Suspendable, *, more: bool = False) -> Generator[Any, Any, Any]:
    """Run `target` (a coroutine, or what steps an async generator) under `body`.

    As ``yield from`` (PEP 380), with `body` taken up for each step: what is sent or thrown in
    reaches `target`, and its return value is returned.
    """
    step: Any = target.send
    passed: list[Any] = [None]
    try:
        while True:
            try:
                advance(step, passed, body, more=more)
            except StopIteration as stop:
                return stop.value
            try:
                passed.append((yield passed.pop()))
                step = target.send
            except BaseException as thrown:  # noqa: BLE001 (it is the body's to answer)
                passed.append(thrown)
                step = target.throw
    finally:
        del target, step  # as in `advance`
