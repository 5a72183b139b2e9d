"""What both watches are: a handle over hooks, and what becomes of a violation."""

from types import TracebackType
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from typing_extensions import Self

from gradguard._core.warning import warn
from gradguard._errors import GradModeError, GradModeWarning
from gradguard._watch.texts import bad_on_violation

if TYPE_CHECKING:
    from collections.abc import Callable

OnViolation: TypeAlias = "Literal['raise', 'warn'] | Callable[[GradModeError], object]"


class Removable(Protocol):
    """A hook's handle, as torch gives it."""

    def remove(self) -> None: ...


class Watch:
    """The handle of a watch: a context manager that removes the hooks at its end."""

    def __init__(self, on_violation: OnViolation) -> None:
        if on_violation not in ("raise", "warn") and not callable(on_violation):
            raise ValueError(bad_on_violation(repr(on_violation)))
        self.on_violation = on_violation
        self._hooks: list[Removable] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.remove()

    def remove(self) -> None:
        """Take every hook of this watch off; calling it again does nothing."""
        while self._hooks:
            self._hooks.pop().remove()

    def report(self) -> str:
        """Return what was seen so far, as text."""
        raise NotImplementedError

    def violated(self, message: str) -> None:
        """Raise, warn at the user's line, or hand over the error, as the user has chosen."""
        __tracebackhide__ = True
        if self.on_violation == "raise":
            raise GradModeError(message)
        if self.on_violation == "warn":
            warn(message, GradModeWarning)
        elif callable(self.on_violation):
            self.on_violation(GradModeError(message))
