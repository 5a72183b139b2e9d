"""`Report`: all that a run or a check found, in which processes, and with which versions."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from gradguard._findings.finding import Finding


class Process(NamedTuple):
    """A process that took part, and what it did."""

    pid: int
    rank: int | None = None
    world_size: int | None = None
    steps: int = 0
    forwards: int = 0
    models: int = 0


class Entry(NamedTuple):
    """A finding, and the processes and ranks that have it."""

    finding: Finding
    processes: tuple[int, ...] = ()
    ranks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What one call of `run` or `check` tells.

    Attributes:
        command: ``"run"`` or ``"check"``.
        entries: the findings, in the order in which they are told.
        processes: those that took part.
        files: how many files a check has read; None for a run.
        about: what else the command says of itself, such as script, arguments and exit code.
    """

    command: str
    entries: Sequence[Entry] = ()
    processes: Sequence[Process] = ()
    files: int | None = None
    about: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def faults(self) -> int:
        """How many findings are faults."""
        return sum(each.finding.severity == "fault" for each in self.entries)

    @property
    def steps(self) -> int:
        """The optimizer steps of all processes."""
        return sum(process.steps for process in self.processes)

    @property
    def forwards(self) -> int:
        """The forwards of all processes."""
        return sum(process.forwards for process in self.processes)

    @property
    def models(self) -> int:
        """The models that were called, in all processes."""
        return sum(process.models for process in self.processes)


def entry(finding: Finding, pid: int | None = None) -> Entry:
    """Return the entry of a finding of one process."""
    ranks = () if finding.rank is None else (finding.rank,)
    return Entry(finding, () if pid is None else (pid,), ranks)


def merged(entries: Iterable[Entry]) -> list[Entry]:
    """Make one of equal findings, in the order of the first of each.

    Equal are those of one kind, line, model and parameters, whatever their messages say of a rank
    or a number: counts are added, the earliest step stays, processes and ranks are joined.

    >>> from gradguard._findings.finding import Finding
    >>> one = Finding(kind="empty-step", message="rank 0", filename="a.py", lineno=3, rank=0)
    >>> merged([entry(one, 7), entry(replace(one, rank=1), 8)])[0].ranks
    (0, 1)
    """
    found: dict[object, Entry] = {}
    for each in entries:
        one = each.finding
        place = (one.kind, one.code, one.filename, one.lineno, one.column, one.function)
        key = (*place, one.model, one.parameters, one.severity)
        found[key] = _joined(found[key], each) if key in found else each
    return list(found.values())


def _joined(first: Entry, second: Entry) -> Entry:
    one, two = first.finding, second.finding
    steps = [step for step in (one.first_step, two.first_step) if step is not None]
    return Entry(
        replace(one, count=one.count + two.count, first_step=min(steps, default=None)),
        tuple(sorted({*first.processes, *second.processes})),
        tuple(sorted({*first.ranks, *second.ranks})),
    )


def versions() -> dict[str, str | None]:
    """Return the versions of gradguard, torch and Python; torch is asked for, not imported."""
    return {
        "gradguard": _version("gradguard"),
        "torch": _version("torch"),
        "python": platform.python_version(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
