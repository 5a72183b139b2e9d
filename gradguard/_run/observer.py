"""What watches a run: functions of torch replaced, and its own hooks, for the judge.

While Dynamo compiles they return at once: it follows that test, and compiles what it would without
them. It runs the calls of the outermost compiled module eagerly, not those inside.
"""

import functools
import sys
from collections.abc import Callable, Collection
from functools import partial
from importlib import import_module
from types import FrameType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks
from torch.optim import Optimizer

from gradguard._core.frames import set_libraries
from gradguard._core.state import is_dynamo_compiling
from gradguard._core.text import one_line
from gradguard._core.torch_versions import RUNS_BACKWARD
from gradguard._findings.finding import Finding
from gradguard._judge.inference_tensors import is_inference
from gradguard._judge.judge import Judge
from gradguard._judge.lines import here
from gradguard._judge.optimizers import has_closure
from gradguard._run.dropped_guards import dropped_guards
from gradguard._run.flag_setters import flag_of_modules, flag_of_parameters, train
from gradguard._run.left_mode_recorded import left, open_switches
from gradguard._run.module_calls import Running, replacement
from gradguard._run.moved_parameters import parameters_moved
from gradguard._trace.patching import Patches
from gradguard._trace.trace import Trace

T = TypeVar("T")

# Of what torch.autograd hands to its engine, after the roots.
_INPUTS = 3

# torch.optim deletes the name of its submodule.
_optimizer_hooks = import_module("torch.optim.optimizer")


