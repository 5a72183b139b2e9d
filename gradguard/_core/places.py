"""How a line, and a file, is written for a reader."""

import linecache
import os
import sys

from gradguard._core.frames import Line
from gradguard._core.text import one_line


def written(line: Line) -> str:
    """Write a line with its function and source, that of the user first, the library's second."""
    source = linecache.getline(line.filename, line.lineno).strip() or "(source not available)"
    text = f"{place(line.filename, line.lineno)} in {line.function}: {one_line(source)}"
    if line.library is None:
        return text
    inner = line.library
    return f"{text} (inside it: {place(inner.filename, inner.lineno)} in {inner.function})"


def place(filename: str, lineno: int) -> str:
    """Write a line as its reader knows it: ``train.py:12``, or ``Cell In[8], line 2``."""
    cell = notebook_cell(filename)
    return f"{file_shown(filename)}:{lineno}" if cell is None else f"{cell}, line {lineno}"


def file_shown(filename: str) -> str:
    """Write a file as one would type it here: a path below the working directory from there."""
    try:
        below = os.path.relpath(filename) if os.path.isabs(filename) else filename  # noqa: PTH117
    except (OSError, ValueError):  # the directory is gone; or on another drive
        below = filename
    return one_line(filename if below.startswith("..") else below)


def notebook_cell(filename: str) -> str | None:
    """Return how IPython calls the cell that it has compiled as `filename`: ``Cell In[8]``.

    IPython is asked where it is running, and not imported where it is not: there are no cells then.
    """
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    ask = getattr(getattr(shell, "compile", None), "format_code_name", None)
    name = None if ask is None else ask(filename)
    return None if name is None else " ".join(name)
