"""Losses whose graphs are kept, and losses that were cut from theirs."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from gradguard._lint.reading.accumulation import accumulated
from gradguard._lint.reading.backward import Backwards, differentiated
from gradguard._lint.reading.returned import is_returned_loss
from gradguard._lint.rule import File, Problem, Rule
from gradguard._lint.tree import FUNCTIONS, LOOPS

if TYPE_CHECKING:
    from collections.abc import Iterator


class KeptLoss(Rule):
    """A loss is accumulated with its graph."""

    code = "GG113"
    on = (*FUNCTIONS, ast.Module)
    why = (
        "A loss is accumulated with its graph: memory grows at each step.\n"
        "`total += loss` makes a tensor that refers to the graphs of all steps so far. "
        "`loss.item()`, `float(loss)` or `loss.detach()` take the value alone."
    )
    bad = """
import torch

model = torch.nn.Linear(2, 1)
total = 0
for _ in range(3):
    loss = model(torch.ones(1, 2)).sum()
    loss.backward()
    total += loss
assert total.grad_fn is not None  # and with it those of all steps
"""
    good = """
import torch

model = torch.nn.Linear(2, 1)
total = 0
for _ in range(3):
    loss = model(torch.ones(1, 2)).sum()
    loss.backward()
    total += loss.item()
assert isinstance(total, float)
"""

    def check(self, node: ast.AST, file: File) -> Iterator[Problem]:
        """Look at all accumulations in a function that differentiates."""
        if not file.differentiates:
            return
        backwards = Backwards(node, file)
        for one in accumulated(node, file):
            if backwards.keeps_graph(one) or is_returned_loss(one, node, backwards, file):
                shown = ast.unparse(one.node)
                yield Problem(
                    one.node,
                    f"`{shown}` keeps the graph of each step's loss, so memory grows with the "
                    f"steps. Write `{one.loss.id}.item()` (or `{one.loss.id}.detach()`) there.",
                )


class LossMadeLeaf(Rule):
    """What is differentiated was made a leaf."""

    code = "GG121"
    on = (ast.Call,)
    why = (
        "What `backward()` is called on was made a leaf just before: no gradient goes further.\n"
        "A leaf has no graph. Making the loss one (`requires_grad = True`, `torch.tensor(loss, "
        "requires_grad=True)`, `Variable(loss.data, ...)`) only hides torch's \"element 0 of "
        'tensors does not require grad": backward succeeds and no parameter gets a gradient.'
    )
    bad = """
import torch

model = torch.nn.Linear(2, 1)
loss = model(torch.ones(1, 2)).sum()
loss = torch.tensor(loss.item(), requires_grad=True)
loss.backward()
assert model.weight.grad is None
"""
    good = """
import torch

model = torch.nn.Linear(2, 1)
loss = model(torch.ones(1, 2)).sum()
loss.backward()
assert model.weight.grad is not None
"""

    def check(self, node: ast.Call, file: File) -> Iterator[Problem]:
        """Look at what is differentiated, and what was done to it last."""
        loss = differentiated(node, whole=False)
        if loss is None:
            return
        made = _made_leaf(loss, node, file)
        if made is not None:
            yield Problem(
                made,
                f"`{ast.unparse(made)}` makes a leaf of `{loss.id}`, so `{ast.unparse(node)}` "
                "gives no parameter a gradient. Remove it; if torch then says that element 0 of "
                "tensors does not require grad, find where the graph was cut.",
            )


def _made_leaf(loss: ast.Name, call: ast.Call, file: File) -> ast.stmt | None:
    """Return the statement, the last to touch the loss before, that made it a leaf."""
    statement = _statement(call, file)
    if statement is None:
        return None
    for before in _before(statement, file):
        if _makes_leaf(before, loss.id, file):
            return before
        if _touches(before, loss.id):
            return None
    return None


def _statement(node: ast.AST, file: File) -> ast.stmt | None:
    while not isinstance(node, ast.stmt):
        if node not in file.tree.parents:
            return None
        node = file.tree.parents[node]
    return node


def _before(statement: ast.stmt, file: File) -> Iterator[ast.stmt]:
    """Yield the statements that ran before it in the same function, the last one first."""
    node: ast.AST = statement
    while node in file.tree.parents:
        parent = file.tree.parents[node]
        for field in ("body", "orelse", "finalbody"):
            statements = getattr(parent, field, None)
            if isinstance(statements, list) and node in statements:
                yield from reversed(statements[: statements.index(node)])
        if isinstance(parent, (*FUNCTIONS, *LOOPS, ast.ClassDef, ast.Module)):
            return
        node = parent


def _touches(statement: ast.stmt, name: str) -> bool:
    return any(
        isinstance(one, ast.Name) and one.id == name and isinstance(one.ctx, ast.Store)
        for one in ast.walk(statement)
    )


def _makes_leaf(statement: ast.stmt, name: str, file: File) -> bool:
    if isinstance(statement, ast.Expr):
        return _requires_grad_call(statement.value, name)
    if not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
        return False
    target, value = statement.targets[0], statement.value
    if isinstance(target, ast.Attribute):
        return (
            target.attr == "requires_grad"
            and isinstance(target.value, ast.Name)
            and target.value.id == name
            and isinstance(value, ast.Constant)
            and value.value is True
        )
    if not isinstance(target, ast.Name) or target.id != name:
        return False
    if _requires_grad_call(value, name):
        return True
    return isinstance(value, ast.Call) and _copies_as_leaf(value, file)


def _requires_grad_call(node: ast.expr, name: str) -> bool:
    """Tell whether it is ``loss.requires_grad_()``, also after a `detach()`."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return False
    if node.func.attr != "requires_grad_" or _is_false(node.args, node.keywords):
        return False
    owner: ast.expr = node.func.value
    while isinstance(owner, (ast.Call, ast.Attribute)):
        owner = owner.func if isinstance(owner, ast.Call) else owner.value
    return isinstance(owner, ast.Name) and owner.id == name


def _is_false(args: list[ast.expr], keywords: list[ast.keyword]) -> bool:
    given = [*args, *(one.value for one in keywords)]
    return any(isinstance(one, ast.Constant) and one.value is False for one in given)


_COPIES = frozenset(
    {"torch.tensor", "torch.FloatTensor", "torch.Tensor", "torch.as_tensor"}
    | {"torch.autograd.Variable"}
)


def _copies_as_leaf(call: ast.Call, file: File) -> bool:
    """Tell whether it makes a leaf of something computed; a literal is a leaf that is meant."""
    if file.names.full(call.func) not in _COPIES or not call.args:
        return False
    wanted = any(
        one.arg == "requires_grad" and isinstance(one.value, ast.Constant) and one.value.value
        for one in call.keywords
    )
    computed = any(isinstance(one, (ast.Name, ast.Attribute)) for one in ast.walk(call.args[0]))
    return wanted and computed
