"""What both watches are: a handle over hooks, and what becomes of a finding."""

import logging
from collections.abc import Iterable, Sequence
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

import torch
from torch import nn
from typing_extensions import Self

from gradguard._core.places import place
from gradguard._core.text import one_line
from gradguard._core.warning import warn
from gradguard._errors import GradModeError, GradModeWarning
from gradguard._findings.finding import Finding
from gradguard._graph.listing import Section, entries

if TYPE_CHECKING:
    from collections.abc import Callable

OnViolation: TypeAlias = "Literal['raise', 'warn'] | Callable[[GradModeError], object]"
_LOGGER = logging.getLogger("gradguard")


def has_hooks(module: nn.Module) -> bool:
    """Tell whether torch runs forward hooks on it: on script modules none."""
    return not isinstance(module, torch.jit.ScriptModule)


def check_has_hooks(models: Sequence[nn.Module], asker: str) -> None:
    """Check that torch runs forward hooks on these modules.

    Raises:
        TypeError: one is a ScriptModule, on which torch registers none.
    """
    for model in models:
        if not has_hooks(model):
            raise TypeError(_no_hooks(type(model).__name__, asker))


class Removable(Protocol):
    """A hook's handle, as torch gives it."""

    def remove(self) -> None: ...


class Watch:
    """The handle of a watch: a context manager that removes the hooks at its end."""

    name = "watch"

    def __init__(self, on_violation: OnViolation) -> None:
        if on_violation not in ("raise", "warn") and not callable(on_violation):
            raise ValueError(_bad_on_violation(repr(on_violation)))
        self.on_violation = on_violation
        self._hooks: list[Removable] = []
        self._waiting: list[tuple[Finding, bool]] = []
        self._lock = Lock()

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

    def _new(self, finding: Finding) -> None:
        self._waiting.append((finding, True))

    def _again(self, finding: Finding) -> None:
        self._waiting.append((finding, False))

    def _tell(self) -> None:
        """Raise, warn at the user's line, or hand over what was found, as the user has chosen."""
        __tracebackhide__ = True
        if not self._waiting:
            return
        with self._lock:
            found, self._waiting = self._waiting, []
        if callable(self.on_violation):
            for finding, new in found:
                if new:
                    self._call(self.on_violation, finding)
        elif self.on_violation == "warn":
            self._warn(finding for finding, new in found if new)
        else:
            # A notice is true and often meant: it stands in `findings` and the log.
            faults = [finding for finding, _ in found if finding.severity == "fault"]
            if faults:
                raise self._error(faults)

    def _tell_at_the_end(self) -> None:
        """Tell the rest; what would be raised is a warning: an error of the program's may be on."""
        if self.on_violation == "raise":
            found, self._waiting = self._waiting, []
            self._warn(each for each, new in found if new and each.severity == "fault")
        self._tell()

    def _warn(self, findings: Iterable[Finding]) -> None:
        for finding in findings:
            warn(self._text(finding), GradModeWarning)

    def _call(self, on_violation: "Callable[[GradModeError], object]", finding: Finding) -> None:
        try:
            on_violation(self._error([finding]))
        except Exception:
            # What watches a server must not break its requests; who wrote it reads the log.
            _LOGGER.exception("%s: on_violation raised for %s", self.name, finding.kind)

    def _error(self, findings: list[Finding]) -> GradModeError:
        error = GradModeError("\n\n".join(map(self._text, findings)))
        error.finding = findings[0]
        return error

    def _text(self, finding: Finding) -> str:
        step = "" if finding.first_step is None else f", at optimizer step {finding.first_step}"
        lines = [f"{self.name}{step}: {finding.message}"]
        if finding.filename is not None:
            source = one_line(finding.source or "(source not available)")
            lines.append(f"At {place(finding.filename, finding.lineno or 0)}: {source}")
        if finding.parameters:
            names = [(name,) for name in finding.parameters]
            lines.append("Parameters:")
            lines += [f"  {row}" for row in entries(Section("", names, names, ""))]
        return "\n".join(lines)


def _no_hooks(model: str, asker: str) -> str:
    return (
        f"{asker} cannot watch a {model} by itself: torch runs no forward hooks on script modules. "
        "Put it in a module, and watch and call that one: model = torch.nn.Sequential(model)."
    )


def _bad_on_violation(value: str) -> str:
    return (
        f"on_violation={value} is not one of 'raise', 'warn' or a callable that takes the "
        "GradModeError."
    )


def row(one: Finding) -> str:
    """Return the line of a report for a finding."""
    where = f" at {one.filename}:{one.lineno}" if one.filename else ""
    return f"  {one.kind}{where}: {one.count}"
