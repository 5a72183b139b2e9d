"""Which files a check reads."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from gradguard._findings.paths import matches

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

TEST_FILE = re.compile(r"^(test_.*|.*_test|conftest)\.py$")
_SUFFIXES = (".py", ".pyi")
_LEFT_OUT = frozenset({"__pycache__", "node_modules", "site-packages", "venv", "env"})


class NoSuchPathError(Exception):
    """A path that was given does not exist."""


def python_files(paths: Iterable[Path], exclude: Sequence[str], root: Path) -> list[Path]:
    """Return the files to read, sorted, each once.

    A file that is named is read whatever its name is. In folders, hidden ones, virtual
    environments, installed packages and what is excluded are left out; links to folders are not
    followed, so that a link to a folder above ends nothing up in a circle.

    Args:
        paths: files and folders.
        exclude: globs of what to leave out.
        root: the folder that the globs are relative to.

    Raises:
        NoSuchPathError: one of the paths does not exist.
    """
    found: dict[str, Path] = {}
    for path in paths:
        if path.is_dir():
            for one in _walk(path, exclude, root):
                found.setdefault(os.path.realpath(one), one)
        elif path.exists():
            if not (exclude and matches(exclude, path.absolute(), root)):
                found.setdefault(os.path.realpath(path), path)
        else:
            msg = f"there is no file or folder {str(path)!r}"
            raise NoSuchPathError(msg)
    return sorted(found.values())


def _walk(folder: Path, exclude: Sequence[str], root: Path) -> Iterator[Path]:
    for name, folders, files in os.walk(folder):
        here = Path(name)
        folders[:] = sorted(
            one
            for one in folders
            if _is_entered(here / one) and not _out(here / one, exclude, root)
        )
        for one in files:
            if one.endswith(_SUFFIXES) and not one.startswith("."):
                path = here / one
                if path.is_file() and not _out(path, exclude, root):
                    yield path


def _is_entered(folder: Path) -> bool:
    return (
        not folder.name.startswith(".")
        and folder.name not in _LEFT_OUT
        and not (folder / "pyvenv.cfg").is_file()
    )


def _out(path: Path, exclude: Sequence[str], root: Path) -> bool:
    return bool(exclude) and matches(exclude, path.absolute(), root)
