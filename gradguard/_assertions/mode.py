"""The three assertions about the mode at a line.

When they hold they cost two flag reads. Dynamo does not follow `torch.is_inference_mode_enabled`,
so while it compiles they check the grad flag alone, and read no stack.
"""

from collections.abc import Sequence

from gradguard._core.rank import with_rank
from gradguard._core.state import (
    grad_state,
    is_dynamo_compiling,
    is_grad_enabled,
    is_inference_mode_enabled,
)
from gradguard._errors import GradModeError
from gradguard._locate.where import where

# While Dynamo compiles, the stack is not read: the message is all there is.
_WHILE_COMPILING = (
    "the grad mode is wrong at this line, which torch.compile is compiling. To do: run it once "
    "uncompiled, under torch.compiler.set_stance('force_eager'), to have what switched it named."
)
_UNRECORDED = (
    'A backward() of what is computed here raises "element 0 of tensors does not require grad and '
    'does not have a grad_fn"'
)


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
        raise GradModeError(_WHILE_COMPILING)
    state = grad_state()
    if state.inference_mode:
        but = "is_grad_enabled() is True, but nothing" if state.grad_enabled else "nothing"
        wrong = f"inference mode is on ({but} is recorded inside)"
        todo = (
            "To do: close the inference_mode block before this line, or use torch.no_grad() in its "
            "place: tensors made in inference mode cannot be saved for backward."
        )
    else:
        wrong = "grad mode is off"
        todo = (
            "To do: close what switched it before this line (`with` blocks and decorated functions "
            "close by themselves), or run this line under `with gradguard.enable_grad():`."
        )
    wrong = f"assert_grad_enabled: {wrong}. {_UNRECORDED}"
    raise _failed(wrong, where(state), todo)


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
        raise GradModeError(_WHILE_COMPILING)
    if not is_inference_mode_enabled():
        todo = (
            "To do: put this line under `with gradguard.no_grad():`, or decorate the function with "
            "@gradguard.no_grad() (or @gradguard.inference_mode())."
        )
        wrong = "assert_no_grad: grad mode is on, so operations are recorded for backward"
        raise _failed(wrong, where(grad_state()), todo)


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
            raise GradModeError(_WHILE_COMPILING)
    elif not is_inference_mode_enabled():
        state = grad_state()
        grad = "on" if state.grad_enabled else "off"
        todo = (
            "To do: put this line under `with gradguard.inference_mode():`, or decorate the "
            "function with @gradguard.inference_mode(). no_grad is not enough: it makes no "
            "inference tensors."
        )
        wrong = f"assert_inference_mode: inference mode is off (grad mode is {grad})"
        raise _failed(wrong, where(state), todo)


def _failed(wrong: str, lines: Sequence[str], todo: str) -> GradModeError:
    return GradModeError(with_rank("\n".join([f"{wrong}.", *lines, todo])))


for _public in (assert_grad_enabled, assert_no_grad, assert_inference_mode):
    _public.__module__ = "gradguard"
del _public
