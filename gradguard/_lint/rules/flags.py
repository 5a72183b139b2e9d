"""Attributes that are set and do nothing: on a Module, misspelled, or over a method."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from gradguard._lint.rule import File, Problem, Rule
from gradguard._lint.rules.frozen import is_shown_module, targets
from gradguard._lint.tree import FUNCTIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

_RIGHT = "requires_grad"
_KNOWN_WRONG = frozenset(
    {"requires_gradient", "require_gradient", "requires_gradients", "required_gradient"}
)
_NEAR = 2


class MisspelledFlag(Rule):
    """`requires_grad`, misspelled."""

    code = "GG116"
    on = (ast.Assign, ast.Call)
    why = (
        "An attribute that nearly is `requires_grad` is set: nothing happens.\n"
        "Python makes a new attribute of any name on a tensor or a Module. The parameter goes on "
        "requiring grad, and is trained."
    )
    bad = """
import torch

weight = torch.nn.Parameter(torch.ones(2))
weight.require_grad = False
assert weight.requires_grad
"""
    good = """
import torch

weight = torch.nn.Parameter(torch.ones(2))
weight.requires_grad = False
assert not weight.requires_grad
"""

    def check(self, node: ast.Assign | ast.Call, file: File) -> Iterator[Problem]:
        """Look at the attributes that are set, by ``=`` or `setattr`."""
        if isinstance(node, ast.Assign):
            names = [(one.attr, one.value) for one in targets(node)]
        else:
            names = list(_by_setattr(node, file))
        for name, owner in names:
            if _is_misspelled(name) and not _is_meant(name, owner, file):
                shown = ast.unparse(owner)
                method = "a method" if name == "requires_grad_" else "no attribute of torch's"
                yield Problem(
                    node,
                    f"`{shown}.{name}` is {method}: setting it changes nothing. Write "
                    f"`{shown}.requires_grad_({_value(node)})`, which parameters and modules have.",
                )


def _by_setattr(node: ast.AST, file: File) -> Iterator[tuple[str, ast.expr]]:
    if (
        isinstance(node, ast.Call)
        and len(node.args) == 3  # noqa: PLR2004 (object, name, value)
        and file.names.is_builtin(node.func, "setattr")
        and isinstance(node.args[1], ast.Constant)
        and isinstance(node.args[1].value, str)
    ):
        yield node.args[1].value, node.args[0]


def _value(node: ast.Assign | ast.Call) -> str:
    return ast.unparse(node.args[2] if isinstance(node, ast.Call) else node.value)


def _is_meant(name: str, owner: ast.expr, file: File) -> bool:
    """Tell whether the file has the attribute for itself: on `self`, or read somewhere."""
    if isinstance(owner, ast.Name) and owner.id in {"self", "cls", "args", "config", "cfg"}:
        return True
    if name == "requires_grad_":
        return False
    if isinstance(owner, ast.Name) and isinstance(file.names.definition(owner), ast.ClassDef):
        return True
    loads = (one for one in file.tree.of_type(ast.Attribute) if one.attr == name)
    return any(isinstance(one.ctx, ast.Load) for one in loads) or any(
        isinstance(one, FUNCTIONS) and one.name == name for one in file.tree.of_type(*FUNCTIONS)
    )


def _is_misspelled(name: str) -> bool:
    if name == _RIGHT or name.startswith("_"):  # a class's own note of what it did
        return False
    if name in _KNOWN_WRONG:
        return True
    near = abs(len(name) - len(_RIGHT)) <= _NEAR and "gra" in name.lower()
    return near and _distance(name.lower(), _RIGHT) <= _NEAR


def _distance(one: str, two: str) -> int:
    """Return how many letters are changed, added, left out or swapped with their neighbour."""
    before: list[int] = []
    row = list(range(len(two) + 1))
    for i, a in enumerate(one, 1):
        before, last, row = row, before, [i]
        for j, b in enumerate(two, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b))
            if i > 1 and j > 1 and a == two[j - 2] and one[i - 2] == b:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
    return row[-1]


class FlagByHand(Rule):
    """`training` is set by hand, or `train` and `eval` are overwritten."""

    code = "GG119"
    on = (ast.Assign,)
    default = False
    why = (
        "`model.training = False` reaches the module alone, not its children.\n"
        "Their Dropout and BatchNorm go on as in training. `model.eval = True` replaces the "
        "method: nothing is switched, and a later `model.eval()` fails."
    )
    bad = """
import torch

model = torch.nn.Sequential(torch.nn.Dropout())
model.training = False
assert model[0].training
"""
    good = """
import torch

model = torch.nn.Sequential(torch.nn.Dropout())
model.eval()
assert not model[0].training
"""

    def check(self, node: ast.Assign, file: File) -> Iterator[Problem]:
        """Look at the flags that are set from outside."""
        for target in targets(node):
            name, owner = target.attr, target.value
            if name not in {"training", "train", "eval"} or not is_shown_module(owner, file):
                continue
            value = node.value.value if isinstance(node.value, ast.Constant) else None
            if not isinstance(value, bool) or _loops_over_all(node, owner, file):
                continue
            shown = ast.unparse(owner)
            on = value == (name != "eval")
            effect = "children keep theirs" if name == "training" else "that method is gone"
            yield Problem(
                node,
                f"`{ast.unparse(node)}` sets an attribute of `{shown}` alone: {effect}. Write "
                f"`{shown}.{'train' if on else 'eval'}()`.",
            )


def _loops_over_all(node: ast.AST, owner: ast.expr, file: File) -> bool:
    """Tell whether a loop over all modules sets it on each."""
    return any(
        isinstance(parent, ast.For)
        and ast.unparse(owner) in ast.unparse(parent.target)
        and "modules()" in ast.unparse(parent.iter)
        for parent, _ in file.tree.in_frame(node)
    )
