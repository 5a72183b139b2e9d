"""Which of the checked files others import."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gradguard._lint.check import Checked


def imported_files(checked: Iterable[Checked], wanted: Iterable[str]) -> set[str]:
    """Return those of the wanted files that another checked file imports.

    An absolute name is looked for below the folder of the importing file and the folders above
    it, since any of them may be on ``sys.path``.
    """
    modules = {_module_path(Path(one).absolute()): one for one in wanted}
    found: set[str] = set()
    if not modules:
        return found
    last_names = {path.name for path in modules}
    for one in checked:
        importing = Path(one.filename).absolute()
        for name in one.imports:
            if not last_names.isdisjoint(name.split(".")):
                found.update(_named(name, importing, modules))
    return found


def _named(name: str, importing: Path, modules: dict[Path, str]) -> set[str]:
    dots = len(name) - len(name.lstrip("."))
    parts = name.strip(".").split(".")
    folders = list(importing.parents)
    places = folders[dots - 1 : dots] if dots else folders
    paths = {folder.joinpath(*parts) for folder in places}
    own = _module_path(importing)
    return {modules[path] for path in paths if path in modules and path != own}


def _module_path(path: Path) -> Path:
    return path.parent if path.stem == "__init__" else path.with_suffix("")
