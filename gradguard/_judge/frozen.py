"""`frozen-moves` and `frozen-batchnorm`: what was frozen and moves all the same."""

import weakref
from collections.abc import Iterator
from types import FrameType
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradguard._judge.lines import Line, here
from gradguard._judge.mode_dependence import is_norm
from gradguard._judge.modules import plain
from gradguard._judge.optimizers import Held, parameters
from gradguard._judge.scene import Scene
from gradguard._judge.wording import counted

_TRIES = 8  # steps in which a frozen parameter is compared, until it is known not to move
_MANY = 512  # parameters: a look at thousands takes a hundredth of a step,
_FIRST = 4  # and comes in this step at first, as the first two have the most to look at


class FrozenMoves:
    """Compares frozen parameters that still have a gradient before a step and after it."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._lines: dict[int, tuple[weakref.ref[Tensor], Line | None]] = {}
        self._tries: dict[int, int] = {}
        self._before: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def froze(self, parameter: Tensor, line: Line | None) -> None:
        """Note where a parameter was frozen."""
        self._lines[id(parameter)] = weakref.ref(parameter), line
        self._tries.pop(id(parameter), None)

    def thawed(self, parameter: Tensor) -> None:
        """Note that a parameter is trainable again."""
        self._lines.pop(id(parameter), None)

    def before(self, optimizer: Optimizer, held: Held) -> None:
        """Remember what a step should leave as it is."""
        if not self._lines and not _is_looked_at(optimizer, held.steps):
            return
        # torch's own optimizers leave alone what has no gradient.
        own = type(optimizer).__module__.startswith("torch.optim")
        suspects = [
            p
            for p in parameters(optimizer)
            if not p.requires_grad
            and (p.grad is not None or not own)
            and self._tries.get(id(p), 0) < _TRIES
        ]
        if suspects:
            self._before[id(optimizer)] = [(p, p.detach().clone()) for p in suspects]

    def after(self, optimizer: Optimizer, frame: FrameType) -> None:
        """Tell what has moved."""
        if not self._before:
            return
        moved: dict[Line | None, list[Tensor]] = {}
        for p, before in self._before.pop(id(optimizer), ()):
            self._tries[id(p)] = self._tries.get(id(p), 0) + 1
            if not torch.equal(p.detach(), before):
                reference, line = self._lines.get(id(p), (None, None))
                known = reference is not None and reference() is p
                moved.setdefault(line if known else None, []).append(p)
                self._tries[id(p)] = _TRIES
        for line, found in moved.items():
            self._tell(type(optimizer).__name__, line or here(frame), found)

    def _tell(self, optimizer: str, line: Line, found: list[Tensor]) -> None:
        names = self._scene.modules.names(found)
        model = next((kind for kind, _ in names.values()), None)
        self._scene.ledger.add(
            "frozen-moves",
            line,
            _frozen_moves(optimizer, len(found)),
            parameters=[names[id(p)][1] for p in found if id(p) in names],
            model=model,
            first_step=self._scene.steps,
        )


def _is_looked_at(optimizer: Optimizer, step: int) -> bool:
    """Tell whether a step is one for a look where nobody said that any was frozen: ever fewer."""
    if step & (step - 1):
        return False
    return step >= _FIRST or sum(len(each["params"]) for each in optimizer.param_groups) <= _MANY


class _Undone(NamedTuple):
    """A BatchNorm put in eval mode by a call of its own, and back in train mode by a parent's."""

    norm: weakref.ref[nn.Module]
    line: Line
    parent: weakref.ref[nn.Module]
    version: int


class FrozenNorms:
    """Follows BatchNorms with frozen parameters through `eval()` and `train()`."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self.parts: dict[int, weakref.ref[nn.Module]] = {}  # put in eval mode by their own call
        self._undone: dict[int, _Undone] = {}

    def evaluated(self, module: nn.Module) -> None:
        """Note a user's `eval()` of a module."""
        if not any(map(is_norm, self._scene.modules.depends_on_mode(module))):
            return
        self.parts[id(module)] = weakref.ref(module)
        for key in self._scene.modules.tree(module):
            self._undone.pop(key, None)

    def ran(self, module: nn.Module) -> None:
        """Note that the program called a module itself: its eval mode was for this."""
        self.parts.pop(id(module), None)

    def trained(self, module: nn.Module, line: Line) -> None:
        """Note a user's `train()` of a module, before it acts."""
        self._undone.pop(id(module), None)  # woken by a call of its own
        tree = self._scene.modules.tree(module)
        for key in [key for key in self.parts if key in tree]:
            part = self.parts.pop(key)()
            if part is not None and part is not module:
                for norm in self._frozen(part):
                    version = _version(norm)
                    reference = weakref.ref(module)
                    self._undone[id(norm)] = _Undone(weakref.ref(norm), line, reference, version)

    def step(self) -> None:
        """Tell which of them have run in train mode since."""
        for key, undone in list(self._undone.items()) if self._undone else ():
            norm = undone.norm()
            if norm is None:
                del self._undone[key]
            elif norm.training and _version(norm) != undone.version:
                del self._undone[key]
                if not any(p.requires_grad for p in norm.parameters(recurse=False)):
                    self._tell(norm, undone)

    def _frozen(self, part: nn.Module) -> Iterator[nn.Module]:
        for norm in self._scene.modules.depends_on_mode(part):
            own = list(norm.parameters(recurse=False))
            frozen = own and not any(p.requires_grad for p in own)
            if is_norm(norm) and frozen and not norm.training:
                yield norm

    def _tell(self, norm: nn.Module, undone: _Undone) -> None:
        parent = undone.parent()
        names = {} if parent is None else {id(m): n for n, m in parent.named_modules()}
        self._scene.ledger.add(
            "frozen-batchnorm",
            undone.line,
            _frozen_batchnorm(type(norm).__name__, type(parent).__name__),
            parameters=[plain(names.get(id(norm), type(norm).__name__))],
            model=type(parent).__name__,
            severity="notice",
            first_step=self._scene.steps,
        )


def _version(norm: nn.Module) -> int:
    # Not that of running_mean: the kernel that writes it leaves its version as it is.
    batches = norm.num_batches_tracked
    return batches._version if isinstance(batches, Tensor) else 0  # noqa: SLF001 (no other way to see a write)


def _frozen_moves(optimizer: str, count: int) -> str:
    return (
        f"{counted(count, 'frozen parameter')} (requires_grad False) moved in a step of "
        f"{optimizer}: a gradient was left from before, and the optimizer goes on with it, its "
        "momentum and its weight decay.\n"
        "To do: drop the gradients with the freezing: "
        "`module.requires_grad_(False); module.zero_grad(set_to_none=True)`."
    )


def _frozen_batchnorm(norm: str, parent: str) -> str:
    return (
        f"A {norm} with frozen parameters was put in eval mode by a call of its own, and this "
        f"train() of the {parent} put it back in train mode: its running statistics drift.\n"
        "To do: call its eval() again after each train(), best in an override of train()."
    )
