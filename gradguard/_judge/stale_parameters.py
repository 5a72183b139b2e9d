"""`stale-parameter`: an optimizer steps a parameter whose place holds another by now."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.optim import Optimizer

from gradguard._judge.lines import Line
from gradguard._judge.optimizers import parameters
from gradguard._judge.scene import Scene

_MOST = 10_000


class _Replaced:
    """A place in a module, what it held, and the line that put something else there."""

    __slots__ = ("line", "name", "now", "old", "owner")

    def __init__(
        self,
        owner: nn.Module,
        name: str,
        old: Iterable[Tensor],
        line: Line,
        now: Callable[[nn.Module], list[Tensor]],
    ) -> None:
        self.owner = weakref.ref(owner)
        self.name = name
        self.old = [weakref.ref(p) for p in old]
        self.line = line
        self.now = now


_Gone: TypeAlias = "tuple[weakref.ref[nn.Module], list[weakref.ref[Tensor]]]"


class Places:
    """Notes what is replaced in modules, and looks at steps whether an optimizer knows of it."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._replaced: dict[tuple[int, str], _Replaced] = {}
        self._gone: dict[tuple[int, str], _Gone] = {}

    def parameter_set(self, owner: nn.Module, name: str, new: Tensor | None, line: Line) -> None:
        """Note that a parameter is being put in a place."""
        old = _at(owner._parameters, name)  # noqa: SLF001 (what register_parameter replaces)
        if new is None and old is not None:
            self._gone[id(owner), name] = weakref.ref(owner), [weakref.ref(old)]
        if new is None or old is new:
            return
        if old is None:
            self._back(owner, name, line, lambda m: _parameter(m, name))
            return
        self._note(_Replaced(owner, name, [old], line, lambda m: _parameter(m, name)))

    def module_set(self, owner: nn.Module, name: str, new: nn.Module | None, line: Line) -> None:
        """Note that a module is being put in a place."""
        old = _at(owner._modules, name)  # noqa: SLF001 (what register_module replaces)
        if new is None or old is new:
            return
        if old is None:
            self._back(owner, name, line, lambda m: _parameters_at(m, name))
            return
        gone = list(old.parameters())
        if gone:
            self._note(_Replaced(owner, name, gone, line, lambda m: _parameters_at(m, name)))

    def deleted(self, owner: nn.Module, name: str) -> None:
        """Note that a parameter or module is being taken out of its place."""
        gone = [*_parameter(owner, name), *_parameters_at(owner, name)]
        if gone:
            self._gone[id(owner), name] = weakref.ref(owner), [weakref.ref(p) for p in gone]

    def converted(self, owner: nn.Module, name: str, old: Tensor, line: Line) -> None:
        """Note that a conversion has put another parameter in a place."""
        self._note(_Replaced(owner, name, [old], line, lambda m: _parameter(m, name)))

    def is_empty_now(self, owner: nn.Module, name: str) -> bool:
        """Tell whether something was taken out of a place before."""
        return (id(owner), name) in self._gone

    def step(self, optimizer: Optimizer) -> bool:
        """Look at a step; tell whether the optimizer holds what was replaced."""
        if not self._replaced:
            return False
        ours = {id(p) for p in parameters(optimizer)}
        found = False
        for key, place in list(self._replaced.items()):
            owner = place.owner()
            if owner is None:
                del self._replaced[key]
                continue
            if not any(id(p) in ours for reference in place.old if (p := reference()) is not None):
                continue
            learning = [p for p in place.now(owner) if p.requires_grad and p.grad is not None]
            fresh = self._scene.optimizers.without_any(learning)
            if fresh:
                found = True
                self._tell(optimizer, owner, place, fresh)
        return found

    def _back(
        self, owner: nn.Module, name: str, line: Line, now: Callable[[nn.Module], list[Tensor]]
    ) -> None:
        reference, gone = self._gone.pop((id(owner), name), (None, []))
        old = [p for p in (one() for one in gone) if p is not None]
        if old and reference is not None and reference() is owner:
            self._note(_Replaced(owner, name, old, line, now))

    def _note(self, place: _Replaced) -> None:
        owner = place.owner()
        key = (id(owner), place.name)
        before = self._replaced.get(key)
        if before is not None and before.owner() is owner:
            # What the optimizer holds may have been replaced more than once.
            place.old = [*before.old, *place.old][-100:]
        if len(self._replaced) < _MOST or key in self._replaced:
            self._replaced[key] = place

    def _tell(
        self, optimizer: Optimizer, owner: nn.Module, place: _Replaced, fresh: list[Tensor]
    ) -> None:
        self._scene.explained.update(id(p) for ref in place.old if (p := ref()) is not None)
        names = self._scene.modules.names(fresh)
        self._scene.ledger.add(
            "stale-parameter",
            place.line,
            _stale_parameter(type(optimizer).__name__, type(owner).__name__, place.name),
            parameters=[names[id(p)][1] for p in fresh if id(p) in names],
            model=next((kind for kind, _ in names.values()), type(owner).__name__),
            first_step=self._scene.steps,
        )


def _parameter(owner: nn.Module, name: str) -> list[Tensor]:
    value = _at(owner._parameters, name)  # noqa: SLF001 (a place, whatever the class makes of it)
    return [] if value is None else [value]


def _parameters_at(owner: nn.Module, name: str) -> list[Tensor]:
    value = _at(owner._modules, name)  # noqa: SLF001
    return [] if value is None else list(value.parameters())


def _at(places: Any, name: str) -> Any:
    """Return what stands in a place; those of a ScriptModule are no dict, and have no `get`."""
    return places[name] if name in places else None  # noqa: SIM401 (see above)


def _stale_parameter(optimizer: str, owner: str, name: str) -> str:
    return (
        f"{owner}.{name} was replaced after {optimizer} was made: the optimizer still holds what "
        "was there before, and what is there now is not trained.\n"
        "To do: make the optimizer after the model has its final parameters, or add the new ones: "
        '`optimizer.add_param_group({"params": module.parameters()})`.'
    )
