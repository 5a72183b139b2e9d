import threading

import pytest
import torch

from gradguard import GradState, grad_state
from gradguard._core import compiling as _compiling
from gradguard._core import torch_versions
from gradguard._core.state import enter_inference, put_back, set_inference

GRAD = GradState(grad_enabled=True, inference_mode=False)
NO_GRAD = GradState(grad_enabled=False, inference_mode=False)
INFERENCE = GradState(grad_enabled=False, inference_mode=True)


@pytest.fixture(autouse=True)
def mode_is_put_back():
    """Every test begins and ends recording."""
    assert grad_state() == GRAD
    yield
    assert grad_state() == GRAD


@pytest.mark.parametrize(
    ("guard", "state"),
    [
        (torch.enable_grad, GRAD),
        (torch.no_grad, NO_GRAD),
        (torch.inference_mode, INFERENCE),
        (torch.inference_mode, GradState(grad_enabled=True, inference_mode=True)),
    ],
)
def test_grad_state_reads_both_flags(guard, state):
    """`grad_state()` is the two flags of this thread."""
    with guard():
        torch._C._set_grad_enabled(state.grad_enabled)
        assert grad_state() == state
        assert grad_state().grad_enabled is torch.is_grad_enabled()
        assert grad_state().inference_mode is torch.is_inference_mode_enabled()


def test_grad_state_is_a_named_tuple():
    """It unpacks, compares and says what it is."""
    grad, inference = grad_state()
    assert (grad, inference) == (True, False)
    assert repr(grad_state()) == "GradState(grad_enabled=True, inference_mode=False)"


def test_grad_state_is_the_threads_own():
    """Each thread has its own flags."""
    seen = []
    with torch.no_grad():
        other = threading.Thread(target=lambda: seen.append(grad_state()))
        other.start()
        other.join()
    assert seen == [GRAD]


def test_set_inference_leaves_nothing_to_be_exited():
    """Inference mode is switched as a flag is: nothing comes back later."""
    set_inference(True)
    assert grad_state() == INFERENCE
    set_inference(False)
    assert grad_state() == GRAD


def test_set_inference_keeps_the_rest_of_the_dispatch_state():
    """Autocast that began after a token is still on when that token is used up."""
    token = enter_inference(True)
    with torch.autocast("cpu"):
        set_inference(False, [token])
        assert grad_state() == GRAD
        assert torch.is_autocast_enabled("cpu")
    del token
    assert grad_state() == GRAD


def test_put_back_brings_back_any_mode():
    """`put_back` goes to any mode from any other."""
    modes = [GRAD, NO_GRAD, INFERENCE, GradState(grad_enabled=True, inference_mode=True)]
    for here in modes:
        for there in modes:
            put_back(here)
            put_back(there)
            assert grad_state() == there
    put_back(GRAD)


@pytest.mark.parametrize("entering", [enter_inference, torch_versions._enter_in_two_calls])
def test_a_token_brings_back_what_it_found(entering):
    """However this torch enters inference mode, the token's exit brings both flags back."""
    with torch.no_grad():
        token = entering(True)
        assert grad_state() == INFERENCE
        token.__exit__(None, None, None)
        assert grad_state() == NO_GRAD


# What is used of torch that it does not promise: a torch that drops one fails here, by its name.

PRIVATE = {
    "torch._C._set_grad_enabled": lambda: torch._C._set_grad_enabled,
    "torch._C._InferenceMode": lambda: torch._C._InferenceMode,
    "torch._C._is_any_autocast_enabled": lambda: torch._C._is_any_autocast_enabled,
    "torch.autograd.grad_mode._enter_inference_mode": lambda: (
        torch.autograd.grad_mode._enter_inference_mode
    ),
    "torch.autograd.grad_mode._exit_inference_mode": lambda: (
        torch.autograd.grad_mode._exit_inference_mode
    ),
    "torch.compiler.is_dynamo_compiling": lambda: torch.compiler.is_dynamo_compiling,
}


@pytest.mark.parametrize("name", PRIVATE)
def test_torch_has(name):
    """torch has the private name that gradguard builds on."""
    assert callable(PRIVATE[name]()), f"this torch has no {name}: see gradguard/_state.py"


def test_the_raw_grad_switch():
    """`torch._C._set_grad_enabled` switches the flag and nothing else, and is followed by name."""
    assert torch_versions.set_grad is torch._C._set_grad_enabled
    assert torch._C._set_grad_enabled(False) is None
    assert grad_state() == NO_GRAD
    torch._C._set_grad_enabled(True)


@pytest.mark.parametrize("found", [True, False])
@pytest.mark.parametrize("mode", [True, False])
def test_the_raw_inference_switch(found, mode):
    """`torch._C._InferenceMode(mode)` enters on construction or on entry, and exits to what it found."""
    torch._C._set_grad_enabled(found)
    before = grad_state()
    token = enter_inference(mode)
    assert grad_state() == GradState(not mode, mode)
    token.__exit__(None, None, None)
    assert grad_state() == before
    token.__exit__(None, None, None)
    assert grad_state() == before
    torch._C._set_grad_enabled(True)


def test_a_token_is_exited_in_any_thread():
    """A body that is resumed in another thread exits its tokens there: the mode is that thread's."""
    token, seen = enter_inference(True), []

    def run():
        token.__exit__(None, None, None)
        seen.append(grad_state())

    other = threading.Thread(target=run)
    other.start()
    other.join()
    assert (seen, grad_state()) == ([GRAD], INFERENCE)
    put_back(GRAD)


def test_the_compiled_inference_switch():
    """`_enter_inference_mode` and `_exit_inference_mode` are a token's two ends."""
    guard = _compiling.CompiledInference(True)
    guard.__enter__()
    assert grad_state() == INFERENCE
    guard.__exit__()


def test_is_any_autocast_enabled():
    """It is on inside autocast, for any device, also inside inference mode."""
    assert not torch._C._is_any_autocast_enabled()
    with torch.autocast("cpu"), torch.inference_mode():
        assert torch._C._is_any_autocast_enabled()


def test_the_function_behind_a_tokens_exit():
    """torch's token still has a plain function behind its `__exit__`, which ends it as that does."""
    assert torch_versions.exit_inference is not torch._C._InferenceMode.__exit__
    token = torch_versions.enter_inference(True)
    torch_versions.exit_inference(token, None, None, None)
    assert not torch.is_inference_mode_enabled()
