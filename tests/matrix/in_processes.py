"""A pytest plugin for the matrix: tests in a process of their own, and what became of all, counted.

Up to torch 2.12 an internal assertion that fails in Dynamo breaks what runs after it in the same
process, so that one fault of torch's would count many times. Each test of a file that compiles
therefore runs in a fork, with Dynamo imported before. `GRADGUARD_MATRIX_FORK` says so, and
`GRADGUARD_MATRIX_COUNTS` is the file that the counts are written to.
"""

import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

COMPILES = re.compile(r"torch\.compile|torch\.export|make_fx|torch\._dynamo|torch\.jit")


def pytest_configure() -> None:
    if os.environ.get("GRADGUARD_MATRIX_FORK"):
        import torch._dynamo.testing
        import torch.export  # noqa: F401 (imported once, here, and not in each fork)


def compiles(path: Path, known: dict[Path, bool] = {}) -> bool:  # noqa: B006 (kept on purpose)
    if path not in known:
        known[path] = bool(COMPILES.search(path.read_text(encoding="utf-8")))
    return known[path]


def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    if not os.environ.get("GRADGUARD_MATRIX_FORK") or not compiles(item.path):
        return None
    hook = item.ihook
    hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in in_a_fork(item, nextitem):
        hook.pytest_runtest_logreport(report=report)
    hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def in_a_fork(item: pytest.Item, nextitem: pytest.Item | None) -> list[pytest.TestReport]:
    """Run the test in a fork, and return its reports as the fork has sent them."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        try:
            with os.fdopen(writer, "wb") as file:
                hook = item.ihook.pytest_report_to_serializable
                reports = runtestprotocol(item, log=False, nextitem=nextitem)
                pickle.dump([hook(config=item.config, report=report) for report in reports], file)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        sent = file.read()
    _, status = os.waitpid(child, 0)
    if not sent:
        text = f"the process ended with wait status {status}"
        return [pytest.TestReport(item.nodeid, item.location, {}, "failed", text, "call")]
    hook = item.ihook.pytest_report_from_serializable
    return [hook(config=item.config, data=data) for data in pickle.loads(sent)]  # noqa: S301


def pytest_terminal_summary(terminalreporter: Any) -> None:
    path = os.environ.get("GRADGUARD_MATRIX_COUNTS")
    if path:
        stats = terminalreporter.stats
        names = ("passed", "failed", "error", "skipped", "xfailed", "xpassed")
        counts = {name: len(stats.get(name, ())) for name in names}
        Path(path).write_text(json.dumps(counts), encoding="utf-8")
