"""The command line: ``gradguard``, or ``python -m gradguard``.

Each command's module has a function that adds its parser and sets ``command`` to what runs it; that
one imports what it needs, so that ``--help`` and ``--version`` need no torch.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from shutil import get_terminal_size
from textwrap import fill
from typing import TYPE_CHECKING, NoReturn

from gradguard import __version__
from gradguard._core.text import one_line
from gradguard._demo.command import add_command as add_demo
from gradguard._findings.kinds import RUN_KINDS
from gradguard._run.command import add_command as add_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    Commands = argparse._SubParsersAction["Parser"]  # noqa: SLF001 - has no public name


DESCRIPTION = "Find and prevent wrong grad modes in PyTorch programs."
EXIT_CODES = {
    "0": "nothing was found, or notices alone; after `run`, the script ended with 0 as well",
    "1": "faults were found, by `check` or by `run --strict`",
    "2": "the command line is wrong, or a file cannot be read",
    "else": "`run` ends with the exit code of the script",
}
EXAMPLES = {
    "run train.py --epochs 3": "run a script unmodified, and say what is wrong with it",
    "check src tests": "read the faults off the source, without running it",
}


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; argparse would print the usage above it."""

    def error(self, message: str) -> NoReturn:
        """Leave with exit code 2."""
        self.exit(2, f"{self.prog}: error: {one_line(message)}. See `{self.prog} --help`.\n")


class _Main(Parser):
    """The parser of the whole command, whose help tells what all commands share."""

    def format_help(self) -> str:
        """Return argparse's help, then the kinds, the exit codes and two examples."""
        examples = {f"{self.prog} {words}": does for words, does in EXAMPLES.items()}
        sections = {
            "kinds of findings of `run` and the watches, the worst first": RUN_KINDS,
            "exit codes": EXIT_CODES,
            "examples": examples,
        }
        told = (f"{name}:\n{_listed(rows)}\n" for name, rows in sections.items())
        return "\n".join((super().format_help(), *told))


def _listed(rows: Mapping[str, str]) -> str:
    return "\n".join(_rows(rows, max(get_terminal_size().columns - 2, 24)))


def _rows(rows: Mapping[str, str], width: int) -> Iterator[str]:
    """Yield the names with what they mean beside them, or below them where it is too narrow."""
    column = max(map(len, rows)) + 4
    beside = width - column >= column
    indent = " " * (column if beside else 6)
    for name, meaning in rows.items():
        if beside:
            first = f"  {name}".ljust(column)
            yield fill(meaning, width, initial_indent=first, subsequent_indent=indent)
        else:
            yield f"  {name}"
            yield fill(meaning, width, initial_indent=indent, subsequent_indent=indent)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; without any, print the help.

    Args:
        argv: the arguments after the program's name; None for those of this process.

    Raises:
        SystemExit: with 2 for a wrong command line, with 0 after ``--help`` and ``--version``.

    >>> main(["--version"])
    Traceback (most recent call last):
        ...
    SystemExit: 0
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    command: Callable[[argparse.Namespace], int] | None = arguments.command
    if command is None:
        parser.print_help()
        return 0
    return command(arguments)


def _parser() -> Parser:
    started_as = Path(sys.argv[0]).name
    by_module = started_as in ("__main__.py", "-m", "")
    parser = _Main(
        prog="python -m gradguard" if by_module else "gradguard",
        description=DESCRIPTION,
        allow_abbrev=False,
    )
    version = f"gradguard {__version__}"
    parser.add_argument("-V", "--version", action="version", version=version)
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", parser_class=Parser, required=False
    )
    for add in _COMMANDS:
        add(commands)
    return parser


def _add_check(commands: Commands) -> None:
    from gradguard._lint import options

    parser = commands.add_parser(
        "check", help=options.HELP, description=options.DESCRIPTION, allow_abbrev=False
    )
    options.add_arguments(parser)
    parser.set_defaults(command=_check)


def _check(given: argparse.Namespace) -> int:
    from gradguard._lint.command import main as check

    return check(given)


_COMMANDS = (add_demo, add_run, _add_check)


if __name__ == "__main__":
    sys.exit(main())
