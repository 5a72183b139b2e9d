"""Doing something once a module has been imported."""

import importlib
import sys

import pytest

from gradguard._core.when_imported import when_imported


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module that can be imported, and nobody has; afterwards all is as before."""
    (tmp_path / "imported_later.py").write_text("loaded = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = list(sys.meta_path)
    yield "imported_later"
    sys.modules.pop("imported_later", None)
    assert sys.meta_path == before


def test_called_once_when_it_has_loaded(module):
    """The module is whole by then; a second import calls nothing."""
    seen = []
    when_imported(module, lambda: seen.append(sys.modules[module].loaded))
    assert seen == []
    importlib.import_module(module)
    importlib.import_module(module)
    assert seen == [True]


def test_called_at_once_for_what_is_there():
    """There is nothing to wait for."""
    seen = []
    when_imported("sys", lambda: seen.append(1))()
    assert seen == [1]


def test_waiting_can_be_ended(module):
    """Then an import calls nothing; ending it twice does nothing."""
    stop = when_imported(module, lambda: pytest.fail("called"))
    stop()
    importlib.import_module(module)
    stop()


def test_a_module_that_cannot_be_found(module):
    """The import fails as it would, and goes on being waited for."""
    stop = when_imported("no_such_module_at_all", lambda: pytest.fail("called"))
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("no_such_module_at_all")
    stop()
