"""What a block or function that has ended may have switched, read from its source."""

import ast
import contextlib
from collections.abc import Iterator
from types import FrameType, FunctionType

from gradguard._core.frames import module_of
from gradguard._locate.blocks import (
    Region,
    UnreadableError,
    calls_in,
    position,
    scope_of,
    withs_at,
)
from gradguard._locate.enclosing import Block, acts_at_once, block_at
from gradguard._locate.guard_expressions import Switch, switch_of
from gradguard._locate.helper_functions import plain_function
from gradguard._locate.names import Names


def switches_in_function(function: FunctionType) -> list[Block]:
    """Return the plain calls in a function that switch the mode, the latest first."""
    try:
        scope = scope_of(function.__code__, function.__globals__)
    except UnreadableError:
        return []
    return [*_of_function(function, scope), *_in_helpers(scope, Names.of_function(function))]


def switches_in_with(frame: FrameType, manager: object) -> list[Block]:
    """Return those in the block of the ``with`` over `manager` that the frame is leaving.

    `manager` may lie in an exit stack or a function below ``@contextmanager`` instead: then it is
    the block over that.
    """
    found = _in_with(frame, manager)
    outer = _who_leaves(frame)
    return found if found or outer is None else _in_with(outer, None)


def _who_leaves(frame: FrameType) -> FrameType | None:
    """Return the frame whose ``with`` contextlib ends, amid which `frame` runs."""
    outer = frame if module_of(frame) == contextlib.__name__ else frame.f_back
    if outer is None or module_of(outer) != contextlib.__name__:
        return None
    while outer is not None and module_of(outer) == contextlib.__name__:
        outer = outer.f_back
    return outer


def _in_with(frame: FrameType, manager: object | None) -> list[Block]:
    code = frame.f_code
    at = position(code, frame.f_lasti, frame.f_lineno)
    try:
        scope = scope_of(code, frame.f_globals)
    except UnreadableError:
        return []
    names = Names.of_frame(frame)
    found: list[Block] = []
    for statement in withs_at(scope, at):
        items = [item.context_expr for item in statement.items]
        if manager is None or any(_makes(item, manager, names) for item in items):
            own = _switches(statement, names)
            found += [block_at(code, frame.f_globals, (*one, "statement")) for one in own]
            found += _in_helpers(statement, names)
    return found


def _of_function(function: FunctionType, scope: Region) -> Iterator[Block]:
    code, names = function.__code__, Names.of_function(function)
    for one in _switches(scope, names):
        yield block_at(code, function.__globals__, (*one, "statement"))


def _makes(node: ast.expr, manager: object, names: Names) -> bool:
    """Tell whether an item of a ``with`` is `manager`, or a call of its class."""
    if isinstance(node, ast.Call):
        return names.value(node.func) is type(manager)
    return names.value(node) is manager


def _switches(region: Region, names: Names) -> Iterator[tuple[int, Switch]]:
    for call, around in calls_in(region):
        items = [item for statement in around for item in statement.items]
        switch = acts_at_once(call, names)
        if switch is not None and not any(switch_of(item.context_expr, names) for item in items):
            yield call.lineno, switch


def _in_helpers(region: Region, names: Names) -> list[Block]:
    """Look into the functions that the region calls as well, one level deep."""
    found: list[Block] = []
    for function in {id(each): each for each in _called(region, names)}.values():
        with contextlib.suppress(UnreadableError):
            scope = scope_of(function.__code__, function.__globals__)
            found += _of_function(function, scope)
    return found


def _called(region: Region, names: Names) -> Iterator[FunctionType]:
    for call, _ in calls_in(region):
        function = plain_function(names.value(call.func))
        if function is not None:
            yield function
