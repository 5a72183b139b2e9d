"""The names that each scope of a file binds, and where."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

Function: TypeAlias = "ast.FunctionDef | ast.AsyncFunctionDef"
Parents: TypeAlias = "dict[ast.AST, ast.AST]"
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


class Binding(NamedTuple):
    """One place that binds a name: an import's full name, an assigned value, a definition."""

    node: ast.AST
    imported: str | None = None
    value: ast.expr | None = None


class Scope:
    """The names that a module, class, function, lambda or comprehension binds."""

    __slots__ = ("bindings", "elsewhere", "node", "parent", "stars")

    def __init__(self, node: ast.AST, parent: Scope | None) -> None:
        self.node = node
        self.parent = parent
        self.bindings: dict[str, list[Binding]] = {}
        self.elsewhere: set[str] = set()  # names that are `global` or `nonlocal`
        self.stars: list[str] = []  # modules of which all names are imported

    def bind(self, name: str, binding: Binding) -> None:
        """Add a place that binds the name, in the scope that the name belongs to."""
        scope: Scope = self
        if isinstance(binding.node, ast.NamedExpr):  # binds outside of the comprehension it is in
            while isinstance(scope.node, COMPREHENSIONS) and scope.parent is not None:
                scope = scope.parent
        if name in scope.elsewhere and scope.parent is not None:
            scope = scope.parent
        scope.bindings.setdefault(name, []).append(binding)

    def root(self) -> Scope:
        """Return the scope of the module."""
        scope = self
        while scope.parent is not None:
            scope = scope.parent
        return scope

    def lookup(self, name: str) -> list[Binding]:
        """Return the places that bind the name as it is seen from here; none if it is unknown."""
        scope: Scope | None = self
        while scope is not None:
            visible = scope is self or not isinstance(scope.node, ast.ClassDef)
            if visible and name in scope.bindings:
                return scope.bindings[name]
            scope = scope.parent
        return []


def bind(node: ast.AST, scope: Scope, parents: Parents) -> None:
    """Add the names that the node binds to its scope."""
    binder = _BINDERS.get(node.__class__)
    if binder is not None:
        binder(node, scope, parents)


def bind_parameters(node: ast.AST, scope: Scope) -> None:
    """Bind the parameters of a function or lambda."""
    arguments = getattr(node, "args", None)
    if isinstance(arguments, ast.arguments):
        for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
            scope.bind(one.arg, Binding(one))
        for rest in (arguments.vararg, arguments.kwarg):
            if rest is not None:
                scope.bind(rest.arg, Binding(rest))


def _bind_name(node: ast.Name, scope: Scope, parents: Parents) -> None:
    if node.ctx.__class__ is not ast.Load:
        parent = parents[node]
        value = None
        if isinstance(parent, ast.Assign) and node in parent.targets:
            value = parent.value
        elif isinstance(parent, (ast.AnnAssign, ast.NamedExpr)) and parent.target is node:
            if parent.value is None:  # a declaration
                return
            value = parent.value
        scope.bind(node.id, Binding(parent, value=value))


def _bind_import(node: ast.Import, scope: Scope, _: Parents) -> None:
    for alias in node.names:
        name = alias.asname or alias.name.partition(".")[0]
        full = alias.name if alias.asname else name
        scope.bind(name, Binding(node, imported=full))


def _bind_import_from(node: ast.ImportFrom, scope: Scope, _: Parents) -> None:
    module = "." * node.level + (node.module or "")
    for alias in node.names:
        if alias.name == "*":
            scope.root().stars.append(module)
        else:
            dot = "" if module.endswith(".") or not module else "."
            full = f"{module}{dot}{alias.name}"
            scope.bind(alias.asname or alias.name, Binding(node, imported=full))


def _bind_definition(node: Function | ast.ClassDef, scope: Scope, _: Parents) -> None:
    scope.bind(node.name, Binding(node))


def _bind_text(node: ast.AST, scope: Scope, _: Parents) -> None:
    name: str | None = getattr(node, "rest" if isinstance(node, ast.MatchMapping) else "name")
    if name is not None:
        scope.bind(name, Binding(node))


def _declare(node: ast.Global | ast.Nonlocal, scope: Scope, _: Parents) -> None:
    for name in node.names:
        scope.elsewhere.add(name)
        # A name that a function may rebind is not known in the module either.
        scope.root().bind(name, Binding(node))


_BINDERS: dict[type[ast.AST], Callable[[Any, Scope, Parents], None]] = {
    ast.Name: _bind_name,
    ast.Import: _bind_import,
    ast.ImportFrom: _bind_import_from,
    ast.FunctionDef: _bind_definition,
    ast.AsyncFunctionDef: _bind_definition,
    ast.ClassDef: _bind_definition,
    ast.ExceptHandler: _bind_text,
    ast.MatchAs: _bind_text,
    ast.MatchStar: _bind_text,
    ast.MatchMapping: _bind_text,
    ast.Global: _declare,
    ast.Nonlocal: _declare,
}
