"""The ledger: findings as they come, each kind and line once, with what else is known of it."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from gradguard._core.rank import rank, with_rank
from gradguard._findings.finding import Finding
from gradguard._judge.lines import Line

LOGGER = logging.getLogger("gradguard")
LOGGER.addHandler(logging.NullHandler())  # else Python prints what nobody handles
Key = tuple[str, "Line | None"]


class Ledger:
    """Collects findings; each new kind and line is told at once.

    Args:
        tell: called with each finding when it is new.
        again: called with each that was found before.

    """

    def __init__(
        self,
        tell: Callable[[Finding], object] | None = None,
        again: Callable[[Finding], object] | None = None,
    ) -> None:
        self._findings: dict[Key, Finding] = {}
        self._tell = tell
        self._again = again

    def add(self, kind: str, line: Line | None, message: str, **fields: Any) -> Finding:
        """Add a finding, or what else was found of its kind at its line."""
        key = (kind, line)
        known = self._findings.get(key)
        if known is not None:
            return self._grow(key, known, fields)
        found = self._findings[key] = _finding(kind, line, message, fields)
        LOGGER.log(
            logging.WARNING if found.severity == "fault" else logging.INFO,
            "%s: %s",
            found.kind,
            found.message,
            extra={"finding": found},
        )
        if self._tell is not None:
            self._tell(found)
        return found

    def has(self, kind: str, line: Line | None) -> bool:
        """Tell whether a kind was found at a line."""
        return (kind, line) in self._findings

    def any_of(self, kind: str) -> bool:
        """Tell whether a kind was found anywhere."""
        return any(found == kind for found, _ in self._findings)

    def clear(self) -> None:
        """Forget all: in a forked child, what was found is the parent's."""
        self._findings.clear()

    def findings(self) -> list[Finding]:
        """Return all that was found so far, in the order in which it was found."""
        return list(self._findings.values())

    def _grow(self, key: Key, known: Finding, fields: dict[str, Any]) -> Finding:
        names: Sequence[str] = fields.get("parameters", ())
        fresh = [name for name in names if name not in known.parameters]
        grown = replace(
            known,
            count=known.count + fields.get("count", 1),
            parameters=(*known.parameters, *fresh),
        )
        self._findings[key] = grown
        if self._again is not None:
            self._again(grown)
        return grown


def _finding(kind: str, line: Line | None, message: str, fields: dict[str, Any]) -> Finding:
    ours, at = rank(), line or Line("", 0, "")
    return Finding(
        kind=kind,
        message=with_rank(message),
        filename=at.filename or None,
        lineno=at.lineno or None,
        function=at.function or None,
        source=at.source if line is not None else None,
        rank=None if ours is None else ours[0],
        **{name: value for name, value in fields.items() if name != "parameters"},
        parameters=tuple(fields.get("parameters", ())),
    )
