"""How a function or value is named in the errors of this folder."""

from reprlib import repr as shortened


def name_of(fn: object) -> str:
    """Return the name of a function; of another callable, that of its type."""
    return getattr(fn, "__qualname__", None) or f"{type(fn).__qualname__} object"


def of_type(value: object) -> str:
    """Return a value, shortened, with its type."""
    return f"{shortened(value)} of type {type(value).__name__}"
