"""GradState, and the one place that reads and sets torch's two flags.

Everything is bound once, at import: a project may rebind ``torch.no_grad`` and the others to
gradguard's, and a look-up at run time would then find gradguard itself and recurse.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.compiler import is_dynamo_compiling as is_dynamo_compiling  # noqa: PLC0414 (for mypy)

from gradguard._core.torch_versions import InferenceToken as InferenceToken  # noqa: PLC0414
from gradguard._core.torch_versions import enter_inference as enter_inference  # noqa: PLC0414
from gradguard._core.torch_versions import exit_inference as exit_inference  # noqa: PLC0414
from gradguard._core.torch_versions import (
    is_any_autocast_enabled as is_any_autocast_enabled,  # noqa: PLC0414
)
from gradguard._core.torch_versions import set_grad as set_grad  # noqa: PLC0414

is_grad_enabled = torch.is_grad_enabled
is_inference_mode_enabled = torch.is_inference_mode_enabled


def set_inference(mode: bool, spent: Sequence[InferenceToken] = ()) -> None:
    """Switch inference mode alone, with nothing left to be exited. The caller sets grad mode.

    A token's exit brings back all the dispatch state that it found, such as autocast's and that of
    dispatch modes, and so does dropping it. So tokens that shall have no effect any more, `spent`
    and the one that switched, are used up before one that brings back the present.
    """
    made = [enter_inference(mode)]
    try:
        made.append(enter_inference(mode))
        for token in (*spent, *made):
            token.__exit__(None, None, None)
    except BaseException:  # an interrupt, whose traceback would drop them at a random time
        while made:
            made.pop().__exit__(None, None, None)
        raise


class GradState(NamedTuple):
    """The two flags of the calling thread: whether operations are recorded, and inference mode.

    >>> GradState(grad_enabled=True, inference_mode=False)
    GradState(grad_enabled=True, inference_mode=False)
    """

    grad_enabled: bool
    inference_mode: bool


# Made once: a trace asks at each switch, and making a tuple takes longer than asking.
_STATES = tuple(
    (GradState(False, inference), GradState(True, inference)) for inference in (False, True)
)


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
    return _STATES[is_inference_mode_enabled()][is_grad_enabled()]


GradState.__module__ = grad_state.__module__ = "gradguard"


def put_back(state: GradState, spent: Sequence[InferenceToken] = ()) -> None:
    """Bring back `state` where something was left switched for good, using up tokens `spent`."""
    if is_inference_mode_enabled() is not state.inference_mode:
        set_inference(state.inference_mode, spent)
    set_grad(state.grad_enabled)
