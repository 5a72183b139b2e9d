"""Where each module inside a watched one is called: seen once, since hooks slow every call."""

import sys
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Protocol

from torch import nn

from gradguard._core.state import is_dynamo_compiling
from gradguard._watch.hooks import Hook
from gradguard._watch.watch import Removable, has_hooks

_UNRECORDED = 8  # calls under no_grad: rollouts before the training, or a part never recorded


class Called(Protocol):
    """What is told of each."""

    def first_call(self, module: nn.Module, frame: FrameType) -> bool: ...


class FirstCall(Hook):
    """A pre-hook that removes itself when its module is called, and that is recorded."""

    def __init__(self, feeder: Called, module: nn.Module) -> None:
        self._feeder = feeder
        self._calls = 0
        self.active = True
        self._handle = module.register_forward_pre_hook(self)

    def __call__(self, module: nn.Module, *_: object) -> None:
        if not is_dynamo_compiling():
            self._calls += 1
            recorded = self._feeder.first_call(module, sys._getframe(1))  # noqa: SLF001 - inspect.currentframe may be None
            if recorded or self._calls >= _UNRECORDED:
                self.remove()

    def remove(self) -> None:
        """Take the hook off."""
        self.active = False
        self._handle.remove()


def first_calls(feeder: Called, model: nn.Module, *, many: bool) -> Iterator[Removable]:
    """See where each module with parameters is called.

    Of many, what a Sequential holds has no hook: it is called when that is. (Where it is called by
    hand, ``model[0](x)``, that is seen once it is asked for.)
    """
    within = {id(each) for module in model.modules() for each in called_with(module) if many}
    within.add(id(model))
    for module in model.modules():
        holds = module._parameters or any(True for _ in module.children())  # noqa: SLF001 (its own alone)
        if holds and id(module) not in within and has_hooks(module):
            yield FirstCall(feeder, module)


def called_with(module: nn.Module) -> Iterable[nn.Module]:
    """Return the modules that the forward of this one calls for certain."""
    plain = isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
    return module.children() if plain else ()
