"""What a callable leads to: the modules, tensors and generators that a call of it may change."""

import gc
import sys
from collections.abc import Iterable, Iterator
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any

import torch

_FOUND = (torch.nn.Module, torch.Tensor, torch.Generator)
_STOP = (*_FOUND, type, ModuleType, FrameType)
# A module in a list in a dict of the object that a bound method is of; 3.10 goes by the __dict__.
_STEPS = 5 if sys.version_info >= (3, 11) else 6


def reachable_from(*roots: object) -> list[Any]:
    """List the modules, tensors and random generators that the roots lead to, each once.

    A module is not looked into, and of a function's globals only those that its code names count.
    Not every module of the process (`gc.get_objects`): running code of other threads owns some.
    """
    seen: dict[int, object] = {}
    level: list[object] = list(roots)
    for _ in range(_STEPS):
        new = {id(value): value for value in level if id(value) not in seen}
        seen |= new
        level = [part for value in new.values() for part in _parts(value)]
    return [value for value in seen.values() if issubclass(type(value), _FOUND)]


def _parts(value: object) -> Iterable[object]:
    # The type and not isinstance, which asks lazy proxies for their __class__ and so wakes them.
    if issubclass(type(value), _STOP):
        return ()
    if type(value) is FunctionType:
        return _parts_of_function(value)
    # What is bound, partial, contained, in __dict__ or in slots: all of it, running no user code.
    return (
        part
        for part in gc.get_referents(value)
        if gc.is_tracked(part) or issubclass(type(part), _FOUND)
    )


def _parts_of_function(function: FunctionType) -> Iterator[object]:
    named = function.__globals__
    yield from (named[name] for name in _names(function.__code__) if name in named)
    yield from gc.get_referents(*(function.__closure__ or ()))  # an empty cell has none
    yield from (function.__defaults__, function.__kwdefaults__, vars(function))


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for const in code.co_consts:  # lambdas, and before Python 3.12 comprehensions
        if isinstance(const, CodeType):
            yield from const.co_names
