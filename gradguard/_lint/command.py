"""``gradguard check``: its options, what it reads, what it tells, its exit code."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gradguard._findings.config import Config, load_config
from gradguard._findings.formats import render
from gradguard._findings.kinds import CHECK_NAMES
from gradguard._findings.report import Report, entry
from gradguard._findings.selection import Selection, selection
from gradguard._lint.check import SYNTAX_ERROR, UNUSED_IGNORE, Checked, check_bytes, order
from gradguard._lint.explain import explanation, listing
from gradguard._lint.files import NoSuchPathError, python_files
from gradguard._lint.imported import import_findings
from gradguard._lint.pool import Unreadable, check_files
from gradguard._lint.rules import RULES

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from gradguard._findings.finding import Finding

CLEAN, FAULTS, REFUSED = 0, 1, 2
_STDIN = "-"
DEFAULT = frozenset({SYNTAX_ERROR, UNUSED_IGNORE} | {one.name for one in RULES if one.default})


class _Refused(Exception):  # noqa: N818 (it says what it is)
    """The command line or a path is wrong."""


def main(options: argparse.Namespace) -> int:
    """Run what the command line asks for; return the exit code."""
    try:
        if options.list:
            sys.stdout.write(listing())
            return CLEAN
        if options.explain:
            sys.stdout.write(explanation(options.explain))
            return CLEAN
        return _check(options)
    except (_Refused, NoSuchPathError, ValueError) as error:
        sys.stderr.write(f"gradguard check: error: {error}\n")
        return REFUSED


class _Result(NamedTuple):
    findings: list[Finding]
    files: int
    unreadable: list[Unreadable]


def _check(options: argparse.Namespace) -> int:
    if not options.paths:
        msg = "nothing to check: give a file or folder, such as `gradguard check .`"
        raise _Refused(msg)
    config = load_config(_start(options))
    chosen = selection(
        config,
        all_names=frozenset(CHECK_NAMES.values()),
        default=DEFAULT,
        select=_words(options.select),
        ignore=_words(options.ignore),
    )
    result = _read(options, config, chosen)
    report = Report(
        command="check",
        entries=[entry(one) for one in sorted(result.findings, key=order)],
        files=result.files,
    )
    form = options.format or config.format
    _write(render(report, form, {one.name: one.why for one in RULES}), options.report)
    for one in result.unreadable:
        sys.stderr.write(f"gradguard check: error: cannot read {one.filename!r}: {one.reason}\n")
    if result.unreadable:
        return REFUSED
    return FAULTS if report.faults else CLEAN


def _start(options: argparse.Namespace) -> Path:
    """Return the folder from which a configuration is looked for: what the paths share."""
    given = [options.stdin_filename or "." if one == _STDIN else one for one in options.paths]
    shared = Path(os.path.commonpath([Path(one).absolute() for one in given]))
    return shared if shared.is_dir() else shared.parent


def _words(given: Sequence[str] | None) -> list[str] | None:
    if given is None:
        return None
    return [word.strip() for many in given for word in many.split(",") if word.strip()]


def _read(options: argparse.Namespace, config: Config, chosen: Selection) -> _Result:
    results: list[Checked | Unreadable] = []
    if _STDIN in options.paths:
        name = options.stdin_filename or "<stdin>"
        results.append(check_bytes(sys.stdin.buffer.read(), name, chosen.names_for(name)))
    paths = [Path(one) for one in options.paths if one != _STDIN]
    exclude = [*config.exclude, *(options.exclude or ())]
    results += check_files(python_files(paths, exclude, config.root), chosen.names_for)
    checked = [one for one in results if isinstance(one, Checked)]
    findings = [finding for one in checked for finding in one.findings]
    findings += import_findings(checked)
    return _Result(findings, len(results), [o for o in results if isinstance(o, Unreadable)])


def _write(text: str, path: str | None) -> None:
    if path is None or path == _STDIN:
        sys.stdout.write(text)
        return
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        msg = f"cannot write the report {path!r} ({error.strerror}): give a path to write to"
        raise _Refused(msg) from None
