"""What differs between versions of torch, and what of torch is private: each with its reason.

Nothing else in the package asks for a version. Where torch can be asked what it can do without
work, it is asked; nothing here compiles or imports Dynamo, which takes seconds.

Everything is bound once, at import: a project may rebind ``torch.no_grad`` and the others to
gradguard's, and a look-up at run time would then find gradguard itself and recurse.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import torch

# Dynamo itself switches modes while it compiles, in torch's own functions: only this tells.
from torch._guards import CompileContext

# The only switches of inference mode that Dynamo can follow inside a class.
from torch.autograd.grad_mode import _enter_inference_mode as switch_inference
from torch.autograd.grad_mode import _exit_inference_mode as switch_inference_back

# torch.is_autocast_enabled(device) asks for one device type at twice the cost.
is_any_autocast_enabled = torch._C._is_any_autocast_enabled  # noqa: SLF001 (see above)

# torch.set_grad_enabled(mode) does the same at five times the cost: it builds a guard object that
# nobody uses. Dynamo, make_fx and torch.export all follow this name.
set_grad = torch._C._set_grad_enabled  # noqa: SLF001 (see above)

# torch's own four guards, also where a project has rebound their names since.
TORCH_GUARDS: Mapping[str, type] = {
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "set_grad_enabled": torch.set_grad_enabled,
    "inference_mode": torch.inference_mode,
}

# The class of what switches inference mode. torch has no public way to do it but
# torch.inference_mode, whose exit cannot be told which state to bring back.
INFERENCE_TOKEN = torch._C._InferenceMode  # noqa: SLF001 (see above)

# Up to 2.12 Dynamo puts `switch_inference` into its graph as any other function and runs it on
# fake tensors: "INTERNAL ASSERT FAILED", and every later backward() of the process fails with it.
# From 2.13 on it has a handler for it (torch/_dynamo/variables/torch.py,
# `handle_enter_inference_mode`). Whether it has cannot be asked without importing Dynamo.
DYNAMO_FOLLOWS_INFERENCE = torch.__version__ >= "2.13"  # a TorchVersion: by number

__all__ = [
    "DYNAMO_FOLLOWS_INFERENCE",
    "INFERENCE_TOKEN",
    "TORCH_GUARDS",
    "CompileContext",
    "InferenceToken",
    "enter_inference",
    "exit_inference",
    "is_any_autocast_enabled",
    "set_grad",
    "switch_inference",
    "switch_inference_back",
]


class InferenceToken(Protocol):
    """What holds a switch of inference mode; its exit brings both flags back, in any thread."""

    def __exit__(self, *exc: object) -> None: ...


def _enter_in_two_calls(mode: bool) -> InferenceToken:
    token = INFERENCE_TOKEN(mode)
    token.__enter__()  # type: ignore[no-untyped-call]
    return token


def _construction_enters() -> bool:
    before = torch.is_inference_mode_enabled()
    token = INFERENCE_TOKEN(not before)
    entered = torch.is_inference_mode_enabled() is not before
    token.__exit__(None, None, None)
    return entered


# In 2.6 to 2.14 constructing the C object enters the mode and its `__enter__` does nothing, so
# calling it (80 of 420 ns) is left out where that holds.
enter_inference = INFERENCE_TOKEN if _construction_enters() else _enter_in_two_calls

# The function behind the tokens' `__exit__`, called with the token: binding it costs 30 ns.
_exit = INFERENCE_TOKEN.__exit__
exit_inference: Callable[..., None] = getattr(_exit, "__func__", _exit)
