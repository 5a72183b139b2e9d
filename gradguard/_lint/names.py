"""What a name in a file stands for: imports, aliases and definitions, followed through scopes."""

from __future__ import annotations

import ast
import builtins
from typing import TYPE_CHECKING

from gradguard._lint.torch_layers import LAYERS
from gradguard._lint.tree import FUNCTIONS

if TYPE_CHECKING:
    from gradguard._lint.scopes import Binding, Function
    from gradguard._lint.tree import Tree

_DEEPEST = 20  # of a chain of aliases, which may go in a circle
_GUARDS = ("no_grad", "enable_grad", "set_grad_enabled", "inference_mode")
# Where else torch exports the same objects.
_SAME = {
    "torch.autograd.grad_mode": "torch",
    "torch._C._set_grad_enabled": "torch.set_grad_enabled",
    "torch.autograd._set_grad_enabled": "torch.set_grad_enabled",
    "torch.nn.modules.module.Module": "torch.nn.Module",
    "torch.nn.parameter.Parameter": "torch.nn.Parameter",
    "torch.autograd.variable.Variable": "torch.autograd.Variable",
    **{f"torch.autograd.{name}": f"torch.{name}" for name in _GUARDS},
    **{f"torch.autograd.grad_mode.{name}": f"torch.{name}" for name in _GUARDS},
}
_STARS = {
    "torch": frozenset({*_GUARDS, "nn", "autograd", "Tensor", "tensor"}),
    "torch.nn": frozenset({"Module", "Parameter", "functional", *LAYERS}),
    "torch.autograd": frozenset({"Variable", "Function", *_GUARDS}),
    "gradguard": frozenset(_GUARDS),
}


class Names:
    """Resolves the expressions of one file."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._full: dict[ast.AST, str | None] = {}

    def full(self, node: ast.AST) -> str | None:
        """Return the full name of what is imported: ``torch.no_grad``; None for all else."""
        if node not in self._full:
            self._full[node] = self._resolve(node, _DEEPEST)
        return self._full[node]

    def bindings(self, node: ast.Name) -> list[Binding]:
        """Return the places that bind this name."""
        return self._tree.scopes[node].lookup(node.id)

    def value(self, node: ast.AST) -> ast.expr | None:
        """Return the one value that a name has in this file; None if it is rebound or unknown."""
        if not isinstance(node, ast.Name):
            return None
        bindings = [one for one in self.bindings(node) if not _is_none(one)]
        return bindings[0].value if len(bindings) == 1 else None

    def definition(self, node: ast.AST) -> Function | ast.ClassDef | None:
        """Return the `def` or `class` of this file that a name stands for."""
        for _ in range(_DEEPEST):
            if not isinstance(node, ast.Name):
                return None
            bindings = self.bindings(node)
            if len(bindings) != 1:
                return None
            found = bindings[0].node
            if isinstance(found, (*FUNCTIONS, ast.ClassDef)):
                return found
            if bindings[0].value is None:
                return None
            node = bindings[0].value
        return None

    def is_builtin(self, node: ast.AST, *names: str) -> bool:
        """Tell whether the expression is one of these builtins, which nothing here rebinds."""
        return isinstance(node, ast.Name) and node.id in names and not self.bindings(node)

    def _resolve(self, node: ast.AST, depth: int) -> str | None:
        attributes: list[str] = []
        while isinstance(node, ast.Attribute):
            attributes.append(node.attr)
            node = node.value
        base = self._name(node, depth) if isinstance(node, ast.Name) and depth else None
        if base is None:
            return None
        full = base
        for attribute in reversed(attributes):
            full = _SAME.get(f"{full}.{attribute}", f"{full}.{attribute}")
        return _SAME.get(full, full)

    def _name(self, node: ast.Name, depth: int) -> str | None:
        bindings = [one for one in self.bindings(node) if not _is_none(one)]
        if not bindings:
            return self._from_star(node.id)
        if len(bindings) > 1 and any(one.imported is None for one in bindings):
            return None  # it is rebound: what it stands for depends on when
        found = {self._bound(one, depth) for one in bindings}
        return found.pop() if len(found) == 1 else None

    def _bound(self, binding: Binding, depth: int) -> str | None:
        if binding.imported is not None:
            return binding.imported
        if isinstance(binding.value, (ast.Name, ast.Attribute)):
            return self._resolve(binding.value, depth - 1)
        return None

    def _from_star(self, name: str) -> str | None:
        if hasattr(builtins, name):
            return None
        for star in self._tree.module.stars:
            if name in _STARS.get(star, ()):
                return f"{star}.{name}"
        return None


def _is_none(binding: Binding) -> bool:
    """Tell whether this is the ``torch = None`` of an optional import."""
    return isinstance(binding.value, ast.Constant) and binding.value.value is None
