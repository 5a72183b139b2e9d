"""The loss in what a training method returns, and whether it has a graph."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.nn import Module

from gradguard._errors import GradModeError
from gradguard._methods import training_texts as messages

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
        raise GradModeError(messages.no_loss(function, place, loss))
    if loss.grad_fn is None:
        raise GradModeError(messages.not_connected(function, place, _cause(loss, modules)))


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


def _cause(loss: Tensor, modules: Iterable[Module]) -> str:
    if loss.is_inference():
        return messages.MADE_IN_INFERENCE
    if loss.requires_grad:
        return messages.MADE_A_LEAF
    modules = tuple(modules)
    if not any(p.requires_grad for module in modules for p in module.parameters()):
        return messages.all_frozen(", ".join(type(module).__name__ for module in modules))
    return messages.CUT_OFF
