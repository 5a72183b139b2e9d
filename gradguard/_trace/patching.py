"""The one engine that replaces attributes of torch and gradguard, and what it replaces.

`trace`, ``gradguard run`` and the pytest plugin each put layers over the same attributes: a test
may trace under the plugin, a program under ``run``, and none of them need end in the order in which
they began. So each attribute keeps its layers, and without one of them it is built anew from what
was there first. Where another tool has replaced the attribute since, perhaps for good, it is left
alone: a layer must do nothing but call the original once its owner is not active.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

from gradguard._core import compiling
from gradguard._core.frames import is_ours
from gradguard._core.guard_types import Guard
from gradguard._core.inference_guards import InferenceMode
from gradguard._core.set_grad_guard import SetGrad
from gradguard._core.suspended_bodies import Body
from gradguard._core.torch_versions import INFERENCE_TOKEN, TORCH_GUARDS, enter_inference
from gradguard._trace.open_switches import Role

Make: TypeAlias = Callable[[Any], Any]
"""Makes the replacement of what it is given; called again when layers below are removed."""

_NOTHING = object()
_LEFT_OUT = (compiling.__name__, "gradguard._trace.")  # these have the originals and replacements


class Patches:
    """What one tool replaces, until `remove`."""

    def __init__(self) -> None:
        self._layers: list[tuple[_Place, _Layer]] = []

    def replace(self, owner: Any, name: str, make: Make) -> None:
        """Put a layer over an attribute of a class or module; one that is inherited, over that."""
        with _lock:
            self._add(_attribute(owner, name), make)

    def replace_bound(self, value: Any, make: Make) -> None:
        """Put a layer over a value wherever modules of gradguard have bound it by name.

        Those imported later, too, as they take it from one of these. What Dynamo follows is left
        out: it would compile anew.
        """
        with _lock:
            self._add(_bound.setdefault(id(value), _Bound(value)), make)

    @property
    def active(self) -> bool:
        """Whether anything is replaced."""
        return bool(self._layers)

    def remove(self) -> None:
        """Take all layers off again, the last first."""
        with _lock:
            while self._layers:
                place, layer = self._layers.pop()
                place.layers.remove(layer)
                place.build()

    def _add(self, place: "_Place", make: Make) -> None:
        layer = _Layer(make)
        place.layers.append(layer)
        self._layers.append((place, layer))
        place.build()


class _Layer:
    """One tool's replacement, made anew only where what lies below it is another."""

    def __init__(self, make: Make) -> None:
        self._make = make
        self._below: Any = _NOTHING
        self._made: Any = None

    def over(self, below: Any) -> Any:
        if below is not self._below:
            self._below, self._made = below, self._make(below)
        return self._made


class _Place:
    """What is replaced, and the layers over it, innermost first."""

    def __init__(self, original: Any) -> None:
        self.original = self.current = original
        self.layers: list[_Layer] = []

    def build(self) -> None:
        value = self.original
        for layer in self.layers:
            value = layer.over(value)
        if self.put(value):
            self.current = value

    def put(self, value: Any) -> bool:
        """Put `value` in the place of the current one; tell whether that was possible."""
        raise NotImplementedError


class _Attribute(_Place):
    def __init__(self, owner: Any, name: str) -> None:
        super().__init__(vars(owner).get(name, _NOTHING))
        self.owner = owner
        self.name = name
        self.inherited = self.original is _NOTHING
        if self.inherited:
            self.original = getattr(owner, name)

    def put(self, value: Any) -> bool:
        if not self.is_in_place():
            return False
        if value is self.original and self.inherited:
            if self.name in vars(self.owner):
                delattr(self.owner, self.name)
        else:
            setattr(self.owner, self.name, value)
        return True

    def is_in_place(self) -> bool:
        """Tell whether nobody else has replaced it since."""
        there = vars(self.owner).get(self.name, _NOTHING)
        return there is self.current or (there is _NOTHING and self.current is self.original)


class _Bound(_Place):
    def put(self, value: Any) -> bool:
        for name, module in list(sys.modules.items()):
            if is_ours(name) and not name.startswith(_LEFT_OUT):
                for key in [key for key, there in vars(module).items() if there is self.current]:
                    setattr(module, key, value)
        return True


_attributes: dict[tuple[int, str], _Attribute] = {}
_bound: dict[int, _Bound] = {}  # by id: of values that this module or a place keeps alive


def _attribute(owner: Any, name: str) -> _Attribute:
    place = _attributes.get((id(owner), name))
    if place is None or not place.is_in_place() or not place.layers:
        place = _attributes[id(owner), name] = _Attribute(owner, name)
    return place


def replaced() -> list[str]:
    """Name all that is replaced now, such as ``torch.nn.modules.module.Module.train``."""
    with _lock:
        places = list(_attributes.values())
    return [f"{_name(place.owner)}.{place.name}" for place in places if place.layers]


def _name(owner: Any) -> str:
    is_class = isinstance(owner, type)
    return f"{owner.__module__}.{owner.__qualname__}" if is_class else str(owner.__name__)


_lock = threading.RLock()


def _unlock() -> None:
    """Make the lock anew in a child that was forked while another thread held it."""
    global _lock  # noqa: PLW0603 (a lock cannot be reset)
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_unlock)


class Method(NamedTuple):
    """A method that switches the mode: what it is to the object that it is called on."""

    owner: type
    name: str
    role: Role


def token_methods() -> Iterator[Method]:
    """Yield the switches of inference mode in C.

    The class is not replaced: its methods are, so tokens made before, and by who bound the class
    at import, are seen.
    """
    constructing = enter_inference is INFERENCE_TOKEN
    yield Method(INFERENCE_TOKEN, "__init__" if constructing else "__enter__", Role.ENTRY)
    yield Method(INFERENCE_TOKEN, "__exit__", Role.EXIT)


def own_methods() -> Iterator[Method]:
    """Yield the methods of gradguard that make one switch of several settings."""
    yield Method(Body, "resume", Role.ENTRY)
    yield Method(Body, "suspend", Role.EXIT)
    yield Method(Body, "finish", Role.EXIT)
    # By name, too: its module is loaded with the first guard, perhaps after the patches.
    classes: list[type] = [Guard, InferenceMode]
    for each in classes:
        below: list[type] = each.__subclasses__()
        classes += [one for one in below if one not in classes]
        yield from _entry_and_exit(each)


def torch_methods() -> Iterator[Method]:
    """Yield the entries and exits of torch's guards, whatever ``torch.no_grad`` is bound to now."""
    for each in TORCH_GUARDS.values():
        yield from _entry_and_exit(each)


def set_grad_methods() -> Iterator[Method]:
    """Yield what `set_grad_enabled` does besides: it switches when it is made.

    As a decorator it takes back what making it has switched.
    """
    for each in (TORCH_GUARDS["set_grad_enabled"], SetGrad):
        yield from _defined(each, {"__init__": Role.CALL, "__call__": Role.EXIT})


def _entry_and_exit(owner: type) -> Iterator[Method]:
    return _defined(owner, {"__enter__": Role.ENTRY, "__exit__": Role.EXIT})


def _defined(owner: type, roles: dict[str, Role]) -> Iterator[Method]:
    return (Method(owner, name, role) for name, role in roles.items() if name in vars(owner))
