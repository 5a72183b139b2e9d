"""Where each module inside a watched one is called: seen once, since hooks slow every call."""

import sys
import weakref
from collections.abc import Iterable, Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING

from torch import nn

from gradguard._core.state import is_dynamo_compiling
from gradguard._judge.judge import Judge
from gradguard._judge.lines import Callers, Line
from gradguard._judge.scene import is_recording
from gradguard._watch.hooks import Hook
from gradguard._watch.watch import Removable, has_hooks

if TYPE_CHECKING:
    from gradguard._judge.facts import Forward

_OUTERMOST = 64  # of many modules these are seen at once: it takes a fifth of a tiny layer's step
_UNRECORDED = 8  # calls under no_grad: rollouts before the training, or a part never recorded


class FirstCall(Hook):
    """A pre-hook that removes itself when its module is called, and that is recorded."""

    def __init__(self, calls: "InnerCalls", module: nn.Module) -> None:
        self._all = calls
        self._calls = 0
        self.active = True
        self._handle = module.register_forward_pre_hook(self)

    def __call__(self, module: nn.Module, *_: object) -> None:
        if not is_dynamo_compiling():
            self._calls += 1
            recorded = self._all.first_call(module, sys._getframe(1))  # noqa: SLF001 - inspect.currentframe may be None
            if recorded or self._calls >= _UNRECORDED:
                self.remove()

    def remove(self) -> None:
        """Take the hook off."""
        self.active = False
        self._handle.remove()


class InnerCalls:
    """Tells the judge when the modules inside watched ones run."""

    def __init__(self, judge: Judge, models: Sequence[nn.Module]) -> None:
        self.running: Forward | None = None  # the watched one's
        self._judge = judge
        self._models = models
        self._callers = Callers()
        self._added: list[FirstCall] = []
        self._asked: dict[int, FirstCall] = {}  # by id of the module

    def hooks(self, model: nn.Module, *, many: bool) -> Iterator[Removable]:
        """Install those that are there from the beginning."""
        hooked, unhooked = _to_be_hooked(model, many=many)
        self._judge.scene.modules.unseen |= unhooked
        for module in hooked:
            yield FirstCall(self, module)

    def added(self, module: nn.Module) -> None:
        """See the calls of a module that was put in a watched one."""
        self._added += [FirstCall(self, each) for each in module.modules() if has_hooks(each)]

    def ask(self, module: nn.Module) -> None:
        """See when a module runs next, where that is not seen already."""
        if not has_hooks(module):
            return
        asked = self._asked.get(id(module))
        if (asked is None or not asked.active) and all(module is not each for each in self._models):
            self._asked[id(module)] = FirstCall(self, module)

    def see_all(self) -> None:
        """See when those run that are not seen: it has to be known why a step is empty."""
        modules = self._judge.scene.modules
        unseen, modules.unseen = modules.unseen, set()
        for module, seen in modules.alive():
            if id(module) in unseen and seen.called is None:
                self.ask(module)

    def remove(self) -> None:
        """Take off the hooks that came later."""
        for each in (*self._added, *self._asked.values()):
            each.remove()
        self._added, self._asked = [], {}

    def ended(self) -> None:
        """Take the end of the watched module's forward."""
        self.running = None
        self._callers.forget()

    def first_call(self, module: nn.Module, frame: FrameType) -> bool:
        """Take the first call of a module inside a watched one; tell whether it is recorded."""
        recorded = (self.running is None or self.running.recorded) and is_recording()
        line, now = self._callers.line(frame), self._judge.scene.tick()
        self._judge.ran(module, frame, line, now, recorded=recorded)
        self.ran_within(module, frame, line, recorded)
        return recorded

    def ran_within(self, module: nn.Module, frame: FrameType, line: Line, recorded: bool) -> None:
        """Take what a Sequential calls; of thousands that takes as long as a tenth of their step.

        So it is put off until somebody asks, but where nothing is recorded: the frame tells why.
        """
        if not any(True for _ in called_with(module)):
            return
        now = self._judge.scene.tick()
        if not recorded:
            self._note_within(module, frame, line, now)
            return
        reference = weakref.ref(module)

        def note() -> None:
            sequential = reference()
            if sequential is not None:
                self._note_within(sequential, None, line, now)

        self._judge.scene.modules.put_off(note)

    def _note_within(
        self, module: nn.Module, frame: FrameType | None, line: Line, now: int
    ) -> None:
        for each in called_with(module):
            self._judge.ran(each, frame, line, now, recorded=frame is None)
            self._note_within(each, frame, line, now)


def _to_be_hooked(model: nn.Module, *, many: bool) -> tuple[list[nn.Module], set[int]]:
    """Return the modules of which the call is to be seen, and the ids of those not to be.

    Of many, only the outermost have a hook, and none that a Sequential holds: it is called when
    that is. The others are asked for once something is wrong: parameters without a gradient, or a
    step in which none has one.
    """
    every = sorted(model.named_modules(), key=_depth)[1:]
    holding = [each for _, each in every if _holds(each) and has_hooks(each)]
    if not many:
        return holding, set()
    within = {id(each) for module in model.modules() for each in called_with(module)}
    hooked = [each for each in holding if id(each) not in within][:_OUTERMOST]
    ids = {id(each) for each in hooked}
    return hooked, {id(each) for each in holding if id(each) not in ids and _has_own(each)}


def _depth(named: tuple[str, nn.Module]) -> int:
    return named[0].count(".")


def _has_own(module: nn.Module) -> bool:
    return bool(module._parameters)  # noqa: SLF001 (its own alone)


def _holds(module: nn.Module) -> bool:
    return _has_own(module) or any(True for _ in module.children())


def called_with(module: nn.Module) -> Iterable[nn.Module]:
    """Return the modules that the forward of this one calls for certain."""
    plain = isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
    return module.children() if plain else ()
