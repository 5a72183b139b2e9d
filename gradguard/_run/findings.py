"""What a run has found, ranked, and as JSON."""

from collections.abc import Iterable
from typing import Any

from gradguard._findings.finding import Finding

KINDS = (
    "mode-leak",
    "empty-step",
    "stale-parameter",
    "inference-tensor",
    "no-gradient",
    "unregistered",
    "frozen-moves",
    "eval-mode",
    "train-mode-inference",
    "no-effect",
    "recorded-eval",
    "kept-graph",
    "frozen-batchnorm",
)
"""The worst first: those that stop the learning of everything, of something, then of nothing."""


def as_json(finding: Finding) -> dict[str, Any]:
    """Return a finding as it stands in a report."""
    names = ("kind", "severity", "message", "filename", "lineno", "function", "count")
    fields = {name: getattr(finding, name) for name in names}
    return {**fields, "parameters": list(finding.parameters)}


def ranked(findings: Iterable[Finding]) -> list[Finding]:
    """Sort, the worst first; of a kind, what happened most often."""
    return sorted(findings, key=lambda one: (KINDS.index(one.kind), -one.count))
