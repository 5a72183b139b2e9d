"""What a callable takes, so that a wrapper can take the same."""

import inspect
from collections.abc import Callable
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any, NamedTuple


class Shape(NamedTuple):
    """The names of a function's parameters, by kind."""

    positional: tuple[str, ...] = ()  # those that may not be passed by name come first
    unnamed: int = 0  # how many may not
    rest: str | None = None  # *args
    by_name: tuple[str, ...] = ()  # after *
    others: str | None = None  # **kwargs

    def header(self) -> str:
        """Return the parameters as a ``def`` lists them, without defaults."""
        listed = [*self.positional]
        if self.unnamed:
            listed.insert(self.unnamed, "/")
        if self.rest is not None or self.by_name:
            listed.append(f"*{self.rest or ''}")
        listed += self.by_name
        return ", ".join([*listed, *([f"**{self.others}"] if self.others else [])])

    def arguments(self) -> str:
        """Return the arguments of a call that passes all of them on."""
        passed = [*self.positional, *(f"{name}={name}" for name in self.by_name)]
        if self.rest is not None:
            passed.insert(len(self.positional), f"*{self.rest}")
        return ", ".join([*passed, *([f"**{self.others}"] if self.others else [])])

    def names(self) -> list[str]:
        """Return all names."""
        several = [name for name in (self.rest, self.others) if name is not None]
        return [*self.positional, *self.by_name, *several]


ANY = Shape(rest="args", others="kwargs")
_KINDS = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.VAR_POSITIONAL,
    inspect.Parameter.KEYWORD_ONLY,
    inspect.Parameter.VAR_KEYWORD,
)


class Parameters(NamedTuple):
    """What a callable takes, and what it takes by default, as functions hold that."""

    shape: Shape
    function: FunctionType | None = None  # whose code that is
    defaults: tuple[Any, ...] | None = None
    by_name: dict[str, Any] | None = None


def parameters_of(fn: Callable[..., Any]) -> Parameters:
    """Return what calling `fn` takes: what its code says, not its ``__signature__``.

    A callable whose code cannot be seen may take anything.
    """
    if type(fn) is FunctionType:
        found = Parameters(_shape_of(fn.__code__), fn, fn.__defaults__, fn.__kwdefaults__)
    else:
        try:
            bare = _bare(fn)
            found = _of_signature(bare) if isinstance(bare, partial) else Parameters(ANY)
        except ValueError:  # of a partial whose own arguments do not fit: its call says so
            found = Parameters(ANY)
    return found if all(map(str.isidentifier, found.shape.names())) else Parameters(ANY)


def _shape_of(code: CodeType) -> Shape:
    names = iter(code.co_varnames)
    positional = tuple(next(names) for _ in range(code.co_argcount))
    by_name = tuple(next(names) for _ in range(code.co_kwonlyargcount))
    rest = next(names) if code.co_flags & inspect.CO_VARARGS else None
    others = next(names) if code.co_flags & inspect.CO_VARKEYWORDS else None
    return Shape(positional, code.co_posonlyargcount, rest, by_name, others)


def _bare(fn: Any) -> Callable[..., Any] | None:
    """The callable without what `inspect` would believe before its code, such as a mark on it."""
    if type(fn) is FunctionType:
        bare = FunctionType(fn.__code__, {}, fn.__name__, fn.__defaults__, fn.__closure__)
        bare.__kwdefaults__, bare.__qualname__ = fn.__kwdefaults__, fn.__qualname__
        return bare
    if isinstance(fn, partial):
        inner, args, by_name = _bare(fn.func), fn.args, fn.keywords
    elif isinstance(fn, MethodType):
        inner, args, by_name = _bare(fn.__func__), (fn.__self__,), {}
    else:
        called = inspect.getattr_static(type(fn), "__call__", None)
        inner, args, by_name = _bare(called) if type(called) is FunctionType else None, (fn,), {}
    return None if inner is None else partial(inner, *args, **by_name)


def _of_signature(bare: partial[Any]) -> Parameters:
    of_kind: dict[Any, list[inspect.Parameter]] = {kind: [] for kind in _KINDS}
    for parameter in inspect.signature(bare).parameters.values():
        of_kind[parameter.kind].append(parameter)
    unnamed, either, rest, by_name, others = of_kind.values()
    positional = [*unnamed, *either]
    shape = Shape(
        tuple(parameter.name for parameter in positional),
        len(unnamed),
        rest[0].name if rest else None,
        tuple(parameter.name for parameter in by_name),
        others[0].name if others else None,
    )
    return Parameters(
        shape,
        bare.func if isinstance(bare.func, FunctionType) else None,
        tuple(each.default for each in positional if each.default is not each.empty),
        {each.name: each.default for each in by_name if each.default is not each.empty},
    )
