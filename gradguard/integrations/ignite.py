"""A watch for ignite's trainers."""

# pyright: reportMissingImports=false, reportUntypedBaseClass=false, reportUnknownParameterType=false
# Where the library is not installed (extra `integration`), its classes are unknown.

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any, Literal

from ignite.engine import Engine

from gradguard import watch_training

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import nn
    from torch.optim import Optimizer

    from gradguard import GradModeError

__all__ = ["attach"]


def attach(
    trainer: Engine,
    model: nn.Module | tuple[nn.Module, ...],
    optimizer: Optimizer | tuple[Optimizer, ...],
    *,
    allow: Iterable[str] = (),
    patience: int = 1,
    on_violation: Literal["raise", "warn"] | Callable[[GradModeError], object] = "raise",
) -> None:
    """Watch the model and the optimizer with `gradguard.watch_training` while the trainer runs.

    Each ``trainer.run()`` has a watch of its own, which ends with it, also by an exception. It is
    no handler of ``EXCEPTION_RAISED``: with one, ignite raises the exception no more.

    Args:
        trainer: the engine whose process function trains.
        model: the model, or several as a tuple.
        optimizer: the optimizer, or several as a tuple.
        allow: globs on the names of parameters that need no gradient.
        patience: how many steps in a row a parameter may be without a gradient.
        on_violation: ``"raise"``, ``"warn"``, or a callable that is given the error.

    Raises:
        TypeError: the trainer is no engine.

    Example:
        .. code-block:: python

            from gradguard.integrations import ignite as gradguard_ignite

            trainer = create_supervised_trainer(model, optimizer, loss)
            gradguard_ignite.attach(trainer, model, optimizer)

    """
    if not isinstance(trainer, Engine):  # pyright: ignore[reportUnnecessaryIsInstance]
        msg = f"attach: trainer must be an ignite Engine, got {type(trainer).__name__}"
        raise TypeError(msg)
    run = trainer.run
    both: tuple[Any, Any] = model, optimizer
    names = allow if isinstance(allow, str) else tuple(allow)

    @wraps(run)
    def watched(*args: Any, **kwargs: Any) -> Any:
        with watch_training(*both, allow=names, patience=patience, on_violation=on_violation):
            return run(*args, **kwargs)

    trainer.run = watched  # type: ignore[method-assign]
