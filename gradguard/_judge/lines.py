"""Lines of the user's, and which of them is to be named."""

import linecache
import sys
from types import CodeType, FrameType
from typing import Any, NamedTuple

from torch import nn

from gradguard._core.frames import LIBRARY, PLUMBING, USER, innermost_of_user, outwards, whose


class Line(NamedTuple):
    """A line of code."""

    filename: str
    lineno: int
    function: str

    @property
    def source(self) -> str | None:
        """Its text, stripped; None where it cannot be read."""
        return linecache.getline(self.filename, self.lineno).strip() or None


_lines: dict[tuple[int, int], tuple[CodeType, Line]] = {}
_methods: dict[int, tuple[CodeType, bool]] = {}  # by id: the hash of a code goes over all of it
_MOST_CODE = 10_000  # code may be made anew again and again


user_frame = innermost_of_user


def line_at(frame: FrameType) -> Line:
    """Return the line that a frame is at."""
    # Asked of a frame it takes as long as its function has lines.
    code = frame.f_code
    key = id(code), frame.f_lasti
    known = _lines.get(key)
    if known is None or known[0] is not code:
        if len(_lines) > _MOST_CODE:
            _lines.clear()
        line = Line(code.co_filename, frame.f_lineno, code.co_name)
        known = _lines[key] = code, line
    return known[1]


def here(frame: FrameType | None = None) -> Line:
    """Return the user's line, from `frame` (the caller) outwards."""
    first = frame or sys._getframe(1)  # noqa: SLF001 - inspect.currentframe may be None
    found = user_frame(first)
    if found is None:  # torch's own code is the program, say
        *_, found = outwards(first)
    return line_at(found)


class Callers:
    """Finds the user's line for many modules that few frames of torch's call, one after another.

    The lines of a running frame's callers stay as they are, so what was found for a container's
    forward holds for all that it calls. It keeps the last such frame, until `forget`.
    """

    def __init__(self) -> None:
        self._last: tuple[FrameType | None, Line | None] = None, None

    def line(self, frame: FrameType) -> Line:
        """Return the user's line, from a frame of torch's that calls a module."""
        at: FrameType | None = frame
        while at is not None and at.f_code.co_filename == _CALLS_MODULES:
            at = at.f_back
        last, line = self._last
        if line is not None and last is at:
            return line
        line = here(frame)
        if at is not None and whose(at) != USER:
            self._last = at, line
        return line

    def forget(self) -> None:
        """Let go of the frame: it keeps all its variables alive."""
        self._last = None, None


_CALLS_MODULES = nn.Module.__call__.__code__.co_filename


def is_method(frame: FrameType) -> bool:
    """Tell whether a frame runs a method of a module, or what is nested in one."""
    code = frame.f_code
    known = _methods.get(id(code))
    if known is None or known[0] is not code:
        if len(_methods) > _MOST_CODE:
            _methods.clear()
        known = _methods[id(code)] = (code, isinstance(_self(frame), nn.Module))
    return known[1]


def _self(frame: FrameType) -> Any:
    code = frame.f_code
    named = code.co_varnames[: code.co_argcount] + code.co_freevars
    return frame.f_locals.get("self") if "self" in named else None


def outside(frame: FrameType | None) -> tuple[FrameType, nn.Module | None]:
    """Return the caller of the outermost module's method, and that module.

    From the user's frame that called a module outwards over methods of modules; where a training
    library has called the method, it is the method's own line that the user can change.
    """
    found = user_frame(frame)
    if found is None:
        *_, last = outwards(frame)
        return last, None
    owner: nn.Module | None = None
    while is_method(found):
        up = found.f_back
        while up is not None and whose(up) == PLUMBING:
            up = up.f_back
        if up is None or whose(up) == LIBRARY:
            break
        value = _self(found)
        owner = value if isinstance(value, nn.Module) else owner
        found = up
    return found, owner


class Outside:
    """What `outside` returns, at once for a call made outside all modules: by far the most."""

    def __init__(self) -> None:
        # By id of the code: True for a function of the user's that is no method, False for what
        # torch or a library has between it and the call.
        self._callers: dict[int, tuple[CodeType, bool]] = {}

    def __call__(self, frame: FrameType | None) -> tuple[FrameType, nn.Module | None]:
        """Return the caller of the outermost module's method, and that module."""
        at = frame
        while at is not None:
            code = at.f_code
            known = self._callers.get(id(code))
            if known is None or known[0] is not code:
                break
            if known[1]:
                return at, None
            at = at.f_back
        found, owner = outside(frame)
        if found is user_frame(frame) and not is_method(found):
            self._keep(frame, found)
        return found, owner

    def _keep(self, frame: FrameType | None, found: FrameType) -> None:
        if len(self._callers) > _MOST_CODE:
            self._callers.clear()
        for each in outwards(frame):
            self._callers[id(each.f_code)] = each.f_code, each is found
            if each is found:
                return


def path_of(frame: FrameType | None) -> tuple[tuple[int, int], ...]:
    """Return where all of the user's frames are, to tell one way through the program again."""
    return tuple((id(each.f_code), each.f_lasti) for each in outwards(frame) if whose(each) == USER)


def codes_of(frame: FrameType | None) -> frozenset[CodeType]:
    """Return the code of all functions of the user's on the stack."""
    return frozenset(each.f_code for each in outwards(frame) if whose(each) == USER)
