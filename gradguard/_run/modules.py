"""The modules that a run has seen: who called them first, and in which mode."""

import gc
import sys
import weakref
from collections.abc import Iterable, Sequence
from types import CodeType
from typing import NamedTuple

import torch.utils.checkpoint
from torch import Tensor, nn

from gradguard._core.frames import outwards
from gradguard._core.state import is_grad_enabled, is_inference_mode_enabled
from gradguard._graph.listing import prefixes
from gradguard._run.findings import Site, here

_CALL: CodeType = nn.Module._call_impl.__code__  # noqa: SLF001 (the frame that runs the hooks)
_WRAPPERS = ("_orig_mod.",)  # what torch.compile puts before the names


class Seen:
    """What is known of one module."""

    __slots__ = (
        "call",
        "evaluated",
        "kind",
        "outermost",
        "recorded",
        "reference",
        "training",
    )

    def __init__(self, module: nn.Module, reference: "weakref.ref[nn.Module]") -> None:
        self.reference = reference
        self.kind = type(module).__name__
        self.call: Site | None = None  # of its first forward that was recorded, or its first
        self.outermost = False  # whether no other module called it then
        self.recorded = False  # whether a forward of it was recorded
        self.training: bool | None = None  # at its last recorded forward, if it is outermost
        self.evaluated: Site | None = None  # who put it in eval mode last


class Modules:
    """All modules that were seen and are alive, by id: a module need not be hashable."""

    def __init__(self) -> None:
        self.by_id: dict[int, Seen] = {}
        self.outermost = 0

    def of(self, module: nn.Module) -> Seen:
        """Return what is known of a module."""
        key = id(module)
        seen = self.by_id.get(key)
        if seen is None:
            by_id = self.by_id
            seen = Seen(module, weakref.ref(module, lambda _: by_id.pop(key, None)))
            by_id[key] = seen
        return seen

    def called(self, module: nn.Module) -> Seen:
        """Note the first forward of a module."""
        seen = self.of(module)
        seen.call = here()
        seen.outermost = not is_nested()
        self.outermost += seen.outermost
        return seen


class Owned(NamedTuple):
    """A parameter or buffer with its names, its modules, and a module that is wholly affected."""

    tensor: Tensor
    names: tuple[str, ...]
    owners: tuple[nn.Module, ...]
    whole: nn.Module | None


def recording() -> bool:
    """Tell whether operations are being recorded."""
    return is_grad_enabled() and not is_inference_mode_enabled()


def is_nested() -> bool:
    """Tell whether the module whose hook runs was called by another, or again by a checkpoint.

    Read off the stack: a count of open forwards would be wrong after the first that raises.
    """
    calls = 0
    for frame in outwards(sys._getframe(1)):  # noqa: SLF001 - inspect.currentframe may be None
        code = frame.f_code
        calls += code is _CALL
        if calls > 1 or code.co_filename in _BACKWARD:
            return True
    return False


_BACKWARD = (torch.autograd.graph.__file__, torch.utils.checkpoint.__file__)


def owned(tensors: Iterable[Tensor]) -> list[Owned]:
    """Name parameters and buffers as the outermost module that is alive does.

    Modules are looked for among all objects: those that were never called have not been seen, and
    the wrapper that a loop calls may not be what the optimizer's parameters were taken from. That
    takes some ten milliseconds, and is done only where something is missing.
    """
    wanted = {id(tensor): tensor for tensor in tensors}
    found: dict[int, Owned] = {}
    for root in roots():
        if wanted.keys() - found.keys():
            for one in _owned_by(root, wanted):
                found.setdefault(id(one.tensor), one)
    nameless = (
        Owned(t, ("(in no module)",), (), None) for i, t in wanted.items() if i not in found
    )
    return [*found.values(), *nameless]


def roots() -> list[nn.Module]:
    """Return the modules that are part of no other, the largest first."""
    # By type: isinstance would ask lazy proxies for their __class__, and so wake them.
    alive: list[nn.Module] = [o for o in gc.get_objects() if issubclass(type(o), nn.Module)]
    inner = {id(child) for module in alive for child in module._modules.values()}  # noqa: SLF001
    outer = [module for module in alive if id(module) not in inner]
    return sorted(outer, key=lambda module: -sum(1 for _ in module.parameters()))


def _owned_by(root: nn.Module, wanted: dict[int, Tensor]) -> list[Owned]:
    parameters = list(root.named_parameters(remove_duplicate=False))
    named = [*parameters, *root.named_buffers(remove_duplicate=False)]
    names: dict[int, list[str]] = {}
    for name, tensor in named:
        if id(tensor) in wanted:
            names.setdefault(id(tensor), []).append(name)
    if not names:
        return []
    modules = dict(root.named_modules(remove_duplicate=False))
    learns = {p for name, tensor in parameters if tensor.grad is not None for p in prefixes(name)}
    return [_one(wanted[key], found, modules, learns) for key, found in names.items()]


def _one(
    tensor: Tensor, names: Sequence[str], modules: dict[str, nn.Module], learns: set[str]
) -> Owned:
    owners = tuple(modules[name.rpartition(".")[0]] for name in names)
    whole = next((p.rstrip(".") for p in prefixes(names[0]) if p not in learns), None)
    return Owned(
        tensor,
        tuple(plain(name) for name in names),
        owners,
        None if whole is None else modules.get(whole),
    )


def plain(name: str) -> str:
    """Take off what wrappers put before a name."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name
