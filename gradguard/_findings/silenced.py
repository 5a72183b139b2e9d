"""Comments that silence a line: ``# gradguard: ignore[KIND]`` and ``# noqa: GG107``."""

from __future__ import annotations

import io
import re
import tokenize
from typing import TYPE_CHECKING, NamedTuple

from gradguard._findings.kinds import names_of, unknown

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_OURS = re.compile(r"#\s*gradguard:\s*ignore(?:\[(?P<words>[^\]]*)\])?", re.IGNORECASE)
_NOQA = re.compile(
    r"#\s*noqa(?::(?P<words>\s*[A-Z]+[0-9]+(?:[,\s]\s*[A-Z]+[0-9]+)*))?", re.IGNORECASE
)
_CANDIDATE = re.compile(r"#.*(?:gradguard\s*:|noqa)", re.IGNORECASE)


class Problem(NamedTuple):
    """A comment, or a word of one, that silences nothing."""

    lineno: int
    column: int
    message: str


class _Word(NamedTuple):
    lineno: int
    column: int
    word: str
    names: frozenset[str]


class Silenced:
    """The silencing comments of one source, and which of them did silence something.

    Args:
        source: the text of a file.
        noqa: whether ``# noqa`` counts, as it does for `check`.

    >>> comments = Silenced("x = 1  # gradguard: ignore[mode-leak]")
    >>> comments.covers(1, "mode-leak"), comments.covers(1, "empty-step")
    (True, False)
    """

    def __init__(self, source: str, *, noqa: bool = False) -> None:
        self._words: dict[int, list[_Word]] = {}
        self._used: set[_Word] = set()
        self._blanket: set[int] = set()
        self._problems: list[Problem] = []
        if _CANDIDATE.search(source):
            for lineno, column, text in _comments(source):
                self._read(lineno, column, text, noqa=noqa)

    def covers(self, lineno: int | None, name: str) -> bool:
        """Tell whether a comment on the line silences this name; remember that it was of use."""
        if lineno is None:
            return False
        silencing = [word for word in self._words.get(lineno, ()) if name in word.names]
        self._used.update(silencing)
        return bool(silencing) or lineno in self._blanket

    def unused(self, names: Collection[str]) -> list[Problem]:
        """Return what silences nothing, among the names that were looked for."""
        problems = list(self._problems)
        for word in (word for words in self._words.values() for word in words):
            if word not in self._used and word.names <= set(names):
                message = f"This comment silences nothing: no {word.word} here. Remove it."
                problems.append(Problem(word.lineno, word.column, message))
        return sorted(problems)

    def _read(self, lineno: int, column: int, text: str, *, noqa: bool) -> None:
        for match in _OURS.finditer(text):
            self._take(lineno, column + match.start(), match["words"])
        for match in _NOQA.finditer(text) if noqa else ():
            words = re.split(r"[,\s]+", (match["words"] or "").strip())
            if match["words"] is None:
                self._blanket.add(lineno)
            for word in words:
                self._add(lineno, column + match.start(), word.upper())

    def _take(self, lineno: int, column: int, words: str | None) -> None:
        found = [word.strip() for word in (words or "").split(",") if word.strip()]
        if not found:
            message = "This comment silences nothing: name the kind, `# gradguard: ignore[KIND]`."
            self._problems.append(Problem(lineno, column, message))
        for word in found:
            if not self._add(lineno, column, word):
                message = f"This comment silences nothing: {unknown(word)}"
                self._problems.append(Problem(lineno, column, message))

    def _add(self, lineno: int, column: int, word: str) -> bool:
        names = names_of(word)
        if names:
            self._words.setdefault(lineno, []).append(_Word(lineno, column, word, names))
        return bool(names)


def _comments(source: str) -> Iterator[tuple[int, int, str]]:
    """Yield line, column and text of each comment, as far as the source can be read."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    try:
        for token in tokens:
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.start[1] + 1, token.string
    except (tokenize.TokenError, SyntaxError):  # told as a finding of its own
        return
    # CPython's own faults with what is no Python, from 3.12 on. It cuts a character of "\r\x80" in
    # two; and after some it yields a token and sets an error.
    except (UnicodeDecodeError, SystemError):
        return
