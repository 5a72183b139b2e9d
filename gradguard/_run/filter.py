"""Which findings are told: those selected, but where a comment silences the line."""

from __future__ import annotations

import linecache
import os
import sys
from typing import TYPE_CHECKING

from gradguard._findings.paths import shown
from gradguard._findings.silenced import Silenced

if TYPE_CHECKING:
    from gradguard._findings.finding import Finding
    from gradguard._findings.selection import Selection


class Filter:
    """What is told of a process's findings, and which comments were of no use."""

    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        self._comments: dict[str, Silenced] = {}

    def tells(self, finding: Finding) -> bool:
        """Tell whether the finding is selected and not silenced."""
        if not self._selection.tells(finding.kind, finding.filename):
            return False
        if finding.filename is None:
            return True
        return not self._comments_of(finding.filename).covers(finding.lineno, finding.kind)

    def unused_comments(self, directory: str) -> list[str]:
        """Return a line for each comment in the program's files that silences nothing."""
        for filename in _files_below(directory):
            self._comments_of(filename)
        return [
            f"{shown(filename)}:{problem.lineno}: {problem.message}"
            for filename, comments in sorted(self._comments.items())
            for problem in comments.unused(self._selection.names_for(filename))
        ]

    def _comments_of(self, filename: str) -> Silenced:
        if filename not in self._comments:
            self._comments[filename] = Silenced("".join(linecache.getlines(filename)))
        return self._comments[filename]


def _files_below(directory: str) -> list[str]:
    """Return the sources of the modules that are the program's own."""
    files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    return [
        file
        for file in files
        if isinstance(file, str)
        and file.endswith(".py")
        and file.startswith(directory + os.sep)
        and "site-packages" not in file
    ]
