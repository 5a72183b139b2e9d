"""Where a function adds a value to what it has, over the steps of a loop."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING, NamedTuple

from gradguard._lint.modules import is_self, method

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gradguard._lint.rule import File
    from gradguard._lint.scopes import Function

_CUTS = re.compile(r"\.(item|detach|tolist|numpy|cpu\(\)\.numpy|data)\b|\bfloat\(|\bint\(")
_METER = re.compile(
    r"meter|average|metric|track|stat|record|loss|logger|history|running", re.IGNORECASE
)


class Accumulation(NamedTuple):
    """``total += loss`` and what is like it."""

    node: ast.AST
    total: str
    loss: ast.Name


def accumulated(function: ast.AST, file: File) -> Iterator[Accumulation]:
    """Yield what the function accumulates without taking it out of its graph."""
    for each in file.tree.own(function):
        if isinstance(each, ast.AugAssign) and isinstance(each.op, ast.Add):
            total = ast.unparse(each.target)
            yield from _one(each, total, each.value)
        elif isinstance(each, ast.Assign) and len(each.targets) == 1:
            yield from _by_sum(each)
        elif isinstance(each, ast.Call) and isinstance(each.func, ast.Attribute):
            yield from _by_call(each, each.func, file)


def _one(node: ast.AST, total: str, value: ast.expr) -> Iterator[Accumulation]:
    if isinstance(value, (ast.List, ast.Tuple)) and len(value.elts) == 1:  # losses += [loss]
        value = value.elts[0]
    loss = _raw(value)
    if loss is not None and loss.id != total:
        yield Accumulation(node, total, loss)


def _by_sum(node: ast.Assign) -> Iterator[Accumulation]:
    """Yield ``total = total + loss``."""
    total, value = ast.unparse(node.targets[0]), node.value
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add):
        for one, other in ((value.left, value.right), (value.right, value.left)):
            if ast.unparse(one) == total:
                yield from _one(node, total, other)


def _by_call(node: ast.Call, func: ast.Attribute, file: File) -> Iterator[Accumulation]:
    """Yield ``losses.append(loss)``, and the update of a meter that keeps what it is given."""
    owner = ast.unparse(func.value)
    if func.attr in {"append", "extend"} and len(node.args) == 1:
        if not _is_bounded(func.value, file):
            yield from _one(node, owner, node.args[0])
        return
    for number, value in enumerate(node.args):
        loss = _raw(value)
        if loss is not None and _keeps(func, number, file):
            yield Accumulation(node, owner, loss)


def _raw(value: ast.expr) -> ast.Name | None:
    """Return the loss in an expression that still has its graph: scaled, or averaged."""
    if isinstance(value, ast.Name):
        return value
    if isinstance(value, ast.BinOp) and isinstance(value.op, (ast.Mult, ast.Div)):
        left = _raw(value.left)
        return left if left is not None else _raw(value.right)
    if not isinstance(value, ast.Call) or not isinstance(value.func, ast.Attribute) or value.args:
        return None
    return _raw(value.func.value) if value.func.attr in {"mean", "sum", "cpu", "clone"} else None


def _is_bounded(owner: ast.expr, file: File) -> bool:
    """Tell whether the list is a deque that forgets."""
    value = file.names.value(owner)
    if is_self(owner):
        cls = file.tree.method_class(owner)
        values = file.modules.attributes(cls).get(owner.attr, []) if cls else []
        value = values[0] if values else None
    return value is not None and "maxlen" in ast.unparse(value)


def _keeps(func: ast.Attribute, number: int, file: File) -> bool:
    """Tell whether the method belongs to a class of this file that keeps that argument."""
    cls = _class_of(func.value, func.attr, file)
    update = method(cls, func.attr) if cls else None
    if update is None:
        return False
    parameters = [one.arg for one in update.args.args][1:]
    return number < len(parameters) and _adds(update, parameters[number], file)


def _class_of(owner: ast.expr, name: str, file: File) -> ast.ClassDef | None:
    """Return the class of a meter: by how it was made, or as the only one with that method."""
    value = file.names.value(owner)
    if isinstance(value, ast.Call):
        definition = file.names.definition(value.func)
        return definition if isinstance(definition, ast.ClassDef) else None
    having = [one for one in file.tree.of_type(ast.ClassDef) if method(one, name)]
    if len(having) == 1 and _METER.search(having[0].name) and value is None:
        return having[0] if isinstance(owner, (ast.Attribute, ast.Subscript)) else None
    return None


def _adds(update: Function, parameter: str, file: File) -> bool:
    """Tell whether the method adds the argument, with its graph, to an attribute."""
    del file
    for each in ast.walk(update):
        if isinstance(each, ast.Assign) and _rebinds(each, parameter):
            return False
    for each in ast.walk(update):
        kept: ast.expr | None = None
        if isinstance(each, ast.AugAssign) and is_self(each.target):
            kept = each.value
        elif (
            isinstance(each, ast.Call)
            and isinstance(each.func, ast.Attribute)
            and each.func.attr == "append"
            and is_self(each.func.value)
            and each.args
        ):
            kept = each.args[0]
        elif isinstance(each, ast.Assign) and is_self(each.targets[0]):
            total = ast.unparse(each.targets[0])
            kept = each.value if total in ast.unparse(each.value) else None
        if kept is not None and _mentions(kept, parameter) and not _CUTS.search(ast.unparse(kept)):
            return True
    return False


def _rebinds(node: ast.Assign, parameter: str) -> bool:
    target = node.targets[0]
    return isinstance(target, ast.Name) and target.id == parameter


def _mentions(node: ast.AST, name: str) -> bool:
    return any(isinstance(one, ast.Name) and one.id == name for one in ast.walk(node))
