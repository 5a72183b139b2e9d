"""How the pytest plugin reports a leak: under whose name, at which line, as what."""

from __future__ import annotations

import inspect
import os
import re
import warnings
from types import CodeType
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from gradguard._core.frames import Line
from gradguard._core.places import file_shown, written
from gradguard._core.text import one_line
from gradguard._errors import GradLeakError, GradModeWarning

if TYPE_CHECKING:
    from pathlib import Path

    from gradguard._pytest.scope import Leak

_XUNIT = re.compile(r"_(?:xunit|unittest)_(\w+?)_fixture_(.*)")
_FLAGS = ("grad mode", "inference mode")
_MARK = '@pytest.mark.leaks_grad_mode(reason="...")'
_NOT_SEEN = (
    "What switched it was not seen: a direct call of torch._C, C++, or a compiled function. Put "
    "`with gradguard.trace() as switches:` around the suspected part and print(switches)."
)


class Place(NamedTuple):
    """A line of the user's."""

    filename: str
    lineno: int
    function: str


class Subject(NamedTuple):
    """What leaked; its own place serves where the switch was not seen."""

    kind: str  # as the summary counts it
    name: str
    place: Place
    began: str
    ended: str
    to_do: str


def of_test(item: pytest.Item, leak: Leak) -> Subject:
    """Name a test without its parameters: pytest shows warnings that are the same as one."""
    path, lineno, _ = item.reportinfo()
    name: str = getattr(item, "originalname", None) or item.name
    at = Place(os.fspath(path), (lineno or 0) + 1, name)
    to_do = (
        f"To do: put the lines that need it under `with {_guard(leak)}:`, which ends with its "
        f"block; where the leak is meant, mark the test {_MARK}."
    )
    return Subject("tests", name, at, "when it began", "", to_do)


def of_fixture(
    request: pytest.FixtureRequest, fixturedef: pytest.FixtureDef[Any], leak: Leak
) -> Subject:
    """Name a fixture, or the setup_method and such that pytest has made one of."""
    code = getattr(inspect.unwrap(fixturedef.func), "__code__", None)
    if isinstance(code, CodeType) and not fixturedef.func.__module__.startswith("_pytest."):
        at = Place(code.co_filename, code.co_firstlineno, code.co_name)
    else:
        at = Place(os.fspath(request.node.path), 1, fixturedef.argname)
    to_do = (
        "To do: let the tear-down end what the set-up switches, as "
        f"`with {_guard(leak)}: yield` does; where the leak is meant, {_marked(request.node)}."
    )
    name = _fixture_name(fixturedef.argname, fixturedef.scope)
    return Subject("fixtures", name, at, "before its set-up", " after its tear-down", to_do)


def of_import(path: str | Path, leak: Leak) -> Subject:
    """Name the import of a test module or conftest.py."""
    name = f"the import of {file_shown(os.fspath(path))}"
    to_do = (
        f"To do: put the lines that need it under `with {_guard(leak)}:`, which ends with its "
        "block; where all tests of the file shall run in it, write instead:\n"
        '    @pytest.fixture(autouse=True, scope="module")\n'
        "    def grad_mode_of_all_tests():\n"
        f"        with {_guard(leak)}:\n"
        "            yield"
    )
    at = Place(os.fspath(path), 1, "<module>")
    return Subject("imports", name, at, "before it", "", to_do)


def _fixture_name(name: str, scope: str) -> str:
    xunit = _XUNIT.fullmatch(name)
    if xunit:
        return f"{xunit[1]} (or its tear-down) of {one_line(xunit[2])}"
    return f"fixture {one_line(name)!r} (scope: {scope})"


def _marked(node: Any) -> str:
    """Say which marker silences what a fixture of the node leaks."""
    if isinstance(node, pytest.Item):
        return f"mark the test {_MARK}"
    if isinstance(node, pytest.Class):
        return f"mark the class {_MARK}"
    if isinstance(node, pytest.Module):
        return f"put `pytestmark = {_MARK[1:]}` at the top of the test file"
    return f"mark the tests that use it {_MARK}"


def _guard(leak: Leak) -> str:
    """Return the guard under which the mode that was left is meant."""
    grad, inference = leak.after
    if inference:
        return "torch.inference_mode()"
    return "torch.enable_grad()" if grad else "torch.no_grad()"


def report(leak: Leak, subject: Subject, *, failing: bool) -> None:
    """Raise at the line of the switch, or warn there.

    Args:
        leak: what was left, and where it was switched.
        subject: who left it.
        failing: whether to raise whatever the filters for warnings say.

    Raises:
        GradLeakError: `failing` is True.
        GradModeWarning: warnings are errors.
    """
    __tracebackhide__ = True
    text = _text(leak, subject)
    at = subject.place if leak.switch is None else Place(*leak.switch[:3])
    if failing:
        _raise_at(at, GradLeakError(text))
    else:
        _warn_at(at, text)


def _text(leak: Leak, subject: Subject) -> str:
    flags = zip(_FLAGS, leak.before, leak.after, strict=True)
    changed = [(what, before, after) for what, before, after in flags if before is not after]
    left = " and ".join(f"{what} {_on(after)}" for what, _, after in changed)
    was = " and ".join(f"{what} was {_on(before)}" for what, before, _ in changed)
    lines = [f"{subject.name} left {left}{subject.ended}; {was} {subject.began}."]
    if leak.left_open:
        guards = ", ".join(map(one_line, leak.left_open))
        lines.append(f"Guards entered and never exited: {guards}.")
    return "\n".join([*lines, _where(leak), subject.to_do, "The mode has been put back."])


def _on(flag: bool) -> str:
    return "on" if flag else "off"


def _where(leak: Leak) -> str:
    if leak.switch is None:
        return _NOT_SEEN
    return f"Switched at {written(Line(*leak.switch[:3]))}"


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
