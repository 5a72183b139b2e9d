"""What `leak_check` says when a block or a call left something changed."""

from collections.abc import Sequence
from typing import Protocol

from gradguard._core.text import one_line
from gradguard._graph.listing import MOST_ENTRIES

_EVALUATING = (
    "To do: put the module in eval mode with `with gradguard.evaluating(module):`, which brings "
    "the flags back."
)


class State(Protocol):
    """`gradguard.GradState`."""

    @property
    def grad_enabled(self) -> bool: ...
    @property
    def inference_mode(self) -> bool: ...


def not_a_module(kind: str) -> str:
    return (
        f"leak_check(*modules) takes torch.nn.Module objects, got {kind}. "
        "As a decorator write @leak_check() or @leak_check(model), with the parentheses."
    )


def not_entered() -> str:
    return (
        "this leak_check is not open, so it cannot be exited: it was never entered, or was exited "
        "already. Use `with gradguard.leak_check():`, which does both."
    )


def left_changed(
    subject: str,
    before: State,
    after: State,
    *,
    left_open: Sequence[str],
    modules: Sequence[str],
    where: Sequence[str],
) -> str:
    """Say what `subject` changed, which guards it left open, where, and what to do."""
    lines = []
    if before.grad_enabled is not after.grad_enabled:
        lines.append(_changed(subject, "grad mode", before.grad_enabled, after.grad_enabled))
    if before.inference_mode is not after.inference_mode:
        lines.append(
            _changed(subject, "inference mode", before.inference_mode, after.inference_mode)
        )
    if left_open:
        lines.append(f"Guards entered and never exited: {', '.join(map(one_line, left_open))}.")
    if where:
        lines += where
        lines.append("To do: switch the mode with `with` or a decorator, so that it ends there.")
    if modules:
        lines += _flags(subject, modules)
    lines.append("All has been put back.")
    return "\n".join(lines)


def _changed(subject: str, what: str, before: bool, after: bool) -> str:
    left = f"{one_line(subject)} left {what} {_on(after)}"
    return f"{left}; it was {_on(before)} when it began."


def _on(flag: bool) -> str:
    return "on" if flag else "off"


def _flags(subject: str, modules: Sequence[str]) -> list[str]:
    shown = [f"  {one_line(module)}" for module in modules[:MOST_ENTRIES]]
    if len(modules) > MOST_ENTRIES:
        shown.append(f"  and {len(modules) - MOST_ENTRIES} more")
    return [
        f"{one_line(subject)} left the training flag changed of ({len(modules)}):",
        *shown,
        _EVALUATING,
    ]
