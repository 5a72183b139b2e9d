"""The three mode assertions: when they hold, what they say, and under a compiler."""

import subprocess
import sys

import pytest
import torch

import gradguard
from gradguard import GradModeError, assert_grad_enabled, assert_inference_mode, assert_no_grad
from gradguard._core.places import file_shown

HOLDS = [
    (assert_grad_enabled, "on", True),
    (assert_grad_enabled, "off", False),
    (assert_grad_enabled, "inference", False),
    (assert_grad_enabled, "flag only", False),
    (assert_no_grad, "on", False),
    (assert_no_grad, "off", True),
    (assert_no_grad, "inference", True),
    (assert_no_grad, "flag only", True),
    (assert_inference_mode, "on", False),
    (assert_inference_mode, "off", False),
    (assert_inference_mode, "inference", True),
    (assert_inference_mode, "flag only", True),
]


def in_mode(mode, fn):
    if mode == "on":
        return fn()
    if mode == "off":
        with torch.no_grad():
            return fn()
    with torch.inference_mode():
        if mode == "flag only":
            with torch.enable_grad():
                return fn()
        return fn()


@pytest.mark.parametrize(("check", "mode", "holds"), HOLDS)
def test_what_each_assertion_accepts(check, mode, holds):
    """Each assertion holds in exactly the modes that its name promises."""
    before = gradguard.grad_state()
    if holds:
        assert in_mode(mode, check) is None
    else:
        with pytest.raises(GradModeError, match=check.__name__):
            in_mode(mode, check)
    assert gradguard.grad_state() == before


def test_grad_off_names_the_block_and_what_to_do():
    """The message says that grad mode is off, names the `with` of this file, and what to do."""
    with pytest.raises(GradModeError) as caught:
        in_mode("off", assert_grad_enabled)
    first, *where, todo = str(caught.value).splitlines()
    assert first.startswith("assert_grad_enabled: grad mode is off. A backward() of what is ")
    with pytest.raises(RuntimeError) as at_backward:
        torch.ones(1).backward()
    assert f'raises "{at_backward.value}".' in first
    assert any(
        "torch.no_grad() entered at" in line and file_shown(__file__) in line for line in where
    )
    assert todo.startswith("To do: ")
    assert "gradguard.enable_grad()" in todo


def test_inference_mode_is_named_though_the_grad_flag_is_on():
    """With the flag on inside torch's inference mode the message says that nothing is recorded."""
    with pytest.raises(GradModeError) as caught:
        in_mode("flag only", assert_grad_enabled)
    assert "inference mode is on (is_grad_enabled() is True, but nothing is recorded" in str(
        caught.value
    )


def test_in_inference_mode_nothing_is_advised_that_fails():
    """Recording inside inference mode fails on what was made there, so it is not advised."""
    with pytest.raises(GradModeError) as caught:
        in_mode("inference", assert_grad_enabled)
    todo = str(caught.value).splitlines()[-1]
    assert "close the inference_mode block" in todo
    assert "enable_grad" not in todo
    layer = torch.nn.Linear(1, 1)
    with torch.inference_mode():
        x = torch.ones(1)
        with gradguard.enable_grad(), pytest.raises(RuntimeError) as at_save:
            layer(x)
    assert "cannot be saved for backward" in str(at_save.value)
    assert "cannot be saved for backward" in todo


def test_the_rank_is_told(process_group):
    """While a process group is initialized the message says the rank."""
    with pytest.raises(GradModeError, match=r"^rank 0 of 1: assert_grad_enabled: "):
        in_mode("off", assert_grad_enabled)


def test_grad_on_says_how_to_stop_recording():
    """assert_no_grad says that operations are recorded and which guard to use."""
    with pytest.raises(GradModeError) as caught:
        assert_no_grad()
    assert "grad mode is on, so operations are recorded" in str(caught.value)
    assert "with gradguard.no_grad():" in str(caught.value)


@pytest.mark.parametrize(("mode", "said"), [("on", "on"), ("off", "off")])
def test_not_inference_says_which_mode_it_is(mode, said):
    """assert_inference_mode says how grad mode stands, and that no_grad is not enough."""
    with pytest.raises(GradModeError) as caught:
        in_mode(mode, assert_inference_mode)
    assert f"inference mode is off (grad mode is {said})" in str(caught.value)
    assert "no_grad is not enough" in str(caught.value)


def test_an_optimised_python_keeps_them():
    """``python -O`` drops assert statements, not these calls."""
    code = "import gradguard\nwith gradguard.no_grad(): gradguard.assert_grad_enabled()"
    done = subprocess.run(
        [sys.executable, "-O", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "GradModeError: assert_grad_enabled: grad mode is off." in done.stderr


@pytest.mark.parametrize(
    ("check", "guard"),
    [
        (assert_grad_enabled, gradguard.enable_grad),
        (assert_no_grad, gradguard.no_grad),
        (assert_inference_mode, gradguard.no_grad),  # the grad flag alone, while compiling
    ],
)
def test_a_compiled_step_keeps_one_graph(check, guard):
    """Each assertion in a compiled function: no graph break, and the grad flag is checked."""

    @torch.compile(fullgraph=True, backend="eager")
    def step(x):
        with guard():
            check()
        return x * 2

    assert step(torch.ones(2)).tolist() == [2.0, 2.0]


@pytest.mark.parametrize(
    ("check", "guard"),
    [
        (assert_grad_enabled, gradguard.no_grad),
        (assert_no_grad, gradguard.enable_grad),
        (assert_inference_mode, gradguard.enable_grad),
    ],
)
def test_a_compiled_step_still_fails(check, guard):
    """An assertion that does not hold raises out of a compiled function, too."""
    torch._dynamo.reset()

    @torch.compile(backend="eager")
    def step(x):
        with guard():
            check()
        return x * 2

    with pytest.raises(GradModeError):
        step(torch.ones(2))
    torch._dynamo.reset()
