"""The fronts judge under `install()` as without it."""

import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

import gradguard

cloudpickle = pytest.importorskip("cloudpickle")


@pytest.fixture(autouse=True)
def _installed():
    with gradguard.install():
        yield


@torch.no_grad()
def by_name():
    return torch.is_grad_enabled()


def test_decorated_functions_are_pickled():
    """By name, and by value."""
    assert pickle.loads(pickle.dumps(by_name))() is False  # noqa: S301 (its own)

    @torch.inference_mode()
    def local():
        return torch.is_inference_mode_enabled()

    assert pickle.loads(cloudpickle.dumps(local))() is True  # noqa: S301 (its own)


@pytest.mark.parametrize("fullgraph", [False, True])
def test_a_decorated_function_is_compiled(fullgraph):
    """With and without a graph break allowed."""
    layer = nn.Linear(2, 1)

    @torch.no_grad()
    def predict(x):
        return layer(x)

    compiled = torch.compile(predict, backend="eager", fullgraph=fullgraph)
    assert not compiled(torch.ones(1, 2)).requires_grad
    assert torch.is_grad_enabled()


def test_leak_check_and_trace_see_the_switch():
    """Both say what was left switched, and it is put back."""
    with pytest.raises(gradguard.GradLeakError), gradguard.leak_check():
        torch.set_grad_enabled(False)
    assert torch.is_grad_enabled()
    with gradguard.trace() as switches:
        with torch.no_grad():
            pass
    assert [switch.after.grad_enabled for switch in switches] == [False, True]
    assert {switch.filename for switch in switches} == {__file__}


def test_compare_modes():
    """It measures the modes themselves."""
    net = nn.Linear(2, 1)
    assert "no_grad" in str(gradguard.compare_modes(net, (torch.ones(1, 2),), repeats=1))


def step(net, optimizer):
    net(torch.ones(4, 2)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("net", [nn.Linear(2, 1), nn.Sequential(nn.Linear(2, 1))], ids=repr)
def test_watch_training(net):
    """A healthy loop with a validation passes; a mode that one leaves is told at the next forward."""

    def validate(*, leave):
        net.eval()
        with torch.inference_mode(), torch.no_grad():
            net(torch.ones(4, 2))
        net.train()
        if leave:
            torch.set_grad_enabled(False)

    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with gradguard.watch_training(net, optimizer) as watch:
        for _ in range(3):
            step(net, optimizer)
            validate(leave=False)
        assert watch.findings == []
        validate(leave=True)
        try:
            with pytest.raises(gradguard.GradModeError, match="a forward in train mode recorded"):
                net(torch.ones(4, 2))
        finally:
            torch._C._set_grad_enabled(True)


def test_watch_inference():
    """A forward that records is told, one under a guard is not."""
    net = nn.Linear(2, 1).eval()
    with gradguard.watch_inference(net, on_violation="raise") as watch:
        with torch.no_grad(), torch.inference_mode():
            net(torch.ones(1, 2))
        assert watch.findings == []
        with pytest.raises(gradguard.GradModeError, match="graph"):
            net(torch.ones(1, 2))


def test_torchs_sharded_optimizer_trains(process_group):
    """`ZeroRedundancyOptimizer`, whose step and whose own import use the four names."""
    optim = pytest.importorskip("torch.distributed.optim")
    net = nn.Linear(2, 1)
    optimizer = optim.ZeroRedundancyOptimizer(net.parameters(), torch.optim.SGD, lr=0.1)
    before = net.weight.detach().clone()
    with gradguard.watch_training(net, optimizer) as watch:
        step(net, optimizer)
        step(net, optimizer)
    assert (watch.findings, gradguard.guards()) == ([], ())
    assert not torch.equal(net.weight, before)


def test_run_names_the_line(tmp_path):
    """A script that installs gradguard's guards is told of the leak and its line."""
    script = tmp_path / "train.py"
    script.write_text(
        "import torch, gradguard\ngradguard.install()\n"
        "net = torch.nn.Linear(2, 1)\n"
        "optimizer = torch.optim.SGD(net.parameters(), lr=0.1)\n"
        "for at in range(3):\n"
        "    with torch.no_grad():\n"
        "        net(torch.ones(1, 2))\n"
        "    loss = net(torch.ones(1, 2)).sum()\n"
        "    if loss.requires_grad: loss.backward()\n"
        "    optimizer.step()\n"
        "    torch.set_grad_enabled(False)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-m", "gradguard", "run", "train.py"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "train.py:11: mode-leak" in ran.stderr


@pytest.mark.parametrize("used", ["", "gradguard.install()"])
def test_the_plugin_finds_the_leak_alone(pytester, used):
    """Tests that use the guards pass, and the one that leaks is named with its line."""
    pytester.makeconftest(f"import torch, gradguard\n{used}\n")
    pytester.makepyfile(
        """
        import torch

        @torch.no_grad()
        def predict(): return torch.is_grad_enabled()

        def test_healthy():
            with torch.inference_mode(), torch.enable_grad():
                assert not predict()

        def test_leaks():
            torch.set_grad_enabled(False)
        """
    )
    ran = pytester.runpytest_subprocess("--gradguard=error", "-n", "0", "-p", "no:randomly")
    ran.assert_outcomes(passed=1, failed=1)
    ran.stdout.fnmatch_lines(["*test_leaks*", "*:11*set_grad_enabled(False)*"])
