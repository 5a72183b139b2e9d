"""What the whole suite shares."""

import gc
import os
import sys
import textwrap

import pytest
from hypothesis import settings

pytest_plugins = ["pytester"]

# Two workers on two cores: threads within a worker, or within what it starts, would only wait.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No test is a timed one: machines are shared, and torch compiles on first use.
settings.register_profile("gradguard", deadline=None)
# For the random programs of tests/core, where somebody has an hour.
settings.register_profile("many", deadline=None, max_examples=10_000)
settings.load_profile("gradguard")


def pytest_addoption(parser):
    """Let who has the time read all that a sample stands for."""
    parser.addoption(
        "--every-file", action="store_true", help="gradguard check: read every installed file"
    )


def pytest_configure(config):
    """Know the marker of gradguard's plugin also where the plugin is left out."""
    config.addinivalue_line(
        "markers", "leaks_grad_mode(reason): the test leaves the grad mode switched on purpose"
    )


def pytest_collection_modifyitems(items):
    """Expect the failures that are this torch's own (`torch_faults.py`)."""
    from torch_faults import FAULTS, Fault

    for fault in filter(Fault.here, FAULTS):
        mark = pytest.mark.xfail(reason=f"torch: {fault.name}", strict=True)
        for item in items:
            if fault.spoils(item.nodeid):
                item.add_marker(mark)


@pytest.fixture(autouse=True, scope="module")
def what_is_there_is_no_garbage():
    """Spare each collection what was imported, Dynamo say: many tests collect, to look at the end."""
    gc.freeze()


@pytest.fixture
def some_trainer(tmp_path, monkeypatch):
    """Install a training library whose `main(look)` calls `look` under torch.no_grad()."""
    folder = tmp_path / "site-packages" / "some_trainer"
    folder.mkdir(parents=True)
    source = """
        import torch

        def run(look):
            with torch.no_grad():
                return look()

        def main(look):
            return run(look)

        def leave():
            torch.set_grad_enabled(False)
    """
    (folder / "__init__.py").write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(folder.parent)
    import some_trainer

    yield some_trainer
    del sys.modules["some_trainer"]


@pytest.fixture
def recording_afterwards():
    """A test of interrupts ends recording, whatever it found; no collection comes in between."""
    from interrupting import EACH_BYTECODE

    from gradguard import GradState
    from gradguard._core.state import put_back

    if EACH_BYTECODE and sys.gettrace() is not None:
        pytest.skip("the trace function is coverage's")
    gc.collect()
    gc.disable()
    yield
    gc.enable()
    put_back(GradState(grad_enabled=True, inference_mode=False))


@pytest.fixture
def process_group():
    """Initialize a process group of one."""
    from torch import distributed

    if not distributed.is_available():
        pytest.skip("torch was built without torch.distributed")
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()
