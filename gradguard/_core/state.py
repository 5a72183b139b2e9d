"""GradState, and the one place that reads and sets torch's two flags.

Everything is bound once, at import: a project may rebind ``torch.no_grad`` and the others to
gradguard's, and a look-up at run time would then find gradguard itself and recurse.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch.compiler import is_dynamo_compiling as is_dynamo_compiling  # noqa: PLC0414 (for mypy)

is_grad_enabled = torch.is_grad_enabled
is_inference_mode_enabled = torch.is_inference_mode_enabled
# torch.is_autocast_enabled(device) asks for one device type at twice the cost.
is_any_autocast_enabled = torch._C._is_any_autocast_enabled  # noqa: SLF001 (see above)

# torch.set_grad_enabled(mode) does the same at five times the cost: it builds a guard object that
# nobody uses. Dynamo, make_fx and torch.export all follow this name.
set_grad = torch._C._set_grad_enabled  # noqa: SLF001 (see above)


class InferenceToken(Protocol):
    """What holds a switch of inference mode; its exit brings both flags back, in any thread."""

    def __exit__(self, *exc: object) -> None: ...


def _enter_in_two_calls(mode: bool) -> InferenceToken:
    token = torch._C._InferenceMode(mode)  # noqa: SLF001
    token.__enter__()  # type: ignore[no-untyped-call]
    return token


def _construction_enters() -> bool:
    before = is_inference_mode_enabled()
    token = torch._C._InferenceMode(not before)  # noqa: SLF001
    entered = is_inference_mode_enabled() is not before
    token.__exit__(None, None, None)
    return entered


# torch has no public way to switch inference mode but torch.inference_mode, whose exit cannot be
# told which state to bring back. In 2.6 to 2.13 constructing the C object enters the mode and its
# `__enter__` does nothing, so calling it (80 of 420 ns) is left out where that holds.
enter_inference = torch._C._InferenceMode if _construction_enters() else _enter_in_two_calls  # noqa: SLF001

# The function behind the tokens' `__exit__`, called with the token: binding it costs 30 ns.
_exit = torch._C._InferenceMode.__exit__  # noqa: SLF001
exit_inference: Callable[..., None] = getattr(_exit, "__func__", _exit)


def set_inference(mode: bool, spent: Sequence[InferenceToken] = ()) -> None:
    """Switch inference mode alone, with nothing left to be exited. The caller sets grad mode.

    A token's exit brings back all the dispatch state that it found, such as autocast's and that of
    dispatch modes, and so does dropping it. So tokens that shall have no effect any more, `spent`
    and the one that switched, are used up before one that brings back the present.
    """
    switched = enter_inference(mode)
    present = enter_inference(mode)
    for token in (*spent, switched):
        token.__exit__(None, None, None)
    present.__exit__(None, None, None)


class GradState(NamedTuple):
    """The two flags of the calling thread: whether operations are recorded, and inference mode.

    >>> GradState(grad_enabled=True, inference_mode=False)
    GradState(grad_enabled=True, inference_mode=False)
    """

    grad_enabled: bool
    inference_mode: bool


def grad_state() -> GradState:
    """Return the grad mode and the inference mode of the calling thread.

    Operations are recorded for backward when `grad_enabled` is True **and** `inference_mode` is
    False: inside inference mode nothing is recorded, whatever the grad mode says.

    >>> import gradguard
    >>> with gradguard.inference_mode():
    ...     gradguard.grad_state()
    GradState(grad_enabled=False, inference_mode=True)

    Source: `torch.is_grad_enabled`, `torch.is_inference_mode_enabled`.
    """
    return GradState(is_grad_enabled(), is_inference_mode_enabled())


def put_back(state: GradState) -> None:
    """Bring back `state` where something was left switched for good."""
    if is_inference_mode_enabled() is not state.inference_mode:
        set_inference(state.inference_mode)
    set_grad(state.grad_enabled)
