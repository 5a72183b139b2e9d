"""``gradguard run``: run a program unmodified, and say what was found, at once and at its end.

It is run in this process, as Python would run it, and so are the processes that it starts.
"""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from gradguard._core.frames import module_of
from gradguard._core.text import one_line
from gradguard._findings.config import FORMATS, ConfigError, load_config
from gradguard._findings.kinds import RUN_KINDS
from gradguard._findings.selection import selection
from gradguard._run import program as programs
from gradguard._run import ranks
from gradguard._run.children import follow_forks
from gradguard._run.endings import Endings, die_interrupted, run_exit_handlers
from gradguard._run.process import WatchedProcess
from gradguard._run.program import Program, UnrunnableError
from gradguard._run.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Any

    from gradguard._findings.config import Config

_OURS = ("gradguard.", "importlib.", "_frozen_importlib")
_REFUSED = 2
_INTERRUPTED = 128 + signal.SIGINT

HELP = "run a program unmodified, and say which grad-mode faults it has"
_DESCRIPTION = (
    "Runs a script or module as python does, watching every model and optimizer that it and the "
    "processes that it starts make. The first of each finding is told at once on standard error, "
    "the summary at the end, also after a crash, Ctrl-C, SIGTERM or os._exit."
)


def add_command(commands: Any) -> None:
    """Add the command to the parser's."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "run",
        help=HELP,
        description=_DESCRIPTION,
        usage="%(prog)s [OPTIONS] [--] (SCRIPT | -m MODULE) [ARGS ...]",
        epilog=_epilog(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--strict", action="store_true", help="make an exit code of 0 a 1 where there are faults")
    add("--report", metavar="FILE", help="write the findings there; - for standard output")
    add("--format", choices=FORMATS, help="of the report (default: json in a file)")
    add("--select", metavar="KIND,…", type=_words, help="tell these kinds only")
    add("--ignore", metavar="KIND,…", type=_words, help="do not tell these kinds")
    add("--quiet", action="store_true", help="write nothing on standard error")
    # What follows SCRIPT or MODULE is the program's, options included.
    rest = argparse.REMAINDER
    add("-m", dest="module", nargs=rest, metavar="MODULE", help="run a module, as python -m does")
    add("script", nargs=rest, metavar="SCRIPT", help="the script and its arguments")
    parser.set_defaults(command=command)


def _epilog() -> str:
    width = max(map(len, RUN_KINDS)) + 2
    kinds = "\n".join(f"  {kind:{width}}{what}" for kind, what in RUN_KINDS.items())
    return (
        f"kinds:\n{kinds}\n\n"
        "exit codes: the program's own; with --strict, 1 for 0 where there are faults; 2 where\n"
        "there is nothing to run\n\n"
        "examples:\n"
        "  gradguard run train.py --epochs 3\n"
        "  gradguard run --strict --report findings.sarif --format sarif -m package.train"
    )


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def command(options: argparse.Namespace) -> int:
    """Run what the command line names; return the exit code."""
    given = [*(options.module or ()), *options.script]
    if given[:1] == ["--"] and options.module is None:
        del given[0]
    try:
        if not given:
            msg = "nothing to run: give a SCRIPT or -m MODULE. See `gradguard run --help`."
            raise UnrunnableError(msg)  # noqa: TRY301 (told as the others are)
        settings = _settings(options, given)
        program = (programs.module if options.module else programs.script)(given[0])
    except (UnrunnableError, ConfigError) as error:
        sys.stderr.write(f"gradguard run: error: {one_line(str(error))}\n")
        return _REFUSED
    except (SyntaxError, ValueError) as error:  # ValueError: null bytes, before Python 3.11.4
        _show(error, None)
        return _REFUSED
    except Exception as error:  # noqa: BLE001 (of the package that a module is in; shown)
        _show(error, _foreign(error.__traceback__))
        return 1
    return Run(program, settings).run()


def _settings(options: argparse.Namespace, given: Sequence[str]) -> Settings:
    config = load_config(Path.cwd())
    try:
        chosen = selection(
            config,
            all_names=frozenset(RUN_KINDS),
            default=frozenset(RUN_KINDS),
            select=options.select,
            ignore=options.ignore,
        )
    except ValueError as error:
        raise UnrunnableError(str(error)) from None
    report, form = _report(options, config)
    return Settings(
        pid=os.getpid(),
        folder=str(Path(tempfile.gettempdir()) / f"gradguard-{secrets.token_hex(8)}"),
        directory=str(Path.cwd()),
        script=given[0],
        arguments=tuple(given[1:]),
        report=report,
        form=form,
        quiet=options.quiet,
        strict=options.strict or config.strict,
        names=tuple(sorted(chosen.names)),
        per_file={glob: sorted(names) for glob, names in chosen.per_file.items()},
        root=str(chosen.root),
        libraries=config.libraries,
    )


def _report(options: argparse.Namespace, config: Config) -> tuple[str | None, str]:
    """Return where the report goes, and its form.

    ``--format`` without a file writes it to standard output, where a CI system reads it.
    """
    form = options.format or (None if config.path is None else config.format)
    if options.report is None:
        asked = options.format is not None
        return ("-" if asked else None), form or "text"
    if options.report == "-":
        return "-", form or "text"
    path = Path(options.report).absolute()  # the program may change the directory
    if (rank := ranks.launched()) is not None:
        path = path.with_name(f"{path.stem}.rank{rank.rank}{path.suffix}")
    try:
        path.open("a", encoding="utf-8").close()
    except OSError as error:
        msg = (
            f"cannot write the report {options.report!r} ({error.strerror}): give a path that can "
            "be written."
        )
        raise UnrunnableError(msg) from None
    return str(path), options.format or (form if form not in {None, "text"} else None) or "json"


def _show(error: BaseException, traceback: TracebackType | None) -> None:
    sys.excepthook(type(error), error.with_traceback(traceback), traceback)


def _foreign(traceback: TracebackType | None) -> TracebackType | None:
    """Leave out the frames of the front and of Python's import machinery before the script's."""
    while traceback is not None and module_of(traceback.tb_frame).startswith(_OURS):
        traceback = traceback.tb_next
    return traceback


class Run:
    """One run of a program, in the process that was started for it."""

    def __init__(self, program: Program, settings: Settings) -> None:
        self._program = program
        self._settings = settings
        self._process = WatchedProcess(settings)
        self._error: BaseException | None = None  # holds the frames, whose tensors are looked at

    def run(self) -> int:
        """Run it to its end, that of its threads and children included; return the exit code."""
        endings = Endings(self._conclude, self._process.hand_over)
        programs.enter(self._program, list(self._settings.arguments))
        self._settings.hand_on()
        self._process.begin()
        endings.install()
        follow_forks(self._process)
        self._process.watch()
        code = self._execute()
        if os.getpid() != self._settings.pid:  # a fork that returns through here
            self._conclude(code)
            return code
        run_exit_handlers()
        endings.remove()
        told = self._conclude(code)
        if isinstance(self._error, KeyboardInterrupt):
            die_interrupted()
        self._error = None
        return code if told is None else told

    def _conclude(self, code: int | None) -> int | None:
        return self._process.conclude(code, crashed=self._error is not None)

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


def _exit_code(error: SystemExit) -> int:
    """Return the exit code as Python makes it, which prints what is neither a number nor None."""
    if error.code is None or isinstance(error.code, int):
        return int(error.code or 0)
    sys.stderr.write(f"{error.code}\n")
    return 1
