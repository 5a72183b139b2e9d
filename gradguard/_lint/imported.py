"""What a module does when it is imported: who of the checked files does so, and who trains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gradguard._lint.files import TEST_FILE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from gradguard._findings.finding import Finding
    from gradguard._lint.check import Checked


def import_findings(checked: Iterable[Checked]) -> Iterator[Finding]:
    """Yield what happens when a file is imported: a fault where a file that trains does so."""
    checked = list(checked)
    wanted = [one for one in checked if one.on_import or one.if_imported]
    importers = _importers(checked, [one.filename for one in wanted])
    for one in wanted:
        found = importers.get(one.filename, [])
        trainer = next((each for each in found if each.trains), None) or _test(one, checked)
        for finding in (*one.on_import, *(one.if_imported if found else ())):
            yield finding if trainer is None else _fault(finding, trainer.filename)


def _fault(finding: Finding, trainer: str) -> Finding:
    name = Path(trainer).name
    return replace(
        finding,
        severity="fault",
        message=f"{finding.message} `{name}` trains in the same process, and records nothing.",
    )


def _test(switched: Checked, checked: Iterable[Checked]) -> Checked | None:
    """Return a test file that trains after pytest has imported this one: a neighbour, or below."""
    here = Path(switched.filename)
    if not TEST_FILE.match(here.name):
        return None
    for one in checked:
        path = Path(one.filename)
        if one.trains and TEST_FILE.match(path.name) and here.parent in path.parents:
            return one
    return None


def _importers(checked: Iterable[Checked], wanted: Iterable[str]) -> dict[str, list[Checked]]:
    """Return which of the checked files import each of the wanted ones.

    An absolute name is looked for below the folder of the importing file and the folders above
    it, since any of them may be on ``sys.path``. Importing a module imports the packages around it.
    """
    modules = {_module_path(Path(one).absolute()): one for one in wanted}
    found: dict[str, list[Checked]] = {}
    if not modules:
        return found
    last_names = {path.name for path in modules}
    for one in checked:
        importing = Path(one.filename).absolute()
        named: set[str] = set()
        for name in one.imports:
            if name.startswith(".") or not last_names.isdisjoint(name.split(".")):
                named.update(_named(name, importing, modules))
        for each in named:
            found.setdefault(each, []).append(one)
    return found


def _named(name: str, importing: Path, modules: dict[Path, str]) -> set[str]:
    dots = len(name) - len(name.lstrip("."))
    parts = [part for part in name.split(".") if part]
    folders = list(importing.parents)
    places = folders[dots - 1 : dots] if dots else folders
    shortest = 0 if dots else 1
    paths = {
        folder.joinpath(*parts[:length])
        for folder in places
        for length in range(shortest, len(parts) + 1)
    }
    own = _module_path(importing)
    return {modules[path] for path in paths if path in modules and path != own}


def _module_path(path: Path) -> Path:
    return path.parent if path.stem == "__init__" else path.with_suffix("")
