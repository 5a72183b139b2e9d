"""What is known of each module that was seen."""

import weakref
from collections.abc import Callable, Iterable, Iterator
from types import FrameType

import torch.utils.checkpoint
from torch import Tensor, nn
from typing_extensions import Self

from gradguard._core.frames import outwards
from gradguard._judge.lines import Line, here
from gradguard._judge.mode_dependence import depends_on_mode

_REENTRANT = torch.utils.checkpoint.CheckpointFunction.forward.__code__
_NOTHING: frozenset[int] = frozenset()
_WRAPPERS = ("_orig_mod.",)  # what torch.compile puts before the names


class _Reference(weakref.ref[nn.Module]):
    """A weak reference that takes what is known of its module along when that goes."""

    __slots__ = ("key", "modules")
    key: int
    modules: "Modules"

    def __new__(cls, module: nn.Module, modules: "Modules") -> Self:
        """Make it; its callback is one function for all."""
        made = super().__new__(cls, module, _forget)
        made.key = id(module)
        made.modules = modules
        return made


# The class as a default: at the interpreter's end this module's names may be gone before a model.
def _forget(reference: "weakref.ref[nn.Module]", kind: "type[_Reference]" = _Reference) -> None:
    if isinstance(reference, kind):
        reference.modules.forget(reference.key)


class Seen:
    """What is known of one module."""

    __slots__ = (
        "__weakref__",
        "called",
        "copied",
        "depending",
        "evals",
        "kind",
        "known",
        "last_ran",
        "last_recorded",
        "outermost",
        "recorded",
        "recorded_call",
        "reentrant",
        "reference",
        "trained",
        "tree",
        "unrecorded_call",
        "version",
        "within",
    )

    def __init__(self, module: nn.Module, reference: "weakref.ref[nn.Module]") -> None:
        self.reference = reference
        self.kind = type(module).__name__
        self.copied = True  # whether nobody saw it being built: it was copied, or was there before
        self.called: Line | None = None  # where its first forward was called
        self.recorded_call: Line | None = None  # the same of the first that was recorded
        self.unrecorded_call: Line | None = None  # of the first under no_grad while training
        self.outermost = False  # whether the program called it, rather than another module
        self.recorded = False  # whether a forward of it was recorded
        self.trained = False  # whether it had run before an optimizer was given its parameters
        self.reentrant = False  # whether its forward ran in a reentrant checkpoint
        self.last_ran = 0  # when a forward of it was seen last, by a watch
        self.last_recorded = 0  # and one that was recorded
        self.evals = 0  # how often the program called it in eval mode, with nothing recorded
        # What only an outermost module needs, made when it is asked for: most are within one.
        # The ids of modules seen inside, by its mode and the grad mode.
        self.known: tuple[set[int], ...] | None = None
        # Those sets of others that its own id is in, each by the set's id.
        self.within: dict[int, set[int]] = {}
        # The ids of all that is registered in it, and those whose forward depends on the mode.
        self.tree: frozenset[int] = _NOTHING
        self.depending: tuple[weakref.ref[nn.Module], ...] = ()
        self.version = -1

    def known_inside(self) -> tuple[set[int], ...]:
        """Return the ids of modules seen inside, by this one's mode and the grad mode."""
        if self.known is None:
            self.known = (set(), set(), set(), set())
        return self.known

    def ran(self, frame: FrameType | None, *, recorded: bool, line: Line | None = None) -> Line:
        """Note a forward of it, and return the line that called it; `line` where it is known."""
        line = line or here(frame)
        self.called = self.called or line
        if recorded:
            self.recorded = True
            self.recorded_call = self.recorded_call or line
        else:
            self.unrecorded_call = self.unrecorded_call or line
            self.reentrant |= any(each.f_code is _REENTRANT for each in outwards(frame))
        return line

    def ran_since(self, when: int) -> bool:
        """Tell whether it was seen to run since: recorded, where it ever was."""
        return (self.last_recorded if self.recorded else self.last_ran) > when

    def ran_at(self, now: int, *, recorded: bool) -> None:
        """Note when it ran."""
        self.last_ran = max(self.last_ran, now)
        if recorded:
            self.last_recorded = max(self.last_recorded, now)


