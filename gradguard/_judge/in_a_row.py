"""Parameters without a gradient in so many steps in a row: what a watch asks for."""

import weakref
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.optim import Optimizer

from gradguard._judge import wording
from gradguard._judge.empty_step import can_learn
from gradguard._judge.no_gradient import Missing, NoGradients
from gradguard._judge.optimizers import Held
from gradguard._judge.scene import Scene

if TYPE_CHECKING:
    from gradguard._judge.lines import Line


class InARow:
    """Counts, for each watched parameter, the steps without a gradient since the last with one.

    Only those in which its module ran: an expert, a head in turn, a layer that is dropped at random
    need no gradient where they were not used.

    Args:
        patience: how many in a row are a fault.
        allowed: the ids of parameters that need no gradient.
        ask: called with a module of which it must be known from now on when it runs.

    """

    def __init__(
        self,
        scene: Scene,
        gradients: NoGradients,
        patience: int,
        allowed: Collection[int],
        ask: Callable[[nn.Module], None],
    ) -> None:
        self._scene = scene
        self._gradients = gradients
        self._patience = patience
        self._ask = ask
        self.allowed = allowed
        self._without: dict[int, dict[int, int]] = {}  # by id of the optimizer
        self._owners: dict[int, list[weakref.ref[nn.Module]]] = {}

    def step(self, optimizer: Optimizer, held: Held, since: int) -> None:
        """Look at a step in which some parameter has a gradient; `since` is when the last was."""
        missing = [
            p
            for group in optimizer.param_groups
            for p in group["params"]
            if p.grad is None and can_learn(p)
        ]
        before = self._without.pop(id(optimizer), {})
        if not missing:
            return
        self._scene.modules.settle()
        counts = {id(p): before.get(id(p), 0) + self._ran(p, since) for p in missing}
        self._without[id(optimizer)] = counts
        explained = self._scene.explained
        late = {
            id(p): p
            for p in missing
            if counts[id(p)] >= self._patience
            and id(p) not in self.allowed
            and id(p) not in explained
        }
        if late:
            self._tell(held, late)

    def _ran(self, parameter: Tensor, since: int) -> bool:
        """Tell whether a module of the parameter's ran since, and ask for its next run."""
        owners = self._owners_of(parameter)
        for module in owners:
            self._ask(module)
        return any(
            self._scene.modules.of(module).ran_since(since) or _has_gradient(module)
            for module in owners
        )

    def _owners_of(self, parameter: Tensor) -> list[nn.Module]:
        known = self._owners.get(id(parameter))
        if known is None:
            self._owners = {}
            for module, _ in self._scene.modules.alive():
                for p in module.parameters(recurse=False):
                    self._owners.setdefault(id(p), []).append(weakref.ref(module))
            known = self._owners.setdefault(id(parameter), [])
        return [module for module in (each() for each in known) if module is not None]

    def _tell(self, held: Held, late: dict[int, Tensor]) -> None:
        by_line: dict[Line, list[Missing]] = {}
        for _, line, missing in self._gradients.missing(late):
            by_line.setdefault(line, []).append(missing)
        for line, found in by_line.items():
            self._scene.ledger.add(
                "no-gradient",
                line,
                wording.no_gradient(held.kind, self._patience, len(found), found[0].why()),
                parameters=[one.name for one in found],
                model=found[0].model,
                first_step=self._scene.steps,
            )


def _has_gradient(module: nn.Module) -> bool:
    """Tell whether another of its own parameters has one: then it ran."""
    return any(p.grad is not None for p in module.parameters(recurse=False))
