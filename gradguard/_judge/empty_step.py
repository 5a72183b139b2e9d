"""`empty-step`: steps in which no trainable parameter has a gradient."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from gradguard._judge.lines import Line
from gradguard._judge.optimizers import Held, parameters
from gradguard._judge.scene import Scene
from gradguard._judge.wording import counted

# Why a step changed nothing.
_DROPPED = "dropped"
_FOREIGN = "foreign"
_UNREACHED = "unreached"
_NO_BACKWARD = "no backward"
_UNRECORDED = "unrecorded"
_FROZEN = "frozen"
_WHY_EMPTY = {
    _DROPPED: "zero_grad() was called between backward() and step(), and dropped the gradients.",
    _FOREIGN: (
        "No module that ran has these parameters: the model was made, copied or loaded again after "
        "the optimizer."
    ),
    _UNREACHED: (
        "backward() was called and reached none of them: the loss does not depend on them through "
        "recorded operations (detach(), .item(), numpy, a new tensor)."
    ),
    _NO_BACKWARD: "No backward() came before it.",
    _UNRECORDED: (
        "The forward before it recorded nothing: it ran under no_grad or inference mode."
    ),
    _FROZEN: (
        "All that it holds is frozen, while other parameters of the model get gradients and no "
        "optimizer has them: they were added after it was made (adapters, say)."
    ),
}
_FILL_IT = {
    _DROPPED: "call zero_grad() before backward(), or after step().",
    _FOREIGN: (
        "make the optimizer from the parameters() of the model that is called, after it has its "
        "final form."
    ),
    _UNREACHED: "compute the loss from what the model returned, by torch's operations alone.",
    _NO_BACKWARD: "call loss.backward() before optimizer.step().",
    _UNRECORDED: (
        "run the forward and the loss outside no_grad and inference_mode, or under "
        "`with torch.enable_grad():`."
    ),
    _FROZEN: (
        "make the optimizer after the model has its final form, from "
        "`[p for p in model.parameters() if p.requires_grad]`."
    ),
}

_CERTAIN = (_DROPPED, _FOREIGN, _UNRECORDED, _FROZEN)
_SHARE = 4  # one step in so many with a gradient: a task's optimizer in turn
_PATIENCE = 16  # empty steps in a row, where only their number speaks against them


@dataclass(slots=True)
class _AtLine:
    """The steps that one line makes of one optimizer."""

    held: Held
    good: int = 0
    empty: int = 0
    why: str = ""
    trainable: int = 0
    first: int = 0
    certain: bool = False
    closure: bool = False

    @property
    def is_fault(self) -> bool:
        return self.empty > 0 and self.good * _SHARE < self.good + self.empty

    def is_known_early(self, patience: int) -> bool:
        enough = 1 if self.closure else 2 if self.certain else patience
        return self.is_fault and self.empty >= enough


class EmptySteps:
    """Counts good and empty steps by optimizer and line, and says why they are empty."""

    def __init__(self, scene: Scene) -> None:
        self.patience = _PATIENCE
        self._scene = scene
        self._lines: dict[tuple[int, Line], _AtLine] = {}
        self._told: set[tuple[int, Line]] = set()

    def good(self, held: Held, line: Line) -> None:
        """Count a step in which some parameter has a gradient."""
        known = self._lines.get((id(held), line))
        if known is None:
            known = self._lines[id(held), line] = _AtLine(held)
        known.good += 1

    def empty(self, optimizer: Optimizer, held: Held, line: Line, *, closure: bool) -> None:
        """Count one in which none has; leave out what is none of the optimizer's making."""
        trainable = [p for p in parameters(optimizer) if can_learn(p)]
        told = self._scene.explained | self._scene.stopped
        explained = not told.isdisjoint(map(id, trainable))
        if explained or (not closure and self._is_between_forwards(held)):
            return
        why = self._why(held, trainable) if trainable else self._why_frozen(optimizer)
        if why is None:
            return
        key = (id(held), line)
        known = self._lines.setdefault(key, _AtLine(held))
        known.empty += 1
        known.closure = known.closure or closure
        known.certain = known.certain or why in _CERTAIN
        known.why, known.trainable = known.why or why, len(trainable)
        known.first = known.first or self._scene.steps
        if known.is_known_early(self.patience):
            self._tell(key, known)

    def finish(self) -> None:
        """Tell those of which only the end shows that no gradient came."""
        for key, known in self._lines.items():
            enough = known.empty > 1 or known.held.good == 0
            if known.is_fault and enough and key not in self._told:
                self._tell(key, known)

    def _tell(self, key: tuple[int, Line], known: _AtLine) -> None:
        count = 1 if key in self._told else known.empty
        self._told.add(key)
        message = _empty_step(known.held.kind, known.trainable, known.why)
        self._scene.ledger.add("empty-step", key[1], message, count=count, first_step=known.first)

    def _why(self, held: Held, trainable: list[Tensor]) -> str | None:
        """Say why, None where there is nothing to say: no module of these parameters ran."""
        scene = self._scene
        ids = {id(p) for p in trainable}
        ran = [(m, seen) for m, seen in scene.modules.ran() if ids & _own(m)]
        if self._may_have_run(ids):
            return None
        if not ran:
            return _FOREIGN if self._others_learn(ids) else None
        dropped = max(held.zeroed, scene.zeroed_at) > scene.backward_at > held.last
        if dropped or held.accumulated > held.last:
            return _DROPPED
        if scene.backward_at > held.last:
            return _UNREACHED
        if any(seen.recorded for _, seen in ran):
            return _NO_BACKWARD
        return _UNRECORDED

    def _may_have_run(self, ids: set[int]) -> bool:
        """Tell whether a module of these parameters may have run without being seen."""
        modules = self._scene.modules
        return bool(modules.unseen) and any(
            id(module) in modules.unseen and seen.called is None and ids & _own(module)
            for module, seen in modules.alive()
        )

    def _is_between_forwards(self, held: Held) -> bool:
        """Tell a step with no forward or backward since the last: it is not to train.

        A schedule is plotted so, and after an epoch what remains of an accumulation is applied.
        """
        scene = self._scene
        quiet = max(scene.backward_at, held.accumulated) <= held.last
        return quiet and held.steps > 1 and 0 < scene.forwards == held.forwards

    def _why_frozen(self, optimizer: Optimizer) -> str | None:
        """Tell of an optimizer of frozen parameters, whose model learns in others."""
        held = {id(p) for p in parameters(optimizer)}
        for module, seen in self._scene.modules.ran():
            every = list(module.parameters()) if seen.outermost else []
            if any(id(p) in held for p in every):
                learning = [p for p in every if p.requires_grad and p.grad is not None]
                if self._scene.optimizers.without_any(learning):
                    return _FROZEN
        return None

    def _others_learn(self, ids: set[int]) -> bool:
        """Tell whether parameters that no optimizer has get gradients instead."""
        learning = [
            p
            for module, _ in self._scene.modules.ran()
            for p in module.parameters(recurse=False)
            if p.grad is not None and p.requires_grad and id(p) not in ids
        ]
        return bool(self._scene.optimizers.without_any(learning))


def can_learn(parameter: Tensor) -> bool:
    """Tell whether training should give a parameter a gradient."""
    return parameter.requires_grad and (is_lazy(parameter) or parameter.numel() > 0)


def _own(module: nn.Module) -> set[int]:
    return {id(p) for p in module.parameters(recurse=False)}


def _empty_step(optimizer: str, trainable: int, why: str) -> str:
    what = (
        f"A step of {optimizer} in which none of its {counted(trainable, 'trainable parameter')} "
        "has a gradient"
        if trainable
        else f"A step of {optimizer}, which holds no trainable parameter"
    )
    return f"{what}: it changes nothing. {_WHY_EMPTY[why]}\nTo do: {_FILL_IT[why]}"
