"""The ``training`` flags of module trees: whose they are, how they are written, who is told."""

from collections.abc import Collection, Iterable, Mapping
from contextlib import ExitStack
from typing import TypeAlias

from torch.nn import Module

# By id: a module may define ``__eq__``, and two equal layers still have two flags.
Modules: TypeAlias = dict[int, Module]


def tree(roots: Iterable[Module]) -> Modules:
    """Return every module with a flag of its own at or below ``roots``, each once, nearest first.

    The tree is walked each time: a stored walk would be wrong as soon as a submodule is assigned,
    and nothing tells when that happens (``_modules`` is a plain dict that anybody may write to).
    """
    found = {id(module): module for module in roots}
    forwarding: list[int] = []
    todo = list(found.values())
    for module in todo:  # grows while it is walked
        children = module._modules  # noqa: SLF001 (torch's children() takes ten times as long)
        # torch.compile's OptimizedModule: its ``training`` is a property over the wrapped module's.
        if "_orig_mod" in children and "training" not in module.__dict__:
            forwarding.append(id(module))
        for child in children.values():
            if child is not None and id(child) not in found:
                found[id(child)] = child
                todo.append(child)
    for key in forwarding:
        del found[key]
    return found


def write_flags(modules: Modules, flags: Mapping[int, bool]) -> None:
    """Give each module its flag, exactly, without calling any ``train()``."""
    for key, module in modules.items():
        if module.training is not (flag := flags[key]):
            if "training" in module.__dict__:  # not ``Module.__setattr__``: it is far slower
                module.__dict__["training"] = flag
            else:  # a property, or the attribute of a ScriptModule
                module.training = flag


def overrides_due(modules: Modules, flags: Mapping[int, bool], told: Collection[int]) -> Modules:
    """Return the modules whose own ``train()`` must be called to bring about ``flags``.

    These are the overriding modules that have another flag now or are in ``told``, and those below
    one of them, since its ``train()`` may pass on a mode that is not theirs. Outermost first: an
    override's tree is larger than that of each override below it, also where two parents share it.
    """
    overriding = [(module, tree((module,))) for module in modules.values() if _overrides(module)]
    overriding.sort(key=lambda pair: -len(pair[1]))
    due: Modules = {}
    reached = set(told)
    for module, below in overriding:
        key = id(module)
        if key in reached or module.training is not flags[key]:
            due[key] = module
            reached.update(below)
    return due


def call_overrides(modules: Modules, flags: Mapping[int, bool]) -> None:
    """Call each module's ``train()`` in this order; what one of them raises stops no other."""
    with ExitStack() as calls:
        for key, module in reversed(modules.items()):
            calls.callback(module.train, bool(flags[key]))


def _overrides(module: Module) -> bool:
    return type(module).train is not Module.train or "train" in module.__dict__
