"""Layers in the wrong place: functional dropout, made in forward, in a plain list."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

from gradguard._lint.rule import File, Problem, Rule
from gradguard._lint.torch_layers import DROPOUTS
from gradguard._lint.tree import FUNCTIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

_DROPOUTS = frozenset(
    f"torch.nn.functional.{name}" for name in ("dropout", "dropout1d", "dropout2d", "dropout3d")
)
_TRAINING = re.compile(r"\b(self\.)?(is_)?train(ing)?\b|\beval\b|deterministic")
# Dropping at every call is the purpose: sampling, noise, Tacotron's prenet.
_MEANT = re.compile(
    r"always|mc_?drop|monte_?carlo|bayes|stochastic|sample|noise|augment|prenet", re.IGNORECASE
)
_POSITION = 2  # of `training` among the arguments


class FunctionalDropout(Rule):
    """Functional dropout that does not know the module's mode."""

    code = "GG117"
    on = (ast.Call,)
    why = (
        "`F.dropout(x, p)` in a Module without `training=`: it drops in evaluation, too.\n"
        "The default of `training` is True, and the function does not know the module, so "
        "`model.eval()` does not reach it."
    )
    bad = """
import torch
import torch.nn.functional as F

class Model(torch.nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.9)

out = Model().eval()(torch.ones(1000))
assert (out == 0).any()
"""
    good = """
import torch
import torch.nn.functional as F

class Model(torch.nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.9, training=self.training)

out = Model().eval()(torch.ones(1000))
assert not (out == 0).any()
"""

    def check(self, node: ast.Call, file: File) -> Iterator[Problem]:
        """Look at calls of functional dropout in the methods of Modules."""
        full = file.names.full(node.func)
        if full not in _DROPOUTS or not _lacks_training(node):
            return
        cls = file.tree.method_class(node)
        if not file.modules.is_class(cls) or _is_conditional(node, file):
            return
        shown = ast.unparse(node)
        yield Problem(
            node,
            f"`{shown}` drops in evaluation, too: `training` is True by default. Write "
            f"`{shown[:-1]}, training=self.training)`.",
        )


def _lacks_training(node: ast.Call) -> bool:
    if len(node.args) > _POSITION or any(isinstance(one, ast.Starred) for one in node.args):
        return False
    if any(one.arg in {"training", None} for one in node.keywords):
        return False
    rate = next((one.value for one in node.keywords if one.arg == "p"), None)
    if rate is None and len(node.args) == _POSITION:
        rate = node.args[1]
    return not (isinstance(rate, ast.Constant) and rate.value == 0)


def _is_conditional(node: ast.AST, file: File) -> bool:
    """Tell whether the mode decides whether the call runs, or the class drops on purpose."""
    for parent, child in file.tree.ancestors(node):
        tests: list[ast.expr] = []
        if isinstance(parent, (ast.If, ast.IfExp)) and child is not parent.test:
            tests.append(parent.test)
        body = getattr(parent, "body", None)
        if isinstance(body, list) and child in body:  # `if not self.training: return x` above
            above = body[: body.index(child)]
            tests += [one.test for one in above if isinstance(one, ast.If) and _leaves(one)]
        if isinstance(parent, ast.BoolOp):
            tests += parent.values[: parent.values.index(child)]  # type: ignore[arg-type]
        if any(_TRAINING.search(ast.unparse(test)) for test in tests):
            return True
        if isinstance(parent, (*FUNCTIONS, ast.ClassDef)) and _MEANT.search(parent.name):
            return True
    return any("training" in ast.unparse(one.value) for one in _rates(node))


def _rates(node: ast.AST) -> list[ast.keyword]:
    """Return the arguments that may say the mode, such as ``p=self.p * self.training``."""
    if not isinstance(node, ast.Call):
        return []
    return [*node.keywords, *(ast.keyword(value=one) for one in node.args[1:])]


def _leaves(node: ast.If) -> bool:
    return isinstance(node.body[-1], (ast.Return, ast.Raise))


class LayerInForward(Rule):
    """A layer is made at each call."""

    code = "GG118"
    on = (ast.Call,)
    why = (
        "A layer with parameters, buffers or Dropout is made and called inside `forward`.\n"
        "Its weights are new and random at each call, no optimizer has them, `state_dict` does "
        "not save them, and `eval()` does not reach its Dropout or BatchNorm."
    )
    bad = """
import torch

class Model(torch.nn.Module):
    def forward(self, x):
        return torch.nn.Linear(2, 2)(x)

model = Model()
assert not list(model.parameters())
assert not torch.equal(model(torch.ones(2)), model(torch.ones(2)))
"""
    good = """
import torch

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(2, 2)

    def forward(self, x):
        return self.linear(x)

model = Model()
assert torch.equal(model(torch.ones(2)), model(torch.ones(2)))
"""

    def check(self, node: ast.Call, file: File) -> Iterator[Problem]:
        """Look at layers that are made in `forward`, or in a lambda that a Module keeps."""
        if not file.modules.holds_state(node):
            return
        cls = file.tree.method_class(node)
        if not file.modules.is_class(cls) or not _runs_in_forward(node, file):
            return
        if _is_called_at_once(node, file) or _is_called_by_name(node, file):
            shown = ast.unparse(node.func)
            yield Problem(
                node,
                f"`{shown}` is made anew at each call: its weights are never trained or saved, "
                "and `eval()` does not reach it. Make it in `__init__` as an attribute of the "
                "Module, and call that here.",
            )


_ONCE = re.compile(r"hasattr|is None|not in|isinstance")


def _runs_in_forward(node: ast.Call, file: File) -> bool:
    """Tell whether the node runs at each call of a Module."""
    for parent, child in file.tree.in_frame(node):
        if isinstance(parent, ast.Lambda):
            return _is_called_at_once(node, file)
        branch = isinstance(parent, ast.If) and child is not parent.test
        test = ast.unparse(parent).partition("\n")[0] if branch else ""
        if _ONCE.search(test):
            return False  # made once, or for what was not given
        if "training" in test and file.modules.made_class(node) in DROPOUTS:
            return False  # a new Dropout acts, as it should here
        if isinstance(parent, FUNCTIONS):
            return parent.name == "forward" or parent.name.startswith(("forward_", "_forward"))
    return False


def _is_called_at_once(node: ast.Call, file: File) -> bool:
    """Tell whether it is ``Layer(...)(x)``, also with ``.to(device)`` between."""
    outer: ast.AST = node
    while True:
        parent = file.tree.parents.get(outer)
        if isinstance(parent, ast.Call) and parent.func is outer:
            if outer is node or not isinstance(outer, ast.Attribute):
                return True
            if outer.attr in {"to", "cuda", "float", "half", "double", "train", "bfloat16"}:
                outer = parent
                continue
            return outer.attr == "forward"
        if isinstance(parent, ast.Attribute) and parent.value is outer:
            outer = parent
            continue
        return False


def _is_called_by_name(node: ast.Call, file: File) -> bool:
    """Tell whether it is given a name in this function that is then only called."""
    statement: ast.AST = node
    while isinstance(statement, (ast.Call, ast.Attribute)):
        statement = file.tree.parents[statement]
    if not isinstance(statement, ast.Assign) or not isinstance(statement.targets[0], ast.Name):
        return False
    name = statement.targets[0].id
    function = file.tree.function(node)
    uses = [
        one
        for one in file.tree.of_type(ast.Name)
        if one.id == name and isinstance(one.ctx, ast.Load) and file.tree.function(one) is function
    ]
    called = [one for one in uses if getattr(file.tree.parents[one], "func", None) is one]
    return bool(uses) and len(called) == len(uses)
