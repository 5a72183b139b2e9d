"""Forward hooks that a copy or a pickle of the module does not take along."""

import sys
from collections.abc import Callable
from threading import local
from types import FrameType, MethodType
from typing import Any

from torch import nn

from gradguard._core.state import is_dynamo_compiling


class Hook:
    """A forward hook, or a pre-hook; not called while Dynamo compiles."""

    def __init__(self, call: Callable[..., None]) -> None:
        self._call = call

    def __call__(self, module: nn.Module, *given: object) -> None:
        __tracebackhide__ = True
        if not is_dynamo_compiling():
            frame = sys._getframe(1)  # noqa: SLF001 - inspect.currentframe may be None
            self._call(module, frame, given[-1])

    def __reduce__(self) -> Any:
        return _no_hook, ()


def _no_hook() -> Any:
    return _unwatched


def _unwatched(module: nn.Module, *given: object) -> None:
    """What a copied module has in the hook's place."""


class Running(local):
    """How many watched methods are running in a thread: one may call another, or the forward."""

    depth = 0


class Method:
    """Stands before a method of one module; what a copy or pickle has is its own method."""

    def __init__(
        self,
        model: nn.Module,
        name: str,
        running: "Running",
        after: Callable[[nn.Module, FrameType, object], None],
    ) -> None:
        self._model = model
        self._name = name
        self._running = running
        self._after = after
        self._original = getattr(model, name)
        vars(model)[name] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        frame = sys._getframe(1)  # noqa: SLF001 - inspect.currentframe may be None
        self._running.depth += 1
        try:
            output = self._original(*args, **kwargs)
        finally:
            self._running.depth -= 1
        self._after(self._model, frame, output)
        return output

    def remove(self) -> None:
        """Take it off the module."""
        if vars(self._model).get(self._name) is self:
            del vars(self._model)[self._name]

    def __reduce__(self) -> Any:
        return getattr, (self._model, self._name)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = memo.get(id(self._model), self._model)
        return MethodType(getattr(type(copied), self._name), copied)
