"""What a run has found, ranked, and as JSON."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from gradguard._core.frames import user_frame

KINDS = (
    "mode-leak",
    "empty-step",
    "no-gradient",
    "inference-tensor",
    "eval-mode",
    "recorded-eval",
)
"""The worst first: those that stop the learning of everything, of something, then of nothing."""


class Site(NamedTuple):
    """A line of the user's."""

    filename: str
    lineno: int
    function: str


@dataclass(frozen=True)
class Finding:
    """One fault: its kind, line and text, how often it happened, and what it happened to."""

    kind: str
    site: Site
    message: str
    count: int = 1
    parameters: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return it as it stands in a report."""
        return {
            "kind": self.kind,
            "message": self.message,
            "filename": self.site.filename,
            "lineno": self.site.lineno,
            "function": self.site.function,
            "count": self.count,
            "parameters": list(self.parameters),
        }


def here() -> Site:
    """Return the line of the user's that is being run."""
    frame = user_frame()
    return Site(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)


def ranked(findings: Iterable[Finding]) -> list[Finding]:
    """Sort, the worst first; of a kind, what happened most often."""
    return sorted(findings, key=lambda one: (KINDS.index(one.kind), -one.count))
