"""Layers that a Module keeps without registering them."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

from gradguard._lint.modules import is_self
from gradguard._lint.rule import File, Problem, Rule

if TYPE_CHECKING:
    from collections.abc import Iterator

_REGISTERING = re.compile(r"Sequential|ModuleList|ModuleDict|ParameterList|ParameterDict")


class UnregisteredLayers(Rule):
    """Layers or Parameters in a plain list, tuple or dict."""

    code = "GG120"
    on = (ast.Assign,)
    default = False
    why = (
        "Layers kept in a plain list, tuple or dict of a Module are not registered.\n"
        "`parameters()`, `to()`, `state_dict()` and `eval()` do not reach them: the optimizer "
        "never trains them. `nn.ModuleList` and `nn.ModuleDict` register what they hold."
    )
    bad = """
import torch

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = [torch.nn.Linear(2, 2) for _ in range(3)]

assert not list(Model().parameters())
"""
    good = """
import torch

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(3))

assert len(list(Model().parameters())) == 6
"""

    def check(self, node: ast.Assign, file: File) -> Iterator[Problem]:
        """Look at lists, tuples and dicts that `self` keeps."""
        target = node.targets[0]
        cls = file.tree.method_class(node)
        if len(node.targets) > 1 or not is_self(target) or not file.modules.is_class(cls):
            return
        assert cls is not None  # noqa: S101 (is_class says so)
        if not isinstance(node.value, (ast.List, ast.Tuple, ast.Dict, ast.ListComp, ast.DictComp)):
            return
        name: str = target.attr
        held = _held(node.value) or _appended(cls, name)
        if any(_is_state(one, file) for one in held) and not _is_registered(cls, name):
            yield Problem(
                node,
                f"Layers in the plain {_kind(node.value)} `self.{name}` are not registered: "
                "`parameters()`, `to()` and `eval()` do not reach them. Put them in "
                f"`torch.nn.{'ModuleDict' if 'dict' in _kind(node.value) else 'ModuleList'}`.",
            )


def _kind(node: ast.expr) -> str:
    if isinstance(node, ast.Tuple):
        return "tuple"
    return "dict" if isinstance(node, (ast.Dict, ast.DictComp)) else "list"


def _held(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, (ast.List, ast.Tuple)):
        return list(node.elts)
    if isinstance(node, ast.Dict):
        return list(node.values)
    if isinstance(node, ast.ListComp):
        return [node.elt]
    return [node.value] if isinstance(node, ast.DictComp) else []


def _appended(cls: ast.ClassDef, name: str) -> list[ast.expr]:
    """Return what is appended to the list, or put in the dict, by the class itself."""
    found: list[ast.expr] = []
    for each in ast.walk(cls):
        if isinstance(each, ast.Call) and ast.unparse(each.func) == f"self.{name}.append":
            found += each.args
        target = each.targets[0] if isinstance(each, ast.Assign) else None
        if isinstance(target, ast.Subscript) and ast.unparse(target.value) == f"self.{name}":
            found += [each.value] if isinstance(each, ast.Assign) else []
    return found


def _is_state(node: ast.expr, file: File) -> bool:
    if not isinstance(node, ast.Call):
        return False
    return file.names.full(node.func) == "torch.nn.Parameter" or file.modules.holds_state(node)


def _is_registered(cls: ast.ClassDef, name: str) -> bool:
    """Tell whether the class puts what it keeps there into a Module, in any way."""
    text = ast.unparse(cls)
    kept = rf"self\.{re.escape(name)}\b"
    return bool(
        re.search(rf"(?:{_REGISTERING.pattern})\([^\n]*{kept}", text)
        or re.search(rf"{kept} = [^\n]*(?:{_REGISTERING.pattern})", text)
        or re.search(r"add_module|register_module|setattr\(self|register_parameter", text)
    )
