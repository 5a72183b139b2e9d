"""Which modules a call of a decorated method is about: those of its first argument."""

from dataclasses import dataclass
from reprlib import repr as shortened
from typing import Any, TypeAlias

from torch.nn import Module

from gradguard._core.decorating import cannot_decorate_class
from gradguard._core.torch_versions import never_compiled
from gradguard._methods.attributes import (
    Path,
    kind_of,
    module_at,
    module_attributes,
    modules_of_holder,
)
from gradguard._methods.options import bad_option

Named: TypeAlias = str | tuple[str, ...] | None


@dataclass(frozen=True)
class ModulesOf:
    """Finds the modules anew in each call: a copied object has its own, an attribute may change.

    Attributes:
        decorator: what the user calls the decorator, for the errors.
        function: the decorated function's name, for the errors.
        named: the `module` option as the user wrote it.
        paths: the same, each path split at its dots; none where the first argument is the module.

    """

    decorator: str
    function: str
    named: Named
    paths: tuple[Path, ...]

    def __call__(self, args: tuple[Any, ...], _: object = None) -> tuple[Module, ...]:
        if not args:
            raise TypeError(self._no_argument())
        if self.paths:
            call = f"{self.decorator}(module={self.named!r}) on {self.function}"
            return tuple([module_at(args[0], path, call) for path in self.paths])
        if isinstance(args[0], Module):
            return (args[0],)
        raise TypeError(self._no_module(args[0]))

    def _no_argument(self) -> str:
        return (
            f"{self.function}() was called without a positional argument, but {self.decorator} "
            "finds the module through the first one, the method's self. Call it on the object, "
            f"object.method(...).{self._for_functions()}"
        )

    def _no_module(self, holder: object) -> str:
        example = next(iter(module_attributes(holder)), "net")
        return (
            f"{self.decorator} on {self.function}: {kind_of(holder)} is not a torch.nn.Module, and "
            f"no module is named. Name the attribute that holds it: "
            f'@{self.decorator}(module="{example}"). '
            f"{modules_of_holder(holder)}{self._for_functions()}"
        )

    def _for_functions(self) -> str:
        is_method = "." in self.function.rpartition("<locals>.")[2]
        if is_method or self.decorator != "inference_method":
            return ""
        return (
            f" {self.function} is a function, not a method: to put in eval mode what is passed to "
            "it in any place or by keyword, or what it closes over, decorate it with "
            "@gradguard.inference_function."
        )


def check_method(decorator: str, method: Any) -> None:
    """Raise a TypeError that says what to decorate instead, if this is not a method."""
    if isinstance(method, type):
        raise TypeError(cannot_decorate_class(decorator, method))
    if isinstance(method, Module):
        kind = type(method).__name__
        msg = (
            f"{decorator} decorates a method, not a module, and this is an instance of {kind}. "
            f"Decorate a method of {kind}, or one of the object that holds it, naming the "
            f'attribute: @{decorator}(module="net").'
        )
        raise TypeError(msg)
    if not callable(method) and not isinstance(method, (classmethod, staticmethod, property)):
        msg = (
            f"{decorator} cannot decorate {shortened(method)} of type {type(method).__name__}, "
            f"which is not callable. Put @{decorator} above a method, and give its options by "
            f'name: @{decorator}(module="net").'
        )
        raise TypeError(msg)


def modules_of(decorator: str, function: Any, named: Named) -> ModulesOf:
    """Return what finds the modules of a call of `function`.

    Raises:
        TypeError: `named` is neither a name nor a tuple of names, or is missing where `function`
            is a classmethod.
        ValueError: a name is not a dotted path.

    """
    name = name_of(function)
    if named is None and isinstance(function, classmethod):
        msg = (
            f"{decorator} decorates {name}, a classmethod, whose first argument is the class and "
            "not a module. If the class holds the module, name its attribute, "
            f'@{decorator}(module="net"); otherwise make {name} an ordinary method.'
        )
        raise TypeError(msg)
    return ModulesOf(decorator, name, named, _paths(decorator, named))


def name_of(function: Any) -> str:
    """Return the name of a function, also of one in a staticmethod, a property or a partial."""
    for attribute in ("__func__", "fget", "func"):
        function = getattr(function, attribute, None) or function
    return getattr(function, "__qualname__", None) or repr(function)


def _paths(decorator: str, named: Named) -> tuple[Path, ...]:
    if named is None:
        return ()
    names = (named,) if isinstance(named, str) else named
    good = 'the name of an attribute ("net"), a dotted path ("model.encoder") or a tuple of these'
    if not _is_tuple_of_names(names):
        raise TypeError(bad_option(decorator, "module", named, good))
    paths = tuple(tuple(name.split(".")) for name in names)
    if not paths or not all(all(path) for path in paths):
        raise ValueError(bad_option(decorator, "module", named, good))
    return paths


def _is_tuple_of_names(names: object) -> bool:
    return isinstance(names, tuple) and all(isinstance(name, str) for name in names)


never_compiled(globals())
