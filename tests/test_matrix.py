"""The rows of `tests/matrix`: one for each set of versions, in the order of their numbers."""

import argparse
import os
import runpy
import sys
from pathlib import Path

import pytest

MATRIX = Path(__file__).parent / "matrix"


@pytest.fixture
def matrix(monkeypatch):
    """Load the command's names."""
    monkeypatch.syspath_prepend(str(MATRIX))
    yield runpy.run_path(str(MATRIX / "run.py"))
    for name in ("environment", "stand_ins"):
        sys.modules.pop(name, None)


def test_a_row_takes_the_place_of_the_one_with_its_versions(matrix, monkeypatch, tmp_path):
    """Rows stand in the order of their versions, as numbers, each once."""
    monkeypatch.setitem(matrix["write"].__globals__, "ROWS", tmp_path / "rows.json")
    counts = dict.fromkeys(("passed", "failed", "error", "skipped", "xfailed", "xpassed"), 0)
    for torch, passed in (("2.10.0", 1), ("2.8.0", 2), ("2.10.0", 3)):
        versions = {"torch": torch, "python": "3.11.7", "pytest": "9.2.0"}
        matrix["write"](versions, {**counts, "passed": passed, "error": 1})
    rows = [(row["torch"], row["passed"]) for row in matrix["read"]()]
    assert rows == [("2.8.0", 2), ("2.10.0", 3)]
    assert matrix["table"]().splitlines()[2] == "| 2.8.0 | 3.11.7 | 9.2.0 | 2 | 0 | 0 | 1 |"


@pytest.mark.skipif(sys.platform == "win32", reason="commands of POSIX")
def test_each_python_has_an_environment_of_its_own(matrix, tmp_path):
    """Its version tells: pyenv's Pythons are all called `bin/python`."""
    names = []
    for version in ("3.10.13", "3.13.0"):
        python = tmp_path / version / "python"
        python.parent.mkdir()
        python.write_text(f"#!/bin/sh\necho {version}\n", encoding="utf-8")
        python.chmod(0o755)
        options = argparse.Namespace(torch="2.13.0", python=str(python), pytest=None)
        names.append(matrix["environment_name"](options))
    assert names == ["torch2.13.0-python3.10.13-pytest", "torch2.13.0-python3.13.0-pytest"]


@pytest.mark.skipif("GRADGUARD_MATRIX_COUNTS" in os.environ, reason="a run writes its row first")
def test_the_readme_has_the_rows(matrix):
    """The README's table is of the rows that the runs have written."""
    readme = MATRIX.parent.parent / "README.md"
    assert matrix["table"]() in readme.read_text(encoding="utf-8")
