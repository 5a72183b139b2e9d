"""Whether a context manager of the user's or of a library may switch the mode as it is entered.

What its ``__enter__`` does need not be on the call stack: its code, and that of what it calls by
name, is searched for the names of guards.
"""

from collections.abc import Iterator
from inspect import getattr_static
from types import CodeType, FrameType, FunctionType, GeneratorType, MethodType
from typing import Any

from gradguard._core.frames import is_library, is_users, module_of
from gradguard._locate.guard_expressions import GUARDS, is_a
from gradguard._locate.names import UNKNOWN

_SWITCHING = frozenset((*GUARDS, "_set_grad_enabled", "_enter_inference_mode"))
_ENTERING = frozenset(("__enter__", "__aenter__", "enter_context", "enter_async_context"))
_BOUND = (MethodType, classmethod, staticmethod)
_DEPTH = 3  # calls by name from the context manager's own code


def may_switch(made_by: Any) -> bool:
    """Tell whether what this makes may switch the mode: a class, or a function that makes one."""
    return _mentions(made_by, _DEPTH, set())


def decorating(frame: FrameType) -> Any:
    """Return the context manager that a frame is in as the decorator of a function, else UNKNOWN.

    `contextlib.ContextDecorator` enters it in a function of its own.
    """
    if module_of(frame) != "contextlib" or frame.f_code.co_name != "inner":
        return UNKNOWN
    return made_of(frame.f_locals.get("self", UNKNOWN))


def made_of(manager: Any) -> Any:
    """Return what runs as a context manager is entered: its class, or what a generator runs."""
    # Of a `@contextmanager`: the function goes when it is entered.
    made_by = getattr_static(manager, "func", UNKNOWN)
    if made_by is UNKNOWN:
        made_by = getattr_static(manager, "gen", UNKNOWN)
    return type(manager) if made_by is UNKNOWN else made_by


def _mentions(target: Any, depth: int, seen: set[int]) -> bool:
    if id(target) in seen:
        return False
    seen.add(id(target))
    return any(
        _may(names, code.co_filename)
        or (depth > 0 and any(_mentions(each, depth - 1, seen) for each in _called(names, known)))
        for code, known in _codes(target)
        for names in _names(code)
    )


def _may(names: tuple[str, ...], filename: str) -> bool:
    """Tell whether code with these names switches, or enters what is not known by name."""
    unknown = is_users(filename) and "super" not in names
    return not (_SWITCHING | _ENTERING if unknown else _SWITCHING).isdisjoint(names)


def _codes(target: Any) -> Iterator[tuple[CodeType, dict[str, Any]]]:
    """Yield what runs, with its globals: not torch's or Python's own."""
    if is_a(target, type):
        values: list[Any] = [value for kind in target.__mro__ for value in vars(kind).values()]
    else:
        values = [target]
    for value in values:
        function = value.__func__ if isinstance(value, _BOUND) else value
        function = getattr_static(function, "__wrapped__", function)  # below a `@contextmanager`
        if is_a(function, GeneratorType) and function.gi_frame is not None:
            yield function.gi_code, function.gi_frame.f_globals
        elif is_a(function, FunctionType) and _is_searched(function.__code__.co_filename):
            yield function.__code__, function.__globals__


def _is_searched(filename: str) -> bool:
    return is_users(filename) or is_library(filename)


def _names(code: CodeType) -> Iterator[tuple[str, ...]]:
    yield code.co_names
    for const in code.co_consts:
        if is_a(const, CodeType):
            yield from _names(const)


def _called(names: tuple[str, ...], known: dict[str, Any]) -> Iterator[Any]:
    for name in names:
        value = known.get(name)
        if is_a(value, type) or is_a(value, FunctionType):
            yield value
