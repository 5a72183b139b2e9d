"""What is put in its place in modules, seen by torch's hooks for that."""

import sys
import weakref
from collections.abc import Iterator
from types import FrameType
from typing import Protocol

from torch import Tensor, nn
from torch.nn.modules import module as module_hooks

from gradguard._core.state import is_dynamo_compiling
from gradguard._watch.watch import Removable


class Registered(Protocol):
    """What is told of each."""

    def parameter_set(
        self, owner: nn.Module, name: str, new: Tensor | None, frame: FrameType
    ) -> None: ...

    def module_set(
        self, owner: nn.Module, name: str, new: nn.Module | None, frame: FrameType
    ) -> None: ...


def registrations(feeder: Registered) -> Iterator[Removable]:
    """See what is put in its place in modules; torch's hooks for that are the process's.

    So they hold the feeder weakly, and go with it: the models must not live for ever.
    """
    reference = weakref.ref(feeder)

    def parameter_set(owner: nn.Module, name: str, new: Tensor | None) -> None:
        alive = reference()
        if alive is not None and not is_dynamo_compiling():
            alive.parameter_set(owner, name, new, _caller())

    def module_set(owner: nn.Module, name: str, new: nn.Module | None) -> None:
        alive = reference()
        if alive is not None and not is_dynamo_compiling():
            alive.module_set(owner, name, new, _caller())

    for handle in (
        module_hooks.register_module_parameter_registration_hook(parameter_set),
        module_hooks.register_module_module_registration_hook(module_set),
    ):
        weakref.finalize(feeder, handle.remove)
        yield handle


def _caller() -> FrameType:
    return sys._getframe(2)  # noqa: SLF001 - inspect.currentframe may be None
