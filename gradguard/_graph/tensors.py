"""The tensors of a nested structure, each with the way to it."""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, ValuesView
from collections.abc import Set as AbstractSet
from typing import Any

from torch import Tensor

from gradguard._core.text import one_line

Way = tuple[Any, ...]
"""The way to a tensor: (way to its container, how a step is written, key); () is the root."""


def tensors(tree: object) -> Iterator[tuple[Way, Tensor]]:
    """Yield the tensors of a structure with the way to each, in order, each container once.

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
        elif id(value) not in seen and (items := _items(value)):
            seen[id(value)] = value
            write, pairs = items
            stack.extend(((way, write, key), child) for key, child in reversed(list(pairs)))


def _items(value: object) -> tuple[Callable[[Any], str], Iterable[tuple[Any, object]]] | None:
    """Give what a container holds by key, and how the key is written; None for anything else."""
    if isinstance(value, Mapping):
        return _index, value.items()
    if isinstance(value, tuple) and (fields := getattr(value, "_fields", None)):
        return _attribute, zip(fields, value, strict=False)
    if isinstance(value, (list, tuple, deque)):
        return _index, enumerate(value)
    if isinstance(value, (AbstractSet, ValuesView)):
        return _item, enumerate(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = (field.name for field in dataclasses.fields(value))
        return _attribute, ((name, getattr(value, name, None)) for name in names)
    return None


def path(way: Way) -> str:
    """Write the way to a tensor as Python would reach it, such as ``["logits"][0]``."""
    steps: list[str] = []
    while way:
        way, write, key = way
        steps.append(write(key))
    return "".join(reversed(steps))


def _index(key: object) -> str:
    """Write a step of a path; a key whose repr fails is said to be one."""
    try:
        plain = type(key) is str and key.isprintable() and not {'"', "\\"} & {*key}
        shown = f'"{key}"' if plain else repr(key)
    except Exception as error:  # noqa: BLE001  # a message never raises by itself
        shown = f"<{type(key).__name__}: repr raises {type(error).__name__}>"
    return f"[{one_line(shown)}]"


def _attribute(name: str) -> str:
    return f".{name}"


def _item(number: int) -> str:
    """Write a step into what cannot be indexed, such as a set."""
    return f"<item {number}>"
