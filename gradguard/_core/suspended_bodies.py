"""Stepping a generator, coroutine or async generator under its own mode.

One mechanism for every body that can be suspended: a `Body` holds the mode in which the body was
left, and brings it back before each step and the resumer's after it. What does not work:

- A ``with`` around each step, as torch does: the body loses the mode of its inner guards.
- Holding back a mode by setting the flags alone: inference mode is a whole dispatch state, which
  only a token can bring back, and a token dropped without its exit does so at a random time.
- Keeping the tokens of the body's guards while it is suspended: a body may be dropped then, and
  what a ``__del__`` would have to put right there could be interrupted, and the interrupt lost.
- Bringing back the dispatch state in which the body was left: it holds more than inference mode,
  and a `TorchDispatchMode` that has ended since would be asked and fail.

So tokens live for one step: at a suspension they are exited, and at the resume made anew, as for an
exit out of order. Those of torch's own guards are out of reach, and stay.
"""

from collections.abc import Callable
from typing import Any, Protocol
from weakref import ReferenceType

from gradguard._core.abandoned import own_cell
from gradguard._core.exits import exit_token, rewind, unwind
from gradguard._core.guard_stack import (
    Boundary,
    Link,
    Opener,
    Owner,
    fast,
    grad_inside,
    links,
    thread,
    token_of,
)
from gradguard._core.state import (
    InferenceToken,
    enter_inference,
    is_any_autocast_enabled,
    is_grad_enabled,
    is_inference_mode_enabled,
    set_grad,
    set_inference,
)
from gradguard._core.suspendable import Suspendable


class EntersBodies(Protocol):
    """A guard, for the body of a call."""

    def enter_body(self) -> None: ...


class _MadeByTorch(Opener):
    """In the place of a guard of torch's own that a body has open, for one step of the body."""

    __slots__ = ()
    grad = False
    inference = True
    is_inference_block = True


_MADE_BY_TORCH = _MadeByTorch()


