"""``with`` blocks open on the call stack whose guard cannot be read from their source."""

import ast
from inspect import getattr_static
from types import FrameType, FunctionType, MethodType
from typing import Any

from gradguard._core.frames import USER, is_users, outwards, whose
from gradguard._locate.blocks import UnreadableError, has_blocks, open_items, position, scope_of
from gradguard._locate.guard_expressions import is_a, switch_of
from gradguard._locate.helper_functions import switch_of_helper
from gradguard._locate.names import UNKNOWN, Names


def is_in_unread_block(frame: FrameType | None) -> bool:
    """Tell whether a function of the user's is in a ``with`` that may switch the mode.

    One whose guard was chosen by a condition, looked up in a table or made by a plain function: no
    reader of the source can tell what it switches.
    """
    return any(_has_unread(each) for each in outwards(frame) if whose(each) == USER)


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
    return any(_is_unread(item.context_expr, names) for item in items)


def _is_unread(node: ast.expr, names: Names) -> bool:
    if switch_of(node, names) is not None or switch_of_helper(node, names) is not None:
        return False
    if isinstance(node, ast.Call):
        made_by = names.value(node.func)
        return made_by is UNKNOWN or _is_plain_function(made_by)
    if isinstance(node, (ast.Name, ast.Attribute)):
        return names.value(node) is UNKNOWN
    return True


def _is_plain_function(value: Any) -> bool:
    """Tell a function that returns what to enter from a `contextmanager`, whose body was read."""
    function = value.__func__ if is_a(value, MethodType) else value
    if not is_a(function, FunctionType) or not is_users(function.__code__.co_filename):
        return False
    return getattr_static(function, "__wrapped__", None) is None
