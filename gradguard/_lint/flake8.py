"""The flake8 plugin: the same rules, under the prefix ``GG``.

flake8 has its own options, ``# noqa`` and configuration; the rules that are off by default are told
when their code is selected, as ``--extend-select=GG109``. What needs other files (GG108 in an
imported module) is told by `gradguard check` alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from gradguard import __version__
from gradguard._lint.check import check_source
from gradguard._lint.rules import RULES
from gradguard._lint.source import Source

if TYPE_CHECKING:
    import ast
    from collections.abc import Iterator


class Plugin:
    """One file, as flake8 hands it over.

    Args:
        tree: the parsed file.
        lines: its lines.
        filename: its name.
    """

    name: ClassVar[str] = "gradguard"
    version: ClassVar[str] = __version__
    # Not `off_by_default`: under that name flake8 would turn the whole plugin off.
    _unselected: ClassVar[list[str]] = [rule.code for rule in RULES if not rule.default]

    def __init__(self, tree: ast.Module, lines: list[str], filename: str) -> None:
        self._source = Source("".join(lines), tree)
        self._filename = filename

    @classmethod
    def add_options(cls, manager: Any) -> None:
        """Turn the rules off that are off by default, unless they are selected."""
        manager.extend_default_ignore(cls._unselected)

    def run(self) -> Iterator[tuple[int, int, str, type[Plugin]]]:
        """Yield line, column counted from 0, and text of each finding."""
        names = frozenset(rule.name for rule in RULES)
        checked = check_source(self._source, self._filename, names, noqa=False)
        for one in (*checked.findings, *checked.on_import):
            lineno, column = one.lineno or 1, (one.column or 1) - 1
            yield lineno, column, f"{one.code} {one.message}", type(self)
