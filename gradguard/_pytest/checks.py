"""What is checked where the plugin was asked for: test bodies, fixtures, and imports."""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from gradguard._errors import GradLeakError, GradModeWarning
from gradguard._pytest import scope_lifetimes as scopes
from gradguard._pytest.markers import Markers
from gradguard._pytest.summary import Summary

if TYPE_CHECKING:
    from collections.abc import Generator

    from gradguard._pytest.report import Subject
    from gradguard._pytest.scope import Leak, Scope

_STOPS = (KeyboardInterrupt, pytest.exit.Exception)  # these must reach pytest as they are


def register(config: pytest.Config, mode: str) -> None:
    """Begin to check, until the session ends."""
    scopes.begin_session()
    config.add_cleanup(scopes.end_session)
    summary = Summary()
    config.pluginmanager.register(summary, "gradguard-summary")
    config.pluginmanager.register(Checks(mode, summary), "gradguard-checks")


class Checks:
    """What is checked around each test's body, each fixture and each import."""

    def __init__(self, mode: str, summary: Summary) -> None:
        self._mode = mode
        self._summary = summary
        self._markers = Markers(summary)
        self._conftests: list[tuple[Leak, Subject]] = []  # told with what is collected next
        self._loading: Scope | None = scopes.enter()  # of the first conftest.py files

    def pytest_report_header(self) -> str:
        """Show the mode."""
        return f"gradguard: mode={self._mode}"

    def pytest_configure(self) -> None:
        """Stop looking at imports until the collection: hooks may switch the mode for all tests."""
        if self._loading is not None:
            scopes.abandon(self._loading)
            self._loading = None

    def pytest_plugin_registered(self, plugin: object) -> None:
        """Check what a conftest.py has switched while it was imported: it is registered then."""
        file = getattr(plugin, "__file__", None) if isinstance(plugin, ModuleType) else None
        if file is None or not file.endswith("conftest.py"):
            return
        leak = scopes.leave_off()
        if leak is not None:
            from gradguard._pytest.report import of_import

            self._conftests.append((leak, of_import(file, leak)))

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_make_collect_report(
        self, collector: pytest.Collector
    ) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        """Check what the import of a test module has switched."""
        scope = scopes.enter()
        try:
            report = yield
        finally:
            leak = scopes.leave(scope)
        leaks, self._conftests = self._conftests, []
        if leak is not None and not self._markers.silence(collector):
            from gradguard._pytest.report import of_import

            leaks.append((leak, of_import(collector.path, leak)))
        for one, subject in leaks:
            self._tell_import(one, subject, report, collector)
        return report

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        """Check the body; what a plugin or conftest.py holds around it is outside."""
        __tracebackhide__ = True
        scope = scopes.enter()
        try:
            result = yield
        except BaseException as error:
            self._tell_test(scopes.leave(scope), item, error)
            raise
        self._tell_test(scopes.leave(scope), item, None)
        return result

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
    ) -> Generator[None, object, object]:
        """Have the fixture checked after its tear-down, or now if its set-up fails."""
        __tracebackhide__ = True
        scope = scopes.enter()
        users = self._markers.users(fixturedef.argname)

        def check(error: BaseException | None = None) -> None:
            __tracebackhide__ = True
            self._markers.forget(users)
            leak = scopes.leave(scope)
            if leak is None or isinstance(error, _STOPS):
                return
            if not self._markers.silence(request.node, users):
                from gradguard._pytest.report import of_fixture

                subject = of_fixture(request, fixturedef, leak)
                self._tell(leak, subject, may_fail=error is None)

        fixturedef.addfinalizer(check)  # what is added first runs last
        try:
            result = yield
        except BaseException as error:
            check(error)
            raise
        scopes.hold(scope)
        fixturedef.addfinalizer(partial(scopes.tear_down, scope))
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Know whose fixtures are set up."""
        self._markers.begin(item)
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Know how the marked tests went: only those that pass can show a marker unneeded."""
        report = yield
        self._markers.went(item, passed=report.passed and not hasattr(report, "wasxfail"))
        return report

    def _tell_test(self, leak: Leak | None, item: pytest.Item, error: BaseException | None) -> None:
        __tracebackhide__ = True
        if leak is None or isinstance(error, _STOPS) or self._markers.silence(item):
            return
        from gradguard._pytest.report import of_test

        # A failure that is expected anyway would hide the leak's.
        may_fail = error is None and item.get_closest_marker("xfail") is None
        self._tell(leak, of_test(item, leak), may_fail=may_fail)

    def _tell_import(
        self,
        leak: Leak,
        subject: Subject,
        report: pytest.CollectReport,
        collector: pytest.Collector,
    ) -> None:
        failed = report.failed
        try:
            self._tell(leak, subject, may_fail=not failed)
        except (GradLeakError, GradModeWarning) as error:
            if failed:
                report.sections.append(("gradguard", str(error)))
                return
            caught = pytest.ExceptionInfo.from_exception(error)
            report.outcome = "failed"
            report.longrepr = collector.repr_failure(caught)
            report.result = []

    def _tell(self, leak: Leak, subject: Subject, *, may_fail: bool) -> None:
        """Raise, or warn where what leaked has failed anyway."""
        __tracebackhide__ = True
        from gradguard._pytest.report import report  # few runs need it, all would wait for it

        self._summary.count(subject.kind)
        report(leak, subject, failing=self._mode == "error" and may_fail)
