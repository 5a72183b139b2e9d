"""`unregistered`: modules that run inside another's forward and are not registered there."""

import weakref
from collections.abc import Collection, Iterator
from types import FrameType

import torch
from torch import nn
from torch.optim import Optimizer

from gradguard._core.frames import outwards
from gradguard._judge import referrers
from gradguard._judge.lines import Line, here, is_method
from gradguard._judge.mode_dependence import acts
from gradguard._judge.optimizers import parameters
from gradguard._judge.scene import Scene, is_recording


class _Found:
    """A module that is not registered in the one inside which it runs."""

    def __init__(self, module: nn.Module, root: nn.Module, line: Line, held_by: str | None) -> None:
        self.module = weakref.ref(module)
        self.kind = type(module).__name__
        self.root = weakref.ref(root)
        self.root_kind = type(root).__name__
        self.line = line
        self.held_by = held_by
        # Made anew in each forward, where nothing else shows that the program trains it.
        self.made_each_time = held_by is None and module.training and is_recording()


class Unregistered:
    """Looks at each module that is seen inside another for the first time in these modes."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._found: dict[int, _Found] = {}
        self._lost: dict[Line, list[_Found]] = {}  # gone before the step: made in each forward

    def inside(self, module: nn.Module, root: nn.Module, frame: FrameType | None) -> None:
        """Look at a module that runs inside `root`."""
        tree = self._scene.modules.tree(root)
        if id(module) in tree or not _is_foreign(module, root, tree):
            return
        found = self._found.get(id(module))
        if found is None:
            if any(id(module) in tree for tree in self._known_trees()) or _is_given(module, frame):
                return
            held_by = referrers.attribute(root, module)
            if held_by is None and self._is_copy(module, root):
                return
            found = _Found(module, root, here(frame), held_by)
            self._note(found, module)
        if not root.training and any(map(acts, module.modules())):
            self._tell(found, _unregistered_acts(found.root_kind, found.kind, found.held_by))

    def step(self, optimizer: Optimizer) -> None:
        """Look whether they learn, and no optimizer has them."""
        if not self._found and not self._lost:
            return
        ours = {id(p) for p in parameters(optimizer)}
        owned: set[int] | None = None
        for found in list(self._found.values()):
            module, root = found.module(), found.root()
            if module is None or root is None:
                continue
            if not ours.isdisjoint(map(id, module.parameters())):
                found.made_each_time = False
            if module.training is not root.training:
                continue
            if id(module) in self._scene.modules.tree(root):
                del self._found[id(module)]
                continue
            owned = self._scene.optimizers.owned() if owned is None else owned
            learns = [p for p in module.parameters() if p.requires_grad and p.grad is not None]
            trains_root = any(id(p) in ours for p in root.parameters())
            if learns and trains_root and not any(id(p) in owned for p in learns):
                self._tell(found, self._learns(found, len(learns)))
        self._step_without()

    def differentiated(self, inputs: Collection[object]) -> None:
        """Take what autograd is asked for the gradients of: who asks updates them, too."""
        asked = {id(each) for each in inputs}
        for found in list(self._found.values()):
            module = found.module()
            if module is not None and not asked.isdisjoint(map(id, module.parameters())):
                found.made_each_time = False

    def _is_copy(self, module: nn.Module, root: nn.Module) -> bool:
        """Tell whether it is a copy of what is registered: of a learner that adapts, say."""
        if not self._scene.modules.of(module).copied:
            return False
        shapes = _shapes(module)
        return any(
            type(each) is type(module) and _shapes(each) == shapes for each in root.modules()
        )

    def _step_without(self) -> None:
        for line, lost in list(self._lost.items()):
            if len(lost) > 1 and not self._scene.ledger.has("unregistered", line):
                self._tell(lost[-1], self._learns(lost[-1], 0))

    def _note(self, found: _Found, module: nn.Module) -> None:
        learns = any(p.requires_grad for p in module.parameters())

        def gone(_: object, key: int = id(module)) -> None:
            self._found.pop(key, None)
            root = found.root()
            if found.made_each_time and learns and root is not None and root.training:
                self._lost.setdefault(found.line, []).append(found)

        found.module = weakref.ref(module, gone)
        self._found[id(module)] = found

    def _learns(self, found: _Found, count: int) -> str:
        return _unregistered_learns(found.root_kind, found.kind, found.held_by, count)

    def _known_trees(self) -> Iterator[frozenset[int]]:
        for found in list(self._found.values()):
            module = found.module()
            if module is not None:
                yield self._scene.modules.tree(module)

    def _tell(self, found: _Found, message: str) -> None:
        self._scene.ledger.add(
            "unregistered",
            found.line,
            message,
            model=found.root_kind,
            first_step=self._scene.steps or None,
        )


def _is_foreign(module: nn.Module, root: nn.Module, tree: frozenset[int]) -> bool:
    """Tell whether it has parameters, Dropout or BatchNorm that the root does not know.

    A container may be made in the forward of layers that are registered.
    """
    own = list(module.parameters())
    known = {id(p) for p in root.parameters()} if own else set[int]()
    return any(id(p) not in known for p in own) or any(
        id(each) not in tree and acts(each) for each in module.modules()
    )


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in module.named_parameters()}


def _is_given(module: nn.Module, frame: FrameType | None) -> bool:
    """Tell whether the program handed the module in, as an argument of the outermost forward."""
    outermost: FrameType | None = None
    for each in outwards(frame):
        if is_method(each):
            outermost = each
    if outermost is None:
        return False
    code = outermost.f_code
    count = code.co_argcount + code.co_kwonlyargcount
    given = [outermost.f_locals.get(name) for name in code.co_varnames[:count] if name != "self"]
    return any(module is each for value in given for each in _flat(value))


def _flat(value: object) -> Iterator[object]:
    yield value
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, (list, tuple)):
        yield from value


def _where_kept(root: str, held_by: str | None) -> str:
    if held_by is None:
        return f"is not registered in the {root} that calls it"
    return f"is kept in {held_by} and not registered there"


def _unregistered_learns(root: str, module: str, held_by: str | None, count: int) -> str:
    learns = f" ({count} get gradients)" if count else ""
    return (
        f"A {module} {_where_kept(root, held_by)}: its parameters{learns} are in no optimizer, "
        "since parameters() does not know them.\n"
        "To do: put it in an nn.ModuleList, nn.ModuleDict or nn.Sequential, made in __init__."
    )


def _unregistered_acts(root: str, module: str, held_by: str | None) -> str:
    return (
        f"A {module} {_where_kept(root, held_by)}: the {root} is in eval mode, and eval() did not "
        "reach it, so it acts as in training.\n"
        "To do: put it in an nn.ModuleList, nn.ModuleDict or nn.Sequential, made in __init__."
    )
