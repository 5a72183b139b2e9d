"""``python -m gradguard demo``."""

import sys
import time

from gradguard import __version__
from gradguard._demo import texts as fronts
from gradguard._demo.screen import Screen


def main() -> int:
    """Show the demo on stdout; return 0, or 1 if nobody reads it to the end (``demo | head``)."""
    try:
        _timed(Screen(sys.stdout))
    except BrokenPipeError:
        return 1
    return 0


def _timed(screen: Screen) -> None:
    started = time.perf_counter()
    screen.line(fronts.demo_loading(__version__))
    from gradguard._demo.show import show  # imports torch, which takes seconds: the line is first

    show(screen)
    screen.line(fronts.demo_done(time.perf_counter() - started))
