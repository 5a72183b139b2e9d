"""`train-mode-inference`: forwards that record nothing, with Dropout or BatchNorm acting."""

import itertools
import weakref
from types import FrameType

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gradguard._core.frames import PLUMBING, whose
from gradguard._judge import wording
from gradguard._judge.facts import Forward
from gradguard._judge.forgotten_eval import Evals
from gradguard._judge.inference_tensors import is_inference
from gradguard._judge.lines import Line, line_at, outside
from gradguard._judge.mode_dependence import acts
from gradguard._judge.scene import Scene

_PARAMETERS = 16  # of which a value is looked at
_LOOKS = 8  # at all of the first so many forwards of a line, then ever more rarely


class _Calling:
    """The forwards of one line that recorded nothing, in train mode."""

    def __init__(self, owner: nn.Module, line: Line, step: int) -> None:
        self.owner = weakref.ref(owner)
        self.kind = type(owner).__name__
        self.line = line
        self.calls = 0
        self.acting: set[str] = set()
        self.excused = False  # written in place between its forwards, or asked for
        self.trained = False
        self.values: tuple[float, ...] | None = None
        self.step = step  # of the last forward
        self.first_step = step
        self.intervals = 1  # between how many steps it ran
        self.within = 0  # how often since the last step
        self.most = 0  # between two steps


class TrainMode:
    """Counts them by line; what they were is known at the end only."""

    def __init__(self, scene: Scene, evals: Evals) -> None:
        self._scene = scene
        self._evals = evals
        self._lines: dict[tuple[int, int], _Calling] = {}

    def forward(self, forward: Forward, frame: FrameType, owner: nn.Module) -> None:
        """Look at a forward in train mode that recorded nothing."""
        key = (id(frame.f_code), frame.f_lasti)
        calling = self._lines.get(key)
        if calling is None:
            calling = self._lines[key] = _Calling(owner, line_at(frame), self._scene.steps)
            calling.excused = _asked_by_torch(forward.frame)
        calling.calls += 1
        if calling.step != self._scene.steps:
            calling.intervals += 1
            calling.step, calling.within = self._scene.steps, 0
        calling.within += 1
        calling.most = max(calling.most, calling.within)
        if calling.calls <= _LOOKS or calling.calls & (calling.calls - 1) == 0:
            self._look(calling, forward.module, owner)

    def forward_in_eval(self, forward: Forward) -> None:
        """Look at a forward in eval mode: what is inside may be in train mode all the same."""
        seen = self._scene.modules.of(forward.module)
        seen.evals += 1
        often = seen.evals > _LOOKS and seen.evals & (seen.evals - 1)
        if not often and any(map(acts, self._scene.modules.depends_on_mode(forward.module))):
            frame, owner = outside(forward.frame)
            self.forward(forward, frame, owner or forward.module)

    def finish(self) -> None:
        """Tell those that nothing excuses."""
        for calling in self._lines.values():
            if calling.acting and not calling.excused and calling.calls > 1:
                owner = calling.owner()
                trained = calling.trained or (owner is not None and self._is_trained(owner))
                if not trained or self._looks_like_validation(calling):
                    self._tell(calling, trained=trained)

    def _look(self, calling: _Calling, module: nn.Module, owner: nn.Module) -> None:
        inside = self._scene.modules.depends_on_mode(module)
        acting = {
            type(each).__name__ for each in inside if acts(each) and self._forgot(each, owner)
        }
        if not acting:
            return
        calling.acting |= acting
        calling.trained = calling.trained or self._is_trained(owner)
        asked = self._evals.trained_at(owner)
        if asked > max(self._scene.recorded_at, self._scene.backward_at) > 0:
            calling.excused = True  # train() was called for these forwards: new statistics, say
        if self._scene.recorded_at and any(_was_reset(each, calling.within) for each in inside):
            calling.excused = True
        values = _values(module)
        if calling.values not in (None, values) and not calling.trained:
            calling.excused = True
        calling.values = values

    def _forgot(self, module: nn.Module, owner: nn.Module) -> bool:
        """Tell a Dropout in train mode from one that was switched on by a call of its own."""
        return owner.training or self._evals.trained_at(module) == 0

    def _is_trained(self, owner: nn.Module) -> bool:
        tree = self._scene.modules.tree(owner)
        if any(seen.recorded for module, seen in self._scene.modules.alive() if id(module) in tree):
            return True
        owned = self._scene.optimizers.owned()
        return any(id(p) in owned for p in owner.parameters())

    def _looks_like_validation(self, calling: _Calling) -> bool:
        """Tell it from what belongs to each training step: pseudo-labels, rollouts."""
        steps = self._scene.steps - calling.first_step + 1
        return calling.most > 1 and calling.step > 0 and calling.intervals * 2 <= max(steps, 2)

    def _tell(self, calling: _Calling, *, trained: bool) -> None:
        self._scene.ledger.add(
            "train-mode-inference",
            calling.line,
            wording.train_mode_inference(calling.kind, calling.calls, sorted(calling.acting)),
            count=calling.calls,
            model=calling.kind,
            severity="notice" if trained else "fault",
        )


def _values(module: nn.Module) -> tuple[float, ...]:
    """Return the first value and the version of some parameters.

    An assignment to ``data`` changes no version, and a small update perhaps not the first value.
    """
    some: list[Tensor] = list(itertools.islice(module.parameters(), _PARAMETERS))
    some = [p for p in some if not is_lazy(p) and p.numel() and not p.is_meta]
    return (
        *(float(p.detach()[(0,) * p.dim()]) for p in some if not p.is_complex()),
        *(p._version for p in some if not is_inference(p)),  # noqa: SLF001 (no other way to see a write)
    )


def _was_reset(module: nn.Module, forwards: int) -> bool:
    """Tell a BatchNorm whose statistics are estimated anew: reset, just before these forwards."""
    tracked = getattr(module, "num_batches_tracked", None)
    return isinstance(tracked, Tensor) and acts(module) and int(tracked) <= forwards


def _asked_by_torch(frame: FrameType | None) -> bool:
    """Tell whether torch itself made the call, as `update_bn` does for its statistics."""
    return frame is not None and whose(frame) == PLUMBING
