"""A callback for the transformers ``Trainer``."""

# pyright: reportMissingImports=false, reportUntypedBaseClass=false, reportUnknownParameterType=false
# Where the library is not installed (extra `integration`), its classes are unknown.

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gradguard.integrations._watching import Watching

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from torch.utils.hooks import RemovableHandle

__all__ = ["GradGuardCallback"]


class GradGuardCallback(Watching, TrainerCallback):
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

    _hook: RemovableHandle | None = None

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
        self._begin(model, kwargs["optimizer"])

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
        super().remove()
        if self._hook is not None:
            self._hook.remove()


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - inspect.currentframe may be None
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_of_a_trainer(frame: FrameType) -> bool:
    return isinstance(frame.f_locals.get("self"), Trainer)
