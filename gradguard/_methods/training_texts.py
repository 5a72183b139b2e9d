"""What ``training_method`` says when a training step is not what it should be."""

from collections.abc import Sequence
from reprlib import repr as shortened

_LOSSES = (
    'a tensor, a mapping with a tensor "loss", an object with a tensor attribute `loss`, or a '
    "tuple whose first element is the loss; None skips the batch"
)


def no_loss_to_return(function: str) -> str:
    """Refuse a generator function, which has no return value to check."""
    return (
        f"training_method cannot decorate {function}, a generator function: it returns no loss. "
        "Decorate the method that computes the loss of one batch."
    )


def put_below(kind: str) -> str:
    """Refuse a classmethod, staticmethod or property object."""
    return (
        f"training_method cannot decorate a {kind} object. Put it below: @{kind} first, and "
        "@training_method next to the def."
    )


def grad_off(function: str, where: Sequence[str]) -> str:
    """Say that grad mode is off on entry."""
    return _entry(
        f"{function} was called with grad mode off (as in no_grad)",
        where,
        "call it outside that block or function, or in `with gradguard.enable_grad():`.",
    )


def inference_on(function: str, where: Sequence[str]) -> str:
    """Say that inference mode is on on entry."""
    return _entry(
        f"{function} was called in inference mode",
        where,
        "call it outside that block or function. gradguard.enable_grad() leaves inference mode "
        "(torch's does not), but tensors made before in that mode stay inference tensors.",
    )


def _entry(wrong: str, where: Sequence[str], todo: str) -> str:
    first = f"{wrong}: nothing is recorded, and its loss would have no graph."
    return "\n".join([first, *where, f"To do: {todo}"])


def in_eval(function: str, module: str, holders: Sequence[str], here: str) -> str:
    """Say that a module is in eval mode on entry, and who holds it there."""
    wrong = (
        f"{function} was called while its module ({module}) is in eval mode: dropout does not act, "
        "and BatchNorm uses its running statistics."
    )
    if not holders:
        return (
            f"{wrong}\nNo open gradguard.evaluating scope holds it there: it was put in eval mode "
            "by .eval() or .train(False).\nTo do: call .train() on it before the training step."
        )
    threads = ", ".join("this one" if name == here else repr(name) for name in holders)
    return (
        f"{wrong}\nAn open gradguard.evaluating scope or inference_method call holds it there "
        f"(threads: {threads}).\nTo do: end that before the training step, or train a copy "
        "(copy.deepcopy): one module cannot be in train and in eval mode at once."
    )


def no_loss(function: str, place: str, found: object) -> str:
    """Say that nothing in the return value looks like a loss."""
    return (
        f"{function} returned no loss: {place} is {shortened(found)}, of type "
        f"{type(found).__name__}.\nA training method returns {_LOSSES}.\nTo do: {_fix(found)}"
    )


def _fix(found: object) -> str:
    if isinstance(found, (int, float)):
        return "return the tensor itself, without .item() or float()."
    return "return the loss tensor in one of these forms."


def not_connected(function: str, place: str, cause: str) -> str:
    """Say that the loss has no graph, and why as far as that can be seen."""
    return (
        f"{function} returned a loss without a graph: {place} has no grad_fn, so backward reaches "
        f"no parameter.\n{cause}"
    )


MADE_IN_INFERENCE = (
    "It is an inference tensor: it was computed in inference mode.\nTo do: look for inference_mode "
    "or inference_method in what the method calls."
)
MADE_A_LEAF = (
    "It is a leaf: requires_grad was set on it by hand (requires_grad_(), torch.tensor(..., "
    "requires_grad=True)), which lets backward run but connects it to nothing.\nTo do: remove "
    "that, and what had cut the loss off from the parameters before."
)
CUT_OFF = (
    "Usual causes, within the method: .detach(), .data, .item() or torch.tensor(loss); NumPy; an "
    "in-between result computed under no_grad.\nTo do: look for these between the parameters and "
    "the loss."
)


def all_frozen(modules: str) -> str:
    """Say that there is nothing to train."""
    return (
        f"No parameter of {modules} has requires_grad True.\nTo do: unfreeze what is to be "
        "trained: parameter.requires_grad_()."
    )
