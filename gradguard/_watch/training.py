"""The watch over training: forwards and optimizer steps, through torch's own hooks."""

import sys
import weakref
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from torch import nn
from torch.optim import Optimizer

from gradguard._core.state import is_dynamo_compiling
from gradguard._findings.finding import Finding
from gradguard._graph.parameters import matcher, parameters_of
from gradguard._judge.optimizers import has_closure
from gradguard._watch.feeder import Feeder
from gradguard._watch.watch import OnViolation, Watch, check_has_hooks, row

Models: TypeAlias = "nn.Module | Sequence[nn.Module]"
Optimizers: TypeAlias = "Optimizer | Sequence[Optimizer]"

_watches: dict[tuple[int, ...], "weakref.ref[TrainingWatch]"] = {}


def watch_training(
    model: Models,
    optimizer: Optimizers,
    *,
    allow: Iterable[str] = (),
    patience: int = 1,
    on_violation: OnViolation = "raise",
) -> "TrainingWatch":
    """Check at each forward and ``optimizer.step()`` that it trains the model.

    Found are, as by ``gradguard run`` and in the same words: a mode that was *left* switched, at
    the next forward in train mode; steps for which no parameter has a gradient; a trainable
    parameter without one for `patience` steps in a row although its module ran; inference tensors
    among parameters, buffers or optimizer state; parameters that were replaced since the optimizer
    was made; frozen ones that move; the model in eval mode though it was in train mode before; and
    graphs of earlier steps that stay alive. A step or forward inside a ``with``, decorator or guard
    that is still open is harmless, and so are rollouts and validation between the steps, and a
    first step for a scheduler.

    No gradient means that ``grad`` is None: gradients zeroed in place, or stale ones, cannot be
    told from new ones. Parameters with no elements, and those that the optimizer does not hold,
    are left out; a step that `torch.compile` has compiled is not seen. With a closure the checks
    run after the step, without one before the update. Works under any loop (plain, Lightning,
    transformers, accelerate, ignite), with gradient accumulation, a GradScaler that skips steps,
    and parameter groups added later. A second watch of the same models and optimizers replaces the
    first, so that a notebook's cell can be run again.

    Args:
        model: the model, or its `torch.compile`, DataParallel or DistributedDataParallel wrapper;
            or several, as a tuple.
        optimizer: the optimizer, or a wrapper that holds it as ``.optimizer``; or several.
        allow: globs on the names of parameters that need no gradient.
        patience: how many steps in a row a parameter may be without a gradient, at least 1.
        on_violation: ``"raise"`` a `GradModeError` out of the forward or the step, ``"warn"`` with
            a `GradModeWarning` at their line, or a callable that is given the error, once for each
            line and kind. Notices, which may be meant, are never raised; what only the end of
            the watch shows is a warning, since an error of the program's may be under way.

    Returns:
        A handle: a context manager with ``remove()``, ``report()``, ``findings`` and the ints
        ``steps`` and ``forwards``.

    Raises:
        TypeError: the model is no module, or the optimizer no optimizer.
        ValueError: the model has no parameters, an optimizer holds none of them, a glob matches
            nothing, or `patience` or `on_violation` is none of the above.

    >>> import torch
    >>> from gradguard import watch_training
    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with watch_training(model, optimizer) as watch:
    ...     model(torch.ones(1, 2)).sum().backward()
    ...     optimizer.step()
    >>> print(watch.report())
    watch_training: 1 optimizer steps, nothing found

    Source: `torch.optim.Optimizer.register_step_pre_hook`; an optimizer skips parameters whose
    ``grad`` is None without a word.
    """
    models, optimizers = _several(model), _several(optimizer)
    globs = (allow,) if isinstance(allow, str) else tuple(allow)
    return TrainingWatch(models, tuple(map(_innermost, optimizers)), globs, patience, on_violation)


