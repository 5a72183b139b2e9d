"""What objects hold that are no data structures: attributes, the variables of functions."""

import gc
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from functools import partial
from types import FunctionType, GetSetDescriptorType, MemberDescriptorType, MethodType
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from gradguard._core.torch_versions import never_compiled
from gradguard._graph.tensors import Parts, attribute, index, item

_HAS_REFERENCES = 1 << 14  # Py_TPFLAGS_HAVE_GC: what is without it refers to no other object
_BUILT_IN = (dict, list, tuple, deque, set, frozenset)
_OF_ANY_MODULE = frozenset(vars(nn.Module()))


def attributes(value: object) -> Parts:
    """Give what an object holds, in slots too, without running any of its code."""
    if isinstance(value, FunctionType):
        return _variables(value)
    if isinstance(value, MethodType):
        return [(attribute, "__self__", value.__self__), (attribute, "__func__", value.__func__)]
    if isinstance(value, partial):
        return [(attribute, name, getattr(value, name)) for name in ("func", "args", "keywords")]
    if _is_array_of_objects(value):
        array: Any = value
        return ((item, number, part) for number, part in enumerate(array.ravel().tolist()))
    if may_have_attributes(value):
        return ((attribute, name, part) for name, part in own_attributes(value))
    referents = (part for part in gc.get_referents(value) if part is not type(value))
    return ((_referent, number, part) for number, part in enumerate(referents))


def may_have_attributes(value: object) -> bool:
    """Tell whether the object has a ``__dict__`` or slots, though they may be empty."""
    return any("__dict__" in vars(k) or "__slots__" in vars(k) for k in type(value).__mro__)


def holds_nothing(value: object) -> bool:
    """Tell whether a value is one that refers to no other object: a number, text, an array.

    An array of objects refers to some, though numpy does not tell Python's collector of them.
    """
    kind = type(value)
    plain = kind is not object and not kind.__flags__ & _HAS_REFERENCES
    return plain and not _is_array_of_objects(value)


def _is_array_of_objects(value: Any) -> bool:
    return type(value).__module__ == "numpy" and bool(getattr(value.dtype, "hasobject", False))


def besides(structure: Parts, value: object) -> Parts:
    """Give the parts of a structure, then its keys, and attributes of its own that are no parts."""
    known: set[int] = set()
    for step in structure:
        known.add(id(step[2]))
        yield step
    if isinstance(value, Mapping):
        yield from ((_key, number, key) for number, key in enumerate(value) if _is_object(key))
    if isinstance(value, _BUILT_IN) or is_dataclass(value):  # others are what they show
        for name, part in own_attributes(value):
            if id(part) not in known:
                yield attribute, name, part


def _is_object(key: object) -> bool:
    return isinstance(key, Tensor) or not holds_nothing(key)


def _key(number: int) -> str:
    return f"<key {number}>"


def module_parts(module: nn.Module) -> Parts:
    """Give a module's children, buffers and what else is assigned to it; not its parameters."""
    yield from ((attribute, name, child) for name, child in module.named_children())
    yield from ((attribute, name, part) for name, part in module.named_buffers(recurse=False))
    for name, part in own_attributes(module):
        if name not in _OF_ANY_MODULE:
            yield attribute, name, part


def optimizer_parts(optimizer: Optimizer) -> Parts:
    """Give the state of an optimizer, by the number that its parameter has there."""
    return ((_state, number, state) for number, state in enumerate(optimizer.state.values()))


def _state(number: int) -> str:
    return f".state{item(number)}"


def _variables(function: FunctionType) -> Parts:
    """Give what a function holds: its closure, defaults and attributes, not its globals."""
    names = function.__code__.co_freevars
    for name, cell in zip(names, function.__closure__ or (), strict=True):
        try:
            yield _variable, name, cell.cell_contents
        except ValueError:  # noqa: PERF203 (not assigned)
            continue
    if function.__defaults__ is not None:
        yield attribute, "__defaults__", function.__defaults__
    for name, default in (function.__kwdefaults__ or {}).items():
        yield _keyword, name, default
    yield from ((attribute, name, part) for name, part in vars(function).items())


def _referent(number: int) -> str:
    return f"<reference {number}>"


def _variable(name: str) -> str:
    return f"<variable {name}>"


def _keyword(name: str) -> str:
    return f".__kwdefaults__{index(name)}"


def own_attributes(value: object) -> Iterator[tuple[str, object]]:
    """Yield the attributes of an object and what is in its slots, without running its code."""
    for kind in type(value).__mro__:
        names = vars(kind)
        if "__slots__" in names:
            yield from _in_slots(value, names.items())
        there = names.get("__dict__")
        if isinstance(there, (GetSetDescriptorType, MemberDescriptorType)):
            yield from list(there.__get__(value, type(value)).items())


def _in_slots(value: object, members: Any) -> Iterator[tuple[str, object]]:
    for name, member in members:
        if isinstance(member, MemberDescriptorType):
            try:
                yield name, member.__get__(value, type(value))
            except AttributeError:  # not assigned
                continue


never_compiled(globals())
