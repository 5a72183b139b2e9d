"""What holds an object, as far as the garbage collector and attributes show it."""

import gc
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from torch import Tensor, nn

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
    for tensor in _with_graphs():
        for name in _names_of(tensor):
            named[name] = max(named.get(name, 0), 1) + (1 if "[" in name else 0)
            depth = _depth(tensor)
            named[name] += depth
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


def _names_of(tensor: Tensor) -> Iterator[str]:
    for holder in gc.get_referrers(tensor):
        if isinstance(holder, dict):
            name = next((key for key, value in holder.items() if value is tensor), None)
            yield from _names_of_dict(holder, name)
        elif isinstance(holder, (list, tuple)):
            for outer in gc.get_referrers(holder):
                if isinstance(outer, dict):
                    name = next((key for key, value in outer.items() if value is holder), None)
                    yield from (f"{each}[…]" for each in _names_of_dict(outer, name))


def _names_of_dict(holder: dict[Any, Any], name: object) -> Iterator[str]:
    if not isinstance(name, str):
        return
    main = sys.modules.get("__main__")
    if main is not None and vars(main) is holder:
        yield name
        return
    for owner in gc.get_referrers(holder):
        if isinstance(owner, ModuleType):
            yield f"{owner.__name__}.{name}"
        elif getattr(owner, "__dict__", None) is holder:
            yield f"{type(owner).__name__}.{name}"
