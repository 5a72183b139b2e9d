"""`no-gradient`: parameters that no step ever saw with a gradient, though their module ran."""

import weakref
from collections.abc import Iterable, Iterator
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

from gradguard._graph.listing import prefixes
from gradguard._judge import wording
from gradguard._judge.empty_step import can_learn
from gradguard._judge.lines import Line
from gradguard._judge.modules import Seen, plain
from gradguard._judge.optimizers import Held, parameters
from gradguard._judge.scene import Scene
from gradguard._judge.wording import counted

_STEPS = 2  # of one a parameter may be left out by chance


class Missing(NamedTuple):
    """A parameter without a gradient: its name, the kind of its model, and the call to name."""

    name: str
    model: str
    seen: Seen

    def why(self) -> str:
        """Say why it has none, as far as its module's calls tell."""
        seen = self.seen
        recorded = seen.recorded_call is not None
        return wording.why_none(seen.kind, recorded=recorded, reentrant=seen.reentrant)


class NoGradients:
    """Follows, for each optimizer, the parameters that have had no gradient so far."""

    def __init__(self, scene: Scene) -> None:
        self.at_end = True  # whether `finish` will ask for what each step has seen
        self.each = False  # whether one is told of a module of torch's whose others have gradients
        self._scene = scene
        # Those that a step of any optimizer saw with a gradient, also of one that is gone since.
        self._learned: dict[int, weakref.ref[Tensor]] = {}

    def step(self, optimizer: Optimizer, held: Held) -> None:
        """Look at a step in which some parameter has a gradient."""
        if not self.at_end:
            return
        if held.pending is None:
            held.pending = {}
            every = parameters(optimizer)
            for p in every:
                self.add(held, p)
            self._learn(p for p in every if p.grad is not None)
        if held.pending:
            self._follow(held)
        if len(held.learned_groups) < len(held.group_lines):
            held.learned_groups.update(
                at
                for at, group in enumerate(optimizer.param_groups)
                if any(p.requires_grad for p in group["params"])
            )

    def add(self, held: Held, parameter: Tensor) -> None:
        """Follow a parameter from now on."""
        if held.pending is None or parameter.grad is not None or id(parameter) in self._learned:
            return
        if can_learn(parameter):
            held.pending[id(parameter)] = weakref.ref(parameter), 0

    def finish(self) -> None:
        """Tell what has never had a gradient."""
        for held in self._scene.optimizers.all():
            if held.pending and held.good:
                self._resolve(held, exactly=True)
                self._tell(held)
            self._groups(held)

    def _follow(self, held: Held) -> None:
        pending = held.pending or {}
        learned: list[Tensor] = []
        for key, (reference, steps) in list(pending.items()):
            p = reference()
            if p is None or p.grad is not None or not p.requires_grad:
                del pending[key]
                learned += [p] if p is not None and p.grad is not None else []
            else:
                pending[key] = reference, steps + 1
        self._learn(learned)
        # Names and calls are looked up while model and optimizer are alive: ever more rarely.
        if pending and held.good >= _STEPS and held.good & (held.good - 1) == 0:
            self._resolve(held)

    def _resolve(self, held: Held, *, exactly: bool = False) -> None:
        alive = {
            key: p for key, (ref, _) in (held.pending or {}).items() if (p := ref()) is not None
        }
        if exactly and not alive:
            return
        for key, line, missing in self.missing(alive):
            held.missing[key] = line, missing

    def _learn(self, learned: Iterable[Tensor]) -> None:
        """Note that a step saw them with a gradient: for the steps of all optimizers."""
        new = {id(p): p for p in learned if id(p) not in self._learned}
        for key, p in new.items():
            self._learned[key] = weakref.ref(p, partial(self._learned.pop, key))
        for held in self._scene.optimizers.all() if new else ():
            for key in new.keys() & (held.pending or {}).keys():
                del (held.pending or {})[key]

    def _tell(self, held: Held) -> None:
        by_line: dict[Line, list[Missing]] = {}
        for key, (reference, steps) in (held.pending or {}).items():
            p = reference()
            still = p is None or (p.grad is None and p.requires_grad)
            told = key in self._scene.explained
            if key in held.missing and steps >= _STEPS and still and not told:
                line, missing = held.missing[key]
                by_line.setdefault(line, []).append(missing)
        for line, found in by_line.items():
            self._scene.ledger.add(
                "no-gradient",
                line,
                wording.no_gradient(held.kind, held.steps, len(found), found[0].why()),
                parameters=[one.name for one in found],
                model=found[0].model,
                count=held.steps,
            )

    def missing(self, waiting: dict[int, Tensor]) -> Iterator[tuple[int, Line, Missing]]:
        """Yield what is missing whose module used it, with the line of that module's call."""
        left = dict(waiting)
        for root, seen in self._scene.modules.roots():
            named = list(root.named_parameters(remove_duplicate=False))
            found = [(name, p) for name, p in named if id(p) in left]
            if not found:
                continue
            modules = dict(root.named_modules(remove_duplicate=False))
            learned = {
                prefix
                for name, p in named
                if p.requires_grad and id(p) not in waiting
                for prefix in prefixes(name)
            }
            for name, p in found:
                owner = modules[name.rpartition(".")[0]]
                if id(p) in left and self._used(owner, waiting):
                    del left[id(p)]
                    called = self._called(name, learned, modules)
                    if called is not None:
                        line = called.recorded_call or called.unrecorded_call
                        if line is not None:
                            yield id(p), line, Missing(plain(name), seen.kind, called)

    def _used(self, owner: nn.Module, waiting: Iterable[int]) -> bool:
        """Tell whether a module's forward surely used its own parameters.

        A module may have a parameter for a mode of use that this program does not need, such as a
        mask token, or one that drops out of its derivative, as the last bias of an energy does: it
        is known only if no other of its own has a gradient.
        """
        if self._scene.modules.of(owner).called is None:
            return False
        if self.each and type(owner).__module__.startswith("torch.nn."):
            return True
        return all(id(p) in waiting for p in owner.parameters() if p.requires_grad)

    def _called(self, name: str, learned: set[str], modules: dict[str, nn.Module]) -> Seen | None:
        """Return the outermost module that ran and is wholly affected, else the parameter's own."""
        for prefix in prefixes(name):
            module = modules.get(prefix.rstrip("."))
            if prefix not in learned and module is not None:
                seen = self._scene.modules.of(module)
                if seen.called is not None:
                    return seen
        owner = self._scene.modules.of(modules[name.rpartition(".")[0]])
        return owner if owner.called is not None else None

    def _groups(self, held: Held) -> None:
        """Tell of a group in which nothing was ever trainable, unlike in another."""
        if held.good < _STEPS or not held.learned_groups:
            return
        for at, line in enumerate(held.group_lines):
            steps = held.good - held.group_since[at]
            if at not in held.learned_groups and held.group_sizes[at] and steps >= _STEPS:
                message = _frozen_group(held.kind, at, held.group_sizes[at])
                self._scene.ledger.add("no-gradient", line, message, severity="notice")


def _frozen_group(optimizer: str, at: int, count: int) -> str:
    return (
        f"Parameter group {at} of {optimizer} ({counted(count, 'parameter')}) has no trainable "
        "parameter, and never had at a step: it does nothing.\n"
        "To do: leave the group out, or unfreeze it by requires_grad_(True) if it should learn."
    )
