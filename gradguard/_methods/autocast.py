"""`torch.autocast` around one call, also one whose body can be suspended."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from itertools import chain
from typing import Any

import torch
from torch.nn import Module

from gradguard._core.suspendable import Suspendable
from gradguard._core.torch_versions import never_compiled


class Autocast(Suspendable):
    """One call's autocast: a `CallContext`, and its own `Suspendable`.

    What the body has switched when it suspends (a ``with torch.autocast(..., enabled=False)``
    around a ``yield``) comes again on resume; the exit of what it has open brings back what that
    found.
    """

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        self._device = device
        self._dtype = dtype
        self._enabled = True
        self._entered: Any  # torch leaves its methods without annotations

    def resume(self) -> None:
        self._entered = torch.autocast(self._device, self._dtype, self._enabled)
        self._entered.__enter__()

    def suspend(self) -> None:
        self._dtype = torch.get_autocast_dtype(self._device)
        self._enabled = torch.is_autocast_enabled(self._device)
        self.finish()

    def finish(self) -> None:
        self._entered.__exit__(None, None, None)

    def __enter__(self) -> None:
        self.resume()

    def __exit__(self, *_: object) -> None:
        self.finish()

    def while_compiling(self) -> AbstractContextManager[object]:
        return torch.autocast(self._device, self._dtype)

    def body(self) -> "Autocast":
        return self


def device_of(modules: Iterable[Module]) -> str:
    """Return the device type of the first parameter or buffer, ``"cpu"`` where there is none."""
    for module in modules:
        for tensor in chain(module.parameters(), module.buffers()):
            return tensor.device.type
    return "cpu"


never_compiled(globals())
