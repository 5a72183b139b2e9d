"""How far a long comparison is, for who waits at a terminal or in a notebook."""

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib.util import find_spec

_AFTER = 2.0  # seconds in which nothing is shown: most comparisons are done by then


@contextmanager
def shown(turns: int) -> Generator[Callable[[], None], None, None]:
    """Yield what is to be called at each turn; nothing is written where nobody waits."""
    if not _somebody_waits():
        yield lambda: None
    elif find_spec("tqdm") is not None:
        from tqdm import tqdm

        with tqdm(total=turns, desc="compare_modes", unit="turn", delay=_AFTER, leave=False) as bar:

            def step() -> None:
                bar.update()

            yield step
    else:
        line = _Line(turns)
        try:
            yield line.step
        finally:
            line.clear()


def _somebody_waits() -> bool:
    if sys.stderr.isatty():
        return True
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None  # a notebook's; a terminal's has none


class _Line:
    """One line on stderr that is written over, and gone in the end."""

    def __init__(self, turns: int) -> None:
        self._turns = turns
        self._turn = 0
        self._began = time.perf_counter()
        self._written = ""

    def step(self) -> None:
        self._turn += 1
        if time.perf_counter() - self._began >= _AFTER:
            self._written = f"compare_modes: turn {self._turn} of {self._turns}"
            sys.stderr.write(f"\r{self._written}")
            sys.stderr.flush()

    def clear(self) -> None:
        if self._written:
            sys.stderr.write(f"\r{' ' * len(self._written)}\r")
            sys.stderr.flush()
