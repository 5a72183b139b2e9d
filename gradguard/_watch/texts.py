"""What the watches refuse, and their reports."""

from collections.abc import Sequence

from gradguard._findings.finding import Finding


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
        "optimizer whose step() trains the model, or a tuple of several."
    )


def empty(what: str) -> str:
    return f"watch_training(model, optimizer) got an empty tuple of {what}: give at least one."


def foreign_optimizer(optimizer: str, model: str) -> str:
    return (
        f"the {optimizer} holds none of the parameters of the {model}, so no step could train it. "
        "Usual causes: the model was copied, moved to another class or compiled from a copy after "
        "the optimizer was made. Make the optimizer from this model's parameters()."
    )


def bad_methods(value: str) -> str:
    return (
        "watch_inference(methods=...) takes the names of methods, such as ('forward',), got "
        f"{value}."
    )


def no_method(model: str, name: str) -> str:
    return f"watch_inference(methods=...): {model} has no method {name!r}."


def training_report(steps: int, forwards: int, findings: Sequence[Finding]) -> str:
    if not steps:
        seen = f"{forwards} forwards and no" if forwards else "no"
        first = (
            f"watch_training: {seen} optimizer step was seen (the update may be written by hand, "
            "the step compiled, or the optimizer another one)"
        )
    else:
        first = f"watch_training: {steps} optimizer steps"
    if not findings:
        return f"{first}, nothing found" if steps else first
    return "\n".join([first, *map(_row, findings)])


def inference_report(name: str, forwards: int, violations: int, findings: Sequence[Finding]) -> str:
    first = f"{name}: {forwards} forwards, {violations} violations"
    return "\n".join([first, *map(_row, findings)])


def _row(one: Finding) -> str:
    where = f" at {one.filename}:{one.lineno}" if one.filename else ""
    return f"  {one.kind}{where}: {one.count}"
