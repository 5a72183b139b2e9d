"""Parameters without a gradient in so many steps in a row: what a watch asks for."""

from collections.abc import Collection
from typing import TYPE_CHECKING

from torch import Tensor
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

    Args:
        patience: how many in a row are a fault.
        allowed: the ids of parameters that need no gradient.

    """

    def __init__(
        self, scene: Scene, gradients: NoGradients, patience: int, allowed: Collection[int]
    ) -> None:
        self._scene = scene
        self._gradients = gradients
        self._patience = patience
        self.allowed = allowed
        self._without: dict[int, int] = {}

    def step(self, optimizer: Optimizer, held: Held) -> None:
        """Look at a step in which some parameter has a gradient."""
        without = self._without
        missing = [
            p
            for group in optimizer.param_groups
            for p in group["params"]
            if p.grad is None and can_learn(p)
        ]
        if not missing:
            without.clear()
            return
        counts = {id(p): without.get(id(p), 0) + 1 for p in missing}
        self._without = counts
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

    def _tell(self, held: Held, late: dict[int, Tensor]) -> None:
        by_line: dict[Line, list[Missing]] = {}
        for _, line, missing in self._gradients.missing(late):
            by_line.setdefault(line, []).append(missing)
        for line, found in by_line.items():
            seen = found[0].seen
            why = wording.why_none(seen.kind, recorded=seen.recorded, reentrant=seen.reentrant)
            self._scene.ledger.add(
                "no-gradient",
                line,
                wording.no_gradient(held.kind, self._patience, len(found), why),
                parameters=[one.name for one in found],
                model=found[0].model,
                first_step=self._scene.steps,
            )
