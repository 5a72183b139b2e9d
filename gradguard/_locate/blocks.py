"""Which ``with`` statements and calls of a function lie around the instruction it is at.

Only syntax is read here (code objects, source text, ``ast``): nothing runs, torch is not needed.
"""

import ast
import dis
import linecache
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from types import CodeType, FrameType
from typing import Any, NamedTuple, TypeAlias, TypeVar

With: TypeAlias = ast.With | ast.AsyncWith
Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef
Scope: TypeAlias = ast.Module | Function | ast.ClassDef
Region: TypeAlias = Scope | With
N = TypeVar("N", bound=ast.AST)
_Placed: TypeAlias = ast.stmt | ast.expr

# Of `with`: SETUP_* in Python 3.10, BEFORE_* in 3.11 to 3.13, LOAD_SPECIAL from 3.14 on; of `for`.
_OPCODES = {
    opcode
    for name, opcode in dis.opmap.items()
    if name in ("LOAD_SPECIAL", "FOR_ITER", "GET_ANEXT")
    or (name.endswith("_WITH") and name.startswith(("SETUP", "BEFORE")))
}


class Position(NamedTuple):
    """Where an instruction stands; the column (in bytes) is None where Python does not keep it."""

    line: int
    column: int | None


class UnreadableError(Exception):
    """The source of a code object cannot be had; the text says why. Never leaves gradguard."""


