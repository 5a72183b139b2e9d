"""What ``evaluating`` says."""

from reprlib import repr as shortened

_ACCEPTED = "evaluating takes torch.nn.Module objects, one argument each: evaluating(encoder, head)"


def no_module() -> str:
    """Say what to pass, for ``evaluating()``."""
    return f"evaluating() was given no module to put in eval mode. {_ACCEPTED}."


def not_a_module(value: object, position: int) -> str:
    """Name the value that is no module, and what to pass instead of it."""
    found = f"argument {position} is {shortened(value)}, of type {type(value).__name__}"
    return f"evaluating(): {found}, which is not a module. {_ACCEPTED}. {_remedy(value)}"


def not_open(names: str) -> str:
    """Say that a scope was left that nobody is in."""
    return (
        f"evaluating({names}) was exited more often than it was entered; no flag was changed. "
        "Use it as 'with evaluating(...):' or as a decorator, which pair the two for you."
    )


def _remedy(value: object) -> str:
    if isinstance(value, type):
        return f"This is a class: pass an instance, evaluating({value.__name__}(...))."
    if isinstance(value, (list, tuple, set, frozenset)):
        return "Unpack the collection: evaluating(*modules)."
    if callable(value):
        return "To decorate a function, name its modules first: @evaluating(model)."
    return "If the object holds a module, pass that: evaluating(holder.model)."
