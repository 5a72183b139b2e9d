"""What a frame of gradguard's decorators calls, and under which guard.

A frame does not lead to the function that it runs, so the wrappers are known by their code objects,
and what they call by the names of their variables: those are read here and nowhere else.
"""

from types import CodeType, FrameType, FunctionType
from typing import Any, NamedTuple

from gradguard._core import decorating, fast_wrappers

_MAKERS: tuple[Any, ...] = (
    fast_wrappers.under_no_grad,
    fast_wrappers.under_inference,
    decorating._plain,  # noqa: SLF001 (the same folder: they are read, not called)
    decorating._generator,  # noqa: SLF001
    decorating._coroutine,  # noqa: SLF001
    decorating._async_generator,  # noqa: SLF001
)


class DecoratedCall(NamedTuple):
    """One call of a decorated function.

    Attributes:
        guard: what the call runs under.
        function: what was decorated; where a plain function has handed back a generator, coroutine
            or async generator to be run under the guard, that.
        link: the call's link on the thread's chain of open guards, where the wrapper has it.

    """

    guard: Any
    function: Any
    link: Any


def decorated_call(frame: FrameType) -> DecoratedCall | None:
    """Return what the frame of a wrapper calls; None for any other frame."""
    if frame.f_code not in _WRAPPERS:
        return None
    names = frame.f_locals
    function = names.get("fn")
    if type(function) is FunctionType and function.__code__ is _HANDED_BACK:
        function = (function.__closure__ or ())[0].cell_contents
    return DecoratedCall(names.get("guard"), function, names.get("link"))


def is_decorated_call(frame: FrameType) -> bool:
    """Tell whether the frame is that of a wrapper: cheaper than reading what it calls."""
    return frame.f_code in _WRAPPERS


def _code(function: Any, name: str) -> CodeType:
    """Return the code of the function called `name` that is defined in `function`."""
    constants: tuple[object, ...] = function.__code__.co_consts
    return next(c for c in constants if isinstance(c, CodeType) and c.co_name == name)


_WRAPPERS = frozenset(_code(maker, "wrapper") for maker in _MAKERS)
_HANDED_BACK = next(
    constant
    for constant in _code(decorating._still_to_run, "under").co_consts  # noqa: SLF001
    if isinstance(constant, CodeType) and constant.co_name == "<lambda>" and constant.co_freevars
)
