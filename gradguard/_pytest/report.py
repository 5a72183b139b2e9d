"""How the pytest plugin reports a leak: under whose name, at which line, as what."""

import inspect
import os
import warnings
from types import CodeType
from typing import Any, NamedTuple

import pytest

from gradguard._core.frames import Line
from gradguard._core.places import written
from gradguard._errors import GradLeakError, GradModeWarning
from gradguard._pytest.scopes import Leak
from gradguard._pytest.texts import fixture_name, leaked, not_seen, switched_at


class Place(NamedTuple):
    """A line of the user's."""

    filename: str
    lineno: int
    function: str


class Subject(NamedTuple):
    """The test or the fixture that leaked; its own place serves where the switch was not seen."""

    name: str
    node: Any  # whose markers count
    place: Place
    is_fixture: bool


def _of_test(item: pytest.Item) -> Subject:
    """Name a test without its parameters: pytest shows warnings that are the same as one."""
    path, lineno, _ = item.reportinfo()
    name: str = getattr(item, "originalname", None) or item.name
    return Subject(name, item, Place(os.fspath(path), (lineno or 0) + 1, name), is_fixture=False)


def _of_fixture(request: pytest.FixtureRequest, fixturedef: pytest.FixtureDef[Any]) -> Subject:
    """Name a fixture, or the setup_method and such that pytest has made one of."""
    name = fixture_name(fixturedef.argname, fixturedef.scope)
    code = getattr(inspect.unwrap(fixturedef.func), "__code__", None)
    if isinstance(code, CodeType) and not fixturedef.func.__module__.startswith("_pytest."):
        own = Place(code.co_filename, code.co_firstlineno, code.co_name)
    else:
        own = Place(os.fspath(request.node.path), 1, fixturedef.argname)
    return Subject(name, request.node, own, is_fixture=True)


def report(
    leak: Leak,
    of: Any,
    fixturedef: pytest.FixtureDef[Any] | None = None,
    *,
    failing: bool,
) -> None:
    """Raise at the line of the switch, or warn there; nothing for what is marked.

    Args:
        leak: what was left, and where it was switched.
        of: the test item; the request where it is a fixture,
        fixturedef: and the fixture.
        failing: whether to raise whatever the filters for warnings say.

    Raises:
        GradLeakError: `failing` is True (a test marked ``xfail`` is warned about).
        GradModeWarning: warnings are errors.
    """
    __tracebackhide__ = True
    subject = _of_test(of) if fixturedef is None else _of_fixture(of, fixturedef)
    marked = subject.node.get_closest_marker
    if marked("leaks_grad_mode") is not None:
        return
    text = _text(leak, subject)
    at = subject.place if leak.switch is None else Place(*leak.switch[:3])
    if failing and marked("xfail") is None:  # a failure that is expected anyway would hide it
        _raise_at(at, GradLeakError(text))
    else:
        _warn_at(at, text)


def _text(leak: Leak, subject: Subject) -> str:
    return leaked(
        subject.name,
        leak.before,
        leak.after,
        fixture=subject.is_fixture,
        where=_where(leak),
        left_open=leak.left_open,
    )


def _where(leak: Leak) -> str:
    if leak.switch is None:
        return not_seen(torch_is_new=leak.torch_is_new)
    return switched_at(written(Line(*leak.switch[:3])))


def _warn_at(at: Place, text: str) -> None:
    """Warn without a registry: each test is told, though the line may be the same."""
    __tracebackhide__ = True
    try:
        warnings.warn_explicit(text, GradModeWarning, at.filename, at.lineno)
    except GradModeWarning as warning:
        _raise_at(at, warning)


def _raise_at(at: Place, error: Exception) -> None:
    """Raise as if the line had: so pytest shows it, and editors go there."""
    __tracebackhide__ = True
    code = compile("raise error", at.filename, "exec")
    code = code.replace(co_firstlineno=at.lineno, co_name=at.function)
    exec(code, {"error": error})  # noqa: S102 (there is no other way to have a frame there)
