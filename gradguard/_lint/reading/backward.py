"""What is differentiated in a function, and where that was computed."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

from gradguard._lint.tree import FUNCTIONS, LOOPS

if TYPE_CHECKING:
    from gradguard._lint.reading.accumulation import Accumulation
    from gradguard._lint.rule import File

_TAKES_LOSS = re.compile(r"(^|\.)(backward|manual_backward)$")
_DETACHES = re.compile(
    r"\.(item|detach|detach_|tolist|numpy|data)\b|^float\(|\bfloat\(|\bint\(|no_grad|\bitem\("
)


def differentiated(node: ast.Call, *, whole: bool = True) -> ast.Name | None:
    """Return the name whose graph a call differentiates.

    ``loss.backward()``, ``(loss / n).backward()``, ``scaler.scale(loss).backward()``,
    ``accelerator.backward(loss)``.
    """
    func = node.func
    if not isinstance(func, ast.Attribute) or not _TAKES_LOSS.search(func.attr):
        return None
    if node.args and _is_framework(func.value, node.args[0]):
        return _loss_name(node.args[0], whole=whole)
    if node.args:  # the gradient of an output that is no loss: outputs are kept on purpose
        return None
    return _loss_name(func.value, whole=whole)


def _is_framework(owner: ast.expr, argument: ast.expr) -> bool:
    """Tell whether the loss is the argument: not in ``loss.backward(gradient)``."""
    shown = ast.unparse(owner).lower()
    if "loss" in ast.unparse(argument).lower() and "loss" not in shown:
        return True
    return bool(
        re.search(r"accelerator|fabric|engine|^self$|strategy|trainer|booster|amp|optimizer", shown)
    )


def _loss_name(node: ast.expr, *, whole: bool = True) -> ast.Name | None:
    """Return the loss in what is differentiated: scaled, divided, or by a scaler.

    `whole` is whether the mean or sum of a name counts; an input may be summed, too.
    """
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Div, ast.Mult)):
        left, right = _loss_name(node.left, whole=whole), _loss_name(node.right, whole=whole)
        if left is not None and right is not None and isinstance(node.op, ast.Mult):
            return left if "loss" in left.id.lower() else right
        return left or (right if isinstance(node.op, ast.Mult) else None)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if node.func.attr == "scale" and node.args:
            return _loss_name(node.args[0], whole=whole)
        if whole and node.func.attr in {"mean", "sum"} and not node.args:
            return _loss_name(node.func.value)
    return node if isinstance(node, ast.Name) else None


class Backwards:
    """The backwards of one function, and the assignments that their losses come from."""

    def __init__(self, function: ast.AST, file: File) -> None:
        self._file = file
        self._function = function
        self._own = list(file.tree.own(function))
        self._calls: list[tuple[ast.Call, ast.Name]] = []
        for each in self._own:
            if isinstance(each, ast.Call):
                loss = differentiated(each)
                if loss is not None:
                    self._calls.append((each, loss))
        self.names = {loss.id for _, loss in self._calls}

    def keeps_graph(self, one: Accumulation) -> bool:
        """Tell whether the accumulation keeps the graphs of a loss that is differentiated."""
        if one.loss.id not in self.names:
            return False
        return self.accumulates(one) and any(
            self._loops(call) & self._loops(one.node) and self._share_source(loss, one.loss)
            for call, loss in self._calls
            if loss.id == one.loss.id
        )

    def accumulates(self, one: Accumulation) -> bool:
        """Tell whether what is added stays over the steps, with what it refers to."""
        guards = (guard for _, guard in self._file.guards.around(one.node))
        if any(guard.off for guard in guards) or self._is_differentiated(one.total):
            return False
        return not self._is_reset(one)

    def differentiates(self, name: ast.Name) -> bool:
        """Tell whether the value that the name has here, with its graph, is differentiated."""
        losses = (loss for _, loss in self._calls if loss.id == name.id)
        return any(self._share_source(loss, name) for loss in losses)

    def sources(self, name: ast.Name) -> list[ast.AST]:
        """Return the assignments that the value comes from; none if its graph was cut."""
        return list(self._sources(name) or ())

    def _share_source(self, one: ast.Name, other: ast.Name) -> bool:
        return bool((self._sources(one) or set()) & (self._sources(other) or set()))

    def _is_differentiated(self, total: str) -> bool:
        """Tell whether what is accumulated is itself differentiated, or goes into what is."""
        wanted = {total}
        for _ in range(3):  # a sum of a stack of a list
            for each in self._own:
                if isinstance(each, ast.Assign) and _reads(each.value, wanted):
                    wanted |= {ast.unparse(one) for one in each.targets}
        if any(_reads(call, wanted - {loss.id}) for call, loss in self._calls):
            return True
        return bool((wanted - {total}) & self.names) or total in self.names

    def _is_reset(self, one: Accumulation) -> bool:
        """Tell whether each step begins with a new total."""
        loops = [
            parent for parent, _ in self._file.tree.in_frame(one.node) if isinstance(parent, LOOPS)
        ]
        if not loops:
            return True
        stepping = (loop for loop in loops if self._steps_in(loop))
        loop = next(stepping, loops[0])
        return any(
            _resets(each, one)
            for statement in loop.body
            for each in (statement, *_unconditional(statement))
        )

    def _steps_in(self, loop: ast.AST) -> bool:
        return any(
            isinstance(each, ast.Call)
            and isinstance(each.func, ast.Attribute)
            and each.func.attr in {"step", "train_step", "optimizer_step"}
            and "sched" not in ast.unparse(each.func).lower()
            for each in self._file.tree.own(loop)
        )

    def _loops(self, node: ast.AST) -> set[ast.AST]:
        return {parent for parent, _ in self._file.tree.in_frame(node) if isinstance(parent, LOOPS)}

    def _sources(self, name: ast.Name) -> set[ast.AST] | None:
        """Return the assignments that the value comes from; None if its graph was cut."""
        found: set[ast.AST] = set()
        before = (name.lineno, name.col_offset)
        assigned = [
            one
            for one in self._own
            if isinstance(one, (ast.Assign, ast.AnnAssign)) and _assigns(one, name.id)
        ]
        for one in sorted(assigned, key=lambda each: each.lineno, reverse=True):
            if (one.lineno, one.col_offset) >= before or one.value is None:
                continue
            if self._excluded(one, name):
                continue
            found.add(one)
            if _DETACHES.search(ast.unparse(one.value)) and _is_cut(one.value, name.id):
                return None
            if not _reads(one.value, {name.id}):
                break
        return found

    def _excluded(self, assignment: ast.AST, name: ast.Name) -> bool:
        """Tell whether the assignment is in the other branch of an `if`."""
        branches = {
            parent: child
            for parent, child in self._file.tree.in_frame(name)
            if isinstance(parent, ast.If)
        }
        return any(
            parent in branches and (child in parent.body) != (branches[parent] in parent.body)
            for parent, child in self._file.tree.in_frame(assignment)
            if isinstance(parent, ast.If)
        )


def _assigns(node: ast.Assign | ast.AnnAssign, name: str) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return any(
        isinstance(each, ast.Name) and each.id == name and isinstance(each.ctx, ast.Store)
        for one in targets
        for each in ast.walk(one)
    )


def _is_cut(value: ast.expr, name: str) -> bool:
    """Tell whether the value is taken out of its graph as a whole, not one of its parts."""
    while isinstance(value, ast.BinOp):
        value = value.left
    if isinstance(value, ast.Attribute):
        return value.attr == "data"
    if not isinstance(value, ast.Call):
        return isinstance(value, (ast.ListComp, ast.List))
    shown = ast.unparse(value.func)
    del name
    return bool(
        shown in {"float", "int"}
        or shown.endswith((".item", ".detach", ".numpy", ".tolist"))
        or ".detach()" in shown
    )


def _reads(node: ast.AST, names: set[str]) -> bool:
    for each in ast.walk(node):
        if isinstance(each, ast.Name) and each.id in names:
            return True
        if isinstance(each, (ast.Attribute, ast.Subscript)) and ast.unparse(each) in names:
            return True
    return False


def _unconditional(statement: ast.AST) -> list[ast.AST]:
    """Return what a statement of a loop always runs: the body of a `with` or `try`."""
    if isinstance(statement, (ast.With, ast.Try, *FUNCTIONS)):
        return [] if isinstance(statement, FUNCTIONS) else list(statement.body)
    return []


def _resets(node: ast.AST, one: Accumulation) -> bool:
    if isinstance(node, (ast.Assign, ast.AnnAssign)) and node is not one.node:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        flat = [each for target in targets for each in ast.walk(target)]
        value_reads = node.value is not None and _reads(node.value, {one.total})
        return not value_reads and any(
            isinstance(each, (ast.Name, ast.Attribute)) and ast.unparse(each) == one.total
            for each in flat
        )
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        shown = ast.unparse(node.value.func)
        return shown in {f"{one.total}.clear", f"{one.total}.reset", f"{one.total}.pop"}
    return isinstance(node, ast.Delete) and one.total in ast.unparse(node)
