"""The plugin's part of the terminal summary: how many leaks, and which markers silence none."""

from collections import Counter
from typing import Any

import pytest

from gradguard._pytest import scope_lifetimes as scopes

_SETS = ("markers_used", "markers_passed", "markers_failed", "wide_markers")


class Summary:
    """What one process has counted; the controller of xdist adds up what its workers have."""

    def __init__(self) -> None:
        self.leaks: Counter[str] = Counter()  # by what leaked: a test, a fixture, an import
        self.markers_used: set[str] = set()  # those that silenced a leak, by their node
        self.markers_passed: set[str] = set()  # those of a test that passed,
        self.markers_failed: set[str] = set()  # or did not
        self.wide_markers: set[str] = set()  # those of classes and modules
        self._torch_was_used = False
        self._partial = False  # whether not all tests under each marker ran

    def count(self, kind: str) -> None:
        """Count one leak that is told."""
        self.leaks[kind] += 1

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        """Know that some tests do not run."""
        self._partial |= bool(items)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Send what a worker of xdist has counted to its controller."""
        stopped = bool(session.shouldstop or session.shouldfail)
        self._partial |= stopped or any("::" in argument for argument in session.config.args)
        self._torch_was_used |= scopes.torch_was_used()
        output = getattr(session.config, "workeroutput", None)
        if output is not None:
            output["gradguard"] = self._data()

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Add what a worker of xdist has counted; one that crashed has sent nothing."""
        data = getattr(node, "workeroutput", {}).get("gradguard")
        if data is not None:
            self.leaks.update(data["leaks"])
            for name in _SETS:
                getattr(self, name).update(data[name])
            self._torch_was_used |= data["torch_was_used"]
            self._partial |= data["partial"]

    def pytest_terminal_summary(self, terminalreporter: "pytest.TerminalReporter") -> None:
        """Write the total, and the markers to remove."""
        unneeded = self._unneeded()
        if self.leaks or unneeded:
            terminalreporter.section("gradguard")
        elif int(terminalreporter.config.getoption("verbose") or 0) < 0:
            return
        terminalreporter.write_line(self._total())
        if unneeded:
            terminalreporter.write_line(
                "Nothing under these markers leaks_grad_mode leaves the grad mode changed "
                f"({len(unneeded)}); remove them:"
            )
            for name in unneeded:
                terminalreporter.write_line(f"  {name}")

    def _total(self) -> str:
        if self.leaks:
            parts = ", ".join(f"{count} by {kind}" for kind, count in sorted(self.leaks.items()))
            return f"The grad mode was left changed, and was put back: {parts}."
        if not self._torch_was_used:
            return "gradguard: torch was not imported, so there was nothing to check."
        return "gradguard: no test, fixture or import left the grad mode changed."

    def _unneeded(self) -> list[str]:
        unneeded = self.markers_passed - self.markers_failed - self.markers_used
        return sorted(unneeded - self.wide_markers if self._partial else unneeded)

    def _data(self) -> dict[str, Any]:
        """Return plain values, which is what xdist can send."""
        return {
            "leaks": dict(self.leaks),
            **{name: sorted(getattr(self, name)) for name in _SETS},
            "torch_was_used": self._torch_was_used,
            "partial": self._partial,
        }
