"""`eval-mode`: training on in eval mode, because somebody called `eval()` and forgot."""

import weakref
from collections.abc import Collection

from torch import nn
from torch.optim import Optimizer

from gradguard._judge.facts import Forward
from gradguard._judge.lines import Line
from gradguard._judge.optimizers import parameters
from gradguard._judge.scene import Scene

_MANY = 100


class Episode:
    """From a user's `eval()` of a module to the next `train()` that reaches it."""

    __slots__ = ("deliberate", "evaluated", "line", "recorded", "root", "root_kind", "undone")

    def __init__(self, root: nn.Module, line: Line, *, undone: bool) -> None:
        self.root = weakref.ref(root)
        self.root_kind = type(root).__name__
        self.line = line
        self.undone = undone  # whether it took back a `train()` of a user's
        self.evaluated = False  # whether an evaluation followed before the first step
        self.deliberate = False  # whether a step followed first: it was meant
        self.recorded = 0  # when a forward was recorded last


class Evals:
    """Follows each `eval()` that the program makes of a module as a whole."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._open: dict[int, Episode] = {}  # by id of the root
        self._trained: dict[int, tuple[weakref.ref[nn.Module], int]] = {}  # when, by id

    def is_open(self) -> bool:
        """Tell whether anything is in eval mode by a user's call."""
        return bool(self._open)

    def evaluated(self, module: nn.Module, line: Line) -> None:
        """Note a user's `eval()`, before it acts."""
        if not (module.training or any(each.training for each in module.modules())):
            return  # it is all in eval mode already: this changes nothing
        self._prune()
        undone = module.training and self.trained_at(module) > 0
        self._open[id(module)] = Episode(module, line, undone=undone)

    def seen_in_eval(self, module: nn.Module, line: Line) -> None:
        """Note that a module that was in train mode is in eval mode at a line: by whatever call."""
        if id(module) not in self._open:
            self._prune()
            self._open[id(module)] = Episode(module, line, undone=True)

    def trained(self, module: nn.Module) -> None:
        """Note a user's `train()`: it ends what lies within."""
        self._trained[id(module)] = weakref.ref(module), self._scene.tick()
        tree = self._scene.modules.tree(module)
        for key in [key for key in self._open if key in tree]:
            del self._open[key]

    def forward(self, forward: Forward) -> None:
        """Note a forward in eval mode."""
        for episode in self._around(forward.module):
            if forward.recorded:
                episode.recorded = self._scene.tick()
            elif not episode.deliberate:
                episode.evaluated = True

    def trained_at(self, module: nn.Module) -> int:
        """Return when a user's `train()` reached a module last, 0 if none did."""
        at = 0
        for reference, when in self._trained.values():
            root = reference()
            if root is None or when <= at:
                continue
            if id(module) in self._scene.modules.tree(root):
                at = when
        return at

    def dropped(self, module: nn.Module | None) -> None:
        """Note a recorded forward whose graph nobody used, from a line that does not train."""
        for episode in () if module is None else self._around(module):
            if not episode.deliberate:
                episode.evaluated = True

    def step(self, optimizer: Optimizer, last: int) -> None:
        """Look at a step with gradients; `last` is when the one before was."""
        for episode in list(self._open.values()):
            # A part that was evaluated by itself runs inside the model as it was left.
            part = episode.evaluated and self._scene.recorded_at > last
            if episode.recorded <= last and not part:
                continue
            root = episode.root()
            if root is not None and not root.training and self._learns(root, optimizer):
                self._judge(episode, root)

    def _judge(self, episode: Episode, root: nn.Module) -> None:
        fault = episode.evaluated or episode.undone
        episode.deliberate = episode.deliberate or not fault
        if not self._scene.modules.depends_on_mode(root):
            return
        severity = "fault" if fault else "notice"
        message = _eval_mode(episode.root_kind, fault=fault, evaluated=episode.evaluated)
        self._scene.ledger.add(
            "eval-mode",
            episode.line,
            message,
            severity=severity,
            model=episode.root_kind,
            first_step=self._scene.steps,
        )

    def _around(self, module: nn.Module) -> Collection[Episode]:
        episode = self._open.get(id(module))
        if episode is not None and episode.root() is module:
            return (episode,)
        around = ((each, each.root()) for each in list(self._open.values()))
        return [e for e, root in around if root is not None and self._covers(root, module)]

    def _covers(self, root: nn.Module, module: nn.Module) -> bool:
        """Tell whether a module lies in another, or is no more than a wrapper around it."""
        inside = self._scene.modules.tree(root)
        if id(module) in inside:
            return True
        around = self._scene.modules.tree(module)
        return id(root) in around and len(around) == len(inside) + 1

    def _learns(self, root: nn.Module, optimizer: Optimizer) -> bool:
        held = {id(p) for p in parameters(optimizer) if p.grad is not None}
        return any(id(p) in held and p.requires_grad for p in root.parameters())

    def _prune(self) -> None:
        if len(self._open) + len(self._trained) > _MANY:  # models that are made and dropped
            self._open = {k: e for k, e in self._open.items() if e.root() is not None}
            self._trained = {k: t for k, t in self._trained.items() if t[0]() is not None}


def _eval_mode(model: str, *, fault: bool, evaluated: bool) -> str:
    if not fault:
        return (
            f"The {model} is trained in eval mode: Dropout is off and BatchNorm uses its running "
            "statistics. If that is meant, nothing is wrong.\n"
            "To do: if not, call model.train() before the training steps."
        )
    cause = "an evaluation" if evaluated else "this call, which took back a train(),"
    return (
        f"The {model} was left in eval mode: after {cause} optimizer steps ran so, with Dropout "
        "off and BatchNorm not learning its statistics.\n"
        "To do: evaluate under `with gradguard.evaluating(model):`, which brings the flags back, "
        "or call model.train() before training goes on."
    )
