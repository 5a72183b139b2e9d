"""Guards around a suspension: whoever runs meanwhile runs in the guard's mode."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

from gradguard._lint.rule import File, Problem, Rule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gradguard._lint.guards import Guard
    from gradguard._lint.scopes import Function

_MANAGED = re.compile(
    r"context|manager|fixture|lifespan|hook|depend|resource|scope|provider|isolated", re.IGNORECASE
)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp)


class _Suspension(Rule):
    """What the rules of `await` and `yield` have in common: one finding for each guard."""

    on = (ast.With,)

    def check(self, node: ast.With, file: File) -> Iterator[Problem]:
        """Find the first suspension under the guards of a block."""
        function = file.tree.function(node)
        if function is None or file.tree.frame(node) is not function:
            return
        guards = [file.guards.guard(item.context_expr) for item in node.items]
        guard = next((one for one in reversed(guards) if one is not None), None)
        if guard is None or self._is_meant(function, file):
            return
        for each in file.tree.own(node):
            if self._suspends(each, file) and _innermost(each, file) is node:
                if _usual_again(each, file):
                    continue
                yield self._problem(each, function, guard)
                return

    def _is_meant(self, function: Function, file: File) -> bool:
        return file.guards.has_own_mode(function)

    def _suspends(self, node: ast.AST, file: File) -> bool:
        raise NotImplementedError

    def _problem(self, node: ast.AST, function: Function, guard: Guard) -> Problem:
        raise NotImplementedError


def _innermost(node: ast.AST, file: File) -> ast.AST | None:
    """Return the innermost block in the node's frame that has a guard."""
    for parent, child in file.tree.in_frame(node):
        items = parent.items if isinstance(parent, ast.With) and child in parent.body else ()
        if any(file.guards.guard(item.context_expr) for item in items):
            return parent
    return None


def _usual_again(node: ast.AST, file: File) -> bool:
    """Tell whether the innermost guard brings back the usual mode inside of another guard."""
    around = [guard for _, guard in file.guards.around(node)]
    return len(around) > 1 and around[0].records is True and around[1].records is False


_WORDS = {"Await": "await", "AsyncWith": "async with"}


class AwaitInGuard(_Suspension):
    """A suspension of a coroutine inside a guard."""

    code = "GG102"
    why = (
        "`await` inside a `with` guard: other tasks run in its mode meanwhile.\n"
        "The mode belongs to the thread, and all tasks of an event loop share it. While this task "
        "waits, the others run in the mode of its guard; when two such blocks overlap, the thread "
        "can stay in that mode for good."
    )
    bad = """
import asyncio
import torch

async def predict(started):
    with torch.no_grad():
        started.set()
        await asyncio.sleep(0)

async def main():
    started = asyncio.Event()
    task = asyncio.create_task(predict(started))
    await started.wait()
    assert not torch.is_grad_enabled()  # in another task
    await task

asyncio.run(main())
"""
    good = """
import asyncio
import gradguard
import torch

@gradguard.no_grad()
async def predict(started):
    started.set()
    await asyncio.sleep(0)

async def main():
    started = asyncio.Event()
    task = asyncio.create_task(predict(started))
    await started.wait()
    assert torch.is_grad_enabled()
    await task

asyncio.run(main())
"""

    def _is_meant(self, function: Function, file: File) -> bool:
        isolated = any(
            file.names.full(call.func) == "gradguard.isolate_tasks"
            for call in file.tree.of_type(ast.Call)
        )
        return isolated or super()._is_meant(function, file)

    def _suspends(self, node: ast.AST, file: File) -> bool:
        if isinstance(node, (ast.Await, ast.AsyncFor, ast.AsyncWith)):
            return not isinstance(file.tree.frame(node), ast.GeneratorExp)
        return isinstance(node, _COMPREHENSIONS) and any(one.is_async for one in node.generators)

    def _problem(self, node: ast.AST, function: Function, guard: Guard) -> Problem:
        shown = _WORDS.get(type(node).__name__, "async for")
        return Problem(
            node,
            f"`{shown}` inside `with {guard.text}:` in `{function.name}`: other tasks run in its "
            "mode until this one goes on. Close the block before it, or decorate the function "
            f"with `@gradguard.{_as_decorator(guard)}`.",
        )


class YieldInGuard(_Suspension):
    """A `yield` inside a guard."""

    code = "GG103"
    why = (
        "`yield` inside a `with` guard: the consumer runs in its mode.\n"
        "A `with` block stays open while its generator is suspended, so the loop that consumes it "
        "runs in the guard's mode until it ends or the generator is closed. In an async generator "
        "all other tasks of the event loop run in it, too."
    )
    bad = """
import torch

def stream(batches):
    with torch.no_grad():
        for batch in batches:
            yield batch

for _ in stream([1]):
    assert not torch.is_grad_enabled()  # in the consumer
"""
    good = """
import torch

@torch.no_grad()
def stream(batches):
    for batch in batches:
        yield batch

for _ in stream([1]):
    assert torch.is_grad_enabled()
"""

    def _is_meant(self, function: Function, file: File) -> bool:
        shown = [ast.unparse(one) for one in function.decorator_list]
        if any(_MANAGED.search(one) for one in shown):
            return True
        if function.name in {"__enter__", "__aenter__", "__iter__"} and shown:
            return True
        return _is_made_manager(function, file) or super()._is_meant(function, file)

    def _suspends(self, node: ast.AST, file: File) -> bool:  # noqa: ARG002 (as the other has it)
        return isinstance(node, (ast.Yield, ast.YieldFrom))

    def _problem(self, node: ast.AST, function: Function, guard: Guard) -> Problem:
        everywhere = isinstance(function, ast.AsyncFunctionDef)
        who = "its consumer and every other task run" if everywhere else "its consumer runs"
        package = "torch" if guard.torch and not everywhere else "gradguard"
        return Problem(
            node,
            f"`yield` inside `with {guard.text}:` in `{function.name}`: {who} in that mode until "
            f"the generator goes on. Decorate it with `@{package}.{_as_decorator(guard)}` instead.",
            "fault" if everywhere else "notice",
        )


def _is_made_manager(function: Function, file: File) -> bool:
    """Tell whether the generator is given to `contextmanager(...)`, `Depends(...)` or the like."""
    for call in file.tree.of_type(ast.Call):
        given = [*call.args, *(one.value for one in call.keywords)]
        if any(file.names.definition(one) is function for one in given) and _MANAGED.search(
            ast.unparse(call.func)
        ):
            return True
    return False


def _as_decorator(guard: Guard) -> str:
    return f"{guard.name}{guard.text[guard.text.index('(') :] if guard.called else '()'}"
