"""Statements that do nothing: a guard, a method or a result that is dropped."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

from gradguard._lint.rule import File, Problem, Rule
from gradguard._lint.tree import FUNCTIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

_EXPECTS_ERROR = re.compile(r"\b(raises|warns|assertRaises\w*|assertWarns\w*|suppress)$")
_WITHOUT_EFFECT = frozenset({"no_grad", "enable_grad", "inference_mode"})


def expects_error(node: ast.AST, file: File) -> bool:
    """Tell whether the node stands in a block that expects an exception."""
    for parent, child in file.tree.in_frame(node):
        if isinstance(parent, ast.With) and child in parent.body:
            for item in parent.items:
                call = item.context_expr
                if isinstance(call, ast.Call) and _EXPECTS_ERROR.search(ast.unparse(call.func)):
                    return True
        if isinstance(parent, ast.Try) and child in parent.body:
            names = [ast.unparse(one.type) for one in parent.handlers if one.type]
            if any(re.search("AttributeError|TypeError|NotImplemented", one) for one in names):
                return True
    return False


class UnusedGuard(Rule):
    """A guard that guards nothing."""

    code = "GG107"
    on = (ast.Expr, ast.Assign, ast.With, ast.AsyncWith)
    why = (
        "A guard that is made and dropped has no effect.\n"
        "`torch.no_grad()` on a line of its own switches nothing: a guard acts in a `with` block "
        "or as a decorator. `with torch.no_grad:` without the call is a TypeError. "
        "(`set_grad_enabled(...)` as a statement does act: see GG108.)"
    )
    bad = """
import torch

torch.no_grad()
assert torch.is_grad_enabled()
"""
    good = """
import torch

with torch.no_grad():
    assert not torch.is_grad_enabled()
"""

    def check(self, node: ast.AST, file: File) -> Iterator[Problem]:
        """Look at statements, at names that nothing reads, and at blocks without the call."""
        if isinstance(node, (ast.With, ast.AsyncWith)):
            yield from self._uncalled(node, file)
            return
        value: ast.expr = node.value  # type: ignore[attr-defined]
        guard = file.guards.guard(value) if not isinstance(value, ast.Name) else None
        if guard is None or guard.name not in _WITHOUT_EFFECT or expects_error(node, file):
            return
        if isinstance(node, ast.Assign) and (not guard.called or _is_read(node, file)):
            return
        text = guard.text if guard.called else f"{guard.text}()"
        yield Problem(
            node,
            f"`{ast.unparse(node)}` has no effect: the guard is made and dropped. Write "
            f"`with {text}:` and indent what it is for, or `@{text}` above a function.",
        )

    def _uncalled(self, node: ast.With | ast.AsyncWith, file: File) -> Iterator[Problem]:
        if expects_error(node, file):
            return
        for item in node.items:
            guard = file.guards.guard(item.context_expr)
            if guard and not guard.called and guard.name in _WITHOUT_EFFECT:
                yield Problem(
                    node,
                    f"`with {ast.unparse(item.context_expr)}:` names the guard without calling "
                    f"it, which is a TypeError. Write `with {guard.text}():`.",
                )


def _is_read(node: ast.Assign, file: File) -> bool:
    """Tell whether anything but the assignment may use the guard; true where it cannot be seen."""
    target = node.targets[0]
    if len(node.targets) > 1 or not isinstance(target, ast.Name):
        return True
    function = file.tree.function(node)
    if function is None:  # other files may import it
        return True
    names = (one for one in file.tree.of_type(ast.Name) if one.id == target.id)
    return any(isinstance(one.ctx, (ast.Load, ast.Del)) for one in names)


_METHODS = frozenset({"eval", "train", "backward", "step", "zero_grad"})


class Uncalled(Rule):
    """A method that is named and not called."""

    code = "GG112"
    on = (ast.Expr,)
    why = (
        "A method is named as a statement and not called.\n"
        "`model.eval` without parentheses does nothing, and Python says nothing: the model stays "
        "in train mode, the optimizer does not step, no gradient is computed."
    )
    bad = """
