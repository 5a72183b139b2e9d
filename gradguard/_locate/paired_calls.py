"""A line between two calls that switch: ``modes.pause()`` before it, ``modes.resume()`` after.

The first has returned, so nothing on the stack holds its mode open; that the second is still to
come is seen in the source alone.
"""

import ast
from collections.abc import Iterator
from inspect import getattr_static
from types import FrameType, FunctionType
from typing import Any

from gradguard._core.frames import USER, outwards, whose
from gradguard._locate.blocks import Position, UnreadableError, has_blocks, position, scope_of
from gradguard._locate.guard_expressions import is_a
from gradguard._locate.names import Names

_WORDS = frozenset(("set_grad_enabled", "_set_grad_enabled", "__enter__", "__exit__"))


def is_between_switches(frame: FrameType | None) -> bool:
    """Tell whether a function of the user's is at a line between a call that switches and another.

    Both are functions of no ``with`` that switch by plain calls, and stand in the same block.
    """
    return any(_is_between(each) for each in outwards(frame) if whose(each) == USER)


def _is_between(frame: FrameType) -> bool:
    code = frame.f_code
    try:
        scope = scope_of(code, frame.f_globals)
    except UnreadableError:
        return False
    at, names = position(code, frame.f_lasti, frame.f_lineno), Names.of_frame(frame)
    for block, here in _blocks_around(scope, at):
        before = next(filter(None, (_switch(each, names) for each in block[:here][::-1])), None)
        after = next(filter(None, (_switch(each, names) for each in _later(block, here))), None)
        if before is not None and after not in (None, before):
            return True
    return False


def _blocks_around(node: ast.AST, at: Position) -> Iterator[tuple[list[ast.stmt], int]]:
    """Yield the lists of statements around a line, with the index of the one that it is in."""
    blocks: list[Any] = [getattr(node, name, None) for name in ("body", "orelse", "finalbody")]
    for block in blocks:
        for here, each in enumerate(block if isinstance(block, list) else ()):
            if each.lineno <= at.line <= (each.end_lineno or each.lineno):
                yield block, here
                yield from _blocks_around(each, at)


def _later(block: list[ast.stmt], here: int) -> list[ast.stmt]:
    own = block[here]
    return [*(own.finalbody if isinstance(own, ast.Try) else ()), *block[here + 1 :]]


def _switch(statement: ast.stmt, names: Names) -> str | None:
    """Return the function that a statement calls, as it is written, if that is all it does."""
    if isinstance(statement, ast.If):
        return next(filter(None, (_switch(each, names) for each in statement.body)), None)
    call = statement.value if isinstance(statement, ast.Expr) else None
    if not isinstance(call, ast.Call) or not _switches(names.value(call.func)):
        return None
    return ast.unparse(call.func)


def _switches(value: Any) -> bool:
    function = getattr_static(value, "__func__", value)
    if not is_a(function, FunctionType):
        return False
    code = function.__code__
    return not _WORDS.isdisjoint(code.co_names) and not has_blocks(code)
