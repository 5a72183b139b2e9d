"""A guard on a function whose result computes when it is consumed."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from gradguard._lint.modules import is_self, method
from gradguard._lint.rule import File, Problem, Rule
from gradguard._lint.tree import FUNCTIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gradguard._lint.scopes import Function


class GuardOnLazy(Rule):
    """A guard decorates a function whose result does its work later."""

    code = "GG104"
    on = FUNCTIONS
    why = (
        "A guard decorates a function that returns before its work is done.\n"
        "A generator expression, `map`, `filter` and the generator or coroutine that a call "
        "makes compute when they are consumed, and that is after the guard has ended: a graph is "
        "recorded. gradguard's guards cover generators and coroutines, not `map` and `filter`."
    )
    bad = """
import torch

@torch.no_grad()
def predict(batches):
    return (torch.is_grad_enabled() for batch in batches)

assert list(predict([1])) == [True]
"""
    good = """
import torch

@torch.no_grad()
def predict(batches):
    return [torch.is_grad_enabled() for batch in batches]

assert list(predict([1])) == [False]
"""

    def check(self, node: Function, file: File) -> Iterator[Problem]:
        """Look at what a guarded plain function returns."""
        guards = file.guards.decorating(node)
        if not guards or isinstance(node, ast.AsyncFunctionDef) or file.tree.is_generator(node):
            return
        guard = guards[0][1]
        for each in file.tree.own(node):
            if isinstance(each, ast.Return) and each.value is not None:
                lazy = _lazy(each.value, node, file, torch=guard.torch)
                if lazy:
                    yield Problem(
                        each,
                        f"What is returned here computes when it is consumed, after "
                        f"`{guard.text}` on `{node.name}` has ended: {lazy}. Return "
                        "`list(...)` of it, or put the guard around the loop that consumes it.",
                    )


def _lazy(node: ast.expr, function: Function, file: File, *, torch: bool) -> str | None:
    """Return what is lazy in a returned expression."""
    if isinstance(node, ast.IfExp):
        branches = (node.body, node.orelse)
        return next((x for b in branches if (x := _lazy(b, function, file, torch=torch))), None)
    if isinstance(node, (ast.Tuple, ast.List)):
        parts = (_lazy(one, function, file, torch=torch) for one in node.elts)
        return next((part for part in parts if part), None)
    if isinstance(node, ast.Name):
        value = file.names.value(node)
        uses = [one for one in file.tree.of_type(ast.Name) if one.id == node.id]
        loads = [one for one in uses if file.tree.function(one) is function]
        once = len(loads) == 2  # noqa: PLR2004 (it is assigned and returned, not consumed between)
        return _lazy(value, function, file, torch=torch) if value is not None and once else None
    if isinstance(node, ast.GeneratorExp):
        return "a generator expression" if torch and _computes(node, file) else None
    return _lazy_call(node, function, file, torch=torch) if isinstance(node, ast.Call) else None


def _lazy_call(node: ast.Call, function: Function, file: File, *, torch: bool) -> str | None:
    names = file.names
    if names.is_builtin(node.func, "map", "filter"):
        plain = node.args and names.is_builtin(
            node.args[0], "str", "int", "float", "bool", "len", "tuple", "list", "repr", "type"
        )
        none = node.args and isinstance(node.args[0], ast.Constant)
        return None if plain or none else f"`{ast.unparse(node.func)}`"
    full = names.full(node.func) or ""
    if names.is_builtin(node.func, "zip", "enumerate", "iter") or full.startswith("itertools."):
        parts = (_lazy(one, function, file, torch=torch) for one in node.args)
        return next((part for part in parts if part), None)
    called = _called(node, function, file)
    if called is None or not torch or _guards_itself(called, file):
        return None
    if isinstance(called, ast.AsyncFunctionDef):
        return f"the coroutine of `{called.name}`"
    return f"the generator of `{called.name}`" if file.tree.is_generator(called) else None


def _called(node: ast.Call, function: Function, file: File) -> Function | None:
    """Return the function or method of this file that is called."""
    if is_self(node.func):
        cls = file.tree.class_of(function)
        return method(cls, node.func.attr) if cls else None
    definition = file.names.definition(node.func)
    return definition if isinstance(definition, FUNCTIONS) else None


def _guards_itself(function: Function, file: File) -> bool:
    """Tell whether the function has a guard of its own, or a decorator that may make it eager."""
    return bool(function.decorator_list) or any(
        isinstance(each, ast.With) and any(file.guards.guard(i.context_expr) for i in each.items)
        for each in file.tree.own(function)
    )


def _computes(node: ast.GeneratorExp, file: File) -> bool:
    """Tell whether the elements are computed, not only picked."""
    parts = [node.elt, *(test for one in node.generators for test in one.ifs)]
    for each in (each for part in parts for each in ast.walk(part)):
        if isinstance(each, (ast.BinOp, ast.Await)):
            return True
        if isinstance(each, ast.Call) and not file.names.is_builtin(
            each.func, "isinstance", "len", "str", "int", "repr", "type", "hasattr", "getattr", "id"
        ):
            return True
    return False
