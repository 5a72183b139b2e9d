"""``gradguard demo``."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from gradguard import __version__
from gradguard._demo.screen import Screen

if TYPE_CHECKING:
    import argparse


def add_command(commands: argparse._SubParsersAction[Any]) -> None:  # has no public name
    """Add the command to those of the command line."""
    parser = commands.add_parser(
        "demo",
        help="see the guards on a small language model, then a fault: unwatched, watched and found",
        description=(
            "Trains a small character-level language model on text that Python itself ships, "
            "streams what it writes, and shows what a forgotten grad mode does to the same "
            "training: nobody is told, until an assertion stops it, or `run` finds it. Takes a few "
            "seconds and needs no network."
        ),
        allow_abbrev=False,
    )
    parser.set_defaults(command=_command)


def _command(_: argparse.Namespace) -> int:
    return main()


def main() -> int:
    """Show the demo on stdout; return 0, or 1 if nobody reads it to the end (``demo | head``)."""
    try:
        _timed(Screen(sys.stdout))
    except BrokenPipeError:
        return 1
    return 0


def _timed(screen: Screen) -> None:
    started = time.perf_counter()
    screen.line(f"gradguard {__version__} demo: loading torch ...")
    from gradguard._demo.show import show  # imports torch, which takes seconds: the line is first

    show(screen)
    screen.line(f"Done in {time.perf_counter() - started:.1f} s.")
