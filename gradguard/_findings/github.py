"""Findings as GitHub Actions annotations, which stand beside the line in a pull request.

The escapes are those of actions/toolkit, packages/core/src/command.ts.
"""

import os
from pathlib import Path, PurePath

from gradguard._findings.finding import Finding
from gradguard._findings.paths import shown
from gradguard._findings.report import Report
from gradguard._findings.text import ranks_text, total

_DATA = (("%", "%25"), ("\r", "%0D"), ("\n", "%0A"))
_PROPERTY = (*_DATA, (":", "%3A"), (",", "%2C"))


def render(report: Report) -> str:
    """Return one workflow command for each finding, and the total as plain text."""
    lines = [_annotation(entry.finding, entry.ranks) for entry in report.entries]
    return "\n".join([*lines, total(report)]) + "\n"


def _annotation(finding: Finding, ranks: tuple[int, ...]) -> str:
    level = "error" if finding.severity == "fault" else "notice"
    title = " ".join(part for part in (finding.code, finding.kind) if part)
    if ranks:
        title += f" ({ranks_text(ranks)})"
    properties: list[tuple[str, object]] = [("title", title)]
    if finding.filename is not None:
        place = [("file", _path(finding.filename)), ("line", finding.lineno)]
        properties = [*place, ("col", finding.column), *properties]
    shown_properties = ",".join(
        f"{key}={_escaped(str(value), _PROPERTY)}" for key, value in properties if value is not None
    )
    return f"::{level} {shown_properties}::{_escaped(finding.message, _DATA)}"


def _path(filename: str) -> str:
    """Return the path from the checkout's top where GitHub says which it is, else as shown."""
    workspace = os.environ.get("GITHUB_WORKSPACE")
    if workspace:
        try:
            return Path(filename).absolute().relative_to(workspace).as_posix()
        except ValueError:  # a file outside the checkout
            pass
    return PurePath(shown(filename)).as_posix()


def _escaped(text: str, escapes: tuple[tuple[str, str], ...]) -> str:
    for character, escape in escapes:
        text = text.replace(character, escape)
    return text
