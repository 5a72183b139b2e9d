"""What `python -m gradguard run` says: its help, its refusals, its findings and the summary."""

from collections.abc import Sequence
from textwrap import fill
from typing import NamedTuple

from gradguard._core.text import one_line
from gradguard._graph.listing import Section, entries, packed

HELP = "run a script unmodified, and say at its end which grad-mode faults it has"
DESCRIPTION = (
    "Runs the script (or module) as python does, watching every model and optimizer that it makes. "
    "At the end, also after a crash, the findings stand on stderr, the worst first. The exit code "
    "is the script's. Child processes, and what runs after os.exec or a kill, are not watched."
)
STRICT = "exit with 1 if anything was found and the script itself ended with 0"
REPORT = "also write the findings to this file, as JSON"
MODULE = "run a library module, as python -m does"
SCRIPT = "the script and its arguments"
USAGE = "%(prog)s [-h] [--strict] [--report FILE.json] (SCRIPT | -m MODULE) [ARGS ...]"

_MOST_ROWS = 10
_WIDTH = 96


def refused(problem: str) -> str:
    return f"python -m gradguard run: error: {one_line(problem)}\n"


def nothing_to_run() -> str:
    return "nothing to run: give a SCRIPT or -m MODULE. See `python -m gradguard run --help`."


def missing_script(path: str) -> str:
    return f"there is no script {path!r}: give the path of a Python file, or -m MODULE."


def unreadable_script(path: str, reason: str) -> str:
    return f"cannot read the script {path!r} ({reason}): check the path and its permissions."


def no_main(path: str) -> str:
    return f"{path!r} has no __main__.py, so there is nothing to run: name one of its files."


def no_code(name: str) -> str:
    return f"{name!r} has no Python code to run: name a Python file or module."


def missing_module(name: str) -> str:
    return f"there is no module {name!r}: check its name, and that the path to it is on sys.path."


def unwritable_report(path: str, reason: str) -> str:
    return f"cannot write the report {path!r} ({reason}): give a --report path that can be written."


def report_lost(path: str, reason: str) -> str:
    return f"gradguard: the report could not be written to {path!r} ({reason}).\n"


class Entry(NamedTuple):
    """One finding, with all that is shown of it."""

    kind: str
    filename: str
    lineno: int
    function: str
    source: str
    often: int
    message: str
    parameters: Sequence[str]


def summary(findings: Sequence[Entry]) -> str:
    """Write the findings, the worst first."""
    head = f"gradguard: {_counted(len(findings), 'finding')}, the worst first"
    parts = [_entry(number, one) for number, one in enumerate(findings, 1)]
    return "\n\n".join([head, *parts]) + "\n"


def nothing_found(steps: int, models: int) -> str:
    return (
        f"gradguard: nothing found ({_counted(steps, 'optimizer step')}, "
        f"{_counted(models, 'model')} called)\n"
    )


def without_torch() -> str:
    return "gradguard: nothing found (torch was not imported)\n"


def failed(kind: str, reason: str) -> str:
    return (
        f"gradguard: a check failed by itself ({kind}: {one_line(reason)}), so findings may be "
        "missing. That is a fault of gradguard: please report it.\n"
    )


def place(filename: str, lineno: int, function: str) -> str:
    within = f" in {function}" if function and function != "<module>" else ""
    return f"{one_line(filename)}:{lineno}{within}"


def _entry(number: int, one: Entry) -> str:
    where = place(one.filename, one.lineno, one.function)
    often = "once" if one.often == 1 else f"{one.often} times"
    lines = [f"{number}. {one.kind}, {often}: {where}"]
    lines.append(f"     {one_line(one.source or '(source not available)')}")
    lines += [_paragraph(text) for text in one.message.splitlines()]
    return "\n".join([*lines, *_named(one.parameters)])


def _paragraph(text: str) -> str:
    return fill(
        text,
        _WIDTH,
        initial_indent="   ",
        subsequent_indent="   ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _named(parameters: Sequence[str]) -> list[str]:
    if not parameters:
        return []
    names = [(name,) for name in parameters]
    section = Section("", names, names, "")
    return [f"     {row}" for row in packed(entries(section), _MOST_ROWS)]


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
