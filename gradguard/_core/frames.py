"""Frames: whose code they run, and which one is the user's."""

import os
import re
import sys
import sysconfig
from collections.abc import Collection, Iterator
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import NamedTuple

# Modules that belong to torch without lying in its folder (torch.fx generates some).
_TORCH = ("torch", "gradguard")
_SITE = re.compile(r"[\\/](?:site|dist)-packages[\\/]([^\\/]+?)(?:\.py)?(?=[\\/]|$)")
_STANDARD = f"{Path(os.__file__).parent}{os.sep}"

USER, LIBRARY, PLUMBING = range(3)
_MOST_CODE = 10_000  # code may be made anew again and again


class Line(NamedTuple):
    """A line that is running.

    Attributes:
        filename: its file, as Python names it (`place` writes it for a reader).
        lineno: counted from 1.
        function: the name of the function it is in, ``"<module>"`` outside any.
        library: the line of a training library that this one has called and that is running now.

    """

    filename: str
    lineno: int
    function: str
    library: "Line | None" = None


def user_frame(frame: FrameType | None = None) -> FrameType:
    """Return the first frame, from `frame` (the caller) outwards, that is the user's.

    Passed over are the frames of torch, gradguard, the standard library, and of whatever else is
    installed (Lightning, transformers, timm …), unless it is the program itself. Where there is no
    other, it is the first that is installed; and where torch's own code is the program, the
    outermost frame.
    """
    user, library, outermost = frames_of(frame or sys._getframe(1))  # noqa: SLF001 - see user_line
    return user or library or outermost


def user_line(frame: FrameType | None = None) -> Line:
    """Return the line that `user_frame` is at, with that of the library in between."""
    # inspect.currentframe() may be None.
    user, library, outermost = frames_of(frame or sys._getframe(1))  # noqa: SLF001
    if user is None or library is None:
        return _line(user or library or outermost)
    return _line(user)._replace(library=_line(library))


def frames_of(frame: FrameType) -> tuple[FrameType | None, FrameType | None, FrameType]:
    """Return the first frame of the user's, the first of a library within it, and the last seen."""
    library, last = None, frame
    for last in outwards(frame):
        owner = whose(last)
        if owner == USER:
            return last, library, last
        if owner == LIBRARY and library is None:
            library = last
    return None, library, last


def _line(frame: FrameType) -> Line:
    return Line(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)


def outwards(frame: FrameType | None) -> Iterator[FrameType]:
    """Yield the frame and those that called it."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def whose(frame: FrameType) -> int:
    """Return whose code a frame runs: `USER`, `LIBRARY` or `PLUMBING`."""
    code = frame.f_code
    codes = _known_now().codes
    known = codes.get(id(code))
    if known is None or known[0] is not code:
        if len(codes) > _MOST_CODE:
            codes.clear()
        known = codes[id(code)] = code, _whose(module_of(frame), code.co_filename)
    return known[1]


def innermost_of_user(frame: FrameType | None) -> FrameType | None:
    """Return the first frame from `frame` outwards that is the user's, None if there is none."""
    codes = _known_now().codes  # once: as `whose` for each frame it takes three times as long
    while frame is not None:
        known = codes.get(id(frame.f_code))
        ours = known is not None and known[0] is frame.f_code
        if (known[1] if ours and known is not None else whose(frame)) == USER:
            return frame
        frame = frame.f_back
    return None


def is_library(filename: str) -> bool:
    """Tell whether a file is of something installed that is not the program itself."""
    return _whose("", filename) == LIBRARY


def is_users(filename: str) -> bool:
    """Tell whether a file is the user's: not torch's, gradguard's, Python's or installed."""
    return _whose("", filename) == USER


class _Known:
    """Whose the code of each module and file is: looking at a file's name takes 16 µs."""

    def __init__(self, program: ModuleType | None) -> None:
        self.program = program
        self.packages = _packages_of(program)
        self.whose: dict[tuple[str, str], int] = {}
        # The same by id of code: its hash goes over all of it.
        self.codes: dict[int, tuple[CodeType, int]] = {}


_libraries: tuple[str, ...] = ()
_known: _Known | None = None


def set_libraries(names: Collection[str]) -> None:
    """Count these packages as libraries, wherever they lie."""
    global _libraries, _known
    _libraries, _known = tuple(names), None


def _known_now() -> _Known:
    global _known  # noqa: PLW0603 (as above)
    known = _known
    program = sys.modules.get("__main__")
    if known is None or known.program is not program:
        known = _known = _Known(program)
    return known


def _whose(module: str, filename: str) -> int:
    known = _known_now()
    whose = known.whose.get((module, filename))
    if whose is None:
        whose = known.whose[module, filename] = _of(module, filename, known.packages)
    return whose


def _of(module: str, filename: str, program: Collection[str]) -> int:
    if module.startswith("gradguard."):
        return PLUMBING if is_ours(module) else USER
    # By file as well: a module that is run as the program is called `__main__`, and what torch.fx
    # generates belongs to no module.
    if _in_package(module, _TORCH) or filename.startswith(("<eval_with_key>", *_directories())):
        return PLUMBING
    if _in_package(module, _libraries):
        return LIBRARY
    package = _installed(filename)
    if package is not None:
        return USER if package in program else LIBRARY
    standard = filename.startswith(("<frozen ", _STANDARD))
    return PLUMBING if standard and module != "__main__" else USER


def _in_package(module: str, packages: Collection[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in packages)


def _installed(filename: str) -> str | None:
    """Return the package or module that an installed file belongs to."""
    found = _SITE.findall(filename)
    return found[-1] if found else None


def _packages_of(program: ModuleType | None) -> frozenset[str]:
    """Return the installed packages that are the program itself.

    That of ``python -m package``, or the one that an installed console script takes its function
    from.
    """
    file = getattr(program, "__file__", None)
    if type(file) is not str:
        return frozenset()
    package = _installed(file)
    if package is not None:
        return frozenset((package,))
    if Path(file).absolute().parent not in _folders_of_console_scripts():
        return frozenset()
    modules = (getattr(value, "__module__", None) for value in list(vars(program).values()))
    return frozenset(name.partition(".")[0] for name in modules if type(name) is str)


def _folders_of_console_scripts() -> set[Path]:
    schemes = sysconfig.get_default_scheme(), sysconfig.get_preferred_scheme("user")
    return {Path(sysconfig.get_path("scripts", scheme)) for scheme in schemes}


def _directories() -> Iterator[str]:
    for module in _TORCH:
        file = getattr(sys.modules.get(module), "__file__", None)
        if file:
            yield f"{Path(file).parent}{os.sep}"


def is_ours(module: object) -> bool:
    """Tell whether a module is part of gradguard; its demo stands for a user's script."""
    if type(module) is not str or module.startswith("gradguard._demo"):
        return False
    return module.startswith("gradguard.")


def module_of(frame: FrameType) -> str:
    """Return the name of the module the frame's code belongs to, "" if it has none."""
    name = frame.f_globals.get("__name__")
    return name if type(name) is str else ""
