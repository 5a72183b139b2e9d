"""A pytest plugin for the matrix: tests in processes of their own, and what became of all, counted.

Up to torch 2.12 an internal assertion that fails in Dynamo breaks what runs after it in the same
process, so that one fault of torch's would count many times. Tests that may compile therefore run
in a fork, with Dynamo imported before: one after the other as long as all pass. One that does not
ends its fork, and is run again in a fresh one, so that it is judged by itself alone.
`GRADGUARD_MATRIX_FORK` says so, and `GRADGUARD_MATRIX_COUNTS` is the file that the counts are
written to.
"""

import json
import os
import pickle
import re
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

COMPILES = re.compile(r"torch\.compile|torch\.export|make_fx|torch\._dynamo|torch\.jit")


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("GRADGUARD_MATRIX_FORK"):
        import torch._dynamo.testing
        import torch.export  # noqa: F401 (imported once, here, and not in each fork)

        config.pluginmanager.register(InForks())


class InForks:
    """Runs each test of a file that compiles in a fork."""

    def __init__(self) -> None:
        self.fork: Fork | None = None
        self.known: dict[Path, bool] = {}

    def compiles(self, path: Path) -> bool:
        if path not in self.known:
            self.known[path] = bool(COMPILES.search(path.read_text(encoding="utf-8")))
        return self.known[path]

    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        if not self.compiles(item.path):
            return None
        hook = item.ihook
        hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self.reports(item):
            hook.pytest_runtest_logreport(report=report)
        hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def reports(self, item: pytest.Item) -> list[pytest.TestReport]:
        # pytest has set up what this test and the last had in common; the next may have nothing.
        item.session._setupstate.teardown_exact(None)
        fresh = self.fork is None
        self.fork = self.fork or Fork(item.session)
        reports = self.fork.run(item)
        if not any(report.failed or hasattr(report, "wasxfail") for report in reports):
            return reports
        self.pytest_sessionfinish()
        return reports if fresh else self.reports(item)

    def pytest_sessionfinish(self) -> None:
        if self.fork:
            self.fork.end()
        self.fork = None


class Fork:
    """A fork of this process that runs tests when it is told their ids."""

    def __init__(self, session: pytest.Session) -> None:
        self.connection, theirs = Pipe()
        self.child = os.fork()
        if not self.child:
            try:
                self.connection.close()
                serve(theirs, session)
            finally:
                os._exit(0)
        theirs.close()

    def run(self, item: pytest.Item) -> list[pytest.TestReport]:
        """Run a test there, and return its reports as the fork has sent them."""
        self.connection.send(item.session.items.index(item))
        try:
            sent = pickle.loads(self.connection.recv_bytes())  # noqa: S301 (our own)
        except EOFError:
            text = "the process ended before the test"
            return [pytest.TestReport(item.nodeid, item.location, {}, "failed", text, "call")]
        hook = item.ihook.pytest_report_from_serializable
        return [hook(config=item.config, data=data) for data in sent]

    def end(self) -> None:
        self.connection.close()
        os.waitpid(self.child, 0)


def serve(connection: Connection, session: pytest.Session) -> None:
    """Run the tests whose places come, until the other end is closed."""
    while True:
        try:
            item = session.items[connection.recv()]
        except EOFError:
            return
        hook = item.ihook.pytest_report_to_serializable
        reports = runtestprotocol(item, log=False, nextitem=None)
        connection.send_bytes(
            pickle.dumps([hook(config=item.config, report=report) for report in reports])
        )


def pytest_terminal_summary(terminalreporter: Any) -> None:
    path = os.environ.get("GRADGUARD_MATRIX_COUNTS")
    if path:
        stats = terminalreporter.stats
        names = ("passed", "failed", "error", "skipped", "xfailed", "xpassed")
        counts = {name: len(stats.get(name, ())) for name in names}
        Path(path).write_text(json.dumps(counts), encoding="utf-8")
