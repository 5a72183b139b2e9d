"""The judge: it is told what a program does, and says what is wrong with it.

It knows nothing of hooks, processes or output. What a feeder cannot know it leaves out.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from types import FrameType

from torch import Tensor, nn
from torch.optim import Optimizer

from gradguard._findings.finding import Finding
from gradguard._judge.empty_step import EmptySteps
from gradguard._judge.facts import Forward, Left
from gradguard._judge.forgotten_eval import Evals
from gradguard._judge.frozen import FrozenMoves, FrozenNorms
from gradguard._judge.inference_tensors import InferenceTensors, is_inference
from gradguard._judge.ledger import Ledger
from gradguard._judge.lines import Line, Outside, here, outside
from gradguard._judge.mode_leak import Leaks
from gradguard._judge.no_effect import NoEffect
from gradguard._judge.no_gradient import NoGradients
from gradguard._judge.optimizers import Held, has_gradient
from gradguard._judge.scene import Scene, is_recording
from gradguard._judge.stale_parameters import Places
from gradguard._judge.train_mode import TrainMode
from gradguard._judge.unregistered import Unregistered
from gradguard._judge.unused_and_kept_graphs import Graphs


class Judge:
    """Judges one program, or one watched model.

    Args:
        tell: called with each finding when it is new.
        again: called with each that was found before.

    """

    def __init__(
        self,
        tell: Callable[[Finding], object] | None = None,
        again: Callable[[Finding], object] | None = None,
    ) -> None:
        self.ledger = Ledger(tell, again)
        self.scene = Scene(self.ledger)
        self.graphs = Graphs(self.scene)
        self.leaks = Leaks(self.scene)
        self.evals = Evals(self.scene)
        self.train_mode = TrainMode(self.scene, self.evals)
        self.norms = FrozenNorms(self.scene)
        self.frozen = FrozenMoves(self.scene)
        self.places = Places(self.scene)
        self.inference = InferenceTensors(self.scene)
        self.steps = EmptySteps(self.scene)
        self.gradients = NoGradients(self.scene)
        self.unregistered = Unregistered(self.scene)
        self.no_effect = NoEffect(self.scene, self.graphs)
        self._outside = Outside()

    def began(self, forward: Forward, uses: Sequence[Tensor] | None = None) -> None:
        """Take a forward that the program called, where its module is new in these modes.

        `uses` are those of its parameters and buffers that are to be looked at, by default all.
        """
        seen = self.scene.modules.of(forward.module)
        if not seen.outermost:
            seen.outermost = True
            self.scene.modules.outermost += 1
        line = seen.ran(forward.frame, recorded=forward.recorded)
        if forward.recorded and forward.training:
            self.inference.forward(forward.module, line, uses)
        elif not forward.recorded:
            self.inference.about_to_run(forward.module, line)
        _, owner = outside(forward.frame)
        if owner is not None:
            self.unregistered.inside(forward.module, owner, forward.frame)

    def ran_inside(self, module: nn.Module, forward: Forward, frame: FrameType | None) -> None:
        """Take a module that ran inside another's forward, where it is new in these modes."""
        recorded = forward.recorded and is_recording()
        self.scene.modules.of(module).ran(frame, recorded=recorded)
        self.unregistered.inside(module, forward.module, frame)

    def ran(
        self, module: nn.Module, frame: FrameType | None, line: Line, now: int, *, recorded: bool
    ) -> None:
        """Take a module that ran at a time; the `frame` tells why nothing is recorded."""
        self.scene.modules.of(module).ran(frame, recorded=recorded, line=line)
        self.scene.modules.of(module).ran_at(now, recorded=recorded)

    def ended(self, forward: Forward, output: object) -> None:
        """Take a forward that the program called, and what it returned."""
        self.scene.forwards += 1
        if self.norms.parts:
            self.norms.ran(forward.module)
        if not forward.recorded and isinstance(output, Tensor) and output.grad_fn is not None:
            forward.recorded = True  # the forward itself has switched recording on
        if not (forward.recorded or forward.training):
            if self.evals.is_open():
                self.evals.forward(forward)
            if forward.left is not None:
                self.leaks.train_wanted(forward.module, forward.left)
            self.train_mode.forward_in_eval(forward)
            return
        frame, owner = self._outside(forward.frame)
        if not forward.recorded:
            self.leaks.unrecorded(forward)
            self.train_mode.forward(forward, frame, owner or forward.module)
            return
        self._recorded(forward, output, frame, owner)

    def _recorded(
        self, forward: Forward, output: object, frame: FrameType, owner: nn.Module | None
    ) -> None:
        if forward.training:
            self.scene.recorded_at = self.scene.tick()
        elif self.evals.is_open():
            self.evals.forward(forward)
        if not forward.differentiated or forward.training:
            known = self.graphs.returned(forward, output, frame, owner or forward.module)
            if forward.training:
                self.leaks.recorded(forward, known=known)

    def backward(
        self, roots: Iterable[object], left: Callable[[], Left | None], *, to_leaves: bool
    ) -> None:
        """Take a call of autograd, before it runs; `left` is asked where nothing was recorded."""
        for root in roots:
            if isinstance(root, Tensor) and not root.requires_grad:
                self.leaks.failing_backward(left())
                return
        if to_leaves:
            self.scene.backward_at = self.scene.tick()

    def zeroed(self, owner: object) -> None:
        """Take a `zero_grad()` of an optimizer or module."""
        now = self.scene.tick()
        if isinstance(owner, Optimizer):
            self.scene.optimizers.of(owner).zeroed = now
        else:
            self.scene.zeroed_at = now

    def given(self, optimizer: Optimizer, line: Line) -> None:
        """Take a parameter group that an optimizer was given last."""
        held = self.scene.optimizers.of(optimizer, line)
        held.last = held.last or self.scene.tick()  # what came before is none of its own
        group = optimizer.param_groups[-1]["params"]
        before = len(optimizer.param_groups) - 1  # groups may have been taken out by hand
        held.group_lines[before:] = [line]
        held.group_sizes[before:] = [len(group)]
        held.group_since[before:] = [held.good]
        for p in group:
            self.gradients.add(held, p)
        self.scene.modules.given(group)
        self.inference.given(group, line)

    def loaded(self, optimizer: Optimizer, line: Line) -> None:
        """Take a state that an optimizer was given."""
        self.inference.loaded(self.scene.optimizers.of(optimizer), line)

    def before_step(self, optimizer: Optimizer, frame: FrameType, *, closure: bool) -> None:
        """Take a step before its update."""
        held = self.scene.optimizers.of(optimizer)
        if not closure:
            self._step(optimizer, held, here(frame), closure=False)
        self.frozen.before(optimizer, held)

    def after_step(self, optimizer: Optimizer, frame: FrameType, *, closure: bool) -> None:
        """Take a step after its update."""
        if closure:
            held = self.scene.optimizers.of(optimizer)
            self._step(optimizer, held, here(frame), closure=True)
        self.frozen.after(optimizer, frame)

    def _step(self, optimizer: Optimizer, held: Held, line: Line, *, closure: bool) -> None:
        scene = self.scene
        scene.steps += 1
        held.steps += 1
        self.inference.step(optimizer, held, line)
        stale = self.places.step(optimizer)
        leaked = self.leaks.step(held.last)
        if has_gradient(optimizer):
            held.good += 1
            self.steps.good(held, line)
            self.gradients.step(optimizer, held)
            self._evaluated(optimizer, held.last)
            self.unregistered.step(optimizer)
            self.norms.step()
        elif not leaked and not stale:
            self.steps.empty(optimizer, held, line, closure=closure)
        self.graphs.step()
        held.last, held.forwards = scene.tick(), scene.forwards

    def _evaluated(self, optimizer: Optimizer, last: int) -> None:
        if self.evals.is_open():
            for module in self.graphs.unused_evals():
                self.evals.dropped(module)
            self.evals.step(optimizer, last)

    def eval_called(self, module: nn.Module, line: Line) -> None:
        """Take a user's `eval()` (or `train(False)`), before it acts."""
        self.evals.evaluated(module, line)
        self.norms.evaluated(module)

    def train_called(self, module: nn.Module, line: Line, left: Left | None) -> None:
        """Take a user's `train()`, before it acts."""
        self.norms.trained(module, line)
        self.evals.trained(module)
        if left is not None:
            self.leaks.train_wanted(module, left)

    def flag_set(self, parameter: Tensor, line: Line, *, trainable: bool) -> None:
        """Take `requires_grad` set on a parameter."""
        if trainable:
            self.frozen.thawed(parameter)
        else:
            self.frozen.froze(parameter, line)

    def parameter_set(
        self, owner: nn.Module, name: str, new: Tensor | None, frame: FrameType | None
    ) -> None:
        """Take a parameter that is being put in its place in a module."""
        self.scene.modules.of(owner).copied = False  # and its parameters have names before it runs
        if new is not None and is_inference(new):
            self.inference.created([new], here(frame))
        if name in owner._parameters or self.places.is_empty_now(owner, name):  # noqa: SLF001 (what is being replaced)
            self.places.parameter_set(owner, name, new, here(frame))

    def module_set(
        self, owner: nn.Module, name: str, new: nn.Module | None, frame: FrameType | None
    ) -> None:
        """Take a module that is being put in its place in another."""
        self.scene.modules.version += 1
        self.scene.modules.of(owner).copied = False
        if name in owner._modules or self.places.is_empty_now(owner, name):  # noqa: SLF001 (what is being replaced)
            self.places.module_set(owner, name, new, here(frame))

    def forked(self) -> None:
        """Forget what was found and counted: it is the parent process's."""
        self.ledger.clear()
        self.scene.steps = self.scene.forwards = self.scene.modules.outermost = 0

    def finish(self, *, crashed: bool = False, still_left: Collection[int] = ()) -> None:
        """Say what only the end shows; `still_left` are the switches that nothing took back."""
        self.leaks.finish(still_left)
        self.steps.finish()
        self.gradients.finish()
        self.train_mode.finish()
        self.graphs.finish(crashed=crashed)
