"""A callable in the place of a function, for what a function cannot do."""

from functools import partial, update_wrapper
from types import MethodType
from typing import Any

from typing_extensions import Self


class StandIn(partial[Any]):
    """Passes for `fn` everywhere: its name, signature and kind, as a method, and when copied.

    A function made by ``functools.wraps`` does not do. pickle takes every function by its name,
    without asking; and a generator or coroutine function runs nothing when it is called, so it
    cannot see its caller's mode. An object of our own class is no generator function to
    `inspect`; a partial is what it wraps: `inspect` and the frameworks look through it.
    """

    __wrapped__: Any
    __qualname__: str

    def __new__(cls, runs: Any, fn: Any) -> Self:
        made = super().__new__(cls, runs)
        update_wrapper(made, fn)
        return made

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        return self if instance is None else MethodType(self, instance)

    def __copy__(self) -> Self:
        return self  # as a function

    def __deepcopy__(self, memo: object) -> Self:
        return self
