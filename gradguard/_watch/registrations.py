"""What is put in its place in modules, seen by torch's hooks for that.

They are the process's, and torch goes over them while it calls them: one that is removed meanwhile
makes it fail, and a watch that is garbage collected may be so at any moment. So there is one pair
of hooks for all feeders, which goes when the last of these is removed by its user. A feeder that is
merely dropped is no longer told: it is known weakly, as its models must not live for ever.
"""

import sys
import weakref
from collections.abc import Callable
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


class Registrations:
    """Tells a feeder what is put in its place in modules, until it is removed."""

    def __init__(self, feeder: Registered) -> None:
        key = id(feeder)
        self._key = key
        _feeders[key] = weakref.ref(feeder, lambda dead: _forget(key, dead))
        if not _handles:
            _handles.append(module_hooks.register_module_parameter_registration_hook(_parameter))
            _handles.append(module_hooks.register_module_module_registration_hook(_module))

    def remove(self) -> None:
        """Tell it no more; the last takes torch's hooks off."""
        _feeders.pop(self._key, None)
        if not _feeders:
            while _handles:
                _handles.pop().remove()


_feeders: dict[int, "weakref.ref[Registered]"] = {}
_handles: list[Removable] = []


def _forget(key: int, dead: "weakref.ref[Registered]") -> None:
    if _feeders.get(key) is dead:
        del _feeders[key]


def _tell(told: Callable[[Registered, FrameType], None]) -> None:
    frame = sys._getframe(2)  # noqa: SLF001 - inspect.currentframe may be None
    for reference in list(_feeders.values()):
        feeder = reference()
        if feeder is not None:
            told(feeder, frame)


def _parameter(owner: nn.Module, name: str, new: Tensor | None) -> None:
    if not is_dynamo_compiling() and _feeders:
        _tell(lambda feeder, frame: feeder.parameter_set(owner, name, new, frame))


def _module(owner: nn.Module, name: str, new: nn.Module | None) -> None:
    if not is_dynamo_compiling() and _feeders:
        _tell(lambda feeder, frame: feeder.module_set(owner, name, new, frame))
