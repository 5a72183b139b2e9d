"""The layout: each folder of the package imports only what stands below it, and in no circle."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import gradguard

PACKAGE = Path(gradguard.__file__).parent
# What each folder may import of the package, itself besides.
MAY_IMPORT = {
    "_errors": {"_findings"},
    "_core": {"_errors"},
    "_eval": {"_core", "_errors"},
    "_tasks": {"_core", "_errors"},
    "_trace": {"_core", "_errors"},
    "_locate": {"_core", "_trace", "_tasks", "_errors"},
    "_graph": {"_core", "_errors"},
    "_findings": set(),
    "_assertions": {"_core", "_eval", "_graph", "_locate", "_findings", "_errors"},
    "_judge": {"_core", "_graph", "_locate", "_findings", "_errors"},
    "_methods": {"_core", "_eval", "_locate", "_assertions", "_errors"},
    "_watch": {"_core", "_graph", "_locate", "_findings", "_judge", "_errors"},
    "_compare": {"_core", "_eval", "_graph", "_errors"},
    "_run": {"_core", "_trace", "_graph", "_locate", "_findings", "_judge", "_errors"},
    "_lint": {"_findings", "_errors"},
    "_pytest": {"_core", "_trace", "_locate", "_findings", "_errors"},
    "_demo": set(),
    "integrations": set(),
}
# These see every folder: the public names, and the command line.
TOP = {"__init__", "__main__"}


def modules():
    """Yield each module of the package: its dotted name, its folder, and its syntax."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        tree = ast.parse(path.read_text(encoding="utf-8"))
        yield ".".join(parts), parts[0], tree


def imports(tree):
    """Yield the modules of the package that a module names in any import, at any depth."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "gradguard":
            inside = node.module.partition(".")[2]
            for alias in node.names:
                name = f"{inside}.{alias.name}" if inside else alias.name
                path = PACKAGE.joinpath(*name.split("."))
                is_module = path.with_suffix(".py").exists() or path.is_dir()
                yield name if is_module else inside
        elif isinstance(node, ast.Import):
            yield from (
                alias.name.partition(".")[2]
                for alias in node.names
                if alias.name.split(".")[0] == "gradguard"
            )


@pytest.mark.parametrize(
    ("name", "folder", "tree"), [pytest.param(*found, id=found[0]) for found in modules()]
)
def test_imports_only_downwards(name, folder, tree):
    """A module imports only its own folder and those that the table names for it."""
    if folder in TOP:
        return
    wrong = sorted(
        to for to in imports(tree) if to and to.split(".")[0] not in {folder, *MAY_IMPORT[folder]}
    )
    assert not wrong, f"{name} imports {wrong}"


def test_no_circles():
    """No two modules need each other, wherever in them the import stands."""
    known = {name for name, _, _ in modules()}
    needs = {
        name: {to if to in known else f"{to}.__init__" for to in imports(tree) if to} - {name}
        for name, _, tree in modules()
    }
    TopologicalSorter(needs).prepare()


def test_every_folder_is_in_the_table():
    """A new folder is put in the table before it is used."""
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir()} - {"__pycache__"}
    assert folders <= MAY_IMPORT.keys()


def test_no_module_is_long():
    """No module of the package has more than 250 lines."""
    long = {
        str(path.relative_to(PACKAGE)): count
        for path in PACKAGE.rglob("*.py")
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > 250
    }
    assert long == {}


def test_only_the_front_door_stands_outside_the_folders():
    """Beside the folders lie the public names, the command and the errors."""
    outside = {path.stem for path in PACKAGE.glob("*.py")}
    assert outside == {"__init__", "__main__", "_errors"}
