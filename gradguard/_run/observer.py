"""What watches a run: torch's global hooks, installed when the script imports torch.

While Dynamo compiles, the hooks return at once: it follows that test, and compiles what it would
without them. It runs the hooks of the outermost compiled module eagerly, not those inside.
"""

import functools
import sys
import weakref
from collections.abc import Callable, Iterator
from importlib import import_module
from types import FrameType
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.jit import is_tracing  # type: ignore[attr-defined]  # pyright: ignore[reportPrivateImportUsage] (a documented name)
from torch.nn.modules import module as module_hooks
from torch.optim import Optimizer
from typing_extensions import ParamSpec

from gradguard._core.frames import user_frame
from gradguard._core.state import is_dynamo_compiling
from gradguard._run import texts
from gradguard._run.evals import RecordedEvals
from gradguard._run.findings import Finding, Site, here
from gradguard._run.inference_tensors import InferenceTensors
from gradguard._run.leaks import Leaks
from gradguard._run.modules import Modules, Seen, recording
from gradguard._run.steps import Steps
from gradguard._watch.training import _has_closure

P = ParamSpec("P")
T = TypeVar("T")

# torch.optim deletes the name of its submodule.
_optimizer_hooks = import_module("torch.optim.optimizer")
_TRAIN = nn.Module.train.__code__


