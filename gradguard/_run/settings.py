"""What one `gradguard run` was asked for, as it is handed to the processes that it starts."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gradguard import __version__
from gradguard._findings.selection import Selection

_OURS = __version__
VARIABLE = "GRADGUARD_RUN"
_STARTUP = str(Path(__file__).parent / "startup")
_PATH = "PYTHONPATH"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the command line and the configuration say, and where the processes meet.

    Attributes:
        pid: the process that writes the summary.
        folder: where the other processes leave what they found; made by the first that does.
        directory: the one in which the command was typed; paths are shown relative to it.
        script: the script or module that is run.
        arguments: its arguments.
        report: the file to write; ``"-"`` for standard output; None for none.
        form: how the report is written.
        quiet: whether nothing is told on standard error.
        strict: whether faults make an exit code of 0 a 1.
        names: the kinds to tell.
        per_file: for a glob, the kinds not to tell in the files that it names.
        root: the folder to which those globs are relative.
        libraries: packages whose code counts as a library's.
    """

    pid: int
    folder: str
    directory: str
    script: str
    arguments: tuple[str, ...] = ()
    report: str | None = None
    form: str = "json"
    quiet: bool = False
    strict: bool = False
    names: tuple[str, ...] = ()
    per_file: dict[str, list[str]]
    root: str
    libraries: tuple[str, ...] = ()

    @property
    def selection(self) -> Selection:
        """Which findings are told."""
        per_file = {glob: frozenset(names) for glob, names in self.per_file.items()}
        return Selection(frozenset(self.names), per_file, Path(self.root))

    def hand_on(self) -> None:
        """Have the interpreters that this process starts read these settings.

        Python looks for a ``sitecustomize`` along ``PYTHONPATH`` when it starts, which is how
        ``opentelemetry-instrument`` and ``ddtrace-run`` follow a program, too. Writing a ``.pth``
        file, as coverage.py does, needs a site-packages that can be written, and leaves the file
        behind where the process is killed.
        """
        os.environ[VARIABLE] = json.dumps({"version": _OURS, **asdict(self)})
        before = os.environ.get(_PATH)
        os.environ[_PATH] = _STARTUP if before is None else f"{_STARTUP}{os.pathsep}{before}"


def handed_on() -> Settings | None:
    """Return the settings of the run that started this interpreter; None where there is none.

    Nothing is done in an interpreter with another version of gradguard: it would write what the
    others cannot read.
    """
    text = os.environ.get(VARIABLE)
    values: dict[str, Any] = {} if text is None else json.loads(text)
    if values.pop("version", None) != _OURS:
        return None
    for key in ("arguments", "names", "libraries"):
        values[key] = tuple(values[key])
    return Settings(**values)
