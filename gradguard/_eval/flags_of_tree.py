"""The ``training`` flags of module trees: which there are, writing them, calling ``train()``."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeAlias

from torch.nn import Module

from gradguard._core.torch_versions import never_compiled

# By id: a module may define ``__eq__``, and two equal layers still have two flags.
Modules: TypeAlias = dict[int, Module]


def tree(roots: Iterable[Module]) -> Modules:
    """Return every module with a flag of its own at or below ``roots``, each once, nearest first.

    The tree is walked each time: a stored walk would be wrong as soon as a submodule is assigned,
    and nothing tells when that happens (``_modules`` is a plain dict that anybody may write to).
    """
    found: list[Any] = [*roots]
    elsewhere: list[Module] = []
    parents: set[int] = set()
    for module in found:  # grows while it is walked
        if module is None:
            continue
        if "training" not in module.__dict__:
            elsewhere.append(module)
        # torch's children() takes ten times as long.
        children = module._modules  # noqa: SLF001
        if children and id(module) not in parents:
            parents.add(id(module))
            found += children.values()
    modules = dict(zip(map(id, found), found, strict=True))
    modules.pop(id(None), None)  # a child may be None
    for module in elsewhere:
        if not _has_own_flag(module):
            modules.pop(id(module), None)
    return modules


def _has_own_flag(module: Module) -> bool:
    """Tell of a module whose flag is not in its ``__dict__`` whether it has one of its own.

    torch.compile's OptimizedModule does not, its ``training`` is a property over the wrapped
    module's; a ScriptModule does, unless `torch.jit.freeze` has built the flag into its code.
    """
    return "_orig_mod" not in module._modules and hasattr(module, "training")  # noqa: SLF001 (see above)


def write_flags(modules: Modules, flags: Mapping[int, bool]) -> None:
    """Give each module its flag, exactly, without calling any ``train()``."""
    for key, module in modules.items():
        if module.training is not (flag := flags[key]):
            if "training" in module.__dict__:  # not ``Module.__setattr__``: it is far slower
                module.__dict__["training"] = flag
            else:  # a property, or the attribute of a ScriptModule
                module.training = flag


def overrides_due(modules: Modules, flags: Mapping[int, bool], called: Collection[int]) -> Modules:
    """Return the modules whose own ``train()`` must be called to bring about ``flags``.

    These are the overriding modules that have another flag now or are in ``called``, and those
    below one of them, since its ``train()`` may pass on a mode that is not theirs. Outermost first:
    an override's tree is larger than that of each below it, also where two parents share it.
    """
    overriding = [(module, tree((module,))) for module in modules.values() if _overrides(module)]
    overriding.sort(key=lambda pair: -len(pair[1]))
    due: Modules = {}
    reached = set(called)
    for module, below in overriding:
        key = id(module)
        if key in reached or module.training is not flags[key]:
            due[key] = module
            reached.update(below)
    return due


def call_overrides(modules: Modules, flags: Mapping[int, bool]) -> None:
    """Call each module's ``train()`` in this order; what one of them raises stops no other."""
    for error in errors_of_overrides(modules, flags):
        raise error


def errors_of_overrides(modules: Modules, flags: Mapping[int, bool]) -> list[BaseException]:
    """Call each module's ``train()`` in this order; return what they have raised.

    What is raised from here has interrupted it, and some may not have been called.
    """
    errors: list[BaseException] = []
    for key, module in modules.items():
        train = module.train
        try:
            train(bool(flags[key]))
        except BaseException as error:
            if not _raised_in(train, error):
                raise
            errors.append(error)
    return errors


def _raised_in(function: Any, error: BaseException) -> bool:
    """Tell whether a function has raised an error, or an interrupt came just before or after."""
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_frame.f_code is not code:
        traceback = traceback.tb_next
    return traceback is not None or code is None


def _overrides(module: Module) -> bool:
    return type(module).train is not Module.train or "train" in module.__dict__


never_compiled(globals())
