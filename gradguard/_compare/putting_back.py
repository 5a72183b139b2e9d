"""Snapshots of what a call may change in modules, gradients and random generators.

Each takes the state now and returns a function that puts it back, any number of times.
"""

import random
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import Module

from gradguard._compare.accelerator import accelerator
from gradguard._core.guards import inference_mode
from gradguard._eval.flags_of_tree import Modules, call_overrides, overrides_due, tree, write_flags

Restore = Callable[[], object]


def snapshot(objects: Iterable[object]) -> Restore:
    """Take the state of these objects, and of the global random generators."""
    objects = list(objects)
    roots = [value for value in objects if isinstance(value, Module)]
    modules = tree(roots)
    tensors = [value for value in objects if isinstance(value, Tensor)]
    flags = _snapshot_flags(modules)
    attributes = [
        *map(_snapshot_registered, modules.values()),
        *map(_snapshot_attributes, modules.values()),
    ]
    parts = [
        *(_snapshot_tensor(*slot) for slot in _slots(modules.values(), tensors)),
        *_snapshot_random(value for value in objects if isinstance(value, Generator)),
    ]

    def restore() -> None:
        for attribute in attributes:
            attribute()
        flags()
        # Inference mode, because outside it an inference tensor may not be written to.
        with inference_mode():
            for part in parts:
                part()

    return restore


def _snapshot_flags(modules: Modules) -> Restore:
    flags = {key: module.training for key, module in modules.items()}

    def restore() -> None:
        call_overrides(overrides_due(modules, flags, ()), flags)
        write_flags(modules, flags)

    return restore


def _snapshot_registered(module: Module) -> Restore:
    """Take which parameters, buffers and submodules there are: replaced, set to None, deleted."""
    names = ("_parameters", "_buffers", "_modules")
    # Those of a ScriptModule are views of what C++ holds, and cannot be written.
    own = [vars(module)[name] for name in names if type(vars(module).get(name)) is dict]
    before = [dict(registered) for registered in own]

    def restore() -> None:
        for registered, was in zip(own, before, strict=True):
            if not _are_the_same(registered, was):
                registered.clear()
                registered.update(was)

    return restore


def _are_the_same(one: Mapping[str, object], other: Mapping[str, object]) -> bool:
    return [*one] == [*other] and all(one[name] is other[name] for name in one)


def _snapshot_attributes(module: Module) -> Restore:
    """Take which tensor a plain attribute is: a cache, a hidden state that forward stores.

    And what else forward sets to None or deletes. Other changes stay: a counter, say.
    """
    before = dict(vars(module))

    def restore() -> None:
        now = vars(module)
        for name in [name for name, value in now.items() if isinstance(value, Tensor)]:
            if name not in before:
                delattr(module, name)
        for name, value in before.items():
            if name not in now or (now[name] is not value and _counts(value, now[name])):
                setattr(module, name, value)

    return restore


def _counts(before: object, now: object) -> bool:
    return now is None or isinstance(before, Tensor) or isinstance(now, Tensor)


def _slots(
    modules: Collection[Module], tensors: list[Tensor]
) -> Iterator[tuple[object, str, Tensor | None]]:
    for module in modules:
        for name, buffer in module.named_buffers(recurse=False):
            yield module, name, buffer
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and not value.requires_grad:
                yield module, name, value
    parameters = [p for module in modules for p in module.parameters(recurse=False)]
    for leaf in dict.fromkeys((*parameters, *tensors)):
        if leaf.is_leaf:
            yield leaf, "grad", leaf.grad


def _snapshot_tensor(holder: object, name: str, value: Tensor | None) -> Restore:
    """Take both which tensor it is and its values.

    Values are written back only where they differ: a write that changes nothing would still make
    backward refuse the graphs that the caller has recorded with this tensor.
    """
    copy = None if value is None else value.detach().clone()

    def restore() -> None:
        if getattr(holder, name) is not value:
            setattr(holder, name, value)
        if value is not None and copy is not None and not _same(value, copy):
            if value.shape != copy.shape:
                value.resize_(copy.shape)
            value.copy_(copy)

    return restore


def _same(value: Tensor, copy: Tensor) -> bool:
    # Tensors on meta have no values; torch.equal knows dense tensors only.
    return value.is_meta or (value.layout is torch.strided and torch.equal(value, copy))


def _snapshot_random(generators: Iterable[Generator]) -> Iterator[Restore]:
    for generator in (torch.default_generator, *generators):
        yield _later(generator.set_state, generator.get_state())
    device = accelerator()
    if hasattr(device, "get_rng_state_all"):
        yield _later(device.set_rng_state_all, device.get_rng_state_all())
    elif device is not None:  # of one device only: mps
        yield _later(device.set_rng_state, device.get_rng_state())
    yield _later(random.setstate, random.getstate())
    if numpy_random := sys.modules.get("numpy.random"):
        yield _later(numpy_random.set_state, numpy_random.get_state())


def _later(put_back: Callable[[Any], object], state: Any) -> Restore:
    return lambda: put_back(state)
