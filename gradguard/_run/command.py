"""``python -m gradguard run``: run a script unmodified, and say at its end what was found.

It is run in this process, as Python would run it; what is watched is set up by `observer` when
the script imports torch. Children of the process print no summary: one that was forked returns
through this code, so it compares process ids.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from gradguard import __version__
from gradguard._core.frames import module_of
from gradguard._core.when_imported import when_imported
from gradguard._run import program as _run_script
from gradguard._run import texts
from gradguard._run.findings import as_json, ranked
from gradguard._run.program import Program, UnrunnableError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from types import TracebackType

    from gradguard._findings.finding import Finding
    from gradguard._run.observer import Observer

_OURS = ("gradguard.", "importlib.", "_frozen_importlib")
_REFUSED = 2
_INTERRUPTED = 128 + signal.SIGINT


def command(options: argparse.Namespace) -> int:
    """Run what the command line names; return the exit code."""
    given = [*(options.module or ()), *options.script]
    try:
        if not given:
            raise UnrunnableError(texts.nothing_to_run())  # noqa: TRY301 (told as the others are)
        program = (_run_script.module if options.module else _run_script.script)(given[0])
        _check_writable(options.report)
    except UnrunnableError as error:
        return _say(texts.refused(str(error)))
    except (SyntaxError, ValueError) as error:  # ValueError: null bytes, before Python 3.11.4
        _show(error, None)
        return _REFUSED
    except Exception as error:  # noqa: BLE001 (of the package that a module is in; shown, not kept)
        _show(error, _foreign(error.__traceback__))
        return 1
    return Run(program, given, strict=options.strict, report=options.report).run()


def _say(line: str) -> int:
    sys.stderr.write(line)
    return _REFUSED


def _check_writable(report: str | None) -> None:
    if report is None:
        return
    try:
        Path(report).open("a", encoding="utf-8").close()
    except OSError as error:
        raise UnrunnableError(texts.unwritable_report(report, error.strerror or "")) from None


def _show(error: BaseException, traceback: TracebackType | None) -> None:
    sys.excepthook(type(error), error.with_traceback(traceback), traceback)


def _foreign(traceback: TracebackType | None) -> TracebackType | None:
    """Leave out the frames of the front and of Python's import machinery before the script's."""
    while traceback is not None and module_of(traceback.tb_frame).startswith(_OURS):
        traceback = traceback.tb_next
    return traceback


class Run:
    """One run of a program."""

    def __init__(
        self, program: Program, given: Sequence[str], *, strict: bool, report: str | None
    ) -> None:
        self._program = program
        self._given = given
        self._strict = strict
        # The script may change the directory, and redirect what it writes.
        self._report = None if report is None else Path(report).absolute()
        self._stderr = sys.stderr
        self._process = os.getpid()
        self._concluded = False
        self._observer: Observer | None = None
        self._error: BaseException | None = None  # holds the frames, whose tensors are looked at

    def run(self) -> int:
        """Run it to its end, the end of its threads included, and return the exit code."""
        self._write_report([], None)  # what is found where the process is killed
        _run_script.enter(self._program, list(self._given[1:]))
        when_imported("torch", self._observe)
        self._leave = os._exit
        os._exit = self._leave_at_once
        code = self._execute()
        if os.getpid() != self._process:
            return code
        # As Python does next. Its name is private, but multiprocessing calls it, too; joining the
        # threads one by one would wait for ever for an executor's, which end when it tells them.
        threading._shutdown()  # type: ignore[attr-defined]  # noqa: SLF001  # pyright: ignore[reportAttributeAccessIssue]
        os._exit = self._leave
        code = self._conclude(code)
        if isinstance(self._error, KeyboardInterrupt):
            _die_interrupted()
        self._error = None
        return code

    def _observe(self) -> None:
        from gradguard._run.observer import Observer

        self._observer = Observer()
        self._observer.start()

    def _execute(self) -> int:
        try:
            exec(self._program.code, self._program.module.__dict__)  # noqa: S102 (the script)
        except SystemExit as error:
            return _exit_code(error)
        except BaseException as error:  # noqa: BLE001 (shown as Python shows it)
            self._error = error
            _show(error, _foreign(error.__traceback__))
            return _INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1
        return 0

    def _leave_at_once(self, status: int) -> NoReturn:
        """Stand for `os._exit`: say what was found before the process is gone."""
        if os.getpid() == self._process and not self._concluded:
            status = self._conclude(status)
        self._leave(status)

    def _conclude(self, code: int) -> int:
        """Write summary and report; return the exit code, which findings may have changed."""
        self._concluded = True  # os._exit may be called, bound by another name, after that
        findings: list[Finding] = []
        if self._observer is not None:
            self._observer.finish(crashed=self._error is not None)
            findings = ranked(self._observer.findings())
        self._write_summary(findings)
        self._write_report(findings, code)
        faults = any(one.severity == "fault" for one in findings)
        return 1 if self._strict and faults and code == 0 else code

    def _write_summary(self, findings: list[Finding]) -> None:
        observer = self._observer
        if observer is None:
            text = texts.without_torch()
        elif findings:
            text = texts.summary([_entry(one) for one in findings])
        else:
            text = texts.nothing_found(observer.steps, observer.models)
        failure = "" if observer is None or observer.failure is None else observer.failure
        try:
            self._stderr.write(text + failure)
            self._stderr.flush()
        except (OSError, ValueError):  # the script has closed it: nobody can be told
            pass

    def _write_report(self, findings: list[Finding], code: int | None) -> None:
        if self._report is None:
            return
        try:
            self._report.write_text(json.dumps(self._as_json(findings, code), indent=2) + "\n")
        except OSError as error:
            self._stderr.write(texts.report_lost(str(self._report), error.strerror or ""))

    def _as_json(self, findings: list[Finding], code: int | None) -> dict[str, Any]:
        torch = sys.modules.get("torch")
        return {
            "script": self._given[0],
            "arguments": list(self._given[1:]),
            "exit_code": code,
            "torch": None if torch is None else str(torch.__version__),
            "gradguard": __version__,
            "findings": [as_json(one) for one in findings],
        }


def _entry(finding: Finding) -> texts.Entry:
    return texts.Entry(
        finding.kind,
        finding.filename or "",
        finding.lineno or 0,
        finding.function or "",
        finding.source or "",
        finding.count,
        finding.message,
        finding.parameters,
    )


def _exit_code(error: SystemExit) -> int:
    """Return the exit code as Python makes it, which prints what is neither a number nor None."""
    if error.code is None or isinstance(error.code, int):
        return int(error.code or 0)
    sys.stderr.write(f"{error.code}\n")
    return 1


def _die_interrupted() -> None:
    """End as Python does after Ctrl-C, so that a shell sees that it was the signal."""
    atexit._run_exitfuncs()  # noqa: SLF001 (as multiprocessing does)
    sys.stdout.flush()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)