class TrainingWatch(Watch):
    """What `watch_training` returns: a context manager, with the steps and findings so far.

    >>> import gradguard, torch
    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with gradguard.watch_training(model, optimizer) as watch:
    ...     model(torch.ones(1, 2)).sum().backward()
    ...     optimizer.step()
    >>> watch.steps, watch.findings
    (1, [])
    """

    name = "watch_training"

    def __init__(
        self,
        models: tuple[nn.Module, ...],
        optimizers: tuple[Optimizer, ...],
        allow: tuple[str, ...],
        patience: int,
        on_violation: OnViolation,
    ) -> None:
        super().__init__(on_violation)
        if type(patience) is not int or patience < 1:
            raise ValueError(_bad_patience(repr(patience)))
        if not models or not optimizers:
            raise ValueError(_empty("optimizers" if models else "models"))
        named = [one for each in models for one in parameters_of(each, "watch_training")]
        allowed = matcher(named, allow, "allow")
        _check_owners(models, optimizers)
        check_has_hooks(models, "watch_training")
        _replace((*models, *optimizers), self)
        self._feeder = Feeder(
            models,
            optimizers,
            {id(one.parameter) for one in named if allowed(one)},
            patience,
            (self._new, self._again),
        )
        self._hooks += self._feeder.hooks(self._tell)
        for each in optimizers:
            self._hooks.append(each.register_step_pre_hook(self._before))
            self._hooks.append(each.register_step_post_hook(self._after))

    @property
    def steps(self) -> int:
        """How many optimizer steps were seen."""
        return self._feeder.judge.scene.steps

    @property
    def forwards(self) -> int:
        """How many forwards of the models were seen."""
        return self._feeder.judge.scene.forwards

    @property
    def findings(self) -> list[Finding]:
        """What was found so far, each kind and line once."""
        return self._feeder.judge.ledger.findings()

    def report(self) -> str:
        """Return how many steps were seen, and what was found."""
        return _training_report(self.steps, self.forwards, self.findings)

    def remove(self) -> None:
        """Take every hook of this watch off; calling it again does nothing."""
        if self._hooks:
            super().remove()
            self._feeder.finish()
            self._tell_at_the_end()

    def _before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        __tracebackhide__ = True
        if not is_dynamo_compiling():
            frame = sys._getframe(1)  # noqa: SLF001 - inspect.currentframe may be None
            self._feeder.before_step(optimizer, frame, closure=has_closure(args, kwargs))
            self._tell()

    def _after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        __tracebackhide__ = True
        if not is_dynamo_compiling():
            frame = sys._getframe(1)  # noqa: SLF001 - inspect.currentframe may be None
            self._feeder.after_step(optimizer, frame, closure=has_closure(args, kwargs))
            self._tell()


def _several(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _innermost(optimizer: Any) -> Optimizer:
    """The optimizer whose `step` runs: accelerate and Lightning wrap it as ``.optimizer``."""
    while isinstance(getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = optimizer.optimizer
    if not isinstance(optimizer, Optimizer):
        raise TypeError(_not_an_optimizer(type(optimizer).__name__))
    return optimizer


def _check_owners(models: Sequence[nn.Module], optimizers: Sequence[Optimizer]) -> None:
    ours = {id(p) for model in models for p in model.parameters()}
    for optimizer in optimizers:
        held = (p for group in optimizer.param_groups for p in group["params"])
        if not any(id(p) in ours for p in held):
            names = " and ".join(type(model).__name__ for model in models)
            raise ValueError(_foreign_optimizer(type(optimizer).__name__, names))


def _replace(watched: Sequence[object], new: TrainingWatch) -> None:
    """End an earlier watch of the very same models and optimizers."""
    key = tuple(map(id, watched))
    old = _watches.pop(key, None)
    before = None if old is None else old()
    if before is not None:
        before.remove()
    _watches[key] = weakref.ref(new, lambda _: _forget(key))


def _forget(key: tuple[int, ...]) -> None:
    known = _watches.get(key)
    if known is not None and known() is None:
        del _watches[key]


def _bad_patience(value: str) -> str:
    return f"patience={value} must be a whole number of optimizer steps, 1 or more."


def _not_an_optimizer(kind: str) -> str:
    return (
        f"watch_training(model, optimizer) needs a torch.optim.Optimizer, got {kind}: pass the "
        "optimizer whose step() trains the model, or a tuple of several."
    )


def _empty(what: str) -> str:
    return f"watch_training(model, optimizer) got an empty tuple of {what}: give at least one."


def _foreign_optimizer(optimizer: str, model: str) -> str:
    return (
        f"the {optimizer} holds none of the parameters of the {model}, so no step could train it. "
        "Usual causes: the model was copied, moved to another class or compiled from a copy after "
        "the optimizer was made. Make the optimizer from this model's parameters()."
    )


def _training_report(steps: int, forwards: int, findings: Sequence[Finding]) -> str:
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
    return "\n".join([first, *map(row, findings)])


TrainingWatch.__module__ = watch_training.__module__ = "gradguard"
