"""Functions after which nothing runs in their thread: a script's main, a process's or thread's."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

from gradguard._lint.tree import LOOPS

if TYPE_CHECKING:
    from gradguard._lint.rule import File
    from gradguard._lint.scopes import Function

_MAIN = re.compile(r"^_?(main|run_main|cli|main_worker|main_process|entry_?point)$")
_STARTS = re.compile(r"(^|\.)(Process|Thread|Timer|spawn|start_processes|run_in_executor|submit)$")
_CLI = re.compile(r"command|hydra|typer|click|app\.|fire|record$")
_RUNNERS = re.compile(r"(Process|Thread)$")


def is_entry_point(function: Function, file: File) -> bool:
    """Tell whether the function is where a script, process or thread begins."""
    cls = file.tree.class_of(function)
    if cls is not None:
        starts = function.name == "run" and any(
            _RUNNERS.search(ast.unparse(base)) for base in cls.bases
        )
        return starts or _is_target(function.name, file)
    if file.tree.function(function) is not None:
        return _is_target(function.name, file)
    decorated = any(_CLI.search(ast.unparse(one)) for one in function.decorator_list)
    return (
        bool(_MAIN.match(function.name))
        or decorated
        or _is_called_by_script(function, file)
        or _is_target(function.name, file)
    )


def _is_called_by_script(function: Function, file: File) -> bool:
    """Tell whether the module calls it itself, as the last thing that it does as a script."""
    for call in file.tree.of_type(ast.Call):
        if not isinstance(call.func, ast.Name) or call.func.id != function.name:
            continue
        if file.tree.function(call) is None and _is_last(call, file):
            return True
    return False


def _is_last(call: ast.Call, file: File) -> bool:
    """Tell whether nothing of the module runs after the call; in a loop, whether nothing trains."""
    for parent, child in file.tree.ancestors(call):
        if isinstance(parent, LOOPS) and file.differentiates:
            return False
        body = getattr(parent, "body", None)
        if isinstance(body, list) and child in body and child is not body[-1]:
            return False
    return True


def _is_target(name: str, file: File) -> bool:
    """Tell whether a process or thread is started with it."""
    for call in file.tree.of_type(ast.Call):
        if not _STARTS.search(ast.unparse(call.func)) and not any(
            one.arg == "target" for one in call.keywords
        ):
            continue
        given = [*call.args, *(one.value for one in call.keywords)]
        for one in given:
            last = one.attr if isinstance(one, ast.Attribute) else getattr(one, "id", None)
            if last == name:
                return True
    return False
