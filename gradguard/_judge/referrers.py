"""What holds an object, as far as the garbage collector and attributes show it."""

import gc
import sys
from collections.abc import Collection, Iterator
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from gradguard._graph.attributes import own_attributes

_DEEPEST = 3
_MOST = 20_000  # objects looked at
_REGISTERED = ("_modules", "_parameters", "_buffers")


def attribute(root: nn.Module, module: nn.Module) -> str | None:
    """Name the attribute of `root`, or of what is in it, that holds a module unregistered."""
    for each in root.modules():
        for name, value in vars(each).items():
            if name not in _REGISTERED and _holds(value, module, _DEEPEST):
                return f"{type(each).__name__}.{name}"
    return None


def _holds(value: object, module: object, depth: int) -> bool:
    if value is module:
        return True
    if depth and isinstance(value, dict):
        return any(_holds(each, module, depth - 1) for each in list(value.values()))
    if depth and isinstance(value, (list, tuple)):
        return any(_holds(each, module, depth - 1) for each in value)
    return False


def of_graphs() -> str | None:
    """Name what holds the tensor with the longest graph, such as ``AverageMeter.sum``."""
    named: dict[str, int] = {}
    kept = list(_with_graphs())
    depths = {id(tensor): _depth(tensor) for tensor in kept}
    for key, name in _names_of(kept):
        several = 1 if "[" in name else 0
        named[name] = max(named.get(name, 0), 1) + several + depths[key]
    return max(named, key=lambda name: named[name]) if named else None


def _with_graphs() -> Iterator[Tensor]:
    # By type: isinstance would ask lazy proxies for their __class__, and so wake them.
    found = 0
    for each in gc.get_objects():
        if issubclass(type(each), Tensor) and each.grad_fn is not None:
            yield each
            found += 1
            if found >= 1000:  # noqa: PLR2004 (enough to see a pattern)
                return


def _depth(tensor: Tensor) -> int:
    """Count the nodes that a tensor keeps alive, up to some thousand."""
    seen = {tensor.grad_fn}
    stack = [tensor.grad_fn]
    while stack and len(seen) < 2000:  # noqa: PLR2004 (longer is long enough)
        node = stack.pop()
        for child, _ in node.next_functions if node is not None else ():
            if child is not None and child not in seen:
                seen.add(child)
                stack.append(child)
    return len(seen)


def _names_of(kept: list[Tensor]) -> Iterator[tuple[int, str]]:
    """Yield names of what holds these tensors, each with the tensor's id.

    `gc.get_referrers` looks at all objects of the process. So it is asked once for all tensors,
    once for all lists of them, and once for whose attributes those are.
    """
    holders = [each for each in gc.get_referrers(*kept) if each is not kept] if kept else []
    rows = [each for each in holders if isinstance(each, (list, tuple))]
    around = gc.get_referrers(*rows) if rows else []
    ids = set(map(id, kept))
    inside = {id(row): [id(each) for each in row if id(each) in ids] for row in rows}
    owners = _owners([each for each in (*holders, *around) if isinstance(each, dict)])
    for holder in holders:
        yield from _held(holder, ids, owners)
    for holder in around:
        for at, full in _held(holder, inside.keys(), owners):
            yield from ((key, f"{full}[…]") for key in inside[at])


def _held(
    holder: Any, ids: Collection[int], owners: dict[int, list[object]]
) -> Iterator[tuple[int, str]]:
    """Yield the id and the full name of each of some objects that a dict or an object holds.

    From Python 3.11 on an object may hold its attributes without a dict.
    """
    if isinstance(holder, dict):
        for at, name in _keys(holder, ids).items():
            yield from ((at, full) for full in _full_names(holder, name, owners))
    elif not isinstance(holder, (list, tuple)):
        kind = type(holder).__name__
        found = own_attributes(holder)
        yield from ((id(part), f"{kind}.{name}") for name, part in found if id(part) in ids)


def _keys(holder: dict[Any, Any], ids: Collection[int]) -> dict[int, Any]:
    """Return by which key a dict holds each of some objects."""
    return {id(value): key for key, value in reversed(holder.items()) if id(value) in ids}


def _owners(dicts: list[dict[Any, Any]]) -> dict[int, list[object]]:
    """Return whose attributes each dict holds."""
    owners: dict[int, list[object]] = {id(each): [] for each in dicts}
    for owner in gc.get_referrers(*dicts) if dicts else ():
        attributes = getattr(owner, "__dict__", None)
        if id(attributes) in owners:
            owners[id(attributes)].append(owner)
    return owners


def _full_names(
    holder: dict[Any, Any], name: object, owners: dict[int, list[object]]
) -> Iterator[str]:
    if not isinstance(name, str):
        return
    main = sys.modules.get("__main__")
    if main is not None and vars(main) is holder:
        yield name
        return
    for owner in owners[id(holder)]:
        kind = owner.__name__ if isinstance(owner, ModuleType) else type(owner).__name__
        yield f"{kind}.{name}"
