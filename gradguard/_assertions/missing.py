"""Parameters that a gradient does not reach, by cause: what two assertions have in common."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import nn
from torch.nn.parameter import is_lazy

from gradguard._core.torch_versions import never_compiled
from gradguard._graph.advice import OUTSIDE
from gradguard._graph.autograd_graph import is_inference
from gradguard._graph.listing import Names, Section
from gradguard._graph.parameters import NamedParameter, matcher, parameters_of


class Missing(NamedTuple):
    """Parameters without a gradient, by cause."""

    inference: list[Names]
    lazy: list[Names]
    other: list[Names]


def trainable(module: nn.Module, allow: Iterable[str], asker: str) -> list[NamedParameter]:
    """List the parameters that must have a gradient: trainable, and not allowed to have none."""
    every = parameters_of(module, asker)
    allowed = matcher(every, allow, "allow")
    return [one for one in every if one.can_learn and not allowed(one)]


def by_cause(missing: Iterable[NamedParameter]) -> Missing:
    """Tell apart what can have no gradient and what could."""
    causes = Missing([], [], [])
    for names, parameter in missing:
        if is_lazy(parameter):
            causes.lazy.append(names)
        elif is_inference(parameter):
            causes.inference.append(names)
        else:
            causes.other.append(names)
    return causes


def cannot_have_one(missing: Missing, every: Sequence[Names]) -> tuple[Section, Section]:
    """Return the parts of a message on those that can have no gradient."""
    return (
        Section(
            "Created in inference mode, so that autograd leaves them out",
            missing.inference,
            every,
            OUTSIDE,
        ),
        Section(
            "Uninitialized parameters of lazy modules that have not run yet",
            missing.lazy,
            every,
            "run the module once on an example batch before building the optimizer.",
        ),
    )


never_compiled(globals())
