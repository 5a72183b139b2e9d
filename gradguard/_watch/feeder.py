"""What a watch over training sees, told to the judge."""

import itertools
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from types import FrameType

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from gradguard._core.frames import outwards
from gradguard._core.state import is_dynamo_compiling
from gradguard._findings.finding import Finding
from gradguard._judge.facts import Forward
from gradguard._judge.in_a_row import InARow
from gradguard._judge.inference_tensors import is_inference
from gradguard._judge.judge import Judge
from gradguard._judge.lines import here
from gradguard._judge.optimizers import Held, has_gradient, parameters
from gradguard._judge.scene import is_recording
from gradguard._judge.serving import differentiates
from gradguard._watch.hooks import Hook
from gradguard._watch.inner_calls import InnerCalls
from gradguard._watch.left_mode import LeftModes
from gradguard._watch.registrations import Registrations
from gradguard._watch.watch import Removable

_AT_ONCE = 8  # parameters and buffers looked at in one step,
_EVERY = 4  # and in how many steps once
_AT_FIRST = 512  # in a first forward; of more, those that are suspect when the watch is made
_PATIENCE = 4  # empty steps: one in four with a gradient is a task's optimizer in turn
Told = tuple[Callable[[Finding], object], Callable[[Finding], object]]


class Feeder:
    """Feeds a judge with the forwards of some models and the steps of some optimizers."""

    def __init__(
        self,
        models: Sequence[nn.Module],
        optimizers: Sequence[Optimizer],
        allowed: Collection[int],
        patience: int,
        told: Told,
    ) -> None:
        self.judge = Judge(*told)
        self.judge.steps.patience = _PATIENCE
        self.judge.leaks.watched = True
        self.judge.scene.optimizers.partial = True
        self._models = tuple(models)
        scene = self.judge.scene
        self._inner = InnerCalls(self.judge, models)
        self._in_a_row = InARow(scene, self.judge.gradients, patience, allowed, self._inner.ask)
        self._left = LeftModes()
        self._tensors = self._walk()
        self._train: dict[int, bool] = {id(model): model.training for model in models}
        self._stepping: set[int] = set()
        self._differentiates = {
            id(model): any(map(differentiates, {type(each) for each in model.modules()}))
            for model in models
        }
        self.judge.gradients.at_end = False  # it is told at the step, by `_in_a_row`
        self.judge.gradients.each = not any(self._differentiates.values())
        # What a first step would make for each module and tensor takes a tenth of it: made before.
        for model in models:
            for module in model.modules():
                scene.modules.of(module)
        every = list(self._tensors)
        few = len(every) <= _AT_FIRST
        suspects = () if few else (each for each in every if is_lazy(each) or is_inference(each))
        self._suspects = None if few else [weakref.ref(each) for each in suspects]
        for optimizer in optimizers:
            held = scene.optimizers.of(optimizer)
            held.group_sizes = [len(group["params"]) for group in optimizer.param_groups]

    def hooks(self, tell: Callable[[], None]) -> Iterator[Removable]:
        """Install the hooks; `tell` is called after each look."""

        def before(module: nn.Module, frame: FrameType, _: object) -> None:
            __tracebackhide__ = True
            self._began(module, frame)
            tell()

        def after(module: nn.Module, _: FrameType, output: object) -> None:
            __tracebackhide__ = True
            self._ended(module, output)
            tell()

        for model in self._models:
            yield model.register_forward_pre_hook(Hook(before))
            yield model.register_forward_hook(Hook(after))
            yield from self._inner.hooks(model, many=self._suspects is not None)
        yield Registrations(self)
        yield from self._accumulations()

    def before_step(self, optimizer: Optimizer, frame: FrameType, *, closure: bool) -> None:
        """Take a step before its update."""
        if id(optimizer) in self._stepping:  # a step may call that of a base class
            return
        self._stepping.add(id(optimizer))
        held = self.judge.scene.optimizers.of(optimizer)
        since = held.last
        self.judge.before_step(optimizer, frame, closure=closure)
        if not closure:
            self._look(optimizer, held, frame, since)

    def after_step(self, optimizer: Optimizer, frame: FrameType, *, closure: bool) -> None:
        """Take a step after its update."""
        self._stepping.discard(id(optimizer))
        if not closure:
            self.judge.after_step(optimizer, frame, closure=False)
            return
        held = self.judge.scene.optimizers.of(optimizer)
        since = held.last
        self.judge.after_step(optimizer, frame, closure=True)
        self._look(optimizer, held, frame, since)

    def finish(self) -> None:
        """Say what only the end shows."""
        self._inner.remove()
        self.judge.leaks.finish(self._left.still_left())
        self.judge.steps.finish()
        self.judge.graphs.finish(crashed=False)

    def _look(self, optimizer: Optimizer, held: Held, frame: FrameType, since: int) -> None:
        scene = self.judge.scene
        if has_gradient(optimizer):
            self._in_a_row.step(optimizer, held, since)
        elif scene.modules.unseen:
            self._inner.see_all()
        if scene.steps % _EVERY == 1:
            self._look_at_some(frame)

    def _look_at_some(self, frame: FrameType) -> None:
        """Look at a few tensors, so that in the end all were looked at again."""
        some = list(itertools.islice(self._tensors, _AT_ONCE))
        if len(some) < _AT_ONCE:
            self._tensors = self._walk()
        if any(map(is_inference, some)):
            self.judge.inference.look(some, here(frame))

    def _walk(self) -> Iterator[Tensor]:
        """Yield the parameters and buffers of all models, as they are when it comes to them."""
        left, seen = list(self._models), set[int]()
        while left:
            module = left.pop()
            if id(module) not in seen:
                seen.add(id(module))
                # Its own dicts: `parameters()` takes ten times as long, in every step.
                left += [each for each in module._modules.values() if each is not None]  # noqa: SLF001
                every = [*module._parameters.values(), *module._buffers.values()]  # noqa: SLF001
                yield from [tensor for tensor in every if tensor is not None]

    def _began(self, module: nn.Module, frame: FrameType) -> None:
        if self._inner.running is not None and self._is_inside(module, frame):
            return
        recorded = is_recording()
        forward = self._inner.running = Forward(module, module.training, recorded, frame)
        if module.training:
            if self.judge.evals.is_open():
                self.judge.evals.trained(module)
        elif self._train[id(module)]:
            self.judge.evals.seen_in_eval(module, here(frame))
        self._train[id(module)] = module.training
        seen = self.judge.scene.modules.of(module)
        seen.ran_at(self.judge.scene.tick(), recorded=recorded)
        known = seen.known_inside()[recorded + 2 * module.training]
        if not known:
            known.add(id(module))
            self.judge.began(forward, self._uses())
            self._inner.ran_within(module, frame, here(frame), recorded)
        if not recorded and module.training:
            forward.left = self._left.now()
            self.judge.leaks.unrecorded(forward)

    def _uses(self) -> list[Tensor] | None:
        """Return what is to be looked at in a first forward, None for all."""
        if self._suspects is None:
            return None
        return [each for each in (reference() for reference in self._suspects) if each is not None]

    def _is_inside(self, module: nn.Module, frame: FrameType) -> bool:
        """Tell whether the forward that was seen last still runs; one that raised has no end."""
        running = self._inner.running
        if running is None or running.module is module:
            return False
        return any(each is running.frame for each in outwards(frame))

    def _ended(self, module: nn.Module, output: object) -> None:
        forward = self._inner.running
        if forward is None or forward.module is not module:
            return
        self._inner.ended()
        if not forward.training:
            forward.differentiated = self._differentiates.get(id(module), False)
            if not forward.recorded:
                forward.left = self._left.now()
        self.judge.ended(forward, output)

    def _accumulations(self) -> Iterator[Removable]:
        """See gradients come, so that those that are dropped before the step are known."""
        reference = weakref.ref(self.judge.scene)  # a tensor's hook keeps alive all that it holds

        def hook(held: Held) -> Callable[[Tensor], None]:
            def came(_: Tensor) -> None:
                scene = reference()
                if scene is not None and not is_dynamo_compiling():
                    held.accumulated = scene.tick()

            return came

        for optimizer, held in self.judge.scene.optimizers.alive():
            trainable = [p for p in parameters(optimizer) if p.requires_grad and not is_lazy(p)]
            for p in {id(p): p for p in (trainable[:1] + trainable[-1:])}.values():
                yield p.register_post_accumulate_grad_hook(hook(held))  # type: ignore[no-untyped-call]

    def parameter_set(
        self, owner: nn.Module, name: str, new: Tensor | None, frame: FrameType
    ) -> None:
        """Take a parameter that is put in its place in any module."""
        if self._is_watched(owner):
            self.judge.parameter_set(owner, name, new, frame)
            if new is not None and self._suspects is not None:
                self._suspects.append(weakref.ref(new))

    def module_set(
        self, owner: nn.Module, name: str, new: nn.Module | None, frame: FrameType
    ) -> None:
        """Take a module that is put in its place in another."""
        if self._is_watched(owner):
            self.judge.scene.modules.settle()
            self.judge.module_set(owner, name, new, frame)
            if new is not None:
                self._inner.added(new)

    def _is_watched(self, owner: nn.Module) -> bool:
        return any(id(owner) in self.judge.scene.modules.tree(model) for model in self._models)
