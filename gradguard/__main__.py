"""The command line of ``python -m gradguard``.

Each command is a function that adds its parser and sets ``command`` to what runs it; that one
imports what it needs, so that ``--help`` and ``--version`` need no torch.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, NoReturn

from gradguard import __version__
from gradguard._core.text import one_line
from gradguard._demo import texts as demo_texts
from gradguard._run import texts as run

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Commands = argparse._SubParsersAction["Parser"]  # noqa: SLF001 - has no public name


DESCRIPTION = "Find and prevent wrong grad modes in PyTorch programs."


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; argparse would print the usage above it."""

    def error(self, message: str) -> NoReturn:
        """Leave with exit code 2."""
        self.exit(2, f"{self.prog}: error: {one_line(message)}. See `{self.prog} --help`.\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: the arguments after the program's name; None for those of this process.

    Raises:
        SystemExit: with 2 for a wrong command line, with 0 after ``--help`` and ``--version``.

    >>> main(["--version"])
    Traceback (most recent call last):
        ...
    SystemExit: 0
    """
    arguments = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = arguments.command
    return command(arguments)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m gradguard",
        description=DESCRIPTION,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"gradguard {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in _COMMANDS:
        add(commands)
    return parser


def _add_demo(commands: Commands) -> None:
    parser = commands.add_parser(
        "demo",
        help=demo_texts.DEMO_HELP,
        description=demo_texts.DEMO_DESCRIPTION,
        allow_abbrev=False,
    )
    parser.set_defaults(command=_demo)


def _demo(_: argparse.Namespace) -> int:
    from gradguard._demo.command import main as demo

    return demo()


def _add_run(commands: Commands) -> None:
    parser = commands.add_parser(
        "run", help=run.HELP, description=run.DESCRIPTION, usage=run.USAGE, allow_abbrev=False
    )
    parser.add_argument("--strict", action="store_true", help=run.STRICT)
    parser.add_argument("--report", metavar="FILE.json", help=run.REPORT)
    # What follows SCRIPT or MODULE is the script's, options included.
    rest = argparse.REMAINDER
    parser.add_argument("-m", dest="module", nargs=rest, metavar="MODULE", help=run.MODULE)
    parser.add_argument("script", nargs=rest, metavar="SCRIPT", help=run.SCRIPT)
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    from gradguard._run.command import command

    return command(options)


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


_COMMANDS = (_add_demo, _add_run, _add_check)


if __name__ == "__main__":
    sys.exit(main())
