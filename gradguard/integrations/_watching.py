"""What the callbacks of the training libraries share: the options of a watch, and its life."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from gradguard import watch_training

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import nn

    from gradguard import GradModeError, TrainingWatch


class Watching:
    """A callback that holds one watch at a time.

    Args:
        allow: globs on the names of parameters that need no gradient.
        patience: how many steps in a row a parameter may be without a gradient.
        on_violation: ``"raise"``, ``"warn"``, or a callable that is given the error.
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

    def _begin(self, model: nn.Module, optimizer: Any) -> None:
        """Watch the model and its optimizer, or several as a tuple."""
        self.watch = watch_training(model, optimizer, **self._options)

    def remove(self) -> None:
        """Take the watch off; calling it again does nothing."""
        if self.watch is not None:
            self.watch.remove()
