"""Guards that a helper function of the user's hands over, so that its caller is in them.

The helper has returned, or is a suspended generator, so it is not on the call stack: it is found
through the line that calls it (``with evaluation():``, ``for item in stream():``), and its source.
"""

import ast
from collections.abc import Iterator
from dataclasses import replace
from inspect import getattr_static
from types import FunctionType
from typing import Any

from gradguard._locate.blocks import Position, Scope, UnreadableError, nodes, open_items, scope_of
from gradguard._locate.guard_expressions import Switch, is_a, switch_of
from gradguard._locate.names import Names
from gradguard._locate.where_text import made, through


def switch_of_helper(node: ast.expr, names: Names) -> Switch | None:
    """Return what the helper that this expression calls returns, or holds open while it yields.

    One level deep: helpers that it in turn calls are not followed, so nothing can recurse.
    """
    function = plain_function(names.value(node.func)) if isinstance(node, ast.Call) else None
    if function is None:
        return None
    try:
        scope = scope_of(function.__code__, function.__globals__)
    except UnreadableError:
        return None
    inside = Names.of_function(function)
    return next(_held_open(scope, inside, function.__name__), None) or next(
        _returned(scope, inside, function.__name__), None
    )


def plain_function(target: Any) -> FunctionType | None:
    """Return the Python function that calling `target` runs, below a ``@contextmanager``."""
    if is_a(target, FunctionType) and target.__globals__.get("__name__") == "contextlib":
        target = getattr_static(target, "__wrapped__", None)  # what @contextmanager was put on
    return target if is_a(target, FunctionType) else None


def _held_open(scope: Scope, names: Names, function: str) -> Iterator[Switch]:
    for node in nodes(scope, ast.Yield):
        for item in open_items(scope, Position(node.lineno, node.col_offset)):
            switch = switch_of(item.context_expr, names)
            if switch is not None:
                yield replace(switch, kind=through(function, switch.kind))


def _returned(scope: Scope, names: Names, function: str) -> Iterator[Switch]:
    returns = list(nodes(scope, ast.Return))
    for node in returns:
        switch = None if node.value is None else switch_of(node.value, names)
        if switch is not None:
            certain = switch.certain and len(returns) == 1
            yield replace(switch, kind=made(function, switch.kind), certain=certain)
