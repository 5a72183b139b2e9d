"""Findings as SARIF 2.1.0, which code scanning services read.

The standard: https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html
"""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from gradguard._findings.kinds import RUN_KINDS
from gradguard._findings.paths import shown
from gradguard._findings.report import versions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gradguard._findings.finding import Finding
    from gradguard._findings.report import Entry, Report

_SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
_ROOT = "SRCROOT"
_LEVELS = {"fault": "error", "notice": "note"}


def render(report: Report, explanations: Mapping[str, str] = RUN_KINDS) -> str:
    """Return the report as a SARIF log.

    Args:
        report: what was found.
        explanations: for a kind, what it is; for those that the report has and others.
    """
    kinds: dict[str, Entry] = {}
    for entry in report.entries:
        kinds.setdefault(entry.finding.kind, entry)
    rules = [_rule(entry.finding, explanations.get(kind)) for kind, entry in kinds.items()]
    order = {kind: number for number, kind in enumerate(kinds)}
    results = [_result(entry, order[entry.finding.kind]) for entry in report.entries]
    used = versions()
    driver = {"name": "gradguard", "version": used["gradguard"], "rules": rules}
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "originalUriBaseIds": {_ROOT: {"uri": Path.cwd().as_uri().rstrip("/") + "/"}},
        "results": results,
        "properties": {"command": report.command, "versions": used, **report.about},
    }
    log = {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(log, indent=2, ensure_ascii=False) + "\n"


def _rule(finding: Finding, explanation: str | None) -> dict[str, Any]:
    rule: dict[str, Any] = {
        "id": _id(finding),
        "name": "".join(word.capitalize() for word in finding.kind.split("-")),
        "defaultConfiguration": {"level": _LEVELS[finding.severity]},
    }
    if explanation:
        rule["shortDescription"] = {"text": explanation.split("\n")[0]}
        rule["fullDescription"] = rule["help"] = {"text": explanation}
    return rule


def _id(finding: Finding) -> str:
    return finding.code or finding.kind


def _result(entry: Entry, index: int) -> dict[str, Any]:
    one = entry.finding
    result: dict[str, Any] = {
        "ruleId": _id(one),
        "ruleIndex": index,
        "level": _LEVELS[one.severity],
        "message": {"text": one.message},
    }
    if one.filename is not None:
        result["locations"] = [_location(one, one.filename)]
    if one.count > 1:
        result["occurrenceCount"] = one.count
    known: dict[str, Any] = {
        "model": one.model,
        "parameters": list(one.parameters),
        "firstStep": one.first_step,
        "ranks": list(entry.ranks),
        "processes": list(entry.processes),
    }
    properties = {key: value for key, value in known.items() if value}
    if properties:
        result["properties"] = properties
    return result


def _location(finding: Finding, filename: str) -> dict[str, Any]:
    physical: dict[str, Any] = {"artifactLocation": _artifact(filename)}
    if finding.lineno is not None:
        region: dict[str, Any] = {"startLine": finding.lineno}
        if finding.column is not None:
            region["startColumn"] = finding.column
        if finding.source:
            region["snippet"] = {"text": finding.source}
        physical["region"] = region
    location: dict[str, Any] = {"physicalLocation": physical}
    if finding.function and finding.function != "<module>":
        logical = {"fullyQualifiedName": finding.function, "kind": "function"}
        location["logicalLocations"] = [logical]
    return location


def _artifact(filename: str) -> dict[str, str]:
    """Return the file's URI: relative to the working directory where it lies below it."""
    path = PurePath(shown(filename))
    if path.is_absolute():
        return {"uri": Path(path).as_uri()}
    uri = quote(path.as_posix())
    if re.match(r"[<.]", filename):  # no file, or one beside the working directory
        return {"uri": uri}
    return {"uri": uri, "uriBaseId": _ROOT}
