"""The three assertions about the mode at a line.

When they hold they cost two flag reads. Dynamo does not follow `torch.is_inference_mode_enabled`,
so while it compiles they check the grad flag alone, and read no stack.
"""

from gradguard._assertions.mode_texts import COMPILING, grad_off, grad_on, not_inference
from gradguard._core.state import (
    grad_state,
    is_dynamo_compiling,
    is_grad_enabled,
    is_inference_mode_enabled,
)
from gradguard._errors import GradModeError
from gradguard._locate.where import where


def assert_grad_enabled() -> None:
    """Raise unless operations are recorded here: grad mode on and inference mode off.

    An ordinary call, so ``python -O`` keeps it. Inside a function that `torch.compile` is
    compiling it checks the grad flag alone.

    Raises:
        GradModeError: nothing is recorded here; the message names the ``with`` block, decorated
            function or call that switched the mode, as far as it can be found.

    >>> import gradguard
    >>> gradguard.assert_grad_enabled()
    >>> with gradguard.no_grad():
    ...     gradguard.assert_grad_enabled()
    Traceback (most recent call last):
        ...
    gradguard.GradModeError: assert_grad_enabled: grad mode is off.
    ...

    Source: inside inference mode nothing is recorded even where `torch.is_grad_enabled` is True,
    see `c10::InferenceMode`.
    """
    __tracebackhide__ = True
    if is_grad_enabled() and (is_dynamo_compiling() or not is_inference_mode_enabled()):
        return
    if is_dynamo_compiling():
        raise GradModeError(COMPILING)
    state = grad_state()
    raise GradModeError(
        grad_off(grad=state.grad_enabled, inference=state.inference_mode, where=where(state))
    )


def assert_no_grad() -> None:
    """Raise unless nothing is recorded here: grad mode off, or inference mode on.

    An ordinary call, so ``python -O`` keeps it. Inside a function that `torch.compile` is
    compiling it checks the grad flag alone.

    Raises:
        GradModeError: operations are recorded here; the message names what switched grad on.

    >>> import gradguard
    >>> with gradguard.inference_mode():
    ...     gradguard.assert_no_grad()
    >>> gradguard.assert_no_grad()
    Traceback (most recent call last):
        ...
    gradguard.GradModeError: assert_no_grad: grad mode is on, so operations are recorded ...

    Source: as `assert_grad_enabled`.
    """
    __tracebackhide__ = True
    if not is_grad_enabled():
        return
    if is_dynamo_compiling():
        raise GradModeError(COMPILING)
    if not is_inference_mode_enabled():
        raise GradModeError(grad_on(where=where(grad_state())))


def assert_inference_mode() -> None:
    """Raise unless inference mode is on: `no_grad` is not enough.

    An ordinary call, so ``python -O`` keeps it. Inside a function that `torch.compile` is
    compiling it checks that the grad flag is off.

    Raises:
        GradModeError: inference mode is off here; the message names what switched it.

    >>> import gradguard
    >>> with gradguard.inference_mode():
    ...     gradguard.assert_inference_mode()
    >>> with gradguard.no_grad():
    ...     gradguard.assert_inference_mode()
    Traceback (most recent call last):
        ...
    gradguard.GradModeError: assert_inference_mode: inference mode is off (grad mode is off).
    ...

    Source: `torch.is_inference_mode_enabled`.
    """
    __tracebackhide__ = True
    if is_dynamo_compiling():
        if is_grad_enabled():
            raise GradModeError(COMPILING)
    elif not is_inference_mode_enabled():
        state = grad_state()
        raise GradModeError(not_inference(grad=state.grad_enabled, where=where(state)))
