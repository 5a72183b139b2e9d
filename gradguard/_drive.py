"""Stepping a generator, coroutine or async generator under its own mode.

One mechanism for every body that can be suspended: a `Body` holds the mode in which the body was
left, and `drive` brings it back before each step and the resumer's after it. What does not work:

- A ``with`` around each step, as torch does: the body loses the mode of its inner guards.
- Leaving the body's inference tokens at each suspension, and making new ones: those of torch's
  own guards are out of reach.
- Holding back a mode by setting the flags alone: inference mode is a whole dispatch state, which
  only a token can bring back, and a token dropped without its exit does so at a random time.

So the resumer's state is kept by a token made before the body's comes back, wherever the two
differ in inference mode. Where they differ only when the body suspends, a token (the `mask`) hides
the body's state from the resumer, and is exited at the next resume, under such a token.
"""

import types
from collections.abc import Generator
from typing import Any, Protocol

from gradguard._kinds import Guard
from gradguard._stack import thread
from gradguard._state import (
    GradState,
    InferenceToken,
    enter_inference,
    is_grad_enabled,
    is_inference_mode_enabled,
    set_grad,
)


class Suspendable(Protocol):
    """What a body runs under: taken up before each of its steps, laid down after it."""

    def resume(self) -> None: ...

    def suspend(self) -> None: ...

    def finish(self) -> None:
        """Lay down for good: the body has returned, raised or been closed."""
        ...


class Body:
    """The own mode of one body, and the guards that it has open, while it is suspended.

    It starts in `start`, or, with a `guard`, in what that makes of the mode at the first resume.
    """

    __slots__ = ("_base", "_guard", "_mask", "_mode", "_opened", "_outside", "_token", "_top")

    def __init__(self, guard: Guard | None = None, start: GradState | None = None) -> None:
        self._guard = guard
        self._mode = start
        self._opened: tuple[tuple[Guard, bool, InferenceToken | None], ...] = ()
        self._mask: InferenceToken | None = None
        self._token: InferenceToken | None = None

    def resume(self) -> None:
        """Bring back the body's mode and its open guards, on top of the resumer's."""
        cell = thread.cell
        self._outside = outside = GradState(is_grad_enabled(), is_inference_mode_enabled())
        if self._mode is None:
            self._begin(outside)
        self._switch(outside)
        self._base = top = cell[0]
        for guard, found, token in self._opened:
            top = (guard, found, token, top)
        self._top = cell[0] = top

    def suspend(self) -> None:
        """Bring back the resumer's mode and guards, keeping the body's."""
        self._mode = GradState(is_grad_enabled(), is_inference_mode_enabled())
        self._opened = self._links()
        if self._token is None and self._mode.inference_mode is not self._outside.inference_mode:
            self._mask = enter_inference(self._outside.inference_mode)
        self._restore()

    def finish(self) -> None:
        """Bring back the resumer's mode and guards; guards that the body left open are closed."""
        for _, _, token in reversed(self._links()):
            if token is not None:
                token.__exit__(None, None, None)
        self._opened = ()
        self._restore()

    def _begin(self, outside: GradState) -> None:
        guard = self._guard
        if guard is None:
            self._mode = outside
        else:
            self._mode = guard.inside(outside)
            self._opened = ((guard, outside.grad_enabled, None),)

    def _switch(self, outside: GradState) -> None:
        grad, inference = self._mode
        if self._mask is not None or inference is not outside.inference_mode:
            self._token = enter_inference(inference)
            if self._mask is not None:
                self._mask.__exit__(None, None, None)
                self._mask = None
        set_grad(grad)

    def _links(self) -> "tuple[tuple[Guard, bool, InferenceToken | None], ...]":
        link = thread.cell[0]
        if link is self._top:  # nothing opened or closed in this step
            return self._opened
        opened = []
        while link is not None and link is not self._base:
            opened.append(link[:3])
            link = link[3]
        return tuple(reversed(opened))

    def _restore(self) -> None:
        thread.cell[0] = self._base
        self._base = self._top = None
        token, self._token = self._token, None
        if token is not None:
            token.__exit__(None, None, None)
        set_grad(self._outside.grad_enabled)


@types.coroutine
def drive(target: Any, body: Suspendable, *, more: bool = False) -> Generator[Any, Any, Any]:
    """Run `target` (generator, coroutine, or awaitable of an async generator) under `body`.

    As ``yield from`` (PEP 380), with `body` taken up for each step: what is sent or thrown in
    reaches `target`, and its return value is returned. `more` says that a return is only a
    suspension: an async generator's awaitable returns what the generator has yielded.
    """
    step, value = target.send, None
    try:
        while True:
            body.resume()
            try:
                yielded = step(value)
            except StopIteration as stop:
                (body.suspend if more else body.finish)()
                return stop.value
            except BaseException:
                body.finish()
                raise
            body.suspend()
            try:
                value = yield yielded
                step = target.send
            except BaseException as thrown:  # noqa: BLE001 (it is the body's to answer)
                step, value = target.throw, thrown
    finally:
        del value  # an exception thrown in would keep this frame, and itself, alive
