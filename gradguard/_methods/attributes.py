"""Following a path of attributes to a module, and what to say where it leads to none."""

from collections.abc import Iterable
from difflib import get_close_matches
from reprlib import repr as shortened
from typing import Any, TypeAlias

from torch.nn import Module

from gradguard._core.torch_versions import never_compiled

Path: TypeAlias = tuple[str, ...]


def follow(holder: Any, path: Path, call: str) -> Any:
    """Return what a path of attributes leads to.

    Raises:
        TypeError: it has no such attribute: named, with close matches, for the ``call``.

    """
    found = holder
    for at, name in enumerate(path):
        holder = found
        try:
            found = getattr(holder, name)
        except AttributeError as error:
            raise TypeError(_no_attribute(call, holder, path, at)) from error
    return found


def _no_attribute(call: str, holder: Any, path: Path, at: int) -> str:
    known = dict.fromkeys([*module_attributes(holder), *dir(holder)])
    return (
        f"{call}: {_of(path, at, kind_of(holder))} has no attribute {path[at]!r}. "
        f"{did_you_mean(path[at], known)}{modules_of_holder(holder)}"
    )


def module_at(holder: Any, path: Path, call: str) -> Module:
    """Return the module that a path of attributes leads to.

    Raises:
        TypeError: there is none; the message begins with the ``call``, and says what is there.

    """
    found = follow(holder, path, call)
    if isinstance(found, Module):
        return found
    last = follow(holder, path[:-1], call)
    is_no_module = f"{shortened(found)}, of type {type(found).__name__}, not a torch.nn.Module"
    where = f"{_of(path, len(path) - 1, kind_of(last))}: its {path[-1]!r} is {is_no_module}"
    msg = f"{call}: {where}. {remedy(found)}"
    raise TypeError(msg)


def kind_of(holder: object) -> str:
    return f"the class {holder.__name__}" if isinstance(holder, type) else type(holder).__name__


def module_attributes(holder: object) -> list[str]:
    """Name the attributes of an object that are modules."""
    own: dict[str, Any] = {**getattr(holder, "__dict__", {})}
    if isinstance(holder, Module):
        own |= holder._modules  # noqa: SLF001 (named_children() leaves out the second of two names)
    return [name for name, value in own.items() if isinstance(value, Module)]


def modules_of_holder(holder: object) -> str:
    """List the good names."""
    names = module_attributes(holder)
    listing = ", ".join(map(repr, names[:10])) + (", …" if len(names) > 10 else "")  # noqa: PLR2004 (a line's worth)
    return f"Attributes of {kind_of(holder)} that are modules: {listing or 'none'}."


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Suggest the names that are close to a wrong one."""
    close = get_close_matches(name, known, 3)
    return f"Did you mean {' or '.join(map(repr, close))}? " if close else ""


def remedy(value: object) -> str:
    """Say what to do about what is no module, by what it is."""
    if value is None:
        return "Assign the module before this is called."
    if isinstance(value, (list, tuple, dict)):
        return "Hold several modules in a torch.nn.ModuleList or ModuleDict, or name each one."
    if isinstance(value, type):
        return "This is a class: assign an instance of it."
    return "Name the attribute that is the module."


def _of(path: Path, at: int, holder: str) -> str:
    return f"{holder} (at {'.'.join(path[:at])!r})" if at else holder


never_compiled(globals())
