"""What a thread's mode must be, by what the guards promise and nothing of how they do it."""

from dataclasses import dataclass, field
from typing import Any

import gradguard
from gradguard import GradState


@dataclass(frozen=True)
class Kind:
    """A kind of guard: how one is made, and what it sets."""

    name: str
    make: Any
    grad: bool | None = None  # None: the grad mode that surrounds the inference block
    inference: bool | None = None  # None: as it is
    around: bool = True  # the grad mode around an inference block inside it

    def __repr__(self):
        return self.name


KINDS = {
    kind.name: kind
    for kind in (
        Kind("no_grad", lambda: gradguard.no_grad(), grad=False, around=False),
        Kind("enable_grad", lambda: gradguard.enable_grad(), grad=True, inference=False),
        Kind("set_on", lambda: gradguard.set_grad_enabled(True), grad=True, inference=False),
        Kind("set_off", lambda: gradguard.set_grad_enabled(False), grad=False, around=False),
        Kind("inference_on", lambda: gradguard.inference_mode(), grad=False, inference=True),
        Kind("inference_off", lambda: gradguard.inference_mode(False), inference=False),
    )
}


def carried_kind(mode, around):
    """The kind of what `carry` puts around a call."""
    return Kind("carried", None, mode.grad_enabled, mode.inference_mode, around)


@dataclass
class Entry:
    """An open guard, or (`kind` None) where a body that can be suspended begins."""

    kind: Kind | None
    guard: object
    found: GradState
    around: bool = True  # of a body: the grad mode around the inference block where it began

    def __repr__(self):
        return "the running generator or coroutine" if self.kind is None else repr(self.guard)


@dataclass
class Thread:
    """One thread's mode and open guards, outermost first."""

    state: GradState
    open: list = field(default_factory=list)

    def enter(self, kind, guard):
        """Enter a guard of this kind."""
        inference = self.state.inference_mode
        entry = Entry(kind, guard, self.state)
        grad = self.grad_outside_inference() if kind.grad is None else kind.grad
        self.open.append(entry)
        self.state = GradState(grad, inference if kind.inference is None else kind.inference)

    def grad_outside_inference(self):
        """The grad mode in which inference mode would be left."""
        grad, inference = self.state
        return grad or (inference and self.around_inference())

    def around_inference(self):
        """The grad mode that surrounds the inference block."""
        for entry in reversed(self.open):
            if entry.kind is None:
                return entry.around
            if entry.kind.name != "inference_on":
                return entry.kind.around
            if entry.found.grad_enabled or not entry.found.inference_mode:
                return entry.found.grad_enabled
        return True

    def has_open(self, guard):
        """Tell whether an exit of this guard has an entry."""
        return any(entry.guard is guard for entry in self.open)

    def exit(self, guard):
        """Close the innermost entry of a guard; return the two to be named if it is out of order."""
        at = max(at for at, entry in enumerate(self.open) if entry.guard is guard)
        closed = self.open.pop(at)
        if at < len(self.open):
            self.take_over(at, closed.found)
            return repr(guard), repr(self.open[-1])
        if closed.found.inference_mode or closed.kind.name.startswith(("inference", "carried")):
            self.state = closed.found
        else:
            self.state = self.state._replace(grad_enabled=closed.found.grad_enabled)
        return None

    def take_over(self, at, found):
        """The entry above takes over what the closed one found; inference mode follows upwards."""
        self.open[at].found = self.open[at].found._replace(grad_enabled=found.grad_enabled)
        inference = found.inference_mode
        for entry in self.open[at:]:
            entry.found = entry.found._replace(inference_mode=inference)
            if entry.kind is None:
                return  # a body's own mode goes on
            if entry.kind.inference is not None:
                inference = entry.kind.inference
        self.state = self.state._replace(inference_mode=inference)

    def begin_body(self, around):
        """Begin or go on with a body, which began in this grad mode around inference mode."""
        outside = Entry(None, None, self.state, around)
        self.open.append(outside)
        return outside

    def leave_body(self, outside):
        """Suspend the body; return its mode and what it has open."""
        at = next(at for at, entry in enumerate(self.open) if entry is outside)
        state, its_own = self.state, self.open[at + 1 :]
        del self.open[at:]
        self.state = outside.found
        return state, its_own