class Observer:
    """Watches every module and optimizer of the process from `start` to `finish`.

    Args:
        on_new: called at once with the first finding of each kind and line.
        libraries: packages that count as library code, wherever they lie.

    """

    def __init__(
        self,
        on_new: Callable[[Finding], object] | None = None,
        libraries: Collection[str] = (),
    ) -> None:
        self.failure: str | None = None
        self.judge = Judge(on_new)
        self._libraries = libraries
        self._running = Running()
        self._patches = Patches()
        self._undo: list[Callable[[], object]] = []
        self._stepping: set[int] = set()  # a step may call that of a base class
        self._active = False

    @property
    def steps(self) -> int:
        """How many optimizer steps were seen."""
        return self.judge.scene.steps

    @property
    def forwards(self) -> int:
        """How many calls of modules by the program itself were seen."""
        return self.judge.scene.forwards

    @property
    def models(self) -> int:
        """How many modules were called by the program itself."""
        return self.judge.scene.modules.outermost

    def findings(self) -> list[Finding]:
        """Return what was found so far."""
        return self.judge.ledger.findings()

    def start(self) -> None:
        """Install all that watches."""
        set_libraries(self._libraries)
        trace = Trace(limit=0)  # those that were not switched back are kept beyond it
        self._active = True
        patches, attempt, judge, running = self._patches, self._attempt, self.judge, self._running
        patches.replace(
            nn.Module, "__call__", lambda call: replacement(judge, running, call, attempt)
        )
        patches.replace(torch.autograd, RUNS_BACKWARD, self._backward)
        patches.replace(nn.Module, "train", lambda call: train(judge, running, call, attempt))
        parameters_moved(patches, judge, attempt)
        patches.replace(nn.Module, "zero_grad", self._zeroing)
        patches.replace(Optimizer, "zero_grad", self._zeroing)
        patches.replace(Optimizer, "add_param_group", self._adding)
        patches.replace(Optimizer, "load_state_dict", self._loading)
        flag_of_parameters(patches, judge, attempt)
        dropped_guards(patches, judge, attempt)
        self._undo += [trace.stop, flag_of_modules(judge, attempt), *self._hook()]

    def finish(self, *, crashed: bool) -> None:
        """Put all back, and say what only the end shows; more than once, nothing new."""
        if not self._active:
            return
        still_left = open_switches()
        self._patches.remove()
        while self._undo:
            self._undo.pop()()
        self._attempt(lambda: self.judge.finish(crashed=crashed, still_left=still_left))
        self._active = False

    def forked(self) -> None:
        """Begin anew in a forked child: what was found and counted is the parent's."""
        self.judge.forked()

    def _hook(self) -> list[Callable[[], object]]:
        handles = (
            module_hooks.register_module_parameter_registration_hook(self._parameter_set),
            module_hooks.register_module_buffer_registration_hook(self._buffer_set),
            module_hooks.register_module_module_registration_hook(self._module_set),
            _optimizer_hooks.register_optimizer_step_pre_hook(self._before_step),
            _optimizer_hooks.register_optimizer_step_post_hook(self._after_step),
        )
        return [handle.remove for handle in handles]

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not is_dynamo_compiling() and id(optimizer) not in self._stepping:
            self._stepping.add(id(optimizer))
            closure = has_closure(args, kwargs)
            step = partial(self.judge.before_step, closure=closure)
            self._attempt(step, optimizer, _caller())

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not is_dynamo_compiling():
            self._stepping.discard(id(optimizer))
            closure = has_closure(args, kwargs)
            step = partial(self.judge.after_step, closure=closure)
            self._attempt(step, optimizer, _caller())

    def _parameter_set(self, module: nn.Module, name: str, new: Tensor | None) -> None:
        if not is_dynamo_compiling():
            self._attempt(self.judge.parameter_set, module, name, new, _caller())

    def _buffer_set(self, _: nn.Module, __: str, new: Tensor | None) -> None:
        if not is_dynamo_compiling() and new is not None and is_inference(new):
            self._attempt(lambda: self.judge.inference.created([new], here()))

    def _module_set(self, module: nn.Module, name: str, new: nn.Module | None) -> None:
        if not is_dynamo_compiling():
            self._attempt(self.judge.module_set, module, name, new, _caller())

    def _backward(self, original: Callable[..., T]) -> Callable[..., T]:
        running, attempt, judge = self._running, self._attempt, self.judge

        @functools.wraps(original)
        def run_backward(roots: Any, *args: Any, **kwargs: Any) -> T:
            if is_dynamo_compiling():
                return original(roots, *args, **kwargs)
            inside, forward = running.inside, running.forward
            if inside is not None and forward is not None:
                forward.differentiated = True
            to_leaves = bool(kwargs.get("accumulate_grad"))
            attempt(partial(judge.backward, to_leaves=to_leaves), roots, left)
            if args[_INPUTS]:
                attempt(judge.graphs.differentiated, roots)
                attempt(judge.unregistered.differentiated, args[_INPUTS])
            running.backward += 1
            running.inside = None
            try:
                return original(roots, *args, **kwargs)
            finally:
                running.backward -= 1
                running.inside = inside

        return run_backward

    def _zeroing(self, original: Callable[..., T]) -> Callable[..., T]:
        @functools.wraps(original)
        def zero_grad(owner: Any, *args: Any, **kwargs: Any) -> T:
            if not is_dynamo_compiling():
                self._attempt(self.judge.zeroed, owner)
            return original(owner, *args, **kwargs)

        return zero_grad

    def _adding(self, original: Callable[..., T]) -> Callable[..., T]:
        @functools.wraps(original)
        def add_param_group(optimizer: Optimizer, *args: Any, **kwargs: Any) -> T:
            result = original(optimizer, *args, **kwargs)
            if not is_dynamo_compiling():
                self._attempt(lambda: self.judge.given(optimizer, here()))
            return result

        return add_param_group

    def _loading(self, original: Callable[..., T]) -> Callable[..., T]:
        @functools.wraps(original)
        def load_state_dict(optimizer: Optimizer, *args: Any, **kwargs: Any) -> T:
            result = original(optimizer, *args, **kwargs)
            self._attempt(lambda: self.judge.loaded(optimizer, here()))
            return result

        return load_state_dict

    def _attempt(self, look: Callable[..., object], *args: object) -> None:
        """Look, and never let the script fail by it; a failure is told at the end."""
        if not self._active:  # another tool has put its own over what was replaced
            return
        try:
            look(*args)
        except Exception as error:  # noqa: BLE001 (it is not the script's; the summary tells it)
            self.failure = (
                f"gradguard: a check failed by itself ({type(error).__name__}: "
                f"{one_line(str(error))}), so findings may be missing. That is a fault of "
                "gradguard: please report it.\n"
            )


def _caller() -> FrameType:
    return sys._getframe(2)  # noqa: SLF001 - inspect.currentframe may be None