class Body(Boundary, Suspendable):
    """The own mode of one body, and the guards that it has open, while it is suspended.

    It starts in the mode of its first resumer, or in what `guard` makes of that.
    """

    __slots__ = (
        "_autocast",
        "_base",
        "_guard",
        "_inference",
        "_mode",
        "_modes",
        "_outside",
        "_own",
        "_plain",
        "_resumed",
        "_tokens",
    )

    def __init__(self, guard: EntersBodies | None = None) -> None:
        self._guard = guard
        self._mode: tuple[bool, bool] | None = None  # a GradState costs four times as much
        self._inference = False  # the inference mode below the body's own links
        self._own: list[Link] = []  # the body's own links, innermost first, without their tokens
        self._modes: list[bool] = []  # the inference mode of each
        self._tokens = False  # whether one of them had a token
        self._plain: list[tuple[Opener, bool | None]] = []  # if not: what they are, outermost first
        self._base: Link | None = None  # on which the body's own links lie while it runs
        self._resumed = False  # whether its first resume came to its end
        self._outside = False
        self._autocast = False

    def step(self, call: Callable[[Any], Any], passed: list[Any], *, more: bool = False) -> Any:
        """As `Suspendable.step`; the usual step, in which no token is needed, is written out."""
        try:
            cell = fast.cell
        except AttributeError:
            cell = own_cell()
        below = cell[0]
        grad, inference = is_grad_enabled(), is_inference_mode_enabled()
        top: Link | None = None
        try:
            mode = self._mode
            if mode is None or self._tokens or mode[1] is not inference:
                self.resume()
                top = None if self._tokens or mode is not None else cell[0]
            else:
                if mode[0] is not grad:
                    set_grad(mode[0])
                self._outside = inference
                top = (self, grad, None, below)
                self._base = top
                for guard, found in self._plain:
                    top = (guard, found, None, top)
                cell[0] = top
            result = call(passed.pop())
            if cell[0] is top and is_inference_mode_enabled() is inference:
                now = is_grad_enabled()
                cell[0], self._base, self._mode = below, None, (now, inference)
                if now is not grad:
                    set_grad(grad)
            else:
                self.suspend()
        except BaseException as error:
            if top is not None and cell[0] is top and type(error) is StopIteration and not more:
                cell[0] = below  # the usual end
                set_grad(grad)
                if is_inference_mode_enabled() is not inference:
                    set_inference(inference)
                raise
            self._leave(below, grad, inference, ended=not (more and type(error) is StopIteration))
            raise
        finally:
            del call  # that of an async generator holds the error, too
        return result

    def _leave(self, below: Link | None, grad: bool, inference: bool, *, ended: bool) -> None:
        """Bring back the outside's mode after an error, which may have come at any point."""
        if any(link[0] is self for link in links()):
            (self.finish if ended else self.suspend)()
        elif thread.cell[0] is below:
            if is_inference_mode_enabled() is not inference:
                set_inference(inference)
            set_grad(grad)

    def resume(self) -> None:
        """Bring back the body's mode and its open guards, on top of the resumer's."""
        below = thread.cell[0]
        found, outside = is_grad_enabled(), is_inference_mode_enabled()
        self._outside, mode, token = outside, self._mode, None
        if mode is None:
            self.grad = grad_inside(found, outside)
            self._inference = outside
            thread.cell[0] = self._base = (self, found, None, below)
            if self._guard is not None:
                self._guard.enter_body()
                guard, its_found, its_token, _ = links()[0]
                self._own, self._plain = [(guard, its_found, None, None)], [(guard, its_found)]
                self._modes, self._tokens = [outside], its_token is not None
            self._resumed = True
            return
        grad, inference = mode
        self._autocast = is_any_autocast_enabled()
        if self._inference is not outside:
            token = enter_inference(self._inference)
        base: Link = (self, found, token, below)
        top = rewind(self._own, self._modes, base) if self._own else base
        if is_inference_mode_enabled() is not inference:
            top = (_MADE_BY_TORCH, None, enter_inference(inference), top)
        set_grad(grad)
        self._base, thread.cell[0] = base, top

    def suspend(self) -> None:
        """Bring back the resumer's mode and guards, keeping the body's."""
        mode = is_grad_enabled(), is_inference_mode_enabled()
        chain = links()
        at = next(at for at, link in enumerate(chain) if link[0] is self)
        own, base = chain[:at], chain[at]
        tokens = [token for link in chain[: at + 1] if (token := token_of(link)) is not None]
        relinked = base is not self._base  # the body closed a guard of the resumer
        careful = self._autocast or (bool(tokens) and is_any_autocast_enabled())
        present = enter_inference(mode[1]) if careful and tokens and not relinked else None
        modes = unwind(own)
        self._inference = is_inference_mode_enabled()
        kept = [(_asleep(link), mode) for link, mode in zip(own, modes, strict=True)]
        self._own = [link for link, _ in kept if link is not None]
        self._modes = [mode for link, mode in kept if link is not None]
        self._tokens = any(link[2] is not None for link in self._own)
        self._plain = [link[:2] for link in reversed(self._own)]
        self._mode, self._base = mode if self._resumed else None, None
        self._bring_back(base, present, relinked=relinked)

    def _bring_back(self, base: Link, present: InferenceToken | None, *, relinked: bool) -> None:
        """Bring back the mode of the outside, below `base`."""
        _, found, token, thread.cell[0] = base
        if token is not None:
            exit_token(token)
        if present is not None:
            exit_token(present)  # with what autocast was switched to in this step
        if not relinked and is_inference_mode_enabled() is not self._outside:
            set_inference(self._outside)
        set_grad(found is True)  # make_fx and torch.export see no other way back

    def finish(self) -> None:
        """Bring back the resumer's mode and guards; guards that the body left open are closed."""
        self.suspend()
        self._own, self._modes, self._plain, self._tokens = [], [], [], False


def _asleep(link: Link) -> Link | None:
    """A link as it is kept while the body is suspended: without a token, and without those below.

    An `Owner` lies in it itself: where a body is part of a cycle that is collected, a weak
    reference to the guards in its frame is gone before the body is closed.
    """
    guard, found, token, _ = link
    if guard is _MADE_BY_TORCH:
        return None
    if not isinstance(token, ReferenceType):
        return guard, found, None if token is None else True, None
    owner: Owner | None = token()
    if owner is None:
        return None
    asleep: Link = (guard, found, owner, None)
    owner.link = asleep
    return asleep