import torch

model = torch.nn.Dropout()
model.eval
assert model.training
"""
    good = """
import torch

model = torch.nn.Dropout()
model.eval()
assert not model.training
"""

    def check(self, node: ast.Expr, file: File) -> Iterator[Problem]:
        """Look at attributes that are statements."""
        value = node.value
        if not isinstance(value, ast.Attribute) or value.attr not in _METHODS:
            return
        if file.names.full(value) is not None or expects_error(node, file):
            return  # of an imported module, which may do something when it is asked
        if _is_property(value, file):
            return
        yield Problem(
            node,
            f"`{ast.unparse(value)}` is named and not called, so nothing happens. Write "
            f"`{ast.unparse(value)}()`.",
        )


def _is_property(value: ast.Attribute, file: File) -> bool:
    """Tell whether a class of this file has a property of that name."""
    return any(
        one.name == value.attr and one.decorator_list
        for one in file.tree.of_type(*FUNCTIONS)
        if file.tree.class_of(one) is not None
    )


_TENSOR_MAKERS = re.compile(
    r"^torch\.(tensor|as_tensor|rand\w*|zeros\w*|ones\w*|empty\w*|full\w*|arange|linspace|eye|cat"
    r"|stack|from_numpy|load|matmul|mean|sum|softmax|sigmoid|exp|log|nn\.functional\.\w+)$"
)


class DiscardedResult(Rule):
    """The result of `detach()` or `clone()` is dropped."""

    code = "GG114"
    on = (ast.Expr,)
    default = False
    why = (
        "`x.detach()` or `x.clone()` as a statement: the result is thrown away.\n"
        "Both return a new tensor and leave `x` as it is, with its graph. `detach_()` acts on the "
        "tensor itself."
    )
    bad = """
import torch

x = torch.ones(2, requires_grad=True) * 2
x.detach()
assert x.requires_grad
"""
    good = """
import torch

x = torch.ones(2, requires_grad=True) * 2
x = x.detach()
assert not x.requires_grad
"""

    def check(self, node: ast.Expr, file: File) -> Iterator[Problem]:
        """Look at calls whose result nothing takes, on what is shown to be a tensor."""
        call = node.value
        if not isinstance(call, ast.Call) or call.args or not isinstance(call.func, ast.Attribute):
            return
        name, owner = call.func.attr, call.func.value
        if name not in {"detach", "clone"} or not isinstance(owner, ast.Name):
            return
        if _is_tensor(owner, file) and not expects_error(node, file):
            shown = ast.unparse(owner)
            also = f" or `{shown}.detach_()`" if name == "detach" else ""
            yield Problem(
                node,
                f"`{ast.unparse(call)}` returns a new tensor, and it is thrown away: `{shown}` "
                f"stays as it is. Write `{shown} = {ast.unparse(call)}`{also}.",
            )


def _is_tensor(node: ast.Name, file: File) -> bool:
    """Tell whether the file shows the name to be a tensor: made by torch, or annotated so."""
    return any(_makes_tensor(one.node, one.value, file) for one in file.names.bindings(node))


def _makes_tensor(binding: ast.AST, value: ast.expr | None, file: File) -> bool:
    annotation = getattr(binding, "annotation", None)
    if annotation is not None and file.names.full(annotation) == "torch.Tensor":
        return True
    while isinstance(value, (ast.BinOp, ast.Subscript)):
        value = value.left if isinstance(value, ast.BinOp) else value.value
    if not isinstance(value, ast.Call):
        return False
    full = file.names.full(value.func)
    if full is not None:
        return bool(_TENSOR_MAKERS.match(full))
    is_layer = file.modules.is_module(value.func)
    chained = isinstance(value.func, ast.Attribute) and isinstance(value.func.value, ast.Call)
    return is_layer or (chained and _makes_tensor(binding, value.func.value, file))  # type: ignore[attr-defined]
