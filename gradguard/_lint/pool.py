"""Many files, over the processors that there are; a few files start no process."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gradguard._lint.check import Checked, check_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_WORTH_IT = 2_000_000
"""Bytes from which starting processes pays: they take about a third of a second."""


class Unreadable(NamedTuple):
    """A file that the system does not let one read."""

    filename: str
    reason: str


def check_files(
    files: Sequence[Path], names_for: Callable[[str], frozenset[str]]
) -> list[Checked | Unreadable]:
    """Check all files, each by the rules that are told for it, in the order given."""
    jobs = [(str(path), names_for(str(path))) for path in files]
    processors = _processors()
    if processors < 2 or sum(_size(path) for path in files) < _WORTH_IT:  # noqa: PLR2004 (no gain)
        return [_check(job) for job in jobs]
    # Not by fork: the caller may be a program with threads, such as an editor's server.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processors, mp_context=context) as pool:
        chunk = max(1, min(50, len(jobs) // (processors * 8)))
        return list(pool.map(partial(_check), jobs, chunksize=chunk))


def _processors() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # told when it is read
        return 0


def _check(job: tuple[str, frozenset[str]]) -> Checked | Unreadable:
    filename, names = job
    try:
        data = Path(filename).read_bytes()
    except OSError as error:
        return Unreadable(filename, error.strerror or str(error))
    return check_bytes(data, filename, names)
