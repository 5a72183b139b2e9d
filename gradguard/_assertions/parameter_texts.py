"""The texts of the assertions on parameters, gradients and detached results."""

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from gradguard._core.text import one_line
from gradguard._graph.advice import FIND, OUTSIDE
from gradguard._graph.listing import MOST_ENTRIES, Names, Section, listed


class Missed(NamedTuple):
    """Parameters that a gradient does not reach, by cause."""

    inference: list[Names]
    lazy: list[Names]
    other: list[Names]


class Unready(NamedTuple):
    """Parameters and buffers that are not as training needs them, by cause."""

    frozen: Sequence[Names]
    thawed: Sequence[Names]
    inference: Sequence[Names]
    buffers: Sequence[Names]


def not_trainable(
    module: str, every: Sequence[Names], every_buffer: Sequence[Names], unready: Unready
) -> str:
    first = f"assert_trainable: {module} ({len(every)} parameters) cannot be trained as asked."
    sections = (
        Section(
            "Parameters that are frozen (requires_grad False) though no glob of frozen= says so",
            unready.frozen,
            every,
            "requires_grad_(True) on them, or name them in frozen=.",
        ),
        Section(
            "Parameters that frozen= names but that are not frozen (requires_grad True)",
            unready.thawed,
            every,
            "requires_grad_(False) on them, or take them out of frozen=.",
        ),
        Section(
            "Parameters that are inference tensors, born in inference mode: autograd leaves them "
            "out or refuses them, and no optimizer can update them",
            unready.inference,
            every,
            OUTSIDE,
        ),
        Section(
            "Buffers that are inference tensors, born in inference mode: autograd cannot save "
            "them, and they cannot be updated",
            unready.buffers,
            every_buffer,
            OUTSIDE,
            noun="buffers",
        ),
    )
    return listed([first], sections)


def no_gradient(module: str, every: Sequence[Names], missed: Missed) -> str:
    first = (
        f"assert_gradients: no gradient for {sum(map(len, missed))} of {len(every)} trainable "
        f"parameters of {module}; an optimizer step skips them without a word."
    )
    reached = Section(
        "Not reached by a backward",
        missed.other,
        every,
        "call this after backward() and before zero_grad(). If it is: the forward does not use "
        f"them, detaches what they made, or uses them with grad mode off. {FIND}",
    )
    return listed([first], [*_cannot_learn(missed, every), reached])


def unused(
    module: str, every: Sequence[Names], missed: Missed, checkpoints: Collection[str]
) -> str:
    first = (
        f"assert_parameters_used: the loss does not reach {sum(map(len, missed))} of {len(every)} "
        f"trainable parameters of {module}; backward() would give them no gradient."
    )
    hidden = ""
    if missed.other and checkpoints:
        hidden = (
            f"Some may be hidden: the loss passes through {', '.join(sorted(checkpoints)[:3])}, "
            "and what runs in a reentrant checkpoint has no graph before backward. Check them "
            "with assert_gradients after backward(), or use checkpoint(..., use_reentrant=False)."
        )
    reached = Section(
        "Not in the graph",
        missed.other,
        every,
        "use them for the loss, without detach() and with grad mode on, or name them in allow=. "
        f"{FIND}",
    )
    return listed([first, hidden] if hidden else [first], [*_cannot_learn(missed, every), reached])


def _cannot_learn(missed: Missed, every: Sequence[Names]) -> tuple[Section, Section]:
    return (
        Section(
            "Inference tensors, born in inference mode: autograd left them out",
            missed.inference,
            every,
            OUTSIDE,
        ),
        Section(
            "Uninitialized parameters of lazy modules that have not run yet",
            missed.lazy,
            every,
            "run the module once on an example batch before building the optimizer.",
        ),
    )


def not_a_loss(kind: str, inside: Iterable[str]) -> str:
    found = [one_line(path) for path in inside][:MOST_ENTRIES]
    if found:
        hint = f"It holds tensors at {', '.join(found)}: pass the one that backward() is called on."
    elif kind in {"float", "int", "bool"}:
        hint = "A number has no graph: pass the tensor from before .item() or float()."
    else:
        hint = "Pass the tensor that backward() is called on."
    return f"assert_parameters_used needs the loss as a torch.Tensor, got {kind}. {hint}"


INFERENCE_LOSS = "it is an inference tensor, computed in inference mode"
GRAD_OFF = "grad mode is off at this line, so operations are not recorded"
INFERENCE_ON = "inference mode is on at this line, so operations are not recorded"
ALL_FROZEN = "no parameter of the module has requires_grad True (see assert_trainable)"
DETACHED = (
    "nothing it was made from requires grad: it was detached (.detach(), .data, "
    "torch.tensor(...)), or computed under a no_grad that has ended since"
)


def no_graph(module: str, reason: str, where: Sequence[str]) -> str:
    """``where`` is the lines that say where the mode was switched, if the mode is the reason."""
    first = (
        "assert_parameters_used: the loss has no graph, so backward() reaches no parameter of "
        f"{module}: {reason}."
    )
    todo = "To do: compute the loss with grad mode on, and keep it a tensor."
    return "\n".join((first, *where, todo if where else f"{todo} {FIND}"))


def attached(shown: Sequence[tuple[str, str]], count: int) -> str:
    """``shown`` is the path of each of the first tensors, of ``count``, and what is wrong."""
    subject = "1 tensor is" if count == 1 else f"{count} tensors are"
    first = (
        f"assert_detached: {subject} still in autograd's graph; keeping one keeps the graph and "
        "all that it saved in memory:"
    )
    rows = [f"  {one_line(path or 'the tensor itself')}: {how}" for path, how in shown]
    more = [f"  and {count - len(shown)} more"] if count > len(shown) else []
    todo = (
        "To do: compute them under gradguard.no_grad(), or keep .detach() of them (.item() of a "
        "scalar)."
    )
    return "\n".join((first, *rows, *more, todo))
