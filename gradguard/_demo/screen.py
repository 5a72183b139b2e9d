"""Where the demo writes: lines, and on a terminal a progress line that the next line replaces."""

import io
from collections.abc import Iterable
from typing import TextIO

_WRAP_AT = 66  # at the next space, so that hardly a word passes the 80th column
_INDENT = "   "


class Screen:
    """Writes at once, whatever the buffering; without a terminal it leaves progress lines out."""

    def __init__(self, stream: TextIO) -> None:
        if isinstance(stream, io.TextIOWrapper):
            # A path in an error may hold what a terminal's encoding cannot show.
            stream.reconfigure(errors="backslashreplace")
        self._stream = stream
        self._terminal = stream.isatty()
        self._progress = 0

    def line(self, text: str = "") -> None:
        """Write whole lines, in place of the progress line if there is one."""
        erase = f"\r{' ' * self._progress}\r" if self._progress else ""
        self._progress = 0
        self._write(f"{erase}{text}\n")

    def progress(self, text: str) -> None:
        """Show, on a terminal, where the work is."""
        if self._terminal:
            self._write(f"\r{text.ljust(self._progress)}")
            self._progress = len(text)

    def stream(self, characters: Iterable[str]) -> None:
        """Write characters as they come, as an indented paragraph."""
        self._write(_INDENT)
        column = 0
        for character in characters:
            wrap = character == " " and column >= _WRAP_AT
            self._write(f"\n{_INDENT}" if wrap else character)
            column = 0 if wrap else column + 1
        self._write("\n")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
