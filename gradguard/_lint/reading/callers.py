"""In which grad mode a file itself calls a function, and what it computes there after the call."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

from gradguard._lint.modules import is_self, method
from gradguard._lint.reading.plain_sets import plain_sets
from gradguard._lint.tree import LOOPS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gradguard._lint.rule import File
    from gradguard._lint.scopes import Function

_COMPUTES_NOTHING = re.compile(
    r"^(append|extend|add|update|print|log|info|debug|warning|format|join|write|close|item|items"
    r"|tolist|numpy|cpu|cuda|to|detach|len|list|dict|tuple|set|str|int|float|bool|zip|range"
    r"|enumerate|isinstance|save|time|perf_counter|is_grad_enabled|eval|train|is_tensor)$"
)


def caller_in_other_mode(function: Function, mode: bool, file: File) -> ast.Call | None:
    """Return a call after which its caller computes on in a mode that is not the one it had.

    Args:
        function: what switches to `mode` before it returns.
        mode: the grad mode in which it leaves its caller.
        file: the file of both.
    """
    if file.tree.is_generator(function):
        return None
    for call in _calls(function, file):
        region = _in_mode(call, not mode, file)
        if region is not None and _computes_after(call, *region, file):
            return call
    return None


def _calls(function: Function, file: File) -> Iterator[ast.Call]:
    cls = file.tree.class_of(function)
    for call in file.tree.of_type(ast.Call):
        func = call.func
        if is_self(func):
            around = file.tree.method_class(call)
            if around is not None and around is cls and method(around, func.attr) is function:
                yield call
        elif file.names.definition(func) is function:
            yield call


def _in_mode(call: ast.Call, mode: bool, file: File) -> tuple[ast.AST, int] | None:
    """Return what has that mode around the call, and its last line; None if it has not.

    It is a block, a decorated function, or what follows a plain call of ``set_grad_enabled``.
    """
    block, begins, known = _block(call, file)
    frame = file.tree.frame(call)
    sets = sorted(plain_sets(frame, file), key=lambda one: one.statement.lineno)
    before = [one for one in sets if begins <= one.statement.lineno < call.lineno]
    after = [one.statement.lineno for one in sets if one.statement.lineno > call.lineno]
    if before:
        parent = file.tree.parents[before[-1].statement]
        around = [one for one, _ in file.tree.in_frame(call)]
        known = before[-1].mode if parent in around else None
        block = block or frame
    if block is None or known is not mode:
        return None
    end = getattr(block, "end_lineno", None) or _last_line(file)
    return block, min([end, *after])


def _block(call: ast.Call, file: File) -> tuple[ast.AST | None, int, bool | None]:
    """Return the block or decorated function around the call, its line, and its grad mode."""
    for expression, guard in file.guards.around(call):
        mode = None if guard.name == "inference_mode" else guard.records
        return file.tree.parents[_outermost(expression, file)], expression.lineno, mode  # type: ignore[attr-defined]
    return None, 0, None


def _outermost(expression: ast.AST, file: File) -> ast.AST:
    parent = file.tree.parents[expression]
    return parent if isinstance(parent, ast.withitem) else expression


def _last_line(file: File) -> int:
    return max((getattr(one, "end_lineno", 0) for one in file.tree.root.body), default=0)


def _computes_after(call: ast.Call, block: ast.AST, last: int, file: File) -> bool:
    """Tell whether something is computed in the block when the call has returned."""
    inside = [one for one, _ in file.tree.in_frame(call)]
    within = inside[: inside.index(block)] if block in inside else inside
    loops = [one for one in within if isinstance(one, LOOPS)]
    again = {each for loop in loops for each in ast.walk(loop)}
    begin = (call.end_lineno or call.lineno, call.end_col_offset or 0)
    own = set(ast.walk(call))
    for each in file.tree.own(block):
        if not _computes(each) or each in own:
            continue
        place = (each.lineno, each.col_offset)  # type: ignore[attr-defined]
        if place[0] <= last and (each in inside or place >= begin or each in again):
            return True
    return False


def _computes(node: ast.AST) -> bool:
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, ast.MatMult)
    if not isinstance(node, ast.Call):
        return False
    func = node.func
    name = func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "")
    return not _COMPUTES_NOTHING.match(name) and "grad" not in name
