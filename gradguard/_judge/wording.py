"""What several checks say in the same words: of a forward in training, or in serving."""

from collections.abc import Sequence


def counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def why_none(module: str, *, recorded: bool, reentrant: bool) -> str:
    if reentrant:
        return (
            f"The {module} ran in a reentrant checkpoint none of whose inputs requires grad ('None "
            "of the inputs have requires_grad=True. Gradients will be None')."
        )
    if not recorded:
        return f"The {module} was called under no_grad or inference mode only."
    return f"The {module} ran, and what it returned did not reach the loss with its graph."


def no_gradient(optimizer: str, steps: int, count: int, why: str) -> str:
    todo = (
        "pass use_reentrant=False to checkpoint()"
        if "reentrant" in why
        else "let the loss depend on it (no detach(), no no_grad around it)"
    )
    return (
        f"{counted(count, 'trainable parameter')} of {optimizer} never had a gradient in "
        f"{counted(steps, 'step')}: what is called here does not learn. {why}\n"
        f"To do: {todo}; or freeze it (requires_grad_(False)), or leave it out of the optimizer."
    )


def recorded_eval(model: str, count: int) -> str:
    return (
        f"A forward of the {model} in eval mode recorded a graph that nobody used "
        f"({counted(count, 'time')}): it keeps the activations for a backward that never comes.\n"
        "To do: call it under `with torch.inference_mode():` or `with torch.no_grad():`."
    )


def train_mode_inference(model: str, count: int, acting: Sequence[str]) -> str:
    return (
        f"The {model} ran in train mode where nothing is recorded ({counted(count, 'time')}): "
        f"{' and '.join(acting)} acted as in training, so its results are random or change its "
        "statistics.\n"
        "To do: call model.eval() before, or use @gradguard.inference_method."
    )
