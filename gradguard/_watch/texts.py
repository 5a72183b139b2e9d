"""What the watches say, and their reports."""

from collections.abc import Mapping, Sequence

from gradguard._graph.advice import FIND, OUTSIDE
from gradguard._graph.listing import Names, Section, listed


def bad_on_violation(value: str) -> str:
    return (
        f"on_violation={value} is not one of 'raise', 'warn' or a callable that takes the "
        "GradModeError."
    )


def bad_patience(value: str) -> str:
    return f"patience={value} must be a whole number of optimizer steps, 1 or more."


def not_an_optimizer(kind: str) -> str:
    return (
        f"watch_training(model, optimizer) needs a torch.optim.Optimizer, got {kind}: pass the "
        "optimizer whose step() trains the model; for several, make one watch for each."
    )


def foreign_optimizer(optimizer: str, model: str) -> str:
    return (
        f"the {optimizer} holds none of the parameters of the {model}, so no step could train it. "
        "Usual causes: the model was copied, moved to another class or compiled from a copy after "
        "the optimizer was made. Make the optimizer from this model's parameters()."
    )


_TRAINING = "watch_training, at optimizer step {step}: "


def empty_step(step: int, count: int) -> str:
    return (
        f"{_TRAINING.format(step=step)}none of the {count} trainable parameters that it updates "
        "has a gradient, so the step changes nothing.\n"
        "Usual causes: no backward() before it, zero_grad() between backward() and step(), or a "
        f"forward with grad mode off.\nTo do: call backward() on a loss first. {FIND}"
    )


def no_gradient(step: int, every: Sequence[Names], missing: Sequence[Names], patience: int) -> str:
    steps = "this step" if patience == 1 else f"{patience} steps in a row"
    first = f"{_TRAINING.format(step=step)}parameters without a gradient in {steps}."
    todo = (
        "use them for the loss, without detach() and with grad mode on, or name them in allow=; "
        f"where they are used only now and then, give patience=. {FIND}"
    )
    return listed([first], [Section("No gradient", missing, every, todo)])


def inference(step: int, every: Sequence[Names], found: Mapping[str, Sequence[Names]]) -> str:
    first = (
        f"{_TRAINING.format(step=step)}inference tensors take part in training: they were made in "
        "inference mode, and autograd leaves them out."
    )
    sections = [
        Section(f"Among the {what}", names, every if what == "parameters" else names, OUTSIDE)
        for what, names in found.items()
    ]
    return listed([first], sections)


def stale(step: int, names: Sequence[Names]) -> str:
    first = (
        f"{_TRAINING.format(step=step)}the optimizer holds parameters that are the model's no "
        "longer, so what has replaced them is not trained."
    )
    todo = (
        "make the optimizer after the model has its final layers, or add_param_group the new ones."
    )
    return listed([first], [Section("Replaced since", names, names, todo)])


def eval_mode(step: int, model: str) -> str:
    return (
        f"{_TRAINING.format(step=step)}the {model} is in eval mode, though it was in train mode "
        "when the watch began: dropout is off and batch statistics stand still.\n"
        "Usual cause: a validation function that calls model.eval() and never model.train().\n"
        "To do: evaluate under `with gradguard.evaluating(model):`, which brings the flags back, "
        "or call model.train() before the training step."
    )


def mode_left(step: int, wanted: str, now: str, where: Sequence[str]) -> str:
    first = (
        f"{_TRAINING.format(step=step)}the mode was left switched: it was {wanted} when the watch "
        f"began and is {now}, outside every open `with`, decorator or guard."
    )
    todo = "To do: switch the mode with `with` or a decorator, so that it ends with its block."
    return "\n".join([first, *where, todo])


_KINDS = {
    "empty": "steps without any gradient",
    "stale": "steps with parameters that are not the model's",
    "missing": "steps with parameters long without a gradient",
    "inference": "steps with inference tensors",
    "eval": "steps in eval mode",
    "mode": "steps with the mode left switched",
}


def training_report(steps: int, counts: Mapping[str, int]) -> str:
    if not steps:
        return "watch_training: no optimizer step was seen (compiled ones are not)"
    lines = [f"watch_training: {steps} optimizer steps"]
    lines += [f"  {_KINDS[kind]}: {count}" for kind, count in counts.items() if count]
    return "\n".join(lines if len(lines) > 1 else [f"{lines[0]}, nothing found"])


def recorded_forward(model: str, train: bool) -> str:
    mode = ", with the module in train mode" if train else ""
    return (
        f"watch_inference: a forward of the {model} recorded a graph{mode}: it keeps every "
        "activation for a backward that serving never runs.\n"
        "To do: call it under `with gradguard.inference_mode():` (or no_grad), or decorate the "
        "method with @gradguard.inference_method."
    )


def train_mode_forward(model: str) -> str:
    return (
        f"watch_inference: a forward of the {model} ran in train mode: dropout is on and batch "
        "statistics change.\n"
        "To do: call model.eval() once after loading, or decorate the method with "
        "@gradguard.inference_method, which puts the module in eval mode for the call."
    )


def inference_report(forwards: int, violations: int, lines: Sequence[str]) -> str:
    first = f"watch_inference: {forwards} forwards, {violations} violations"
    return "\n".join([first, *(f"  at {line}" for line in lines)])
