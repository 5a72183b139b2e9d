"""What the processes of one run found, put together without waiting.

Each process keeps a file of its own up to date, its part. Who has changed a part puts all parts
together and replaces the report; and does so again if a part has changed meanwhile. So the last
one to write has seen every part, and a reader never sees half a report. No process waits for
another, which may be stopped or killed.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gradguard._findings import formats
from gradguard._findings import json as json_form
from gradguard._findings.kinds import RUN_KINDS
from gradguard._findings.report import Entry, Report, merged

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence

    from gradguard._findings.report import Process
    from gradguard._run.settings import Settings

_ORDER = {kind: number for number, kind in enumerate(RUN_KINDS)}


def ranked(entries: Iterable[Entry]) -> list[Entry]:
    """Sort, the worst first: faults before notices, by kind, and what happened most often."""

    def key(entry: Entry) -> tuple[bool, int, int, str, int]:
        one = entry.finding
        place = (one.filename or "", one.lineno or 0)
        return (one.severity != "fault", _ORDER[one.kind], -one.count, *place)

    return sorted(entries, key=key)


class Parts:
    """The folder in which the processes of a run leave what they found.

    It is made by the first process that leaves something, and taken away by the one that writes
    the summary; where that was killed, by the last one to end.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._folder = Path(settings.folder)

    @property
    def exist(self) -> bool:
        """Whether any process has left something."""
        return self._folder.is_dir()

    def leave(self, process: int, report: Report) -> None:
        """Keep what this process found, in the place of what it had left before."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        _replace(self._part(process), json_form.render(report))

    def claim(self, name: str) -> bool:
        """Return whether this process is the first to claim the name, as to tell a finding."""
        try:
            (self._folder / f"told-{name}").touch(exist_ok=False)
        except FileExistsError:
            return False
        except FileNotFoundError:  # nobody has left anything: nobody else has told it
            return True
        return True

    def read(self) -> list[Report]:
        """Return what the processes have left so far."""
        reports: list[Report] = []
        for path in sorted(self._folder.glob("*.json")):
            with suppress(FileNotFoundError):  # its process has just taken it away
                reports.append(json_form.parse(path.read_text(encoding="utf-8")))
        return reports

    def listing(self) -> list[tuple[str, int, int]]:
        """Return what changes whenever a process leaves something."""
        found: list[tuple[str, int, int]] = []
        for path in sorted(self._folder.glob("*.json")):
            with suppress(FileNotFoundError):
                status = path.stat()
                found.append((path.name, status.st_mtime_ns, status.st_ino))
        return found

    @contextmanager
    def alone(self) -> Generator[bool]:
        """Tell whether no other process is in this block; a killed one is in none."""
        if fcntl is None:  # Windows: all write, and look again
            yield True
            return
        with (self._folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    def remove(self, process: int) -> None:
        """Take the part of a process away, and the folder if it was the last."""
        self._part(process).unlink(missing_ok=True)
        if not self.listing():
            self.remove_all()

    def remove_all(self) -> None:
        """Take the folder away with all that is in it."""
        if not self.exist:
            return
        for path in list(self._folder.iterdir()):
            path.unlink(missing_ok=True)
        try:
            self._folder.rmdir()
        except OSError:  # a process has just left something: it takes the folder away when it ends
            return

    def _part(self, process: int) -> Path:
        return self._folder / f"{process}.json"


def together(reports: Sequence[Report], settings: Settings, code: int | None) -> Report:
    """Make one report of those of all processes; equal findings become one."""
    entries = [entry for report in reports for entry in report.entries]
    processes: dict[int, Process] = {}
    for report in reports:
        processes.update({process.pid: process for process in report.processes})
    return Report(
        command="run",
        entries=ranked(merged(entries)),
        processes=[processes[pid] for pid in sorted(processes)],
        about={
            "script": settings.script,
            "arguments": list(settings.arguments),
            "exit_code": code,
        },
    )


def publish(settings: Settings, parts: Parts, own: Report, code: int | None = None) -> Report:
    """Write the report of all processes, `own` among them; return it.

    Raises:
        OSError: the file cannot be written.
    """
    while True:
        before = parts.listing()
        whole = together(_others(settings, parts, own), settings, code)
        if settings.report is None or settings.report == "-":
            return whole
        _replace(Path(settings.report), formats.render(whole, settings.form))
        if parts.listing() == before:
            return whole


def publish_as_child(settings: Settings, parts: Parts, own: Report) -> None:
    """Have the report say what this process has just left, unless another is writing it.

    That one looks again when it has written it, so it is enough that one does: a hundred children
    that all wrote would keep each other from ending.

    Raises:
        OSError: the file cannot be written.
    """
    written: list[tuple[str, int, int]] | None = None
    while parts.listing() != written:
        with parts.alone() as alone:
            if not alone:
                return
            written = parts.listing()
            publish(settings, parts, own)


def _others(settings: Settings, parts: Parts, own: Report) -> list[Report]:
    """Return `own`, the parts of the others, and what only the last report still has.

    The process that writes the summary leaves no part before another does; where it was killed,
    what it found stands in the report alone.
    """
    known = {process.pid for process in own.processes}
    reports = [own]
    for report in parts.read():
        pids = {process.pid for process in report.processes}
        if not pids & known:
            reports.append(report)
            known |= pids
    if settings.pid not in known and (last := _last(settings)) is not None:
        alone = [entry for entry in last.entries if entry.processes == (settings.pid,)]
        counts = [process for process in last.processes if process.pid == settings.pid]
        reports.insert(0, replace(last, entries=alone, processes=counts))
    return reports


def _last(settings: Settings) -> Report | None:
    if settings.report is None or settings.form != "json":
        return None
    try:
        return json_form.parse(Path(settings.report).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none was written so far
        return None


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    if path.exists() and not path.is_file():  # a pipe, /dev/stdout: written, not replaced
        path.write_text(text, encoding="utf-8")
        return
    made = path.with_name(f".{path.name}-{os.getpid()}-{threading.get_ident()}")
    try:
        made.write_text(text, encoding="utf-8")
        made.replace(path)
    except BaseException:
        made.unlink(missing_ok=True)
        raise
