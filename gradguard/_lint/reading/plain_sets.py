"""Plain calls of `set_grad_enabled`, and what undoes one on every path."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, NamedTuple

from gradguard._lint.guards import mode_argument

if TYPE_CHECKING:
    from gradguard._lint.rule import File


class PlainSet(NamedTuple):
    """A plain call of ``set_grad_enabled``; `mode` is None where it is not a constant."""

    statement: ast.Expr
    mode: bool | None
    saved: bool  # it puts back what was read before


def plain_set(node: ast.AST, file: File) -> PlainSet | None:
    """Return the plain call that the statement is."""
    if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Call):
        return None
    guard = file.guards.guard(node.value)
    if guard is None or guard.name != "set_grad_enabled":
        return None
    mode = mode_argument(node.value)
    saved = mode is not None and _is_saved(mode, file)
    return PlainSet(node, guard.records, saved)


def _is_saved(mode: ast.expr, file: File) -> bool:
    """Tell whether the mode was read before: kept in an attribute, or in a name that was."""
    if isinstance(mode, (ast.Attribute, ast.Subscript)):
        return not (isinstance(mode, ast.Attribute) and mode.attr in {"training", "train"})
    if not isinstance(mode, ast.Name):
        return False
    for binding in file.names.bindings(mode):
        text = "" if binding.value is None else ast.unparse(binding.value)
        if "is_grad_enabled" in text or "grad_state" in text or "pop(" in text:
            return True
    return False


def plain_sets(function: ast.AST, file: File) -> list[PlainSet]:
    found = (plain_set(each, file) for each in file.tree.own(function))
    return [one for one in found if one is not None]


def is_in_finally(made: PlainSet, file: File) -> bool:
    return any(
        isinstance(parent, ast.Try) and child in parent.finalbody
        for parent, child in file.tree.in_frame(made.statement)
    )


def undoes_always(made: PlainSet, other: PlainSet, file: File) -> bool:
    """Tell whether the other call stands in the `finally` of a block that begins with this one.

    What stands between the call and its `try` may raise, but no more than the call itself.
    """
    for parent, child in file.tree.in_frame(other.statement):
        if isinstance(parent, ast.Try) and child in parent.finalbody:
            if any(parent is outer for outer, _ in file.tree.in_frame(made.statement)):
                return True
            return _comes_next(made, parent, file)
    return False


def _comes_next(made: PlainSet, block: ast.Try, file: File) -> bool:
    """Tell whether nothing that returns or computes stands between the call and the block."""
    outer = file.tree.parents[block]
    for field in ("body", "orelse", "finalbody", "handlers"):
        statements: object = getattr(outer, field, None)
        if not isinstance(statements, list) or block not in statements:
            continue
        before = statements[: statements.index(block)]
        around = {made.statement, *(parent for parent, _ in file.tree.in_frame(made.statement))}
        start = next((n for n, one in enumerate(before) if one in around), None)
        return start is not None and len(before) - start <= 3  # noqa: PLR2004 (simple set-up)
    return False


def is_after(other: PlainSet, made: PlainSet) -> bool:
    """Tell whether the other call comes later, on the way out, and sets another mode."""
    same = made.mode is not None and other.mode == made.mode
    return other.statement.lineno > made.statement.lineno and not same