class Modules:
    """All modules that were seen and are alive, by id: a module need not be hashable."""

    def __init__(self) -> None:
        self.by_id: dict[int, Seen] = {}
        self.outermost = 0
        self.version = 0  # higher whenever a module was registered in another
        # Those with parameters of their own of which a watch does not see when they run.
        self.unseen: set[int] = set()
        self._put_off: list[Callable[[], None]] = []

    def tree(self, module: nn.Module) -> frozenset[int]:
        """Return the ids of the module and of all that are registered in it."""
        return self._looked_into(module).tree

    def depends_on_mode(self, module: nn.Module) -> list[nn.Module]:
        """Return the modules in it whose forward differs between train and eval mode."""
        inside = (reference() for reference in self._looked_into(module).depending)
        return [each for each in inside if each is not None]

    def _looked_into(self, module: nn.Module) -> Seen:
        seen = self.of(module)
        if seen.version != self.version:
            inside = list(module.modules())
            seen.tree = frozenset(map(id, inside))
            seen.depending = tuple(weakref.ref(each) for each in inside if depends_on_mode(each))
            seen.version = self.version
        return seen

    def of(self, module: nn.Module) -> Seen:
        """Return what is known of a module."""
        key = id(module)
        seen = self.by_id.get(key)
        if seen is None:
            seen = self.by_id[key] = Seen(module, _Reference(module, self))
        return seen

    def given(self, parameters: Iterable[Tensor]) -> None:
        """Take parameters that an optimizer was given: their modules are trained from now on.

        What ran before, to see the shape that it returns or to make lazy parameters, was none of
        the training: that it is called, and where, is looked at once more.
        """
        ours = {id(p) for p in parameters}
        before = [(module, seen) for module, seen in self.ran() if not seen.trained]
        for module, seen in before:
            if any(id(p) in ours for p in module.parameters()):
                seen.trained = True
                seen.recorded_call = seen.unrecorded_call = None
        if any(seen.trained for _, seen in before):
            for _, seen in self.alive():
                seen.known = None
                seen.within.clear()

    def seen_inside(self, module: nn.Module, inside: set[int]) -> None:
        """Add a module to those seen inside another, for as long as it is alive."""
        inside.add(id(module))
        self.of(module).within[id(inside)] = inside

    def forget(self, key: int) -> None:
        """Drop what is known of a module that is gone: the next one made may have its id."""
        seen = self.by_id.pop(key, None)
        if seen is None:
            return
        for inside in list(seen.within.values()):
            inside.discard(key)
        for inside in seen.known or ():
            for each in list(inside):  # another thread may add to it
                other = self.by_id.get(each)
                if other is not None:
                    other.within.pop(id(inside), None)

    def put_off(self, note: Callable[[], None]) -> None:
        """Note something of many modules when it is asked for: by no step of a healthy training."""
        self._put_off.append(note)

    def settle(self) -> None:
        """Note what was put off."""
        while self._put_off:
            self._put_off.pop(0)()

    def alive(self) -> Iterator[tuple[nn.Module, Seen]]:
        """Yield the modules that are alive."""
        self.settle()
        for seen in list(self.by_id.values()):
            module = seen.reference()
            if module is not None:
                yield module, seen

    def ran(self) -> Iterator[tuple[nn.Module, Seen]]:
        """Yield those of which a forward ran."""
        return ((module, seen) for module, seen in self.alive() if seen.called is not None)

    def names(self, wanted: Iterable[Tensor]) -> dict[int, tuple[str, str]]:
        """Name parameters as the largest module seen does: by id, its kind and the name."""
        left = {id(tensor) for tensor in wanted}
        found: dict[int, tuple[str, str]] = {}
        for module, seen in self.roots():
            for name, parameter in module.named_parameters(remove_duplicate=False):
                if id(parameter) in left:
                    found.setdefault(id(parameter), (seen.kind, plain(name)))
        return found

    def roots(self) -> list[tuple[nn.Module, Seen]]:
        """Return the modules seen, those with the most in them first."""
        return sorted(self.alive(), key=lambda pair: -len(self.tree(pair[0])))


def plain(name: str) -> str:
    """Take off what wrappers put before a name."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name
