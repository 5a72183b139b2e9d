"""`requires_grad` on a Module, and what a file shows to be one."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

from gradguard._lint.modules import is_self
from gradguard._lint.rule import File, Problem, Rule
from gradguard._lint.tree import FUNCTIONS, LOOPS

if TYPE_CHECKING:
    from collections.abc import Iterator

_PARTS = re.compile(
    r"^(fc\d?|classifier|features|backbone|encoder|decoder|layers?\d?|conv\d|bn\d|avgpool"
    r"|embeddings?|blocks?|stem|bert|roberta|transformer|visual|vision_model|text_model"
    r"|text_encoder|unet|vae|lm_head)$"
)
_MODULE_LISTS = frozenset({"modules", "children"})
_NAMED_LISTS = frozenset({"named_modules", "named_children"})


def targets(node: ast.Assign | ast.AnnAssign) -> list[ast.Attribute]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    flat = [
        each
        for one in targets
        for each in (one.elts if isinstance(one, (ast.Tuple, ast.List)) else [one])
    ]
    return [one for one in flat if isinstance(one, ast.Attribute)]


class FrozenModule(Rule):
    """`requires_grad` is set on a Module."""

    code = "GG115"
    on = (ast.Assign,)
    why = (
        "`module.requires_grad = False` on an `nn.Module` freezes nothing.\n"
        "A Module has no such property: Python makes a plain attribute, all parameters go on "
        "requiring grad, and the optimizer goes on training them. `requires_grad_(False)` is the "
        "method that reaches them."
    )
    bad = """
import torch

layer = torch.nn.Linear(2, 2)
layer.requires_grad = False
assert all(parameter.requires_grad for parameter in layer.parameters())
"""
    good = """
import torch

layer = torch.nn.Linear(2, 2)
layer.requires_grad_(False)
assert not any(parameter.requires_grad for parameter in layer.parameters())
"""

    def check(self, node: ast.Assign, file: File) -> Iterator[Problem]:
        """Look at what ``requires_grad`` is set on."""
        for target in targets(node):
            owner = target.value
            if target.attr != "requires_grad" or not is_shown_module(owner, file):
                continue
            if _is_checked(node, owner, file) or _has_own_flag(owner, file):
                continue
            shown, value = ast.unparse(owner), ast.unparse(node.value)
            yield Problem(
                node,
                f"`{shown}` is a Module, so `{ast.unparse(target)} = {value}` sets a plain "
                f"attribute and none of its parameters. Write `{shown}.requires_grad_({value})`.",
            )


def is_shown_module(owner: ast.expr, file: File) -> bool:
    if isinstance(owner, ast.Name) and owner.id == "self":
        return False  # the class has the attribute for itself
    if file.modules.is_module(owner):
        return not _has_tensor_binding(owner, file)
    if isinstance(owner, ast.Attribute) and _PARTS.match(owner.attr):
        root = owner.value
        while isinstance(root, ast.Attribute) and _PARTS.match(root.attr):
            root = root.value
        if file.modules.is_module(root) or file.modules.is_used_as_module(owner):
            return True
    if isinstance(owner, ast.Name):
        over = _loop_over_modules(owner, file)
        if over is not None:
            return over
    if isinstance(owner, (ast.Name, ast.Attribute)):
        return file.modules.is_used_as_module(owner) and not _has_tensor_binding(owner, file)
    return False


def _has_tensor_binding(owner: ast.expr, file: File) -> bool:
    """Tell whether the name also stands for something else, such as a parameter of a loop."""
    if not isinstance(owner, ast.Name):
        return False
    bindings = file.names.bindings(owner)
    loops = [one for one in bindings if isinstance(one.node, (*LOOPS, ast.comprehension))]
    return len(bindings) > 1 and bool(loops)


def _loop_over_modules(owner: ast.Name, file: File) -> bool | None:
    """Tell whether the name runs over modules; None if it is no name of a loop."""
    for parent, _ in file.tree.ancestors(owner):
        if isinstance(parent, LOOPS) and not isinstance(parent, ast.While):
            names = [one.id for one in ast.walk(parent.target) if isinstance(one, ast.Name)]
            if owner.id not in names:
                continue
            call = parent.iter
            method = _method_name(call)
            if method in _MODULE_LISTS:
                return True
            if method in _NAMED_LISTS:
                return owner.id == names[-1]
            if file.names.is_builtin(getattr(call, "func", call), "enumerate"):
                call = call.args[0] if isinstance(call, ast.Call) and call.args else call
            if owner.id == names[-1] and file.modules.is_module(call):
                return True
            return file.modules.is_used_as_module(owner) and "param" not in ast.unparse(call)
    return None


def _method_name(node: ast.expr) -> str:
    func = node.func if isinstance(node, ast.Call) else None
    return func.attr if isinstance(func, ast.Attribute) else ""


_PARAMETER = re.compile(r"Parameter|Tensor|is_tensor|is_leaf|'weight'|'bias'|is_param")


def _is_checked(node: ast.AST, owner: ast.expr, file: File) -> bool:
    """Tell whether an `if` around it says that it is a parameter."""
    shown = ast.unparse(owner)
    return any(
        isinstance(parent, ast.If)
        and shown in ast.unparse(parent.test)
        and _PARAMETER.search(ast.unparse(parent.test))
        for parent, _ in file.tree.in_frame(node)
    )


def _has_own_flag(owner: ast.expr, file: File) -> bool:
    """Tell whether the object's class in this file has a `requires_grad` of its own."""
    classes = list(file.tree.of_type(ast.ClassDef))
    for cls in classes:
        if not file.modules.is_class(cls):
            continue
        own = "requires_grad" in file.modules.attributes(cls) or any(
            isinstance(one, FUNCTIONS) and one.name == "requires_grad" for one in cls.body
        )
        own = own or any(
            isinstance(one, (ast.Assign, ast.AnnAssign)) and "requires_grad" in ast.unparse(one)
            for one in cls.body
        )
        if own and _may_be(owner, cls, file):
            return True
    return False


def _may_be(owner: ast.expr, cls: ast.ClassDef, file: File) -> bool:
    """Tell whether the object may be one of the class; false only if it is shown to be another."""
    value = file.names.value(owner)
    if is_self(owner):
        home = file.tree.method_class(owner)
        values = file.modules.attributes(home).get(owner.attr, []) if home else []
        value = values[0] if len(values) == 1 else None
    if not isinstance(value, ast.Call):
        return True
    return file.names.full(value.func) is None and file.names.definition(value.func) in {None, cls}
