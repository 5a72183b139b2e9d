"""What the suite calls torch's own faults is torch's: its program fails without gradguard."""

import subprocess
import sys

import pytest
from torch_faults import FAULTS, Fault

HERE = list(filter(Fault.here, FAULTS))


@pytest.mark.parametrize("fault", HERE, ids=[fault.name for fault in HERE])
def test_fails_without_gradguard(fault):
    """Where torch is said to have a fault, a program of torch alone fails by it."""
    command = [sys.executable, "-W", "ignore", "-c", f"import sys, torch\n{fault.program}"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 1, process.stdout
    assert "gradguard" not in process.stderr


def test_each_fault_spoils_some_test(request):
    """No test is named that is not there, so that a test that is renamed is noticed."""
    tests = request.config.rootpath / "tests"
    sources = {path.name: path.read_text(encoding="utf-8") for path in tests.rglob("test_*.py")}
    for fault in FAULTS:
        assert fault.tests
        for test in fault.tests:
            file, _, name = test.partition("::")
            assert f"def {name.partition('[')[0]}(" in sources[file], test
