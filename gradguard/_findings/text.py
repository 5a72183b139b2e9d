"""Findings for a reader on a terminal."""

from collections.abc import Sequence
from textwrap import fill

from gradguard._findings.finding import Finding
from gradguard._findings.paths import shown
from gradguard._findings.report import Entry, Report

_WIDTH = 96


def place(finding: Finding) -> str:
    """Return ``path:line:column``, as far as it is known; terminals and editors open it by click.

    >>> place(Finding(kind="no-effect", message="", filename="train.py", lineno=3))
    'train.py:3'
    """
    if finding.filename is None:
        return "(line not known)"
    numbers = [finding.lineno, finding.column]
    parts = [one_line(shown(finding.filename)), *(str(one) for one in numbers if one is not None)]
    return ":".join(parts)


def line(finding: Finding, ranks: Sequence[int] = ()) -> str:
    """Return the finding as one line: ``path:line:column: CODE message``."""
    name = finding.code or finding.kind
    at = f" [{ranks_text(ranks)}]" if ranks else ""
    return f"{place(finding)}: {name}{at} {one_line(finding.message)}"


def check_listing(report: Report) -> str:
    """Return one line for each finding, and the total."""
    lines = [line(entry.finding) for entry in report.entries]
    return "\n".join([*lines, total(report)]) + "\n"


def total(report: Report) -> str:
    """Return the line that says how much was found."""
    among = "" if report.files is None else f" in {counted(report.files, 'file')}"
    if not report.entries:
        return f"gradguard: nothing found{among}"
    notices = len(report.entries) - report.faults
    kinds = [(report.faults, "fault"), (notices, "notice")]
    return f"gradguard: {', '.join(counted(n, noun) for n, noun in kinds if n)}{among}"


def run_summary(report: Report) -> str:
    """Return the findings of a run, in the order given, each with its line and what to do."""
    head = f"gradguard: {counted(len(report.entries), 'finding')}, the worst first"
    parts = [_paragraphs(number, entry) for number, entry in enumerate(report.entries, 1)]
    return "\n\n".join([head, *parts]) + "\n"


def _paragraphs(number: int, entry: Entry) -> str:
    one = entry.finding
    within = f" in {one.function}" if one.function and one.function != "<module>" else ""
    often = "once" if one.count == 1 else f"{one.count} times"
    notes = [often, *([ranks_text(entry.ranks)] if entry.ranks else [])]
    if one.severity == "notice":
        notes.insert(0, "notice")
    head = f"{number}. {one.kind} ({', '.join(notes)}): {place(one)}{within}"
    source = [f"     {one_line(one.source)}"] if one.source else []
    return "\n".join([head, *source, *(_paragraph(text) for text in one.message.splitlines())])


def _paragraph(text: str) -> str:
    indent = "   " + " " * (len(text) - len(text.lstrip()))
    return fill(
        text.strip(),
        _WIDTH,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def ranks_text(ranks: Sequence[int]) -> str:
    """Return ``rank 1``, ``ranks 0-3`` or ``ranks 0, 2``.

    >>> ranks_text([1]), ranks_text([0, 1, 2, 3]), ranks_text([0, 2, 3])
    ('rank 1', 'ranks 0-3', 'ranks 0, 2-3')
    """
    spans: list[list[int]] = []
    for rank in sorted(set(ranks)):
        if spans and spans[-1][-1] == rank - 1:
            spans[-1][1:] = [rank]
        else:
            spans.append([rank])
    noun = "rank" if len(set(ranks)) == 1 else "ranks"
    return f"{noun} {', '.join('-'.join(map(str, span)) for span in spans)}"


def counted(count: int, noun: str) -> str:
    """Return ``1 file``, ``2 files``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def one_line(text: str) -> str:
    """Return the text with all white space as single blanks, and nothing a terminal would obey."""
    return " ".join("".join(c if c.isprintable() or c.isspace() else "?" for c in text).split())
