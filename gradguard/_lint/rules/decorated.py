"""Guards as decorators: on `async def`, on what returns lazily, on a class, in the wrong order."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

from gradguard._lint.rule import File, Problem, Rule
from gradguard._lint.tree import FUNCTIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gradguard._lint.scopes import Function

# Decorators that make a plain function of an `async def`: what stands above them is right.
_MAKES_SYNC = re.compile(r"(?<!a)sync(?!io)|coro|block|\brun|click", re.IGNORECASE)


class GuardOnAsync(Rule):
    """A torch guard decorates `async def`."""

    code = "GG101"
    on = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Call)
    why = (
        "A torch guard that decorates `async def` has no effect.\n"
        "Calling such a function only makes a coroutine (or an async generator). torch's wrapper "
        "ends its guard as soon as that call returns; the body runs later, when it is awaited, and "
        "records a graph. `inspect.iscoroutinefunction` turns False, too."
    )
    bad = """
import asyncio
import torch

@torch.no_grad()
async def predict():
    return torch.is_grad_enabled()

assert asyncio.run(predict())  # grad mode is on
"""
    good = """
import asyncio
import gradguard
import torch

@gradguard.no_grad()
async def predict():
    return torch.is_grad_enabled()

assert not asyncio.run(predict())
"""

    def check(self, node: ast.AST, file: File) -> Iterator[Problem]:
        """Look at the decorators, and at ``torch.no_grad()(function)``."""
        if isinstance(node, ast.Call):
            yield from self._applied(node, file)
        elif isinstance(node, ast.AsyncFunctionDef):
            below: list[ast.expr] = []
            for decorator in reversed(node.decorator_list):
                guard = file.guards.guard(decorator)
                if guard and guard.torch and not any(_makes_sync(one) for one in below):
                    yield Problem(decorator, _no_effect(node, guard.text, guard.name, file))
                below.append(decorator)

    def _applied(self, node: ast.Call, file: File) -> Iterator[Problem]:
        if len(node.args) != 1 or not isinstance(node.func, ast.Call):
            return
        guard = file.guards.guard(node.func)
        function = file.names.definition(node.args[0])
        if guard and guard.torch and isinstance(function, ast.AsyncFunctionDef):
            yield Problem(node, _no_effect(function, guard.text, guard.name, file))


def _makes_sync(decorator: ast.expr) -> bool:
    target = decorator.func if isinstance(decorator, ast.Call) else decorator
    return bool(_MAKES_SYNC.search(ast.unparse(target)))


def _no_effect(function: ast.AST, guard: str, name: str, file: File) -> str:
    kind = "async generator" if file.tree.is_generator(function) else "async def"
    arguments = guard.partition("(")[2] or ")"
    return (
        f"`{guard}` on the {kind} `{getattr(function, 'name', '')}` has no effect: its body runs "
        f"after the guard has ended. Decorate it with `@gradguard.{name}({arguments}`, or put "
        f"`with {guard}:` around lines without `await`."
    )


class GuardOnClass(Rule):
    """A guard decorates a class."""

    code = "GG105"
    on = (ast.ClassDef,)
    why = (
        "A guard decorates a class: only its constructor runs under it.\n"
        "torch wraps the constructor in a function (with a FutureWarning): methods run unguarded, "
        "and the name is no class any more, so `isinstance` and subclassing fail. gradguard "
        "refuses a class with a TypeError."
    )
    bad = """
import torch

@torch.no_grad()
class Predictor:
    def predict(self):
        return torch.is_grad_enabled()

assert Predictor().predict()  # grad mode is on
assert not isinstance(Predictor, type)
"""
    good = """
import torch

class Predictor:
    @torch.no_grad()
    def predict(self):
        return torch.is_grad_enabled()

assert not Predictor().predict()
"""

    def check(self, node: ast.ClassDef, file: File) -> Iterator[Problem]:
        """Look at the decorators of a class."""
        for decorator, guard in file.guards.decorating(node):
            then = (
                "only the constructor runs under it, and the name is no class any more"
                if guard.torch
                else "that is a TypeError"
            )
            yield Problem(
                decorator,
                f"`{guard.text}` decorates the class `{node.name}`: {then}. Decorate the methods "
                f"that compute, with `@{guard.text}` on each.",
            )


_PROPERTIES = ("property", "classmethod")
_FULL_PROPERTIES = frozenset({"functools.cached_property", "abc.abstractproperty"})
_MANAGERS = frozenset({"contextlib.contextmanager", "contextlib.asynccontextmanager"})


class GuardOrder(Rule):
    """A guard stands above a decorator that it cannot wrap."""

    code = "GG106"
    on = FUNCTIONS
    why = (
        "A guard stands above `@classmethod`, `@property` or `@contextmanager`.\n"
        "torch's guards wrap what they are given in a function: a classmethod then fails when it "
        "is called (\"'classmethod' object is not callable\") and a property is a method that "
        "fails. A context manager's body runs after the guard has ended. gradguard's guards take "
        "classmethods and properties, and cover no more of a context manager."
    )
    bad = """
import torch

class Model:
    @torch.no_grad()
    @classmethod
    def load(cls):
        return torch.is_grad_enabled()

try:
    Model.load()
except TypeError as error:
    assert "not callable" in str(error)
else:
    raise AssertionError
"""
    good = """
import torch

class Model:
    @classmethod
    @torch.no_grad()
    def load(cls):
        return torch.is_grad_enabled()

assert not Model.load()
"""

    def check(self, node: Function, file: File) -> Iterator[Problem]:
        """Look at what stands between a guard and the `def`."""
        for number, decorator in enumerate(node.decorator_list):
            guard = file.guards.guard(decorator)
            if guard is None:
                continue
            for below in node.decorator_list[number + 1 :]:
                fault = _order_fault(below, file, torch=guard.torch)
                if fault:
                    shown = ast.unparse(below)
                    yield Problem(
                        decorator,
                        f"`@{guard.text}` stands above `@{shown}` on `{node.name}`: {fault}.",
                    )
                    break


def _order_fault(below: ast.expr, file: File, *, torch: bool) -> str | None:
    target = below.func if isinstance(below, ast.Call) else below
    full = file.names.full(target)
    if full in _MANAGERS:
        return (
            "it covers nothing of the body, which runs when the block is entered. Write it below, "
            "directly above the `def`"
        )
    accessor = isinstance(below, ast.Attribute) and below.attr in {"setter", "getter", "deleter"}
    special = file.names.is_builtin(below, *_PROPERTIES) or full in _FULL_PROPERTIES
    if torch and (special or (accessor and full is None)):
        return "that fails when it is used. Write it below, directly above the `def`"
    return None
