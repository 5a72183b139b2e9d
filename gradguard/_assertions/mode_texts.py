"""What the three mode assertions say: what is wrong, where it came from, what to do."""

from collections.abc import Sequence

# While Dynamo compiles, the stack is not read: the message is all there is.
COMPILING = (
    "the grad mode is wrong at this line, which torch.compile is compiling. To do: run it once "
    "uncompiled, under torch.compiler.set_stance('force_eager'), to have what switched it named."
)

_TO_RECORD = (
    "To do: let what switched the mode end before this line (`with` and decorators end by "
    "themselves); where this block must record whatever surrounds it, put it under "
    "`with gradguard.enable_grad():`."
)
_TO_STOP = (
    "To do: put this line under `with gradguard.no_grad():`, or decorate the function with "
    "@gradguard.no_grad() (or @gradguard.inference_mode())."
)
_TO_INFER = (
    "To do: put this line under `with gradguard.inference_mode():`, or decorate the function with "
    "@gradguard.inference_mode(). no_grad is not enough: it makes no inference tensors."
)


def grad_off(*, grad: bool, inference: bool, where: Sequence[str]) -> str:
    if inference:
        but = "is_grad_enabled() is True, but nothing" if grad else "nothing"
        what = f"inference mode is on ({but} is recorded inside)"
    else:
        what = "grad mode is off"
    return _joined(f"assert_grad_enabled: {what}.", where, _TO_RECORD)


def grad_on(*, where: Sequence[str]) -> str:
    what = "assert_no_grad: grad mode is on, so operations are recorded for backward."
    return _joined(what, where, _TO_STOP)


def not_inference(*, grad: bool, where: Sequence[str]) -> str:
    mode = "on" if grad else "off"
    what = f"assert_inference_mode: inference mode is off (grad mode is {mode})."
    return _joined(what, where, _TO_INFER)


def _joined(what: str, where: Sequence[str], todo: str) -> str:
    return "\n".join([what, *where, todo])
