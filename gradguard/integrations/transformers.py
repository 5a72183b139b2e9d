"""A callback for the transformers ``Trainer``."""

# pyright: reportMissingImports=false, reportUntypedBaseClass=false, reportUnknownParameterType=false
# Where the library is not installed (extra `integration`), its classes are unknown.

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Literal

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gradguard import watch_training

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import FrameType

    from torch.utils.hooks import RemovableHandle

    from gradguard import GradModeError, TrainingWatch

__all__ = ["GradGuardCallback"]


class GradGuardCallback(TrainerCallback):
    """Watch the model and the optimizer with `gradguard.watch_training` while ``train()`` runs.

    The watch begins before the first step and ends with the training. A Trainer tells its callbacks
    of no exception: after one, the watch goes at the model's next forward outside a training, when
    the next training begins, or by `remove`.

    Args:
        allow: globs on the names of parameters that need no gradient.
        patience: how many steps in a row a parameter may be without a gradient.
        on_violation: ``"raise"``, ``"warn"``, or a callable that is given the error.

    Attributes:
        watch: the handle of the last training, with ``report()`` and ``findings``; None before it.

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
        self._options: dict[str, Any] = {
            "allow": allow if isinstance(allow, str) else tuple(allow),
            "patience": patience,
            "on_violation": on_violation,
        }
        self.watch: TrainingWatch | None = None
        self._hook: RemovableHandle | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,
    ) -> None:
        """Begin; the Trainer hands over the model and the optimizer by keyword."""
        self.remove()
        model = kwargs["model"]
        code = next((frame.f_code for frame in _frames() if _is_of_a_trainer(frame)), None)

        def end_outside(*_: object) -> None:
            if not any(frame.f_code is code for frame in _frames()):
                self.remove()

        if code is not None:  # else somebody calls this by hand, and will end it by hand
            self._hook = model.register_forward_pre_hook(end_outside)
        self.watch = watch_training(model, kwargs["optimizer"], **self._options)

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
        if self._hook is not None:
            self._hook.remove()


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - inspect.currentframe may be None
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_of_a_trainer(frame: FrameType) -> bool:
    return isinstance(frame.f_locals.get("self"), Trainer)
