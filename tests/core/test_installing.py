"""gradguard's guards in torch's places."""

import subprocess
import sys
import warnings

import pytest
import torch

import gradguard
from gradguard import GradModeWarning
from gradguard._core.torch_versions import TORCH_GUARDS

PLACES = (torch, torch.autograd, torch.autograd.grad_mode)


def bound():
    return {name: {getattr(place, name) for place in PLACES} for name in TORCH_GUARDS}


@pytest.fixture
def installed():
    with gradguard.install() as handle:
        yield handle


def test_the_four_names_are_gradguards_and_then_torchs_again():
    """Wherever torch exports them, for as long as it is installed."""
    with gradguard.install():
        assert bound() == {name: {getattr(gradguard, name)} for name in TORCH_GUARDS}
    assert bound() == {name: {guard} for name, guard in TORCH_GUARDS.items()}


def test_twice_is_once(installed):
    """A second call changes nothing, and so does the end of what it returned."""
    with gradguard.install():
        pass
    assert torch.no_grad is gradguard.no_grad
    installed.uninstall()
    installed.uninstall()
    assert torch.no_grad is TORCH_GUARDS["no_grad"]


def test_what_another_has_put_there_since_is_left(monkeypatch):
    """Uninstalling does not undo what somebody else has bound."""
    with gradguard.install():
        monkeypatch.setattr(torch, "no_grad", torch.enable_grad)
    assert torch.no_grad is gradguard.enable_grad


def test_torchs_guards_from_before_still_work(installed):
    """They call `torch.set_grad_enabled` when they run, which is gradguard's now."""
    stock = TORCH_GUARDS["no_grad"]
    with stock():
        assert not torch.is_grad_enabled()
        with torch.enable_grad():
            assert torch.is_grad_enabled()
    assert torch.is_grad_enabled()
    assert gradguard.guards() == ()


def test_a_class_is_warned_about_at_its_line(installed):
    """It must not stop a program: the constructor is covered, as by torch."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")

        @torch.no_grad()
        class Net:
            def __init__(self):
                self.grad = torch.is_grad_enabled()

    (warning,) = caught
    assert (warning.category, warning.filename) == (GradModeWarning, __file__)
    assert "no_grad() decorates the class" in str(warning.message)
    assert "its constructor is covered" in str(warning.message)
    assert Net().grad is False


def test_a_class_is_refused_again_afterwards():
    """Without it gradguard's guards decorate no class."""
    with gradguard.install():
        pass
    with pytest.raises(TypeError, match="cannot decorate the class"):
        gradguard.no_grad()(type("Net", (), {}))


def test_torchs_attributes_are_there(installed):
    """`clone()` and `mode`, which code that knows torch's guards reads."""
    for mode in (True, False):
        assert torch.inference_mode(mode).mode is torch.inference_mode(mode).clone().mode is mode
        made = torch.set_grad_enabled(mode)
        assert made.mode is made.clone().mode is mode
    torch.set_grad_enabled(True)
    with torch.no_grad().clone():
        assert not torch.is_grad_enabled()
        with torch.enable_grad().clone():
            assert torch.is_grad_enabled()


PROGRAM = """
import torch, gradguard
gradguard.install()
import torch.distributed.optim
@torch.jit.script
def helper(x):
    with torch.no_grad():
        return x * 2
@torch.jit.script
def scripted(x):
    with torch.no_grad():
        y = helper(x) * 2
    return y
assert not scripted(torch.ones(2, requires_grad=True)).requires_grad
assert torch.no_grad is gradguard.no_grad
layer = torch.nn.Linear(2, 1)
@torch.compile(fullgraph=True, backend="eager")
def compiled(x):
    with torch.no_grad():
        y = layer(x)
    return y
assert not compiled(torch.ones(1, 2)).requires_grad
stock = gradguard._core.torch_versions.TORCH_GUARDS
@stock["inference_mode"]()
def before(x):
    return layer(x)
assert not torch.compile(lambda x: before(x), backend="eager")(torch.ones(1, 2)).requires_grad
print("done")
"""


def test_what_torch_scripts_and_compiles_goes_on(tmp_path):
    """TorchScript sees torch's own guards, also in `torch.distributed.optim`; Dynamo follows ours."""
    program = tmp_path / "program.py"  # TorchScript reads the source
    program.write_text(PROGRAM, encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", program],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.stdout, ran.returncode) == ("done\n", 0), ran.stderr
