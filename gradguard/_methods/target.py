"""Which modules a call of a decorated method is about: those of its first argument."""

from dataclasses import dataclass
from typing import Any, TypeAlias

from torch.nn import Module

from gradguard._core.decorating import cannot_decorate_class
from gradguard._methods import texts as messages

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
    paths: tuple[tuple[str, ...], ...]

    def __call__(self, args: tuple[Any, ...]) -> tuple[Module, ...]:
        if not args:
            raise TypeError(messages.no_argument(self.decorator, self.function))
        if self.paths:
            return tuple([self._follow(args[0], path) for path in self.paths])
        if isinstance(args[0], Module):
            return (args[0],)
        raise TypeError(
            messages.no_module(self.decorator, self.function, _kind(args[0]), _held(args[0]))
        )

    def _follow(self, holder: Any, path: tuple[str, ...]) -> Module:
        found = holder
        for at, name in enumerate(path):
            holder = found
            try:
                found = getattr(holder, name)
            except AttributeError as error:
                raise TypeError(self._no_attribute(holder, path, at)) from error
        if isinstance(found, Module):
            return found
        raise TypeError(
            messages.not_a_module(self._call, self.function, path, _kind(holder), found)
        )

    def _no_attribute(self, holder: Any, path: tuple[str, ...], at: int) -> str:
        kind, held = _kind(holder), _held(holder)
        wrong = messages.no_attribute(self._call, self.function, path, at, kind)
        meant = messages.did_you_mean(path[at], dict.fromkeys([*held, *dir(holder)]))
        return f"{wrong} {meant}{messages.modules_held(kind, held)}"

    @property
    def _call(self) -> str:
        return f"{self.decorator}(module={self.named!r})"


def check_method(decorator: str, method: Any) -> None:
    """Raise a TypeError that says what to decorate instead, if this is not a method."""
    if isinstance(method, type):
        raise TypeError(cannot_decorate_class(decorator, method))
    if isinstance(method, Module):
        raise TypeError(messages.cannot_decorate_module(decorator, type(method).__name__))
    if not callable(method) and not isinstance(method, (classmethod, staticmethod, property)):
        raise TypeError(messages.cannot_decorate(decorator, method))


def modules_of(decorator: str, function: Any, named: Named) -> ModulesOf:
    """Return what finds the modules of a call of `function`.

    Raises:
        TypeError: `named` is neither a name nor a tuple of names, or is missing where `function`
            is a classmethod.
        ValueError: a name is not a dotted path.

    """
    name = getattr(function, "__qualname__", None) or repr(function)
    if named is None and isinstance(function, classmethod):
        raise TypeError(messages.no_instance(decorator, name))
    return ModulesOf(decorator, name, named, _paths(decorator, named))


def _paths(decorator: str, named: Named) -> tuple[tuple[str, ...], ...]:
    if named is None:
        return ()
    names = (named,) if isinstance(named, str) else named
    if not _is_tuple_of_names(names):
        raise TypeError(messages.bad_module_option(decorator, named))
    paths = tuple(tuple(name.split(".")) for name in names)
    if not paths or not all(all(path) for path in paths):
        raise ValueError(messages.bad_module_option(decorator, named))
    return paths


def _is_tuple_of_names(names: object) -> bool:
    return isinstance(names, tuple) and all(isinstance(name, str) for name in names)


def _kind(holder: object) -> str:
    return f"the class {holder.__name__}" if isinstance(holder, type) else type(holder).__name__


def _held(holder: object) -> list[str]:
    """Name the attributes of an object that are modules."""
    own: dict[str, Any] = {**getattr(holder, "__dict__", {})}
    if isinstance(holder, Module):
        own |= holder._modules  # noqa: SLF001 (named_children() leaves out the second of two names)
    return [name for name, value in own.items() if isinstance(value, Module)]
