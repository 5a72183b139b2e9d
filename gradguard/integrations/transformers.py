"""A callback for the transformers ``Trainer``."""

# pyright: reportMissingImports=false, reportUntypedBaseClass=false, reportUnknownParameterType=false
# Where the library is not installed (extra `integration`), its classes are unknown.

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING, Any, Literal

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gradguard import GradModeError, GradModeWarning, watch_training

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from gradguard import TrainingWatch

__all__ = ["GradGuardCallback"]


class GradGuardCallback(TrainerCallback):
    """Watch the model and the optimizer with `gradguard.watch_training` while ``train()`` runs.

    The watch begins before the first step and ends with the training. A Trainer tells its callbacks
    of no exception: after one, the watch says nothing more, and is removed by `remove` or when the
    next training begins.

    Args:
        allow: globs on the names of parameters that need no gradient.
        patience: how many steps in a row a parameter may be without a gradient.
        on_violation: ``"raise"``, ``"warn"``, or a callable that is given the error.

    Attributes:
        watch: the handle of the last training, with ``report()`` and ``findings``; None before it.

    Raises:
        ValueError: `on_violation` is none of the above.

    Example:
        .. code-block:: python

            from gradguard.integrations.transformers import GradGuardCallback

            trainer = Trainer(model, arguments, callbacks=[GradGuardCallback()], ...)

    """

    def __init__(
        self,
        *,
        allow: Iterable[str] = (),
        patience: int = 1,
        on_violation: Literal["raise", "warn"] | Callable[[GradModeError], object] = "raise",
    ) -> None:
        if on_violation not in ("raise", "warn") and not callable(on_violation):
            msg = f"on_violation is 'raise', 'warn' or a callable, got {on_violation!r}"
            raise ValueError(msg)
        self._options: dict[str, Any] = {
            "allow": allow if isinstance(allow, str) else tuple(allow),
            "patience": patience,
        }
        self._on_violation = on_violation
        self.watch: TrainingWatch | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,
    ) -> None:
        """Begin; the Trainer hands over the model and the optimizer by keyword."""
        self.remove()
        self.watch = watch_training(
            kwargs["model"], kwargs["optimizer"], on_violation=self._violated, **self._options
        )

    def on_train_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """End with the training."""
        self.remove()

    def remove(self) -> None:
        """Take the watch off; calling it again does nothing."""
        if self.watch is not None:
            self.watch.remove()

    def _violated(self, error: GradModeError) -> None:
        __tracebackhide__ = True
        if not self._is_training():
            return
        if self._on_violation == "raise":
            raise error
        if self._on_violation == "warn":
            _warn(error)
        elif callable(self._on_violation):
            self._on_violation(error)

    def _is_training(self) -> bool:
        """Tell whether a Trainer that has this callback is running, and not one that failed."""
        frame = sys._getframe(1)  # noqa: SLF001 - inspect.currentframe may be None
        while frame.f_back is not None:
            frame = frame.f_back
            trainer = frame.f_locals.get("self")
            if isinstance(trainer, Trainer) and self in trainer.callback_handler.callbacks:
                return True
        return False


def _warn(error: GradModeError) -> None:
    """Warn at the line of the finding, which a stack level would not reach through the Trainer."""
    finding = error.finding
    if finding is None or finding.filename is None or finding.lineno is None:
        warnings.warn(str(error), GradModeWarning, stacklevel=3)
    else:
        warnings.warn_explicit(str(error), GradModeWarning, finding.filename, finding.lineno)
