"""One process of a run: what watches it, what is told at once, and what it leaves behind."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from gradguard._core.when_imported import when_imported
from gradguard._findings import formats, text
from gradguard._findings.paths import shown, stand_in
from gradguard._findings.report import Entry, Process, Report, entry
from gradguard._run import ranks, summary
from gradguard._run.filter import Filter
from gradguard._run.merged_report import Parts, publish, publish_as_child

if TYPE_CHECKING:
    from gradguard._findings.finding import Finding
    from gradguard._run.observer import Observer
    from gradguard._run.settings import Settings


class WatchedProcess:
    """What `gradguard run` has in each process of the program."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.concluded = False
        self._pid = os.getpid()
        self._parts = Parts(settings)
        self._store = ranks.Store()
        self._rank: ranks.Rank | None = ranks.launched()
        self._observer: Observer | None = None
        self._filter = Filter(settings.selection)
        self._lock = threading.RLock()
        self._stderr = sys.stderr  # the program may close or redirect its own
        stand_in(settings.directory)

    @property
    def is_main(self) -> bool:
        """Whether it is the one that writes the summary."""
        return self._pid == self.settings.pid

    @property
    def speaks(self) -> bool:
        """Whether it tells of itself: not where rank 0 of the same job tells for all."""
        alone = self._rank is None or self._rank.rank == 0 or not self._store.is_there
        return alone and not self.settings.quiet

    def begin(self) -> None:
        """Write a report that has nothing, for a process that is killed before there is more."""
        self._published(self.report(), None)

    def watch(self) -> None:
        """Begin, as soon as the program imports torch."""
        when_imported("torch", self._observe)

    def _observe(self) -> None:
        from gradguard._run.observer import Observer  # it imports torch

        self._observer = Observer(self._found, libraries=self.settings.libraries)
        self._observer.start()
        if self._rank is not None:
            when_imported("torch.distributed", self._follow_group)

    def _follow_group(self) -> None:
        ranks.before_destroying(self._look_for_store)

    def _look_for_store(self) -> None:
        self._store.look()  # in a forked child, its own

    def forked(self) -> None:
        """Begin anew in a child: what was found so far is its parent's."""
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self.concluded = False
        self._store = ranks.Store()
        if self._observer is not None:
            self._observer.forked()

    def conclude(self, code: int | None, *, crashed: bool) -> int | None:
        """Make the last checks, leave what was found and tell it; return the exit code."""
        if self.concluded:
            return code
        self.concluded = True
        if self._observer is not None:
            self._observer.finish(crashed=crashed)
        self._store.look()
        own = self.report()
        if not self.is_main:
            self._leave_for_good(own)
            return code
        own = replace(own, entries=[*own.entries, *self._of_other_ranks(own)])
        whole = self._published(own, code)
        if self.settings.strict and whole.faults and code == 0:
            code = 1
            whole = self._published(own, code)
        self._parts.remove_all()
        self._tell_all(whole)
        return code

    def hand_over(self) -> None:
        """Tell what was found before another program takes this process (`os.exec…`).

        If that one is Python, it is followed, and tells the rest.
        """
        if not self.concluded and self.report().entries:
            self.conclude(None, crashed=False)

    def _of_other_ranks(self, own: Report) -> list[Entry]:
        rank = self._rank
        if rank is None or not self._store.is_there:
            return []
        if rank.rank == 0:
            others = self._store.gather(rank.world_size)
            return [each for report in others for each in report.entries]
        self._store.leave(rank.rank, own)
        self._store.end()
        return []

    def _leave_for_good(self, own: Report) -> None:
        """As a child: leave the part, unless nothing happened; take it away if nobody reads it."""
        if not own.entries and not any((p.models or p.steps) for p in own.processes):
            return
        self._write_part(own)
        if not self._main_is_alive():
            self._parts.remove(self._pid)

    def _main_is_alive(self) -> bool:
        if os.name != "posix":  # os.kill(pid, 0) would end the process on Windows
            return True
        try:
            os.kill(self.settings.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True

    def report(self) -> Report:
        """Return what this process has found so far, and what it has done."""
        with self._lock:
            self._rank = ranks.current() or self._rank
        observer = self._observer
        findings = [] if observer is None else observer.findings()
        return Report(
            command="run",
            entries=[self._entry(one) for one in findings if self._filter.tells(one)],
            processes=[self._counts()],
        )

    def _counts(self) -> Process:
        done, observer = Process(self._pid), self._observer
        if self._rank is not None:
            done = done._replace(rank=self._rank.rank, world_size=self._rank.world_size)
        if observer is None:
            return done
        return done._replace(
            steps=observer.steps, forwards=observer.forwards, models=observer.models
        )

    def _entry(self, finding: Finding) -> Entry:
        if finding.rank is None and self._rank is not None:
            finding = replace(finding, rank=self._rank.rank)
        if finding.filename is not None:
            finding = replace(finding, filename=shown(finding.filename))
        return entry(finding, self._pid)

    def _found(self, finding: Finding) -> None:
        """Tell the first of a finding at once, and have the report say so."""
        if not self._filter.tells(finding):
            return
        self._store.look()
        own = self.report()
        each = self._entry(finding)
        if self.is_main:
            self._published(own, None)
            if self._rank is not None and self._rank.rank > 0:
                self._store.leave(self._rank.rank, own)
        else:
            self._write_part(own)
        if not self.settings.quiet and self._is_first(each.finding):
            self._say(f"gradguard: {text.line(each.finding, each.ranks)}\n")

    def _is_first(self, finding: Finding) -> bool:
        """Tell whether no other process, or rank, has told an equal finding."""
        key = f"{finding.kind} {finding.filename} {finding.lineno} {finding.parameters}"
        name = hashlib.sha256(key.encode()).hexdigest()
        return self._parts.claim(name) and self._store.claim(name)

    def _write_part(self, own: Report) -> None:
        try:
            self._parts.leave(self._pid, own)
            publish_as_child(self.settings, self._parts, own)
        except OSError as error:
            self._say_lost(error)

    def _published(self, own: Report, code: int | None) -> Report:
        try:
            if self.is_main and self._parts.exist:
                self._parts.leave(self._pid, own)
            return publish(self.settings, self._parts, own, code)
        except OSError as error:
            self._say_lost(error)
            return own

    def _say_lost(self, error: OSError) -> None:
        path = self.settings.report or self.settings.folder
        reason = error.strerror or type(error).__name__
        self._say(f"gradguard: the report could not be written to {path!r} ({reason}).\n")

    def _tell_all(self, whole: Report) -> None:
        if self.speaks:
            torch = "torch" in sys.modules or bool(whole.models)
            self._say(
                summary.summary(
                    whole,
                    torch=torch,
                    unused_comments=self._filter.unused_comments(self.settings.directory),
                )
            )
            if self._observer is not None and self._observer.failure is not None:
                self._say(self._observer.failure)
        if self.settings.report == "-":
            sys.stdout.write(formats.render(whole, self.settings.form))
            sys.stdout.flush()

    def _say(self, words: str) -> None:
        try:
            self._stderr.write(words)
            self._stderr.flush()
        except (OSError, ValueError):  # the program has closed it: nobody can be told
            return
