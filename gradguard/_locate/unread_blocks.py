"""``with`` blocks open on the call stack whose guard cannot be read from their source."""

import ast
from inspect import getattr_static
from types import FrameType, FunctionType, GeneratorType, MethodType
from typing import Any

from gradguard._core.frames import USER, is_users, outwards, whose
from gradguard._locate.blocks import (
    Position,
    UnreadableError,
    has_blocks,
    nodes,
    open_items,
    position,
    scope_of,
)
from gradguard._locate.context_managers import decorating, made_of, may_switch
from gradguard._locate.enclosing import in_exit_stacks
from gradguard._locate.guard_expressions import is_a, switch_of
from gradguard._locate.helper_functions import plain_function, switch_of_helper
from gradguard._locate.names import UNKNOWN, Names


def is_in_unread_block(frame: FrameType | None) -> bool:
    """Tell whether a function of the user's is in a ``with`` that may switch the mode.

    One whose guard was chosen by a condition, looked up in a table or made by a plain function: no
    reader of the source can tell what it switches. So is one that is no guard of torch's, where
    what it does as it is entered may switch; and a function decorated by one.
    """
    return any(
        _has_unread(each) if whose(each) == USER else _is_unread_manager(decorating(each))
        for each in outwards(frame)
    )


def _has_unread(frame: FrameType) -> bool:
    code = frame.f_code
    if not has_blocks(code):
        return False
    try:
        scope = scope_of(code, frame.f_globals)
    except UnreadableError:
        return True
    names = Names.of_frame(frame)
    items = open_items(scope, position(code, frame.f_lasti, frame.f_lineno))
    return any(_is_unread(item.context_expr, names) for item in items) or any(
        _is_unread_manager(made_of(each)) for each in in_exit_stacks(names)
    )


def _is_unread(node: ast.expr, names: Names, *, depth: int = 2) -> bool:
    if switch_of(node, names) is not None or switch_of_helper(node, names) is not None:
        return False
    if isinstance(node, ast.Call):
        made_by = names.value(node.func)
        if made_by is UNKNOWN or _is_plain_function(made_by):
            return True
        return _is_unread_manager(plain_function(made_by) or made_by, depth=depth)
    if isinstance(node, (ast.Name, ast.Attribute)):
        value = names.value(node)
        return value is UNKNOWN or _is_unread_manager(made_of(value), depth=depth)
    return True


def _is_unread_manager(made_by: Any, *, depth: int = 2) -> bool:
    """Tell whether a context manager may switch: what it runs, or where its generator yields."""
    if may_switch(made_by):
        return True
    if is_a(made_by, GeneratorType):
        return made_by.gi_frame is not None and _has_unread(made_by.gi_frame)
    return is_a(made_by, FunctionType) and depth > 0 and _yields_in_unread(made_by, depth - 1)


def _yields_in_unread(function: FunctionType, depth: int) -> bool:
    """Tell whether what a ``@contextmanager`` was put on is in such a block where it yields."""
    try:
        scope = scope_of(function.__code__, function.__globals__)
    except UnreadableError:
        return True
    names = Names.of_function(function)
    return any(
        _is_unread(item.context_expr, names, depth=depth)
        for node in nodes(scope, ast.Yield)
        for item in open_items(scope, Position(node.lineno, node.col_offset))
    )


def _is_plain_function(value: Any) -> bool:
    """Tell a function that returns what to enter from a `contextmanager`, whose body was read."""
    function = value.__func__ if is_a(value, MethodType) else value
    if not is_a(function, FunctionType) or not is_users(function.__code__.co_filename):
        return False
    return getattr_static(function, "__wrapped__", None) is None
