"""All rules over one file: its findings, those that silencing comments take away left out."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING, NamedTuple

from gradguard._findings.finding import Finding
from gradguard._findings.kinds import CHECK_NAMES
from gradguard._findings.silenced import Silenced
from gradguard._lint.rule import File, Problem, Rule
from gradguard._lint.rules import RULES
from gradguard._lint.source import Source, UnparsableError, decode, parse
from gradguard._lint.tree import FUNCTIONS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

SYNTAX_ERROR, UNUSED_IGNORE = "syntax-error", "unused-ignore"
_CODES = {name: code for code, name in CHECK_NAMES.items()}
# A file without one of these words has nothing that a rule could resolve.
_CONCERNED = re.compile(r"torch|gradguard|lightning")


class Checked(NamedTuple):
    """What reading one file gave.

    `on_import` are findings that are faults where an importing file trains, and `if_imported` those
    that are told only where another file imports this one. `imports` is what this one imports: full
    names, relative ones with their dots; `trains` whether it does.
    """

    filename: str
    findings: list[Finding]
    on_import: list[Finding]
    if_imported: list[Finding]
    imports: list[str]
    trains: bool = False


def check_bytes(data: bytes, filename: str, names: Collection[str]) -> Checked:
    """Check a file's content by the rules of these names.

    Args:
        data: the content.
        filename: as findings shall give it.
        names: the names of the rules, such as ``"guard-on-async"``.
    """
    try:
        return check_source(parse(decode(data)), filename, names)
    except RecursionError:
        error = UnparsableError("This is nested too deeply to be checked: split the expression.")
    except UnparsableError as unparsable:
        error = unparsable
    finding = Finding(
        kind=SYNTAX_ERROR,
        code=_CODES[SYNTAX_ERROR],
        message=error.message,
        filename=filename,
        lineno=error.lineno,
        column=error.column,
    )
    return Checked(filename, [finding], [], [], [])


def check_source(
    source: Source, filename: str, names: Collection[str], *, noqa: bool = True
) -> Checked:
    """Check a parsed source by the rules of these names.

    Args:
        source: the text and its tree.
        filename: as findings shall give it.
        names: the names of the rules.
        noqa: whether ``# noqa`` silences; flake8 does that by itself.
    """
    silenced = Silenced(source.text, noqa=noqa)
    findings: list[Finding] = []
    on_import: list[Finding] = []
    if_imported: list[Finding] = []
    imports: list[str] = []
    trains = False
    if _CONCERNED.search(source.text):
        file = File(filename, source.root)
        lines = source.text.splitlines()
        for rule, problem in _problems(file, names):
            finding = _finding(rule, problem, file, lines)
            if not silenced.covers(finding.lineno, rule.name):
                told = if_imported if problem.if_imported else findings
                (on_import if problem.on_import else told).append(finding)
        imports, trains = _imports(source.root), file.trains
    elif "import" in source.text:
        imports = _imports(source.root)
    if UNUSED_IGNORE in names:
        findings += _unused(silenced, filename, names)
    findings.sort(key=order)
    return Checked(filename, findings, on_import, if_imported, imports, trains)


def order(finding: Finding) -> tuple[str, int, int, str]:
    """Return what findings are sorted by."""
    return (
        finding.filename or "",
        finding.lineno or 0,
        finding.column or 0,
        finding.code or "",
    )


def _problems(file: File, names: Collection[str]) -> Iterator[tuple[Rule, Problem]]:
    for rule in RULES:
        if rule.name in names:
            for node in file.tree.of_type(*rule.on):
                for problem in rule.check(node, file):
                    yield rule, problem


def _finding(rule: Rule, problem: Problem, file: File, lines: list[str]) -> Finding:
    lineno: int = getattr(problem.node, "lineno", 1)
    line = lines[lineno - 1] if lineno <= len(lines) else ""
    offset: int = getattr(problem.node, "col_offset", 0)  # in bytes
    return Finding(
        kind=rule.name,
        code=rule.code,
        message=problem.message,
        filename=file.filename,
        lineno=lineno,
        column=len(line.encode()[:offset].decode(errors="ignore")) + 1,
        function=_function(file, problem.node),
        source=line.strip(),
        severity=problem.severity,
    )


def _function(file: File, node: ast.AST) -> str:
    """Return the qualified name of the function or class that the node stands in."""
    around = [node, *(parent for parent, _ in file.tree.ancestors(node))]
    named = [one.name for one in around if isinstance(one, (*FUNCTIONS, ast.ClassDef))]
    return ".".join(reversed(named)) or "<module>"


def _unused(silenced: Silenced, filename: str, names: Collection[str]) -> Iterator[Finding]:
    for problem in silenced.unused(names):
        yield Finding(
            kind=UNUSED_IGNORE,
            code=_CODES[UNUSED_IGNORE],
            message=problem.message,
            filename=filename,
            lineno=problem.lineno,
            column=problem.column,
            severity="notice",
        )


def _is_type_checking(test: ast.expr) -> bool:
    name = test.attr if isinstance(test, ast.Attribute) else getattr(test, "id", None)
    return name == "TYPE_CHECKING"


def _imports(root: ast.Module) -> list[str]:
    """Return what a file imports when it runs, in functions, too."""
    names: list[str] = []
    nodes: list[ast.AST] = [root]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            dot = "" if module.endswith(".") else "."
            names += [module, *(f"{module}{dot}{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.If) and _is_type_checking(node.test):
            nodes += node.orelse
        elif isinstance(node, (ast.mod, ast.stmt, ast.ExceptHandler, ast.match_case)):
            nodes += ast.iter_child_nodes(node)
    return names
