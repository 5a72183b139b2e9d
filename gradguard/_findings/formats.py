"""One door to the four forms in which a report is written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradguard._findings import github, json, sarif, text
from gradguard._findings.kinds import RUN_KINDS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gradguard._findings.report import Report


def render(report: Report, form: str, explanations: Mapping[str, str] = RUN_KINDS) -> str:
    """Return the report as ``"text"``, ``"json"``, ``"github"`` or ``"sarif"``.

    Args:
        report: what was found.
        form: one of `gradguard._findings.config.FORMATS`.
        explanations: for a kind, what it is; SARIF has a place for it.
    """
    if form == "json":
        return json.render(report)
    if form == "github":
        return github.render(report)
    if form == "sarif":
        return sarif.render(report, explanations)
    return text.run_summary(report) if report.command == "run" else text.check_listing(report)
