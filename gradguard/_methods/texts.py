"""What ``inference_method`` and ``training_method`` say when they are used wrongly."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from reprlib import repr as shortened

MODES = ("inference", "no_grad")
DTYPES = ("torch.bfloat16", "torch.float16")


def bad_option(decorator: str, option: str, value: object, good: str) -> str:
    """Name an option's bad value and list the good ones."""
    given = f"{shortened(value)} of type {type(value).__name__}"
    return f"{decorator}({option}={shortened(value)}): {option} takes {good}, not {given}."


def bad_mode(value: object) -> str:
    """List the modes."""
    good = " or ".join(f'"{mode}"' for mode in MODES)
    close = get_close_matches(str(value), MODES, 1)
    meant = f' Did you mean "{close[0]}"?' if close else ""
    return bad_option("inference_method", "mode", value, good) + meant


def bad_autocast(value: object) -> str:
    """List the data types that torch.autocast computes in."""
    good = f"{', '.join(DTYPES)} or None (no autocast)"
    return bad_option("inference_method", "autocast", value, good)


def bad_hold(value: object) -> str:
    """Say that `hold` is a bool."""
    return bad_option("inference_method", "hold", value, "True or False")


def bad_module_option(decorator: str, value: object) -> str:
    """Say how a module is named."""
    good = 'the name of an attribute ("net"), a dotted path ("model.encoder") or a tuple of these'
    return bad_option(decorator, "module", value, good)


def cannot_decorate(decorator: str, value: object) -> str:
    """Say what to decorate instead of something that cannot be called."""
    return (
        f"{decorator} cannot decorate {shortened(value)} of type {type(value).__name__}, which is "
        f"not callable. Put @{decorator} above a method, and give its options by name: "
        f'@{decorator}(module="net").'
    )


def cannot_decorate_module(decorator: str, kind: str) -> str:
    """Say what to decorate instead of a whole module."""
    return (
        f"{decorator} decorates a method, not a module, and this is an instance of {kind}. "
        f"Decorate a method of {kind}, or one of the object that holds it, naming the attribute: "
        f'@{decorator}(module="net").'
    )


def no_instance(decorator: str, function: str) -> str:
    """Say that a class method has no module of its own."""
    return (
        f"{decorator} decorates {function}, a classmethod, whose first argument is the class and "
        f"not a module. If the class holds the module, name its attribute, "
        f'@{decorator}(module="net"); otherwise make {function} an ordinary method.'
    )


def no_argument(decorator: str, function: str) -> str:
    """Say that a call has no first positional argument."""
    return (
        f"{function}() was called without a positional argument, but {decorator} finds the module "
        f"through the first one, the method's self. Call it on the object, object.method(...)."
    )


def no_attribute(call: str, function: str, path: Sequence[str], at: int, holder: str) -> str:
    """Name the attribute that is missing, and on what."""
    return f"{call} on {function}: {_of(path, at, holder)} has no attribute {path[at]!r}."


def not_a_module(call: str, function: str, path: Sequence[str], holder: str, value: object) -> str:
    """Name the attribute that is no module, and say what to do by what it is."""
    found = f"{shortened(value)}, of type {type(value).__name__}, not a torch.nn.Module"
    where = f"{_of(path, len(path) - 1, holder)}: its {path[-1]!r} is {found}"
    return f"{call} on {function}: {where}. {_remedy(value)}"


def no_module(decorator: str, function: str, holder: str, held: Sequence[str]) -> str:
    """Say that an object that is no module must be told where its module is."""
    example = held[0] if held else "net"
    return (
        f"{decorator} on {function}: {holder} is not a torch.nn.Module, and no module is named. "
        f'Name the attribute that holds it: @{decorator}(module="{example}"). '
        f"{modules_held(holder, held)}"
    )


def modules_held(holder: str, held: Sequence[str]) -> str:
    """List the good names."""
    listing = ", ".join(map(repr, held[:10])) + (", …" if len(held) > 10 else "")  # noqa: PLR2004 (a line's worth)
    return f"Attributes of {holder} that are modules: {listing or 'none'}."


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Suggest the names that are close to a wrong one."""
    close = get_close_matches(name, known, 3)
    return f"Did you mean {' or '.join(map(repr, close))}? " if close else ""


def _of(path: Sequence[str], at: int, holder: str) -> str:
    return f"{holder} (at {'.'.join(path[:at])!r})" if at else holder


def _remedy(value: object) -> str:
    if value is None:
        return "Assign the module before this method is called."
    if isinstance(value, (list, tuple, dict)):
        return "Hold several modules in a torch.nn.ModuleList or ModuleDict, or name each one."
    if isinstance(value, type):
        return "This is a class: assign an instance of it."
    return "Name the attribute that is the module."
