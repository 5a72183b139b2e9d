"""Which expressions are guards, and which guards a line runs under."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, NamedTuple

from gradguard._lint.tree import FUNCTIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gradguard._lint.names import Names
    from gradguard._lint.tree import Tree

_NAMES = frozenset({"no_grad", "enable_grad", "set_grad_enabled", "inference_mode"})
_OURS_FOR_BODIES = frozenset(
    {
        *(f"gradguard.{name}" for name in _NAMES),
        "gradguard.isolated",
        "gradguard.inference_method",
        "gradguard.inference_function",
    }
)


class Guard(NamedTuple):
    """A guard in the source.

    `records` is whether operations are recorded under it; None where the source does not say.
    """

    name: str
    torch: bool
    called: bool
    records: bool | None
    text: str

    @property
    def inference(self) -> bool:
        """Whether it turns inference mode on."""
        return self.name == "inference_mode" and self.records is False

    @property
    def off(self) -> bool:
        """Whether nothing is recorded under it."""
        return self.records is False


class Guards:
    """Finds the guards of one file."""

    def __init__(self, tree: Tree, names: Names) -> None:
        self._tree = tree
        self._names = names

    def guard(self, node: ast.AST | None) -> Guard | None:
        """Return the guard that the expression is: a call, a class, or a name that holds one."""
        if isinstance(node, ast.IfExp):
            return self.guard(node.body) or self.guard(node.orelse)
        if isinstance(node, ast.Name):
            value = self._names.value(node)
            if isinstance(value, ast.Call):
                return self.guard(value)
        call = node if isinstance(node, ast.Call) else None
        full = None if node is None else self._names.full(call.func if call else node)
        package, _, name = (full or "").rpartition(".")
        if name not in _NAMES or package not in {"torch", "gradguard"}:
            return None
        shown = ast.unparse(call.func if call else node)  # type: ignore[arg-type]
        text = f"{shown}({_arguments(call)})" if call else shown
        return Guard(name, package == "torch", call is not None, _records(name, call), text)

    def decorating(self, node: ast.AST) -> list[tuple[ast.expr, Guard]]:
        """Return the guards among the decorators of a function or class, outermost first."""
        decorators: list[ast.expr] = getattr(node, "decorator_list", [])
        found = [(one, self.guard(one)) for one in decorators]
        return [(one, guard) for one, guard in found if guard is not None]

    def around(self, node: ast.AST) -> Iterator[tuple[ast.AST, Guard]]:
        """Yield the blocks and decorators that guard the node in its frame, innermost first."""
        for parent, child in self._tree.in_frame(node):
            if isinstance(parent, (ast.With, ast.AsyncWith)) and child in parent.body:
                for item in reversed(parent.items):
                    guard = self.guard(item.context_expr)
                    if guard is not None:
                        yield item.context_expr, guard
            elif isinstance(parent, FUNCTIONS) and child in parent.body:
                yield from reversed(self.decorating(parent))

    def has_own_mode(self, function: ast.AST) -> bool:
        """Tell whether gradguard keeps the modes of this function's body apart from its caller's.

        Torch's guards as decorators do the same at the suspensions of a plain generator.
        """
        for decorator in getattr(function, "decorator_list", []):
            target = decorator.func if isinstance(decorator, ast.Call) else decorator
            if self._names.full(target) in _OURS_FOR_BODIES:
                return True
            if isinstance(function, ast.FunctionDef) and self.guard(decorator):
                return True
        return False


def _arguments(call: ast.Call) -> str:
    parts = [ast.unparse(one) for one in call.args]
    parts += [f"{one.arg}={ast.unparse(one.value)}" for one in call.keywords if one.arg]
    text = ", ".join(parts)
    return text if len(text) <= 40 else "..."  # noqa: PLR2004 (a line's worth)


def _records(name: str, call: ast.Call | None) -> bool | None:
    if name == "no_grad":
        return False
    if name == "enable_grad":
        return True
    mode = mode_argument(call) if call else None
    if mode is None:
        return False if name == "inference_mode" else None
    if not isinstance(mode, ast.Constant) or not isinstance(mode.value, bool):
        return None
    return mode.value if name == "set_grad_enabled" else not mode.value


def mode_argument(call: ast.Call) -> ast.expr | None:
    """Return the mode that is given to ``set_grad_enabled`` or ``inference_mode``."""
    if call.args:
        return call.args[0]
    return next((one.value for one in call.keywords if one.arg == "mode"), None)
