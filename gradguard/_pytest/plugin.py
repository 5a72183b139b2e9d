"""The pytest plugin "gradguard": no test leaves its grad mode to the next.

It is on by installation (``-p no:gradguard`` leaves it out) and never imports torch itself. A test,
or a fixture after its tear-down, that left the grad or inference mode of its thread other than it
found it is reported under its own name, at the line of the switch, and the mode is put back.
Reporting is a `GradModeWarning` in pytest's summary, or with ``--gradguard=error`` a failure of the
test, or an error of the tear-down. As any warning, it is an exception where ``filterwarnings`` has
``error``. Of a test that failed or was skipped anyway, the leak is a warning in both modes. What a
module switches while it is imported is not looked at: it holds for the session.
"""

from collections.abc import Generator
from functools import partial
from typing import Any

import pytest

from gradguard._pytest import texts as messages
from gradguard._pytest.scopes import Leak, begin_session, end_session, enter, hold, leave, tear_down

_MODES = ("warn", "error", "off")
_STOPS = (KeyboardInterrupt, pytest.exit.Exception)  # these must reach pytest as they are


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option and the ini value it falls back to."""
    text = messages.help_text(_MODES)
    group = parser.getgroup("gradguard")
    group.addoption("--gradguard", metavar="MODE", default=None, help=text)
    parser.addini("gradguard", text, type="string", default=_MODES[0])


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, and the checks unless they are off."""
    config.addinivalue_line("markers", messages.MARKER)
    mode = _mode(config)
    if mode != "off":
        begin_session()
        config.add_cleanup(end_session)
        config.pluginmanager.register(Checks(mode), "gradguard-checks")


def pytest_report_header(config: pytest.Config) -> str:
    """Show the mode."""
    return messages.header(_mode(config))


def _mode(config: pytest.Config) -> str:
    given: str | None = config.getoption("gradguard")
    mode: str = config.getini("gradguard") if given is None else given
    if mode not in _MODES:
        setting = "ini option gradguard" if given is None else "--gradguard"
        raise pytest.UsageError(messages.bad_mode(mode, setting, _MODES))
    return mode


class Checks:
    """What is checked around each test's body and each fixture."""

    def __init__(self, mode: str) -> None:
        self._mode = mode

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        """Check the body; what a plugin or conftest.py holds around it is outside."""
        __tracebackhide__ = True
        scope = enter()
        try:
            result = yield
        except BaseException as error:
            self._report(leave(scope), item, error=error)
            raise
        self._report(leave(scope), item)
        return result

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
    ) -> Generator[None, object, object]:
        """Have the fixture checked after its tear-down, or now if its set-up fails."""
        __tracebackhide__ = True
        scope = enter()

        def check(error: BaseException | None = None) -> None:
            __tracebackhide__ = True
            self._report(leave(scope), request, fixturedef, error=error)

        fixturedef.addfinalizer(check)  # what is added first runs last
        try:
            result = yield
        except BaseException as error:
            check(error)
            raise
        hold(scope)
        fixturedef.addfinalizer(partial(tear_down, scope))
        return result

    def _report(
        self,
        leak: Leak | None,
        of: Any,
        fixturedef: pytest.FixtureDef[Any] | None = None,
        *,
        error: BaseException | None = None,
    ) -> None:
        __tracebackhide__ = True
        if leak is not None and not isinstance(error, _STOPS):
            from gradguard._pytest.report import report  # few runs need it, all would wait for it

            report(leak, of, fixturedef, failing=self._mode == "error" and error is None)
