"""Noting what a call may change in modules, gradients and random generators, to put it back.

Each ``keep…`` notes the state now and returns a function that puts it back, any number of times.
"""

import random
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import Module

from gradguard._compare.accelerator import accelerator
from gradguard._core.guards import inference_mode
from gradguard._eval.training_flags import Modules, call_overrides, overrides_due, tree, write_flags

Restore = Callable[[], object]


def keep(held: Iterable[object]) -> Restore:
    """Keep the state of everything held, and of the global random generators."""
    held = list(held)
    roots = [value for value in held if isinstance(value, Module)]
    modules = tree(roots)
    tensors = [value for value in held if isinstance(value, Tensor)]
    flags = _keep_flags(modules)
    parts = [
        *map(_keep_attributes, modules.values()),
        *(_keep_tensor(*slot) for slot in _slots(modules.values(), tensors)),
        *_keep_random(value for value in held if isinstance(value, Generator)),
    ]

    def restore() -> None:
        flags()
        # Inference mode, because outside it an inference tensor may not be written to.
        with inference_mode():
            for part in parts:
                part()

    return restore


def _keep_flags(modules: Modules) -> Restore:
    flags = {key: module.training for key, module in modules.items()}

    def restore() -> None:
        call_overrides(overrides_due(modules, flags, ()), flags)
        write_flags(modules, flags)

    return restore


def _keep_attributes(module: Module) -> Restore:
    """Keep which tensor a plain attribute is: a cache, a hidden state that forward stores."""
    before = dict(vars(module))

    def restore() -> None:
        for name, value in list(vars(module).items()):
            if isinstance(value, Tensor) and name not in before:
                delattr(module, name)
            elif isinstance(value, Tensor) and value is not before[name]:
                setattr(module, name, before[name])

    return restore


def _slots(
    modules: Collection[Module], tensors: list[Tensor]
) -> Iterator[tuple[object, str, Tensor | None]]:
    for module in modules:
        for name, buffer in module.named_buffers(recurse=False):
            yield module, name, buffer
    parameters = [p for module in modules for p in module.parameters(recurse=False)]
    for leaf in dict.fromkeys((*parameters, *tensors)):
        if leaf.is_leaf:
            yield leaf, "grad", leaf.grad


def _keep_tensor(holder: object, name: str, value: Tensor | None) -> Restore:
    """Keep both which tensor it is and its values.

    Values are written back only where they differ: a write that changes nothing would still make
    backward refuse the graphs that the caller has recorded with this tensor.
    """
    copy = None if value is None else value.detach().clone()

    def restore() -> None:
        if getattr(holder, name) is not value:
            setattr(holder, name, value)
        if value is not None and copy is not None and not _same(value, copy):
            value.copy_(copy)

    return restore


def _same(value: Tensor, copy: Tensor) -> bool:
    # Tensors on meta have no values; torch.equal knows dense tensors only.
    return value.is_meta or (value.layout is torch.strided and torch.equal(value, copy))


def _keep_random(generators: Iterable[Generator]) -> Iterator[Restore]:
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
