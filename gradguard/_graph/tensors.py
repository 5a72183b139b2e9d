"""The tensors of a nested structure, each with the way to it."""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, ValuesView
from collections.abc import Set as AbstractSet
from typing import Any, TypeAlias

from torch import Tensor

from gradguard._core.text import one_line
from gradguard._core.torch_versions import never_compiled

Way = tuple[Any, ...]
"""The way to a tensor: (way to its container, how a step is written, key); () is the root."""

Parts: TypeAlias = Iterable[tuple[Callable[[Any], str], Any, object]]
"""What a container holds: how the step to each part is written, its key, and the part."""


def tensors(tree: object) -> Iterator[tuple[Way, Tensor]]:
    """Yield the tensors of a structure with the way to each, in order, each container once."""
    for way, value in walk(tree, lambda _, value: items(value)):
        if isinstance(value, Tensor):
            yield way, value


def walk(
    tree: object, parts: Callable[[Way, object], Parts | None]
) -> Iterator[tuple[Way, object]]:
    """Yield the tensors of a structure, and what has no parts, with the way to each.

    Not `torch.utils._pytree`: it is private, recursive, and does not end on a cycle.
    """
    # Containers are kept, not their ids alone: a mapping may make its values as they are asked
    # for, and the id of one that was dropped is given to the next.
    seen: dict[int, object] = {}
    stack: list[tuple[Way, object]] = [((), tree)]
    while stack:
        way, value = stack.pop()
        if isinstance(value, Tensor):
            yield way, value
        elif id(value) not in seen:
            found = parts(way, value)
            if found is None:
                yield way, value
            else:
                seen[id(value)] = value
                steps = [((way, write, key), part) for write, key, part in found]
                stack.extend(reversed(steps))


def items(value: object) -> Parts | None:
    """Give what a data structure holds by key; None for anything else."""
    if isinstance(value, Mapping):
        return ((index, key, part) for key, part in value.items())
    if isinstance(value, tuple) and (fields := getattr(value, "_fields", None)):
        return ((attribute, name, part) for name, part in zip(fields, value, strict=False))
    if isinstance(value, (list, tuple, deque)):
        return ((index, number, part) for number, part in enumerate(value))
    if isinstance(value, (AbstractSet, ValuesView)):
        return ((item, number, part) for number, part in enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return ((attribute, name, getattr(value, name, None)) for name in names)
    return None


def path(way: Way) -> str:
    """Write the way to a tensor as Python would reach it, such as ``["logits"][0]``."""
    steps: list[str] = []
    while way:
        way, write, key = way
        steps.append(write(key))
    return "".join(reversed(steps))


def index(key: object) -> str:
    """Write a step of a path; a key whose repr fails is said to be one."""
    try:
        plain = type(key) is str and key.isprintable() and not {'"', "\\"} & {*key}
        shown = f'"{key}"' if plain else repr(key)
    except Exception as error:  # noqa: BLE001  # a message never raises by itself
        shown = f"<{type(key).__name__}: repr raises {type(error).__name__}>"
    return f"[{one_line(shown)}]"


def attribute(name: str) -> str:
    """Write a step to an attribute."""
    return f".{name}"


def item(number: int) -> str:
    """Write a step into what cannot be indexed, such as a set."""
    return f"<item {number}>"


never_compiled(globals())
