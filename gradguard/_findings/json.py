"""Findings as JSON: ``"schema": 1``."""

from __future__ import annotations

import dataclasses
import json
from pathlib import PurePath
from typing import Any

from gradguard._findings.finding import Finding
from gradguard._findings.paths import shown
from gradguard._findings.report import Entry, Process, Report, versions

SCHEMA = 1


def render(report: Report) -> str:
    """Return the report as an indented JSON document."""
    return json.dumps(document(report), indent=2, ensure_ascii=False) + "\n"


def document(report: Report) -> dict[str, Any]:
    """Return what the JSON document says, as Python values."""
    counts = {"findings": len(report.entries), "faults": report.faults}
    counts["notices"] = len(report.entries) - report.faults
    if report.files is None:
        counts |= {"steps": report.steps, "forwards": report.forwards, "models": report.models}
    else:
        counts["files"] = report.files
    return {
        "schema": SCHEMA,
        "command": report.command,
        **report.about,
        "versions": versions(),
        "counts": counts,
        "processes": [process._asdict() for process in report.processes],
        "findings": [_entry(entry) for entry in report.entries],
    }


def _entry(entry: Entry) -> dict[str, Any]:
    values = dataclasses.asdict(entry.finding)
    filename = entry.finding.filename
    if filename is not None:
        values["filename"] = PurePath(shown(filename)).as_posix()
    values["parameters"] = list(entry.finding.parameters)
    values["ranks"] = list(entry.ranks)
    values["processes"] = list(entry.processes)
    return values


def parse(text: str) -> Report:
    """Read what `render` wrote, such as the report of another process; paths stay as they stand.

    Raises:
        ValueError: it is no such document, or one of another schema.
    """
    values = json.loads(text)
    if not isinstance(values, dict) or values.get("schema") != SCHEMA:
        msg = f'this is no report of gradguard with "schema": {SCHEMA}'
        raise ValueError(msg)
    known = {"schema", "command", "versions", "counts", "processes", "findings"}
    return Report(
        command=values["command"],
        entries=[_parsed(one) for one in values["findings"]],
        processes=[Process(**one) for one in values["processes"]],
        files=values["counts"].get("files"),
        about={key: value for key, value in values.items() if key not in known},
    )


def _parsed(values: dict[str, Any]) -> Entry:
    values = dict(values)
    processes, ranks = tuple(values.pop("processes")), tuple(values.pop("ranks"))
    values["parameters"] = tuple(values["parameters"])
    return Entry(Finding(**values), processes, ranks)
