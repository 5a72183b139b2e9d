"""One pass over a file's tree: its nodes by type, their parents, and the names of each scope."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any

from gradguard._lint.scopes import COMPREHENSIONS, Function, Scope, bind, bind_parameters

if TYPE_CHECKING:
    from collections.abc import Iterator

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
LOOPS = (ast.For, ast.AsyncFor, ast.While)
_OPENING = (*FUNCTIONS, ast.Lambda, ast.ClassDef, *COMPREHENSIONS)
_FRAMES = (*FUNCTIONS, ast.Lambda, ast.ClassDef, ast.GeneratorExp)
_OUTSIDE = frozenset({"decorator_list", "returns", "bases", "keywords"})
_LEAVES = (ast.Constant, ast.expr_context, ast.operator, ast.unaryop, ast.cmpop, ast.boolop)
_FIELDS = {
    cls: tuple(name for name in cls._fields if name not in {"ctx", "op", "ops", "type_comment"})
    for cls in vars(ast).values()
    if isinstance(cls, type) and issubclass(cls, ast.AST) and not issubclass(cls, _LEAVES)
}
_LEAF_TYPES = frozenset(
    cls for cls in vars(ast).values() if isinstance(cls, type) and issubclass(cls, _LEAVES)
)


class Tree:
    """The nodes of one file."""

    def __init__(self, root: ast.Module) -> None:
        self.root = root
        self.by_type: dict[type[ast.AST], list[Any]] = {}
        self.parents: dict[ast.AST, ast.AST] = {}
        self.scopes: dict[ast.AST, Scope] = {}  # the scope that each node is evaluated in
        self.module = Scope(root, None)
        self._generators: dict[ast.AST, bool] = {}
        self._read()

    def of_type(self, *types: type[ast.AST]) -> Iterator[Any]:
        """Yield all nodes of the types, in the order of the source within each type."""
        for cls in types:
            yield from self.by_type.get(cls, ())

    def ancestors(self, node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
        """Yield each node around this one, and its child on the way, innermost first."""
        while node in self.parents:
            parent = self.parents[node]
            yield parent, node
            node = parent

    def in_frame(self, node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
        """Yield the ancestors that run in the same frame; the last opens that frame."""
        for parent, child in self.ancestors(node):
            yield parent, child
            if isinstance(parent, _FRAMES) and _runs_inside(parent, child):
                return

    def frame(self, node: ast.AST) -> ast.AST:
        """Return what opens the frame that the node runs in: a function, lambda, class, module."""
        last: ast.AST = self.root
        for last, _ in self.in_frame(node):  # noqa: B007 (the last one is meant)
            pass
        return last

    def function(self, node: ast.AST) -> Function | None:
        """Return the innermost `def` around the node."""
        for parent, child in self.ancestors(node):
            if isinstance(parent, FUNCTIONS) and _runs_inside(parent, child):
                return parent
        return None

    def class_of(self, function: ast.AST) -> ast.ClassDef | None:
        """Return the class whose body the function stands in, also under an `if` there."""
        for parent, _ in self.ancestors(function):
            if isinstance(parent, ast.ClassDef):
                return parent
            if not isinstance(parent, (ast.If, ast.Try)):
                return None
        return None

    def method_class(self, node: ast.AST) -> ast.ClassDef | None:
        """Return the class of the method that the node stands in, nested functions included."""
        for parent, child in self.ancestors(node):
            if isinstance(parent, FUNCTIONS) and _runs_inside(parent, child):
                cls = self.class_of(parent)
                if cls is not None:
                    return cls
        return None

    def own(self, node: ast.AST) -> Iterator[ast.AST]:
        """Yield what runs in the frame of a function or statement, nested functions left out."""
        stack = list(reversed(_body(node)))
        while stack:
            each = stack.pop()
            yield each
            if isinstance(each, (*FUNCTIONS, ast.Lambda, ast.ClassDef)):
                continue
            stack.extend(reversed(list(ast.iter_child_nodes(each))))

    def is_generator(self, function: ast.AST) -> bool:
        """Tell whether calling the function makes a generator."""
        if function not in self._generators:
            yields = (isinstance(each, (ast.Yield, ast.YieldFrom)) for each in self.own(function))
            self._generators[function] = any(yields)
        return self._generators[function]

    def _read(self) -> None:
        stack: list[tuple[ast.AST, Scope]] = [(self.root, self.module)]
        by_type, parents, scopes = self.by_type, self.parents, self.scopes
        while stack:
            node, scope = stack.pop()
            cls = node.__class__
            scopes[node] = scope
            by_type.setdefault(cls, []).append(node)
            bind(node, scope, parents)
            inner = Scope(node, scope) if cls in _OPENING else scope
            if inner is not scope:
                bind_parameters(node, inner)
            children: list[tuple[ast.AST, Scope]] = []
            for field in _FIELDS[cls]:
                value = getattr(node, field, None)
                where = scope if field in _OUTSIDE and inner is not scope else inner
                many: Any = value if value.__class__ is list else (value,)
                for child in many:
                    if child is None or child.__class__ not in _FIELDS:
                        continue
                    parents[child] = node
                    children.append((child, where))
            children.reverse()
            stack += children


def _runs_inside(frame: ast.AST, child: ast.AST) -> bool:
    """Tell whether the child runs in the frame that the node opens; a decorator does not."""
    body: Any = getattr(frame, "body", None)
    if isinstance(frame, ast.GeneratorExp):
        return True
    return child in body if isinstance(body, list) else child is body


def _body(node: ast.AST) -> list[ast.AST]:
    if isinstance(node, (*FUNCTIONS, ast.ClassDef, ast.With, ast.AsyncWith)):
        return list(node.body)
    if isinstance(node, ast.Lambda):
        return [node.body]
    return list(ast.iter_child_nodes(node))
