"""What is known of each optimizer that was seen."""

import gc
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from gradguard._judge.lines import Line


class Held:
    """What is known of one optimizer."""

    __slots__ = (
        "__weakref__",
        "accumulated",
        "forwards",
        "good",
        "group_lines",
        "group_since",
        "group_sizes",
        "kind",
        "last",
        "learned_groups",
        "made",
        "missing",
        "pending",
        "reference",
        "steps",
        "zeroed",
    )

    def __init__(self, optimizer: Optimizer, made: Line | None) -> None:
        self.reference = weakref.ref(optimizer)
        self.kind = type(optimizer).__name__
        self.made = made
        self.steps = 0
        self.good = 0
        self.accumulated = 0  # when one of its parameters got a gradient last, if that is seen
        self.last = 0  # when its last step was
        self.forwards = 0  # how many forwards had been seen by then
        self.zeroed = 0  # when its gradients were dropped last
        self.group_lines: list[Line | None] = []
        self.learned_groups: set[int] = set()  # those that were trainable at some step
        self.group_sizes: list[int] = []
        self.group_since: list[int] = []  # after how many good steps each was added
        # Parameters without a gradient so far, and in how many steps; what is known of them.
        self.missing: dict[int, tuple[Line, Any]] = {}
        self.pending: dict[int, tuple[weakref.ref[Tensor], int]] | None = None


class Optimizers:
    """All optimizers that were seen and are alive."""

    def __init__(self) -> None:
        self.by_id: dict[int, Held] = {}
        self.gone: list[Held] = []
        self.partial = False  # whether there may be others: a watch is told of some only
        self._searched: set[int] = set()

    def of(self, optimizer: Optimizer, made: Line | None = None) -> Held:
        """Return what is known of an optimizer."""
        key = id(optimizer)
        held = self.by_id.get(key)
        if held is None or held.reference() is not optimizer:
            if held is not None:
                self.gone.append(held)
            held = self.by_id[key] = Held(optimizer, made)
        return held

    def alive(self) -> Iterator[tuple[Optimizer, Held]]:
        """Yield the optimizers that are alive."""
        for held in list(self.by_id.values()):
            optimizer = held.reference()
            if optimizer is not None:
                yield optimizer, held

    def all(self) -> list[Held]:
        """Return all that were ever seen."""
        return [*self.gone, *self.by_id.values()]

    def owned(self) -> set[int]:
        """Return the ids of all parameters that any optimizer holds."""
        return {id(p) for optimizer, _ in self.alive() for p in parameters(optimizer)}

    def without_any(self, found: Sequence[Tensor]) -> list[Tensor]:
        """Return those that no optimizer holds; where others may be, the process is searched."""
        owned = self.owned()
        without = [p for p in found if id(p) not in owned]
        if self.partial and not self._searched.issuperset(map(id, without)):
            self._searched.update(map(id, without))
            # By type: an object may say of itself that it is of any class.
            for each in gc.get_objects():
                if issubclass(type(each), Optimizer) and hasattr(each, "param_groups"):
                    self.of(each)
            owned = self.owned()
        return [p for p in without if id(p) not in owned]


def parameters(optimizer: Optimizer) -> list[Tensor]:
    """Return all that an optimizer holds."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def has_gradient(optimizer: Optimizer) -> bool:
    """Tell whether anything that an optimizer holds has a gradient."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.grad is not None:
                return True
    return False


def has_closure(args: Any, kwargs: Any) -> bool:
    """Tell whether a step was given a closure.

    The hooks' args begin with the optimizer itself, or do not, by version of torch.
    """
    for value in args:
        if not isinstance(value, Optimizer) and callable(value):
            return True
    return bool(kwargs) and callable(kwargs.get("closure"))