class Observer:
    """Watches every module and optimizer of the process from `start` to `finish`."""

    def __init__(self) -> None:
        self.failure: str | None = None
        self._modules = Modules()
        self._steps = Steps(self._modules)
        self._inference = InferenceTensors(self._modules, self._steps)
        self._evals = RecordedEvals()
        self._undo: list[Callable[[], object]] = []

    @property
    def steps(self) -> int:
        """How many optimizer steps were seen."""
        return self._steps.steps

    @property
    def models(self) -> int:
        """How many modules were called by the script itself."""
        return self._modules.outermost

    def start(self) -> None:
        """Install the hooks."""
        self._leaks = Leaks()
        before, after = self._forward_hooks()
        step_before, step_after = self._step_hooks()
        handles = (
            module_hooks.register_module_forward_pre_hook(before),
            module_hooks.register_module_forward_hook(after),
            _optimizer_hooks.register_optimizer_step_pre_hook(step_before),
            _optimizer_hooks.register_optimizer_step_post_hook(step_after),
        )
        self._undo += [handle.remove for handle in handles]
        self._replace(Optimizer, "add_param_group", self._adding)
        self._replace(nn.Module, "train", self._switching)
        # torch.compile's wrapper warns of global hooks at each call; a filter would not do: a
        # script may set its own in front of it, and make every warning an error.
        self._replace(module_hooks, "_has_any_global_hook", lambda _: _any_but(before, after))

    def finish(self, *, crashed: bool) -> list[Finding]:
        """Take the hooks off, and return what was found; more than once, nothing again."""
        if not self._undo:
            return []
        while self._undo:
            self._undo.pop()()
        found: list[Finding] = []
        self._try(lambda: found.extend(self._leaks.finish()))
        self._try(lambda: found.extend(self._steps.finish()))
        self._try(lambda: found.extend(self._inference.finish()))
        self._try(lambda: found.extend(self._evals.finish(crashed=crashed)))
        return found

    def _forward_hooks(self) -> tuple[Callable[..., None], Callable[..., None]]:
        by_id = self._modules.by_id
        first, look_at, attempt = self._first, self._evals.look_at, self._try

        def before(module: nn.Module, _: object) -> None:
            if is_dynamo_compiling():
                return
            seen = by_id.get(id(module))
            if seen is None or seen.call is None or not seen.recorded:
                attempt(lambda: first(module))
            elif seen.outermost and recording():
                seen.training = module.training

        def after(module: nn.Module, _: object, output: object) -> None:
            if is_dynamo_compiling() or module.training:
                return
            if recording() and not is_tracing():  # type: ignore[no-untyped-call]
                attempt(lambda: look_at(module, output))

        return before, after

    def _step_hooks(self) -> tuple[Callable[..., None], Callable[..., None]]:
        step, attempt = self._step, self._try

        def before(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            if is_dynamo_compiling():
                return
            if not _has_closure(args, kwargs):
                attempt(lambda: step(optimizer))

        def after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            if is_dynamo_compiling():
                return
            if _has_closure(args, kwargs):
                attempt(lambda: step(optimizer))

        return before, after

    def _first(self, module: nn.Module) -> None:
        seen: Seen = self._modules.of(module)
        if seen.call is None:
            seen = self._modules.called(module)
        if recording():
            if not seen.recorded:
                seen.call = here()  # rather than that of an earlier one under no_grad
            seen.recorded = True
            if seen.outermost:
                seen.training = module.training
            self._inference.look_at_module(module, seen)

    def _step(self, optimizer: Optimizer) -> None:
        self._leaks.step()
        trained = self._steps.step(optimizer)
        if trained.steps & (trained.steps - 1) == 0:  # ever fewer: a look costs as much as a walk
            self._inference.look_at_step(optimizer)

    def _adding(self, original: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(original)
        def add_param_group(*args: P.args, **kwargs: P.kwargs) -> T:
            result = original(*args, **kwargs)
            self._try(lambda: self._added(args[0]))  # type: ignore[arg-type]
            return result

        return add_param_group

    def _added(self, optimizer: Optimizer) -> None:
        group: list[Tensor] = optimizer.param_groups[-1]["params"]
        trained = self._steps.of(optimizer, here())
        known = {id(reference()) for reference in trained.fresh}
        trained.fresh += [weakref.ref(p) for p in group if id(p) not in known]
        self._inference.look_at_group(group)

    def _switching(self, original: Callable[..., T]) -> Callable[..., T]:
        attempt, note = self._try, self._evaluated

        @functools.wraps(original)
        def train(self: nn.Module, mode: bool = True) -> T:
            if not is_dynamo_compiling() and not mode and not _by_itself():
                attempt(lambda: note(self))
            return original(self, mode)

        return train

    def _evaluated(self, module: nn.Module) -> None:
        site = _caller(module)
        for each in module.modules():
            self._modules.of(each).evaluated = site

    def _replace(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        original = vars(owner).get(name)
        if original is None:
            return
        ours = make(original)
        setattr(owner, name, ours)

        def put_back() -> None:
            if vars(owner).get(name) is ours:  # else the script has replaced it since
                setattr(owner, name, original)

        self._undo.append(put_back)

    def _try(self, look: Callable[[], object]) -> None:
        """Look, and never let the script fail by it; a failure is told at the end."""
        try:
            look()
        except Exception as error:  # noqa: BLE001 (it is not the script's; the summary tells it)
            self.failure = texts.failed(type(error).__name__, str(error))


def _any_but(*ours: object) -> Callable[[], bool]:
    """Make the test whether there are global hooks other than `ours`."""

    def has_any_global_hook() -> bool:
        return any(callable(hook) and hook not in ours for hook in _global_hooks())

    return has_any_global_hook


def _global_hooks() -> Iterator[object]:
    for name, hooks in vars(module_hooks).items():
        if name.startswith("_global_") and isinstance(hooks, dict):
            yield from hooks.values()


def _caller(module: nn.Module) -> Site:
    """Return the line that put a module in eval mode, outside the module's own overrides."""
    frame = user_frame()
    while frame.f_back is not None and _is_override(frame, module):
        frame = user_frame(frame.f_back)
    return Site(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)


def _is_override(frame: FrameType, module: nn.Module) -> bool:
    return frame.f_code.co_name in ("train", "eval") and frame.f_locals.get("self") is module


def _by_itself() -> bool:
    """Tell whether `train` was called by `train` of the module that holds this one."""
    return sys._getframe(2).f_code is _TRAIN  # noqa: SLF001 - inspect.currentframe may be None