def position(code: CodeType, lasti: int, lineno: int) -> Position:
    """Return where instruction `lasti` stands: to the column from Python 3.11 on."""
    positions = getattr(code, "co_positions", None)
    if positions is not None and lasti >= 0:
        line, _, column, _ = next(islice(positions(), lasti // 2, None), (None,) * 4)
        if line is not None:
            return Position(line, column)
    return Position(lineno, None)


def has_blocks(code: CodeType) -> bool:
    """Tell whether the code itself holds a ``with`` or ``for``: other code needs no parsing."""
    return not _OPCODES.isdisjoint(code.co_code[::2])


def scope_of(code: CodeType, module_globals: dict[str, Any]) -> Scope:
    """Return the node whose body became `code`.

    Raises:
        UnreadableError: there is no source, it does not parse, or it is not what was compiled.

    """
    linecache.checkcache(code.co_filename)
    lines = linecache.getlines(code.co_filename, module_globals)
    if not lines:
        msg = "its source cannot be read"
        raise UnreadableError(msg)
    return _scope("".join(lines), code.co_name, code.co_firstlineno)


# Keyed by the text itself: a file that is edited, or a notebook's cell, is simply another text.
@lru_cache(maxsize=32)
def _scope(source: str, name: str, line: int) -> Scope:
    tree = _parse(source)
    if name == "<module>":
        return tree
    for node in ast.walk(tree):
        if isinstance(node, Function | ast.ClassDef) and _is_at(node, name, line):
            return node
    msg = "its source has changed since it was loaded"
    raise UnreadableError(msg)


def _is_at(node: Function | ast.ClassDef, name: str, line: int) -> bool:
    return node.name == name and first_line(node) == line


@lru_cache(maxsize=8)
def _parse(source: str) -> ast.Module:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        msg = f"its source cannot be parsed ({error})"
        raise UnreadableError(msg) from error


def first_line(node: _Placed) -> int:
    """Return the line `node` begins on, decorators included (as ``co_firstlineno`` does)."""
    decorators = node.decorator_list if isinstance(node, Function | ast.ClassDef) else []
    return min(part.lineno for part in (node, *decorators))


def open_items(scope: Scope, at: Position) -> Iterator[ast.withitem]:
    """Yield the items of the ``with`` statements that are open at `at`, innermost first."""
    for statement in sorted(_withs(scope), key=_start, reverse=True):
        if _covers(statement, at):
            yield from reversed(_entered(statement, at))


def _entered(statement: With, at: Position) -> list[ast.withitem]:
    """Return the items of the statement around `at` that have been entered there.

    While an item is entered or left, 3.13 gives that item as the position, 3.11 and 3.12 the whole
    statement, and 3.10 its first line. For the latter, "all but the last item" is right where it
    matters: the item under way is running code that fails, so it is none of torch's guards.
    """
    if _in_body(statement, at):
        return statement.items
    if at.column is not None and at >= _start(statement.items[0].context_expr):
        return [item for item in statement.items if _end(item.context_expr) <= at]
    if at.line > statement.lineno:
        for count, item in enumerate(statement.items):
            if _covers(item.context_expr, at):
                return statement.items[:count]
    return statement.items[:-1]


def _in_body(statement: With, at: Position) -> bool:
    if at.column is None:
        return at.line >= first_line(statement.body[0])
    # What comes after it, the target of `as` too, runs when the guard has been entered.
    return at >= _end(statement.items[-1].context_expr)


def calls_before(scope: Scope, at: Position) -> Iterator[tuple[ast.Call, list[With]]]:
    """Yield the calls, each a statement or assigned, that can have run before `at`, latest first.

    Those later in a loop around `at` ran in its previous round. With each call come the ``with``
    statements around it that have ended: what a guard's block switches ends with it.
    """
    now = at if at.column is not None else (at.line, 0)
    loops = [
        node
        for node in _own(scope)
        if isinstance(node, ast.For | ast.AsyncFor | ast.While) and _covers(node, at)
    ]
    ended = [node for node in _withs(scope) if not _covers(node, at)]
    for call in sorted(_statement_calls(scope), key=_start, reverse=True):
        here = Position(call.lineno, call.col_offset)
        if _end(call) <= now or any(_covers(loop, here) for loop in loops):
            yield call, [node for node in ended if _covers(node, here)]


def calls_in(region: Region) -> Iterator[tuple[ast.Call, list[With]]]:
    """Yield such calls anywhere in a block or function, latest first, with what is around them."""
    withs = [node for node in _own(region) if isinstance(node, With)]
    for call in sorted(_statement_calls(region), key=_start, reverse=True):
        here = Position(call.lineno, call.col_offset)
        yield call, [node for node in withs if _covers(node, here)]


def withs_at(scope: Scope, at: Position) -> list[With]:
    """Return the ``with`` statements that are entered or left at `at`, innermost first."""
    found = [node for node in _withs(scope) if _covers(node, at) and not _in_body(node, at)]
    return sorted(found, key=_start, reverse=True)


def is_in_with(frame: FrameType, entry: int) -> bool:
    """Tell whether a frame is in the ``with`` that it entered at an instruction.

    It is, too, where the source does not show it.
    """
    code = frame.f_code
    try:
        scope = scope_of(code, frame.f_globals)
    except UnreadableError:
        return True
    lineno = next((line for start, end, line in code.co_lines() if start <= entry < end), None)
    entered = withs_at(scope, position(code, entry, lineno or frame.f_lineno))
    now = position(code, frame.f_lasti, frame.f_lineno)
    return not entered or _covers(entered[0], now)


def open_loops(scope: Scope, at: Position) -> Iterator[ast.For | ast.AsyncFor]:
    """Yield the ``for`` statements whose body is at `at`."""
    loops: list[ast.For | ast.AsyncFor] = [*nodes(scope, ast.For), *nodes(scope, ast.AsyncFor)]
    for node in loops:
        if _covers(node, at) and not _covers(node.iter, at):
            yield node


def nodes(scope: Scope, kind: type[N]) -> Iterator[N]:
    """Yield the nodes of this kind of the function itself."""
    return (node for node in _own(scope) if isinstance(node, kind))


def _statement_calls(scope: Region) -> Iterator[ast.Call]:
    for node in _own(scope):
        if isinstance(node, ast.Expr | ast.Assign) and isinstance(node.value, ast.Call):
            yield node.value


def calls_of_method(scope: Scope, name: str) -> Iterator[ast.Call]:
    """Yield the calls ``anything.name(…)`` of the function itself."""
    for node in nodes(scope, ast.Call):
        if isinstance(node.func, ast.Attribute) and node.func.attr == name:
            yield node


def _withs(scope: Scope) -> list[With]:
    return [node for node in _own(scope) if isinstance(node, With)]


def _own(scope: Region) -> Iterator[ast.AST]:
    """Walk the nodes of `scope` that are not of a function, class or lambda inside it."""
    waiting: list[ast.AST] = list(scope.body)
    while waiting:
        node = waiting.pop()
        if not isinstance(node, Function | ast.ClassDef | ast.Lambda):
            yield node
            waiting.extend(ast.iter_child_nodes(node))


def _covers(node: _Placed, at: Position) -> bool:
    if at.column is None:
        return node.lineno <= at.line <= _end(node)[0]
    return _start(node) <= at <= _end(node)


def _start(node: _Placed) -> tuple[int, int]:
    return node.lineno, node.col_offset


def _end(node: _Placed) -> tuple[int, int]:
    # `ast.parse` fills both in; they are optional only for trees built by hand.
    return node.end_lineno or node.lineno, node.end_col_offset or node.col_offset
