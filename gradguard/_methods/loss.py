"""The loss in what a training method returns, and whether it has a graph."""

from collections.abc import Iterable, Mapping
from reprlib import repr as shortened
from typing import Any

from torch import Tensor
from torch.nn import Module

from gradguard._errors import GradModeError

_NOTHING = object()


def check_loss(result: Any, function: str, modules: Iterable[Module]) -> None:
    """Raise unless the loss in `result` is connected to a graph; None is Lightning's way to skip.

    A leaf is not connected: with ``requires_grad_()`` on a detached loss backward succeeds, and
    gives no parameter a gradient.
    """
    if result is None:
        return
    place, loss = _loss_in(result)
    if not isinstance(loss, Tensor):
        raise GradModeError(_no_loss(function, place, loss))
    if loss.grad_fn is None:
        raise GradModeError(_not_connected(function, place, loss, tuple(modules)))


def _loss_in(result: Any) -> tuple[str, Any]:
    """Return where the loss is, in words, and what is there, which may be no loss at all."""
    kind = type(result).__name__
    if isinstance(result, Tensor):
        return "the returned tensor", result
    if isinstance(result, Mapping) and "loss" in result:
        return f"the 'loss' of the returned {kind}", result["loss"]
    if (loss := getattr(result, "loss", _NOTHING)) is not _NOTHING:
        return f"the attribute loss of the returned {kind}", loss
    if isinstance(result, tuple) and result:
        return f"the first element of the returned {kind}", result[0]
    return "the returned value", result


def _no_loss(function: str, place: str, found: object) -> str:
    to_do = "return the loss tensor in one of these forms."
    if isinstance(found, (int, float)):
        to_do = "return the tensor itself, without .item() or float()."
    return (
        f"{function} returned no loss: {place} is {shortened(found)}, of type "
        f"{type(found).__name__}.\nA training method returns a tensor, a mapping with a tensor "
        '"loss", an object with a tensor attribute `loss`, or a tuple whose first element is the '
        f"loss; None skips the batch.\nTo do: {to_do}"
    )


def _not_connected(function: str, place: str, loss: Tensor, modules: tuple[Module, ...]) -> str:
    torch_says = ""
    if not loss.requires_grad:
        torch_says = (
            " (in torch's words: element 0 of tensors does not require grad and does not have a "
            "grad_fn)"
        )
    return (
        f"{function} returned a loss without a graph: {place} has no grad_fn, so backward() "
        f"reaches no parameter{torch_says}.\n{_cause(loss, modules)}"
    )


def _cause(loss: Tensor, modules: tuple[Module, ...]) -> str:
    if loss.is_inference():
        return (
            "It is an inference tensor: it was computed in inference mode.\nTo do: look for "
            "inference_mode, inference_method or inference_function in what the method calls."
        )
    if loss.requires_grad:
        return (
            "It is a leaf: requires_grad was set on it by hand (requires_grad_(), "
            "torch.tensor(..., requires_grad=True)), which lets backward() run but connects it to "
            "nothing.\nTo do: remove that, and what had cut the loss off from the parameters "
            "before."
        )
    if not any(p.requires_grad for module in modules for p in module.parameters()):
        names = ", ".join(type(module).__name__ for module in modules)
        return (
            f"No parameter of {names} has requires_grad True.\nTo do: unfreeze what is to be "
            "trained: parameter.requires_grad_()."
        )
    return (
        "Usual causes, within the method: .detach(), .data, .item() or torch.tensor(loss); NumPy; "
        "a result computed under no_grad on the way.\nTo do: look for these between the "
        "parameters and the loss."
    )
