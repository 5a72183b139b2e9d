"""Guards that a generator holds open while it is suspended, so that whoever resumes it is in them.

Such a generator is not on the call stack: it is found through the line that runs it, ``with
manager():`` or ``for item in stream():``, and through its source.
"""

import ast
from collections.abc import Iterator
from dataclasses import replace
from inspect import CO_ASYNC_GENERATOR, CO_GENERATOR, getattr_static
from types import FunctionType
from typing import Any

from gradguard._blocks import Position, Scope, UnreadableError, open_items, scope_of, yields
from gradguard._lookup import Names
from gradguard._messages.where import through
from gradguard._switches import Switch, is_a, switch_of


def switch_of_suspended(node: ast.expr, names: Names) -> Switch | None:
    """Return what the generator (or its context manager) that this call makes holds open.

    One level deep: what it in turn runs in a ``with`` is not followed, so nothing can recurse.
    """
    function = _generator_function(names.value(node.func)) if isinstance(node, ast.Call) else None
    if function is None:
        return None
    try:
        scope = scope_of(function.__code__, function.__globals__)
    except UnreadableError:
        return None
    switch = next(_held_open(scope, Names.of_function(function)), None)
    return switch and replace(switch, kind=through(function.__name__, switch.kind))


def _generator_function(target: Any) -> FunctionType | None:
    if not is_a(target, FunctionType):
        return None
    if target.__globals__.get("__name__") == "contextlib":  # what @contextmanager made of it
        target = getattr_static(target, "__wrapped__", None)
    if not is_a(target, FunctionType):
        return None
    return target if target.__code__.co_flags & (CO_GENERATOR | CO_ASYNC_GENERATOR) else None


def _held_open(scope: Scope, names: Names) -> Iterator[Switch]:
    for node in yields(scope):
        for item in open_items(scope, Position(node.lineno, node.col_offset)):
            switch = switch_of(item.context_expr, names)
            if switch is not None:
                yield switch
