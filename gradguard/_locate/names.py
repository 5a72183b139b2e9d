"""What a name or an expression stands for, found without running any of the user's code.

Names are looked up in the frame's own dictionaries and attributes with `inspect.getattr_static`:
no call, property, ``__getattr__`` or ``__eq__`` of the user runs.
"""

import ast
import inspect
from collections.abc import Mapping
from contextlib import suppress
from types import FrameType, FunctionType
from typing import Any

UNKNOWN = object()
_PLAIN = (bool, int, float, str, type(None))


class Names:
    """The names that a line can see: those of `maps`, the first that has one wins.

    A mapping of another kind (a class body runs in what its metaclass's ``__prepare__`` returned)
    is not looked into: that would run its code.
    """

    def __init__(self, *maps: Mapping[str, Any]) -> None:
        self.maps = [names for names in maps if _is_builtin_mapping(names)]

    @classmethod
    def of_frame(cls, frame: FrameType) -> "Names":
        """Take the names a running function sees; its f_locals include those of its closure."""
        return cls(frame.f_locals, frame.f_globals, frame.f_builtins)

    @classmethod
    def of_function(cls, function: FunctionType) -> "Names":
        """Take the names that a function's decorators, and its body, see from outside."""
        return cls(_closure(function), function.__globals__)

    def value(self, node: ast.expr) -> Any:
        """Return what a name or dotted name stands for, else UNKNOWN."""
        attributes: list[str] = []
        while isinstance(node, ast.Attribute):
            attributes.append(node.attr)
            node = node.value
        found = self.named(node.id) if isinstance(node, ast.Name) else UNKNOWN
        for attribute in reversed(attributes):
            found = inspect.getattr_static(found, attribute, UNKNOWN)
        return found

    def named(self, name: str) -> Any:
        """Return what a plain name stands for, else UNKNOWN."""
        for names in self.maps:
            if name in names:
                return names[name]
        return UNKNOWN

    def plain(self, node: ast.expr) -> Any:
        """Return the bool, number, str or None that an expression is, else UNKNOWN.

        Comparisons and ``not`` count too: ``with torch.set_grad_enabled(phase == "train")`` is
        what torch's tutorials teach. Only plain built-in values are compared: that runs no code
        but Python's own.
        """
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return _not(self.plain(node.operand))
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            sides = self.plain(node.left), self.plain(node.comparators[0])
            return _compared(node.ops[0], *sides)
        found = node.value if isinstance(node, ast.Constant) else self.value(node)
        return found if type(found) in _PLAIN else UNKNOWN


def _not(value: Any) -> Any:
    return value if value is UNKNOWN else not value


def _compared(operator: ast.cmpop, left: Any, right: Any) -> Any:
    if left is UNKNOWN or right is UNKNOWN or not isinstance(operator, ast.Eq | ast.NotEq):
        return UNKNOWN
    return (left == right) is isinstance(operator, ast.Eq)


def _is_builtin_mapping(names: Mapping[str, Any]) -> bool:
    return type(names) is dict or type(names).__name__ == "FrameLocalsProxy"  # from 3.13 on


def _closure(function: FunctionType) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # an empty cell: the enclosing function has not assigned it yet
            found[name] = cell.cell_contents
    return found
