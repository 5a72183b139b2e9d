"""Guards that are entered by hand."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

from gradguard._lint.rule import File, Problem, Rule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gradguard._lint.scopes import Function

_MANAGERS = re.compile(
    r"^__a?exit__$|close|stop|exit|__del__|shutdown|end|finish|tear", re.IGNORECASE
)


class ManualEnter(Rule):
    """A guard is entered by hand."""

    code = "GG109"
    on = (ast.Call,)
    default = False
    why = (
        "`guard.__enter__()` without an `__exit__` on every path.\n"
        "If a line between raises, the mode stays switched for the whole thread. "
        "`contextlib.ExitStack` enters a guard that is to end later."
    )
    bad = """
import torch

def predict(x):
    guard = torch.no_grad()
    guard.__enter__()
    result = 1 / x
    guard.__exit__(None, None, None)
    return result

try:
    predict(0)
except ZeroDivisionError:
    assert not torch.is_grad_enabled()  # in the caller
"""
    good = """
import torch

def predict(x):
    with torch.no_grad():
        return 1 / x

try:
    predict(0)
except ZeroDivisionError:
    assert torch.is_grad_enabled()
"""

    def check(self, node: ast.Call, file: File) -> Iterator[Problem]:
        """Look at ``__enter__`` of what is shown to be a guard."""
        func = node.func
        if not isinstance(func, ast.Attribute) or func.attr != "__enter__":
            return
        function = file.tree.function(node)
        guard = file.guards.guard(func.value) or _attribute_guard(func.value, file)
        if guard is None or (function is not None and _MANAGERS.search(function.name)):
            return
        if not _exited(func.value, function, file):
            yield Problem(
                node,
                f"`{ast.unparse(node)}` enters `{guard}` and no `finally` exits it: after an "
                f"exception the mode stays switched. Write `with {guard}:`, or enter it by "
                "`contextlib.ExitStack().enter_context(...)`.",
            )


def _attribute_guard(node: ast.AST, file: File) -> str | None:
    cls = file.tree.method_class(node)
    if cls is None or not isinstance(node, ast.Attribute):
        return None
    values = file.modules.attributes(cls).get(node.attr, [])
    return next((guard.text for one in values if (guard := file.guards.guard(one))), None)


def _exited(guard: ast.expr, function: Function | None, file: File) -> bool:
    """Tell whether a `finally`, or another method of the class, exits the guard."""
    shown = f"{ast.unparse(guard)}.__exit__"
    exits = [one for one in file.tree.of_type(ast.Attribute) if ast.unparse(one) == shown]
    for one in exits:
        other = file.tree.function(one)
        if other is not function:
            return True
        if any(
            isinstance(parent, ast.Try) and child in parent.finalbody
            for parent, child in file.tree.in_frame(one)
        ):
            return True
    return False
