"""Serving: forwards of a model that is not trained, each judged by itself."""

import weakref
from collections.abc import Callable
from types import FrameType, FunctionType
from typing import Any

import torch
from torch import nn

from gradguard._findings.finding import Finding
from gradguard._judge import wording
from gradguard._judge.ledger import Ledger
from gradguard._judge.lines import line_at, outside
from gradguard._judge.mode_dependence import acts, depends_on_mode

_ASKED = (
    {"autograd", "grad"},
    {"func", "grad"},
    *({name} for name in ("backward", "jacrev", "jacfwd", "hessian", "jacobian", "vjp")),
)


class Serving:
    """Judges what a served model's forwards record, and the mode that they run in."""

    def __init__(
        self, tell: Callable[[Finding], object], again: Callable[[Finding], object]
    ) -> None:
        self.ledger = Ledger(tell, again)
        self.violations = 0
        self._depending: list[weakref.ref[nn.Module]] | None = None
        self._differentiates: bool | None = None

    def forward(self, module: nn.Module, frame: FrameType, *, recorded: bool) -> None:
        """Take one forward that has returned."""
        if self._depending is None:
            self._depending = [weakref.ref(m) for m in module.modules() if depends_on_mode(m)]
        acting = [m for m in (one() for one in self._depending) if m is not None and acts(m)]
        if recorded and not self._is_excused(module):
            message = wording.recorded_eval(type(module).__name__, 1)
            self._add("recorded-eval", module, frame, message)
        elif acting and module.training:
            kinds = sorted({type(each).__name__ for each in acting})
            message = wording.train_mode_inference(type(module).__name__, 1, kinds)
            self._add("train-mode-inference", module, frame, message)

    def _is_excused(self, module: nn.Module) -> bool:
        if self._differentiates is None:
            self._differentiates = any(map(differentiates, {type(m) for m in module.modules()}))
        return self._differentiates

    def _add(self, kind: str, module: nn.Module, frame: FrameType, message: str) -> None:
        self.violations += 1
        user, _ = outside(frame)
        self.ledger.add(kind, line_at(user), message, model=type(module).__name__)


def differentiates(kind: type) -> bool:
    """Tell whether the code of a module's class asks autograd for gradients.

    Read from its methods and the functions of the same file that they call.
    """
    if kind.__module__.startswith("torch."):
        return False
    functions = [value for value in vars(kind).values() if isinstance(value, FunctionType)]
    return any(_asks_for_gradients(function, depth=1) for function in functions)


def _asks_for_gradients(function: FunctionType, depth: int) -> bool:
    names, known = function.__code__.co_names, function.__globals__
    if any(asked <= set(names) for asked in _ASKED):
        return True
    called = [known.get(name) for name in names]
    if any(value in (torch.autograd.grad, torch.autograd.backward) for value in _plain(called)):
        return True
    own = [value for value in called if isinstance(value, FunctionType)]
    return depth > 0 and any(
        _asks_for_gradients(each, depth - 1)
        for each in own
        if each.__module__ == function.__module__
    )


def _plain(values: list[Any]) -> list[Any]:
    return [value for value in values if isinstance(value, FunctionType)]
