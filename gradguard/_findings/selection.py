"""Which kinds are told, for which files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from gradguard._findings.kinds import expanded
from gradguard._findings.paths import matches

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gradguard._findings.config import Config


@dataclass(frozen=True, slots=True)
class Selection:
    """The names that are told, and the files in which some of them are not."""

    names: frozenset[str]
    per_file: Mapping[str, frozenset[str]] = field(default_factory=dict[str, frozenset[str]])
    root: Path = field(default_factory=Path)

    def tells(self, name: str, filename: str | None) -> bool:
        """Tell whether findings of this name are told for this file."""
        return name in self.names and name not in self._ignored(filename)

    def names_for(self, filename: str | None) -> frozenset[str]:
        """Return the names that are told for this file."""
        return self.names - self._ignored(filename)

    def _ignored(self, filename: str | None) -> frozenset[str]:
        if filename is None or not self.per_file:
            return frozenset()
        path = Path(filename).absolute()
        found = [names for glob, names in self.per_file.items() if matches([glob], path, self.root)]
        return frozenset[str]().union(*found)


def selection(
    config: Config,
    *,
    all_names: frozenset[str],
    default: frozenset[str],
    select: Sequence[str] | None = None,
    ignore: Sequence[str] | None = None,
) -> Selection:
    """Return what is told: the command line's `select`, else the configuration's, else the default.

    Names of another command (``select = ["GG1"]`` for `run`) say nothing about this one. What is
    ignored is taken away last; ignoring on the command line adds to the configuration's, unless
    the command line selects anew.

    Args:
        config: what the configuration says.
        all_names: the names that this command knows.
        default: those that it tells unless it is told otherwise.
        select: the words after ``--select``.
        ignore: the words after ``--ignore``.

    Raises:
        ValueError: a word is unknown.
    """
    chosen = config.select if select is None else select
    names = default if chosen is None else expanded(chosen) & all_names
    if not names and select is None:
        names = default
    ignored = [*(config.ignore if select is None else ()), *(ignore or ())]
    per_file = {glob: expanded(words) for glob, words in config.per_file_ignores.items()}
    return Selection(names - expanded(ignored), per_file, config.root)
