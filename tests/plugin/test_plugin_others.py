"""The pytest plugin beside others: each real, where it is installed."""

from importlib.util import find_spec

import pytest
from asyncio_ini import LOOP_SCOPE

LEAK = "torch.set_grad_enabled(False)  # here"


@pytest.fixture
def run(pytester):
    """Run pytest over one test file in a process of its own, with one more plugin."""
    pytester.makeini(f"[pytest]\nasyncio_mode = auto\n{LOOP_SCOPE}")

    def run(plugin, source, *args):
        if find_spec(plugin) is None:
            pytest.skip(f"{plugin} is not installed (extra `integration`)")
        pytester.makepyfile(test_it=f"import pytest\nimport torch\n{source}")
        return pytester.runpytest_subprocess("-p", "no:cacheprovider", "--gradguard=warn", *args)

    return run


def test_anyio(run):
    """Async tests of each backend are reported under their names, fixtures by theirs."""
    result = run(
        "anyio",
        f"""
import anyio

@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param

@pytest.fixture
async def held():
    with torch.no_grad():
        yield

@pytest.mark.anyio
async def test_held(held):
    await anyio.sleep(0)

@pytest.mark.anyio
async def test_leak():
    await anyio.sleep(0)
    {LEAK}

def test_next():
    assert torch.is_grad_enabled()
""",
        "-o",
        "asyncio_mode=strict",
        "-p",
        "no:randomly",
    )
    result.assert_outcomes(passed=5, warnings=2)
    result.stdout.fnmatch_lines(["*test_it.py:*: GradModeWarning: test_leak left grad mode off*"])
    result.stdout.fnmatch_lines(["*was put back: 2 by tests."])


def test_randomly(run):
    """In whatever order the tests run, each leak is its own test's, and all are told."""
    result = run(
        "pytest_randomly",
        f"""
@pytest.mark.parametrize("n", range(6))
def test_leak(n):
    assert torch.is_grad_enabled()
    {LEAK}
""",
        "-p",
        "randomly",
    )
    result.assert_outcomes(passed=6, warnings=6)


def test_rerunfailures(run):
    """A test that is run again starts in the right mode, and its marker is not called needless."""
    result = run(
        "pytest_rerunfailures",
        f"""
runs = []

def test_flaky():
    assert torch.is_grad_enabled()
    runs.append(1)
    {LEAK}
    assert len(runs) > 1

@pytest.mark.leaks_grad_mode(reason="meant")
def test_marked():
    runs.append(1)
    assert len(runs) > 3
""",
        "--reruns=3",
        "-p",
        "no:randomly",
    )
    result.assert_outcomes(passed=2, warnings=2)
    assert "remove" not in result.stdout.str()


def test_rerunfailures_runs_a_leak_again(run):
    """With error, the leak is a failure like any other: a test that leaks once passes then."""
    result = run(
        "pytest_rerunfailures",
        f"""
runs = []

def test_leaks_once():
    assert torch.is_grad_enabled()
    runs.append(1)
    if len(runs) == 1:
        {LEAK}
""",
        "--reruns=1",
        "--gradguard=error",
    )
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*1 rerun*"])


def test_timeout(run):
    """A test that is ended within a block is put back, and the next starts right."""
    result = run(
        "pytest_timeout",
        """
import signal

kept = torch.no_grad()

@pytest.mark.timeout(3600, method="signal")
def test_hangs():
    kept.__enter__()
    signal.raise_signal(signal.SIGALRM)  # as if the time were over

def test_next():
    assert torch.is_grad_enabled()
""",
        "-p",
        "no:randomly",
    )
    result.assert_outcomes(passed=1, failed=1, warnings=1)
    result.stdout.fnmatch_lines(["E *Failed: Timeout*", "*GradModeWarning: test_hangs left *"])


def test_asyncio_in_auto_mode(run):
    """Async tests need no mark there, and are checked alike."""
    result = run(
        "pytest_asyncio",
        f"""
import asyncio

async def test_leak():
    await asyncio.sleep(0)
    {LEAK}

async def test_next():
    assert torch.is_grad_enabled()
""",
        "-p",
        "no:randomly",
    )
    result.assert_outcomes(passed=2, warnings=1)


def test_xdist_adds_up_what_its_workers_found(run):
    """The total and the needless markers stand in the controller's summary."""
    result = run(
        "xdist",
        f"""
@pytest.mark.parametrize("n", range(4))
def test_leak(n):
    {LEAK}

@pytest.mark.leaks_grad_mode(reason="meant")
@pytest.mark.parametrize("n", range(4))
def test_needless(n):
    pass
""",
        "-n",
        "2",
    )
    result.assert_outcomes(passed=8, warnings=4)
    result.stdout.fnmatch_lines(["*was put back: 4 by tests.", "  test_it.py::test_needless"])
