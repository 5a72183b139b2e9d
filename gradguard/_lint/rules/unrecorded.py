"""What records nothing under a guard, though recording was wanted."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

from gradguard._lint.rule import File, Problem, Rule
from gradguard._lint.tree import FUNCTIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gradguard._lint.guards import Guard


class EnableInInference(Rule):
    """Grad mode is switched on inside inference mode."""

    code = "GG110"
    on = (ast.With, ast.Call)
    why = (
        "`torch.enable_grad()` inside `torch.inference_mode()`: nothing is recorded.\n"
        "`torch.is_grad_enabled()` is True there, and yet results have no graph, because inference "
        "mode stands above grad mode. Only `torch.inference_mode(False)` leaves it; gradguard's "
        "`enable_grad` does so by itself."
    )
    bad = """
import torch

x = torch.ones(2, requires_grad=True)
with torch.inference_mode():
    with torch.enable_grad():
        assert not (x * 2).requires_grad
"""
    good = """
import torch

x = torch.ones(2, requires_grad=True)
with torch.inference_mode():
    with torch.inference_mode(False), torch.enable_grad():
        assert (x * 2).requires_grad
"""

    def check(self, node: ast.AST, file: File) -> Iterator[Problem]:
        """Look at what switches grad mode on, and at the guards around it."""
        if isinstance(node, ast.Call):
            if isinstance(file.tree.parents.get(node), ast.Expr):
                guard = file.guards.guard(node)
                around = [each for _, each in file.guards.around(node)]
                yield from _enabling(node, guard, around, function=file.tree.function(node))
            return
        assert isinstance(node, ast.With)  # noqa: S101 (the other of the two types)
        around = [each for _, each in file.guards.around(node)]
        for item in node.items:
            guard = file.guards.guard(item.context_expr)
            function = file.tree.function(node)
            yield from _enabling(item.context_expr, guard, around, function=function)
            if guard is not None:
                around.insert(0, guard)


def _enabling(
    node: ast.expr, guard: Guard | None, around: list[Guard], *, function: ast.AST | None
) -> Iterator[Problem]:
    switches_on = guard is not None and guard.torch and guard.records is True
    if guard is None or not switches_on or guard.name == "inference_mode":
        return
    inference = next((one for one in around if one.name == "inference_mode"), None)
    if inference is None or not inference.inference:
        return
    if isinstance(function, ast.AsyncFunctionDef) and around[-1] is inference and inference.torch:
        return  # a decorator that does nothing: GG101
    yield Problem(
        node,
        f"`{guard.text}` inside `{inference.text}` records nothing: inference mode stands above "
        "grad mode. Write `torch.inference_mode(False)` beside it, or use `torch.no_grad()` "
        "outside.",
    )


_COMPUTED = re.compile(r"loss|criterion|objective|\.(sum|mean|norm|pow|log_prob)$", re.IGNORECASE)


class BackwardOfUnrecorded(Rule):
    """A loss is computed and differentiated where nothing is recorded."""

    code = "GG111"
    on = (ast.Call,)
    why = (
        "`backward()` on what was computed under the same `no_grad` or `inference_mode`.\n"
        'Nothing was recorded, so torch raises "element 0 of tensors does not require grad and '
        'does not have a grad_fn".'
    )
    bad = """
import torch

model = torch.nn.Linear(2, 1)

def step():
    with torch.no_grad():
        loss = model(torch.ones(1, 2)).sum()
        loss.backward()

try:
    step()
except RuntimeError as error:
    assert "does not require grad" in str(error)
else:
    raise AssertionError
"""
    good = """
import torch

model = torch.nn.Linear(2, 1)
loss = model(torch.ones(1, 2)).sum()
loss.backward()
assert model.weight.grad is not None
"""

    def check(self, node: ast.Call, file: File) -> Iterator[Problem]:
        """Look at ``loss.backward()`` and where that loss was computed."""
        func = node.func
        if not isinstance(func, ast.Attribute) or func.attr != "backward":
            return
        place = next(iter(file.guards.around(node)), None)
        if place is None or not place[1].off or not place[1].called:
            return
        expression, guard = place
        block = file.tree.parents[expression]  # the withitem, or the decorated function
        region = block if isinstance(block, FUNCTIONS) else file.tree.parents[block]
        if isinstance(region, ast.AsyncFunctionDef) and guard.torch:
            return
        if file.tree.is_generator(region) or _expects_error(node, file):
            return
        if self._computed_inside(func.value, node, region, file):
            yield Problem(
                node,
                f"`{ast.unparse(node)}` fails: what it differentiates was computed under "
                f"`{guard.text}`, where nothing is recorded (torch: element 0 of tensors does not "
                "require grad). Compute and differentiate it outside of the guard.",
            )

    def _computed_inside(self, loss: ast.expr, node: ast.Call, region: ast.AST, file: File) -> bool:
        if isinstance(loss, ast.Name):
            before = [
                one
                for one in file.names.bindings(loss)
                if getattr(one.node, "lineno", 0) <= node.lineno and _inside(one.node, region, file)
            ]
            outside = [one for one in file.names.bindings(loss) if one not in before]
            if not before or outside or _made_leaf(loss.id, region, file):
                return False
            value = before[-1].value
            return value is not None and _is_computed(value, loss.id)
        return isinstance(loss, ast.Call) and _is_computed(loss, "")


def _inside(node: ast.AST, region: ast.AST, file: File) -> bool:
    """Tell whether the node runs under that block itself, with no other guard between."""
    for parent, child in file.tree.in_frame(node):
        if parent is region:
            return child in getattr(parent, "body", ())
        if isinstance(parent, ast.With) and any(
            file.guards.guard(item.context_expr) for item in parent.items
        ):
            return False
    return False


def _is_computed(value: ast.expr, name: str) -> bool:
    """Tell whether the expression is arithmetic on tensors, as losses are."""
    if isinstance(value, ast.BinOp):
        return "loss" in name.lower() or any(
            _is_computed(one, name) for one in (value.left, value.right)
        )
    if not isinstance(value, ast.Call):
        return False
    shown = ast.unparse(value.func)
    if shown.rpartition(".")[2][:1].isupper() or "requires_grad" in ast.unparse(value):
        return False
    return bool(_COMPUTED.search(shown)) or "loss" in name.lower()


def _made_leaf(name: str, region: ast.AST, file: File) -> bool:
    """Tell whether the tensor is made to require grad by itself."""
    return any(
        isinstance(each, ast.Attribute)
        and each.attr in {"requires_grad", "requires_grad_"}
        and isinstance(each.value, ast.Name)
        and each.value.id == name
        for each in file.tree.own(region)
    )


def _expects_error(node: ast.AST, file: File) -> bool:
    for parent, child in file.tree.in_frame(node):
        if isinstance(parent, ast.Try) and child in parent.body and parent.handlers:
            return True
        items = parent.items if isinstance(parent, ast.With) and child in parent.body else ()
        if any("aises" in ast.unparse(item.context_expr) for item in items):
            return True
    return False
