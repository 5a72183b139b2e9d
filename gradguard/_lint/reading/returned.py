"""Losses that a step function of the same file differentiates and returns with their graphs."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from gradguard._lint.modules import is_self, method
from gradguard._lint.reading.backward import Backwards
from gradguard._lint.tree import FUNCTIONS

if TYPE_CHECKING:
    from gradguard._lint.reading.accumulation import Accumulation
    from gradguard._lint.rule import File
    from gradguard._lint.scopes import Function


def is_returned_loss(
    one: Accumulation, function: ast.AST, backwards: Backwards, file: File
) -> bool:
    """Tell whether what is accumulated is the loss that a step function returns."""
    assignments = backwards.sources(one.loss)
    if len(assignments) != 1 or not isinstance(assignments[0], ast.Assign):
        return False
    call, target = assignments[0].value, assignments[0].targets[0]
    step = _called(call, function, file)
    if step is None or step is function or not backwards.accumulates(one):
        return False
    return _returns_loss(step, _position(target, one.loss.id), file)


def _called(call: ast.expr, function: ast.AST, file: File) -> Function | None:
    """Return the undecorated function or method of this file that is called."""
    if not isinstance(call, ast.Call):
        return None
    if is_self(call.func):
        cls = file.tree.class_of(function)
        found = method(cls, call.func.attr) if cls else None
    else:
        definition = file.names.definition(call.func)
        found = definition if isinstance(definition, FUNCTIONS) else None
    return found if found is not None and not found.decorator_list else None


def _position(target: ast.expr, name: str) -> int | None:
    """Return at which place of a tuple the name stands; None if it is the whole value."""
    if not isinstance(target, ast.Tuple):
        return None
    names = [one.id if isinstance(one, ast.Name) else "" for one in target.elts]
    return names.index(name) if name in names else None


def _returns_loss(step: Function, position: int | None, file: File) -> bool:
    """Tell whether the function returns, there, what it has called `backward()` on."""
    backwards = Backwards(step, file)
    for each in file.tree.own(step):
        value = each.value if isinstance(each, ast.Return) else None
        if isinstance(value, ast.Tuple) and position is not None:
            value = value.elts[position] if position < len(value.elts) else None
        if isinstance(value, ast.Name) and backwards.differentiates(value):
            return True
    return False
