"""Which modules a call of a decorated function is about: those it is passed, or named ones."""

import inspect
from collections.abc import Iterable, Mapping
from itertools import chain, repeat
from typing import Any, TypeAlias

from torch.nn import Module

from gradguard._core.torch_versions import never_compiled
from gradguard._methods.attributes import did_you_mean, follow, module_attributes, remedy
from gradguard._methods.options import bad_option
from gradguard._methods.target import name_of

Named: TypeAlias = Module | str | tuple[Module | str, ...] | None

_NAME = "inference_function"
_GOOD = (
    'a torch.nn.Module, the name of a parameter ("model"), a dotted path from one ("pipe.model") '
    "or a tuple of these"
)
_CONTAINERS = (list, tuple, Mapping)
_NOTHING = object()


class ModulesIn:
    """Finds the modules of each call of one function, in what it is called with."""

    def __init__(self, function: Any, named: Named) -> None:
        self._function = name_of(function)
        self._parameters = _parameters(function)
        self._named = named
        self._sources = _sources(named)
        for source in self._sources:
            if isinstance(source, tuple):
                self._check_parameter(source[0])
        # Where a module may stand that a call leaves out.
        self._defaults = [
            name
            for name, (_, _, default) in self._parameters.items()
            if isinstance(default, (Module, *_CONTAINERS))
        ]

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Module, ...]:
        found: list[Module] = []
        for source in self._sources:
            if isinstance(source, Module):
                found.append(source)
            else:
                found += self._modules_at(source, args, kwargs)
        if not self._sources:
            _collect(args, found)
            _collect(kwargs.values(), found)
            for name in self._defaults:
                _collect((self._argument(name, args, kwargs),), found)
            if not found:
                raise TypeError(self._none_found(args, kwargs))
        return tuple(found)

    def _modules_at(
        self, path: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> list[Module]:
        call = f"{_NAME}(modules={self._named!r}) on {self._function}"
        value = follow(self._argument(path[0], args, kwargs), path[1:], call)
        found: list[Module] = []
        _collect((value,), found)
        if not found:
            msg = (
                f"{call}: {'.'.join(path)!r} is of type {type(value).__name__}, which is no "
                f"torch.nn.Module and no list, tuple or mapping of some. {remedy(value)}"
            )
            raise TypeError(msg)
        return found

    def _argument(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what a call passes for a parameter, or its default."""
        if name in kwargs:
            return kwargs[name]
        at, kind, default = self._parameters.get(name, (len(args), "", _NOTHING))
        if kind == "VAR_POSITIONAL":
            return args[at:]
        if kind == "VAR_KEYWORD":
            return {key: value for key, value in kwargs.items() if key not in self._parameters}
        if at < len(args) and kind != "KEYWORD_ONLY":
            return args[at]
        if default is _NOTHING:
            msg = f"{self._function}() missing a required argument: {name!r}"
            raise TypeError(msg)
        return default

    def _check_parameter(self, name: str) -> None:
        kinds = [kind for _, kind, _ in self._parameters.values()]
        if name not in self._parameters and "VAR_KEYWORD" not in kinds:
            known = ", ".join(map(repr, self._parameters)) or "none"
            msg = (
                f"{_NAME}(modules={self._named!r}): {self._function} has no parameter {name!r}. "
                f"{did_you_mean(name, self._parameters)}Its parameters: {known}. A module that it "
                "closes over is passed itself: modules=model."
            )
            raise ValueError(msg)

    def _none_found(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        text = (
            f"{_NAME} on {self._function}: no torch.nn.Module among the arguments of the call "
            f"({self._listed(args, kwargs)}), so there is nothing to put in eval mode. Name what "
            f"the function closes over: @{_NAME}(modules=model)."
        )
        for name, value in zip(self._parameters, args, strict=False):
            if held := module_attributes(value):
                text += f' Or what an argument holds: @{_NAME}(modules="{name}.{held[0]}").'
        return text

    def _listed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """List what was passed, without the defaults, which a wrapper may have passed on."""
        by_place = ((p, d) for p, (_, kind, d) in self._parameters.items() if "POSI" in kind)
        named = zip(chain(by_place, repeat(("", _NOTHING))), args)  # noqa: B905 (it has no end)
        passed = [(name, value) for (name, default), value in named if value is not default]
        given = [f"{name}={type(value).__name__}" for name, value in [*passed, *kwargs.items()]]
        return ", ".join(one.lstrip("=") for one in given) or "none"


def _parameters(function: Any) -> dict[str, tuple[int, str, Any]]:
    """Return the place, kind and default of each parameter: Dynamo does not follow `inspect`."""
    if isinstance(function, (classmethod, staticmethod)):
        function = function.__func__
    elif isinstance(function, property):
        function = function.fget
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of what is written in C; or it cannot be decorated
        return {}
    return {
        parameter.name: (
            at,
            parameter.kind.name,
            _NOTHING if parameter.default is parameter.empty else parameter.default,
        )
        for at, parameter in enumerate(parameters)
    }


def _sources(named: Named) -> list[Module | tuple[str, ...]]:
    """Return modules, and for each string its path: a parameter, and attributes from there."""
    if named is None:
        return []
    several = named if isinstance(named, tuple) else (named,)
    if not all(isinstance(one, (Module, str)) for one in several):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(bad_option(_NAME, "modules", named, _GOOD))
    sources = [one if isinstance(one, Module) else tuple(one.split(".")) for one in several]
    if not sources or not all(isinstance(source, Module) or all(source) for source in sources):
        raise ValueError(bad_option(_NAME, "modules", named, _GOOD))
    return sources


def _collect(values: Iterable[Any], found: list[Module]) -> None:
    """Add each module among the values, and in the lists, tuples and mappings among them."""
    seen: list[Any] = []  # a list may hold itself
    todo: list[Any] = list(values)
    for value in todo:  # grows
        if isinstance(value, Module):
            found.append(value)
        elif isinstance(value, _CONTAINERS) and not any(value is one for one in seen):
            seen.append(value)
            inside = list(value.values() if isinstance(value, Mapping) else value)
            # By their types: a list of a million numbers is asked a few times.
            if any(issubclass(kind, (Module, *_CONTAINERS)) for kind in set(map(type, inside))):
                todo += inside


never_compiled(globals())
