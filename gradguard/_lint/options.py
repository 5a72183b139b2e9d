"""The options of ``gradguard check``; ``--help`` needs nothing else of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradguard._findings.config import FORMATS

if TYPE_CHECKING:
    import argparse

HELP = "find grad-mode faults in source, without running it"
DESCRIPTION = (
    "Reads Python files (folders are searched for .py and .pyi) and tells what is wrong with their "
    "grad modes. Nothing is imported or run. Exit code: 0 no fault (notices alone fail nothing), "
    "1 faults, 2 usage or a path that cannot be read. Example: gradguard check src tests"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``check`` to its parser."""
    parser.add_argument("paths", nargs="*", metavar="PATH", help="a file, a folder, or - for stdin")
    words = "codes, prefixes or names, separated by commas; ALL for all"
    parser.add_argument("--select", action="append", metavar="CODE", help=f"tell these: {words}")
    parser.add_argument("--ignore", action="append", metavar="CODE", help=f"do not tell: {words}")
    parser.add_argument("--exclude", action="append", metavar="GLOB", help="leave these paths out")
    parser.add_argument("--format", choices=FORMATS, help="how to write findings (default: text)")
    parser.add_argument("--report", metavar="FILE", help="write the findings to this file")
    parser.add_argument("--stdin-filename", metavar="PATH", help="the name of what stdin gives")
    parser.add_argument("--explain", metavar="CODE", help="explain a rule, with examples")
    parser.add_argument("--list", action="store_true", help="list the rules")
