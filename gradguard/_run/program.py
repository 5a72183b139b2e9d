"""What is run: a script, a directory or archive with a ``__main__``, or a module, as Python does.

Not `runpy`: `run_path` and `run_module` put another ``__main__`` back when the code has ended, so
that what it defined cannot be pickled by its threads and exit handlers, and they keep frames of
their own in tracebacks.
"""

import builtins
import importlib.util
import os
import sys
from importlib.machinery import (
    BYTECODE_SUFFIXES,
    ModuleSpec,
    PathFinder,
    SourceFileLoader,
    SourcelessFileLoader,
)
from pathlib import Path
from types import CodeType, ModuleType
from typing import NamedTuple


class UnrunnableError(Exception):
    """There is nothing to run; the text says why. Never leaves the front."""


class Program(NamedTuple):
    """Code to run as ``__main__``, the module it runs in, and what its path begins with."""

    code: CodeType
    module: ModuleType
    first_argument: str
    import_from: str | None  # None: as it is


def script(path: str) -> Program:
    """Load what ``python PATH`` runs.

    Raises:
        UnrunnableError: there is no such file, or it cannot be read.
        SyntaxError: as Python raises it.

    """
    if not Path(path).exists():
        msg = f"there is no script {path!r}: give the path of a Python file, or -m MODULE."
        raise UnrunnableError(msg)
    importer = _directory_or_archive(path)
    if importer is not None:
        return _from_spec(importer, path, str(Path(path).absolute()))
    full = str(Path(path).absolute())
    loader = _loader(full)
    try:
        code = loader.get_code("__main__") if _is_bytecode(full) else _compiled(loader, full)
    except OSError as error:
        raise UnrunnableError(_unreadable(path, _reason(error))) from None
    except ImportError as error:  # bytecode of another Python
        raise UnrunnableError(_unreadable(path, str(error))) from None
    module = _main(None)
    module.__dict__.update(__file__=full, __loader__=loader, __cached__=None)
    return Program(_given(code, path), module, path, str(Path(full).resolve().parent))


def module(name: str) -> Program:
    """Load what ``python -m NAME`` runs, importing the packages that it is in.

    Raises:
        UnrunnableError: there is no such module, or it is a package without a ``__main__``.

    """
    spec = _find(name)
    if spec is not None and spec.submodule_search_locations is not None:
        name = f"{name}.__main__"
        spec = _find(name)
    if spec is None or spec.loader is None:
        msg = (
            f"there is no module {name!r}: check its name, and that the path to it is on sys.path."
        )
        raise UnrunnableError(msg)
    return _from_spec(spec, name, None)


def enter(program: Program, arguments: list[str]) -> None:
    """Make the process what it would be had Python been started with the program."""
    sys.argv[:] = [program.first_argument, *arguments]
    if program.import_from is not None and not getattr(sys.flags, "safe_path", False):
        sys.path[0] = program.import_from
    sys.modules["__main__"] = program.module


def _find(name: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # a package was found, and imports something that is missing
        return None
    except ValueError:  # a module that is loaded and has no spec
        return None


def _directory_or_archive(path: str) -> ModuleSpec | None:
    if not Path(path).is_dir() and not _has_importer(path):
        return None
    spec = PathFinder.find_spec("__main__", [str(Path(path).absolute())])
    if spec is None or spec.loader is None:
        msg = f"{path!r} has no __main__.py, so there is nothing to run: name one of its files."
        raise UnrunnableError(msg)
    return spec


def _has_importer(path: str) -> bool:
    sys.path_importer_cache.pop(path, None)
    for hook in sys.path_hooks:
        try:
            hook(path)
        except ImportError:  # the protocol of path hooks: this one is not for it
            continue
        return True
    return False


def _from_spec(spec: ModuleSpec, name: str, import_from: str | None) -> Program:
    get_code = getattr(spec.loader, "get_code", None)
    code = None if get_code is None else get_code(spec.name)
    main = _main(spec)
    main.__dict__.update(__file__=spec.origin, __loader__=spec.loader, __cached__=spec.cached)
    first = name if import_from else spec.origin or name
    return Program(_given(code, name), main, first, import_from)


def _main(spec: ModuleSpec | None) -> ModuleType:
    made = ModuleType("__main__")
    package = None if spec is None else spec.parent
    made.__dict__.update(__spec__=spec, __package__=package, __builtins__=builtins)
    if sys.version_info < (3, 14):  # from there on Python makes it when somebody asks
        made.__annotations__ = {}
    return made


def _loader(path: str) -> SourceFileLoader | SourcelessFileLoader:
    kind = SourcelessFileLoader if _is_bytecode(path) else SourceFileLoader
    return kind("__main__", path)


def _is_bytecode(path: str) -> bool:
    return path.endswith(tuple(BYTECODE_SUFFIXES))


def _compiled(loader: SourceFileLoader | SourcelessFileLoader, path: str) -> CodeType:
    # `SourceFileLoader.get_code` would leave a __pycache__, as Python does for no script.
    return loader.source_to_code(loader.get_data(path), path)


def _given(code: CodeType | None, name: str) -> CodeType:
    if code is None:
        msg = f"{name!r} has no Python code to run: name a Python file or module."
        raise UnrunnableError(msg)
    return code


def _unreadable(path: str, reason: str) -> str:
    return f"cannot read the script {path!r} ({reason}): check the path and its permissions."


def _reason(error: OSError) -> str:
    return error.strerror or os.strerror(error.errno or 0)
