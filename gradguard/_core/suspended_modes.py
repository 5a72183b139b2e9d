"""The own mode of a body that can be suspended, and the guards that it has open.

A `SuspendedMode` holds the mode in which the body was left, and brings it back before each step and
the resumer's after it. What does not work:

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

from gradguard._core.exits import rewind, unwind
from gradguard._core.guard_stack import (
    MADE_BY_TORCH,
    Boundary,
    Link,
    Opener,
    grad_inside,
    is_entry_of,
    links,
    suspended_in_blocks,
    thread,
    token_of,
)
from gradguard._core.state import (
    enter_inference,
    is_any_autocast_enabled,
    is_grad_enabled,
    is_inference_mode_enabled,
    set_grad,
    set_inference,
)
from gradguard._core.suspendable import (
    EntersBodies,
    Suspendable,
    all_asleep,
    exited_at_error,
    give_back,
    steady_mode,
    without_tokens,
)
from gradguard._core.torch_versions import grad_is_deferred


class SuspendedMode(Suspendable, Boundary):
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
        "_steady",
        "_tokens",
    )

    def __init__(self, guard: EntersBodies | None = None) -> None:
        self._guard = guard
        self._mode: tuple[bool, bool] | None = None  # a GradState costs four times as much
        self._inference = False  # the inference mode below the body's own links
        self._own: list[Link] = []  # the body's own links, innermost first, without their tokens
        self._modes: list[bool] = []  # the inference mode of each
        self._tokens = False  # whether one of them had a token
        self._plain: list[tuple[Opener, bool | None]] = []  # those without, outermost first
        self._steady: tuple[bool, bool] | None = None  # the mode, where one is an inference block
        self._base: Link | None = None  # on which the body's own links lie while it runs
        self._resumed = False  # whether its first resume came to its end
        self._outside = self._autocast = False

    def resume(self) -> None:
        """Bring back the body's mode and its open guards, on top of the resumer's."""
        below, found, outside = thread.cell[0], is_grad_enabled(), is_inference_mode_enabled()
        self._outside, mode = outside, self._mode
        if mode is None:
            self.grad = grad_inside(found, outside)
            self._inference = outside
            thread.cell[0] = self._base = (self, found, None, below)
            if self._guard is not None:
                self._guard.enter_body()
                guard, its_found, its_token, _ = links()[0]
                self._modes, self._tokens = [is_inference_mode_enabled()], its_token is not None
                self._own = [(guard, its_found, self._tokens or None, None)]
                self._plain = [] if self._tokens else [(guard, its_found)]
                self._steady = steady_mode(self._own, self._modes)
            self._resumed = True
            return
        self._autocast, made = is_any_autocast_enabled(), []
        try:
            if self._inference is not outside:
                made.append(enter_inference(self._inference))
            base: Link = (self, found, made[0] if made else None, below)
            top = rewind(self._own, self._modes, base, made)
            if is_inference_mode_enabled() is not mode[1]:
                made.append(enter_inference(mode[1]))
                top = (MADE_BY_TORCH, None, made[-1], top)
            set_grad(mode[0])
            self._base, thread.cell[0] = base, top
        except BaseException:
            give_back(self._own, made)
            raise

    def suspend(self) -> None:
        """Bring back the resumer's mode and guards, keeping the body's."""
        chain = links()
        deferred = chain[0][0].grad if grad_is_deferred() else None
        mode = is_grad_enabled() if deferred is None else deferred, is_inference_mode_enabled()
        at = next(at for at, link in enumerate(chain) if link[0] is self)
        own, base = chain[:at], chain[at]
        tokens = [token for link in chain[: at + 1] if (token := token_of(link)) is not None]
        relinked = base is not self._base  # the body closed a guard of the resumer
        careful = tokens and (self._autocast or is_any_autocast_enabled())
        with exited_at_error() as present:
            if careful and not relinked:
                present.token = enter_inference(mode[1])
            modes = unwind(own)
            self._inference = is_inference_mode_enabled()
            self._own, self._modes = all_asleep(own, modes)
            self._tokens = any(link[2] is not None for link in self._own)
            self._steady = steady_mode(self._own, self._modes)
            self._plain = without_tokens(self._own)
            self._mode, self._base = mode if self._resumed else None, None
            _, found, token, thread.cell[0] = base
            if token is not None:  # in a frame of its own an interrupt might come before
                token.__exit__(None, None, None)
            if present.token is not None:  # with what autocast was switched to in this step
                present.token.__exit__(None, None, None)
            if not relinked and is_inference_mode_enabled() is not self._outside:
                set_inference(self._outside)
            set_grad(found is True)  # make_fx and torch.export see no other way back
            (suspended_in_blocks.add if self._blocks() else suspended_in_blocks.discard)(self)

    def holds(self, guard: Opener) -> bool:
        return self._base is None and any(is_entry_of(link, guard) for link in self._blocks())

    def _blocks(self) -> list[Link]:
        """The body's own links without that of its decorator, which is no block's."""
        return self._own if self._guard is None else self._own[:-1]

    def finish(self) -> None:
        """Bring back the resumer's mode and guards; guards that the body left open are closed."""
        self.suspend()
        suspended_in_blocks.discard(self)
        self._own, self._modes, self._plain, self._tokens, self._steady = [], [], [], False, None
