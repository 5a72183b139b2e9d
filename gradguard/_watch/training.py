"""The watch over training: checks at each optimizer step, through torch's own hooks."""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

from gradguard._core.frames import outwards
from gradguard._core.state import GradState, grad_state, is_dynamo_compiling
from gradguard._graph.parameters import Named, matcher, parameters_of
from gradguard._locate.enclosing import Block
from gradguard._locate.where import decisive, enclosing, where
from gradguard._watch import texts
from gradguard._watch.trained import Trained
from gradguard._watch.watch import OnViolation, Watch

if TYPE_CHECKING:
    from types import CodeType


def watch_training(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    allow: Iterable[str] = (),
    patience: int = 1,
    on_violation: OnViolation = "raise",
) -> "TrainingWatch":
    """Check at each ``optimizer.step()`` that it can train the model, until the watch is removed.

    Found are: a step for which no parameter has a gradient; a trainable parameter without one for
    `patience` steps in a row; inference tensors among parameters, buffers or optimizer state; the
    model (not its submodules) in eval mode though it was in train mode when the watch began; and a
    mode that was *left* other than when the watch began. A step inside a ``with``, decorator or
    guard that is still open is harmless, and so are rollouts and validation between the steps.

    No gradient means that ``grad`` is None: gradients zeroed in place, or stale ones, cannot be
    told from new ones. Parameters with no elements, and those that the optimizer does not hold,
    are left out; a step that `torch.compile` has compiled is not seen. With a closure the checks
    run after the step, without one before the update. Works under any loop (plain, Lightning,
    transformers, accelerate, ignite), with gradient accumulation, a GradScaler that skips steps,
    and parameter groups added later; for several optimizers, make one watch for each.

    Args:
        model: the model, or its `torch.compile`, DataParallel or DistributedDataParallel wrapper.
        optimizer: the optimizer, or a wrapper that holds it as ``.optimizer``.
        allow: globs on the names of parameters that need no gradient.
        patience: how many steps in a row a parameter may be without a gradient, at least 1.
        on_violation: ``"raise"`` a `GradModeError` out of ``step()``, ``"warn"`` with a
            `GradModeWarning` at the line of the step, or a callable that is given the error.

    Returns:
        A handle: a context manager with ``remove()``, ``report()`` and the int ``steps``.

    Raises:
        TypeError: the model is no module, or the optimizer no optimizer.
        ValueError: the model has no parameters, the optimizer holds none of them, a glob matches
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
    return TrainingWatch(model, optimizer, tuple(allow), patience, on_violation)


class TrainingWatch(Watch):
    """What `watch_training` returns."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        allow: tuple[str, ...],
        patience: int,
        on_violation: OnViolation,
    ) -> None:
        super().__init__(on_violation)
        if type(patience) is not int or patience < 1:
            raise ValueError(texts.bad_patience(repr(patience)))
        self.steps = 0
        self._model = model
        self._patience = patience
        self._allowed = matcher(parameters_of(model, "watch_training"), allow, "allow")
        self._found: Counter[str] = Counter()
        self._missing: dict[int, int] = {}  # by id: steps in a row without a gradient
        self._open_in: list[tuple[CodeType, int]] = []  # where a step is known to be harmless
        self._began = grad_state()
        self._began_training = model.training
        self._optimizer = _innermost(optimizer)
        self._trained = Trained(model, self._optimizer, "watch_training")
        if not self._trained.parameters:
            names = (type(self._optimizer).__name__, type(model).__name__)
            raise ValueError(texts.foreign_optimizer(*names))
        self._hooks += [
            self._optimizer.register_step_pre_hook(self._before),
            self._optimizer.register_step_post_hook(self._after),
        ]

    def report(self) -> str:
        """Return how many steps were seen, and how many of each kind were wrong."""
        return texts.training_report(self.steps, self._found)

    def _before(self, _: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        __tracebackhide__ = True
        if not is_dynamo_compiling() and not _has_closure(args, kwargs):
            self._check()

    def _after(self, _: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        __tracebackhide__ = True
        if not is_dynamo_compiling() and _has_closure(args, kwargs):
            self._check()

    def _check(self) -> None:
        __tracebackhide__ = True
        self.steps += 1
        messages = dict(self._violations())
        self._found.update(messages.keys())
        if messages:
            self.violated("\n\n".join(messages.values()))

    def _violations(self) -> Iterator[tuple[str, str]]:
        """The kinds found at this step, each with its message."""
        watched = self._trained.step()
        inference = self._trained.inference_tensors()
        if inference:
            every = [one.names for one in watched]
            yield "inference", texts.inference(self.steps, every, inference)
        yield from self._without_gradient(watched)
        if self._began_training and not self._model.training:
            yield "eval", texts.eval_mode(self.steps, type(self._model).__name__)
        state = grad_state()
        if state != self._began and not self._is_open(state):
            wanted, now = _said(self._began), _said(state)
            yield "mode", texts.mode_left(self.steps, wanted, now, where(state))

    def _is_open(self, state: GradState) -> bool:
        """Whether a block, decorator or backward pass that is still open made the mode `state`."""
        stack = [(frame.f_code, frame.f_lasti) for frame in outwards(sys._getframe(1))]  # noqa: SLF001
        if stack == self._open_in:  # a loop that steps inside no_grad comes here each time
            return True
        block = decisive(enclosing(), state)
        if block is None or not block.certain:
            return False
        if _is_literal(block):
            self._open_in = stack
        return True

    def _without_gradient(self, watched: list[Named]) -> Iterator[tuple[str, str]]:
        missing = self._missing_of(watched)
        if any(id(one.parameter) not in self._missing for one in missing):
            missing = self._missing_of(watched := self._trained.refreshed())  # names may be old
        if self._trained.stale:
            yield "stale", texts.stale(self.steps, self._trained.stale)
        self._missing = {
            id(one.parameter): self._missing.get(id(one.parameter), 0) + 1 for one in missing
        }
        trainable = [one for one in watched if self._counts(one)] if missing else []
        if missing and len(missing) == len(trainable):
            yield "empty", texts.empty_step(self.steps, len(missing))
            return
        late = [one.names for one in missing if self._missing[id(one.parameter)] >= self._patience]
        if late:
            every = [one.names for one in trainable]
            yield "missing", texts.no_gradient(self.steps, every, late, self._patience)

    def _missing_of(self, watched: list[Named]) -> list[Named]:
        return [one for one in watched if one.parameter.grad is None and self._counts(one)]

    def _counts(self, one: Named) -> bool:
        return one.can_learn and not self._allowed(one)


def _is_literal(block: Block) -> bool:
    """Whether the same place means the same guard: a decorator, or one called in the ``with``."""
    guard = block.kind.partition("(")[0].rpartition(".")[2]
    return block.how == "decorator" or f"{guard}(" in (block.source or "")


def _has_closure(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    # The hooks' args begin with the optimizer itself, or do not, by version of torch.
    given = [*args, kwargs.get("closure")]
    return any(callable(value) and not isinstance(value, Optimizer) for value in given)


def _innermost(optimizer: Any) -> Optimizer:
    """The optimizer whose `step` runs: accelerate and Lightning wrap it as ``.optimizer``."""
    while isinstance(getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = optimizer.optimizer
    if not isinstance(optimizer, Optimizer):
        raise TypeError(texts.not_an_optimizer(type(optimizer).__name__))
    return optimizer


def _said(state: GradState) -> str:
    if state.inference_mode:
        return "inference mode"
    return "grad on" if state.grad_enabled else "grad off"
