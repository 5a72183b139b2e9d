"""`Finding`: one fault or notice, as every front of gradguard gives it."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

Severity: TypeAlias = Literal["fault", "notice"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One fault or notice: what is wrong, at which line, and what it concerns.

    Attributes:
        kind: the name of the check, such as ``"mode-leak"``.
        message: what is wrong, where it came from and what to do.
        filename: the file of the line to change; None where it cannot be known.
        lineno: the line, counted from 1.
        function: the function that the line is in, or ``"<module>"``.
        source: the text of the line, stripped.
        model: the class of the model concerned.
        parameters: the full names of the parameters concerned.
        count: how many times it was seen.
        first_step: the optimizer step, counted from 1, at which it was first seen.
        rank: the rank of the process in its process group.
        severity: ``"fault"`` (certain) or ``"notice"`` (true, and often meant).
        code: the code of a rule of ``gradguard check``, such as ``"GG101"``.
        column: where in the line it begins, counted from 1.

    >>> Finding(kind="mode-leak", message="grad mode was left off", lineno=3).severity
    'fault'
    """

    kind: str
    message: str
    filename: str | None = None
    lineno: int | None = None
    function: str | None = None
    source: str | None = None
    model: str | None = None
    parameters: tuple[str, ...] = ()
    count: int = 1
    first_step: int | None = None
    rank: int | None = None
    severity: Severity = "fault"
    code: str | None = None
    column: int | None = None


Finding.__module__ = "gradguard"
