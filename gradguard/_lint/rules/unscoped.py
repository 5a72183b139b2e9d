"""`set_grad_enabled(...)` as a plain call, and what undoes it."""

from __future__ import annotations

import ast
import re
from pathlib import PurePath
from typing import TYPE_CHECKING

from gradguard._lint.files import TEST_FILE
from gradguard._lint.guards import mode_argument
from gradguard._lint.reading.callers import caller_in_other_mode
from gradguard._lint.reading.entry_points import is_entry_point
from gradguard._lint.reading.plain_sets import (
    PlainSet,
    is_after,
    is_in_finally,
    plain_set,
    plain_sets,
    undoes_always,
)
from gradguard._lint.rule import File, Problem, Rule
from gradguard._lint.tree import FUNCTIONS, LOOPS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gradguard._lint.scopes import Function

_FIXTURE = re.compile(r"fixture|contextmanager", re.IGNORECASE)
_PAIRS = {
    "setUp": ("tearDown", "doCleanups"),
    "setUpClass": ("tearDownClass",),
    "setup_method": ("teardown_method",),
    "setup_class": ("teardown_class",),
    "setup_function": ("teardown_function",),
    "setup_module": ("teardown_module",),
    "setUpModule": ("tearDownModule",),
    "asyncSetUp": ("asyncTearDown", "tearDown"),
    "__enter__": ("__exit__",),
    "__aenter__": ("__aexit__",),
}
_UNDOES = re.compile(r"exit|end|stop|close|after|post|finish|restore|enable|resume|tear|__del__")
_ENDS = frozenset(end for ends in _PAIRS.values() for end in ends)


class UnscopedSet(Rule):
    """A mode that is switched and not brought back."""

    code = "GG108"
    on = (ast.Expr,)
    why = (
        "`set_grad_enabled(...)` as a plain call that is not undone on every path.\n"
        "As a statement it switches the thread's grad mode until something else switches it. "
        "Whoever calls the function, or imports the module, goes on in that mode: training then "
        "stops learning without a word, or a server records graphs."
    )
    bad = """
import torch

def evaluate():
    torch.set_grad_enabled(False)
    return 1

evaluate()
assert not torch.is_grad_enabled()  # in the caller
"""
    good = """
import torch

def evaluate():
    with torch.set_grad_enabled(False):
        return 1

evaluate()
assert torch.is_grad_enabled()
"""

    def check(self, node: ast.Expr, file: File) -> Iterator[Problem]:
        """Look at a plain call, and at what the function or module does after it."""
        made = plain_set(node, file)
        if made is None or made.saved or any(True for _ in file.guards.around(node)):
            return
        function = file.tree.function(node)
        if function is None:
            yield from _at_module_level(made, file)
        elif not _is_allowed(made, function, file):
            yield from _in_function(made, function, file)


def _is_allowed(made: PlainSet, function: Function, file: File) -> bool:
    """Tell whether the function's purpose is to switch, or nobody runs after it in its thread."""
    if function.name in _ENDS or is_entry_point(function, file):
        return True
    cls = file.tree.class_of(function)
    if cls is not None and re.search(
        r"grad_?(mode|enabled)|(no|set)_?grad", cls.name, re.IGNORECASE
    ):
        return True
    nested = [
        one for one in ast.walk(function) if isinstance(one, FUNCTIONS) and one is not function
    ]
    if any(plain_sets(one, file) for one in nested):
        return True  # a clean-up that is called, or registered, later
    if re.search(r"grad", function.name, re.IGNORECASE) and len(_statements(function)) <= 2:  # noqa: PLR2004
        return True
    mode = mode_argument(made.statement.value)  # type: ignore[arg-type]
    parameters = {one.arg for one in function.args.args + function.args.kwonlyargs}
    passes_on = isinstance(mode, ast.Name) and mode.id in parameters
    return passes_on and len(_statements(function)) == 1


def _statements(function: Function) -> list[ast.stmt]:
    """Return the statements of a function without its docstring."""
    return [
        one
        for one in function.body
        if not (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))
    ]


def _in_function(made: PlainSet, function: Function, file: File) -> Iterator[Problem]:
    others = [one for one in plain_sets(function, file) if one.statement is not made.statement]
    if made.mode is True and any(one.statement.lineno < made.statement.lineno for one in others):
        return  # it undoes what is told at the other call
    left_in = _constant_at_the_end(made, others)
    call = None if left_in is None else caller_in_other_mode(function, left_in, file)
    if call is not None:
        now, was = ("on", "off") if left_in else ("off", "on")
        then = (
            f"and at its end `{function.name}` leaves it {now}, where line {call.lineno} calls it "
            f"with grad mode {was} and computes on"
        )
        yield _problem(made, then, file)
        return
    if is_in_finally(made, file) or any(undoes_always(made, one, file) for one in others):
        return
    if function.name in _PAIRS:
        if not _has_end(function, file):
            end = _PAIRS[function.name][0]
            yield _problem(made, f"and `{end}` does not switch it back", file)
        return
    if any(is_after(one, made) for one in others):
        if not _is_fixture(function, file):
            yield _problem(made, "and is switched back only if nothing raises", file, notice=True)
        return
    partners = _partners(function, made, file)
    if any(_UNDOES.search(name) for name in [*partners, *([function.name] if partners else [])]):
        return  # whoever begins it ends it: start and stop, on_validation_start and _end
    if made.mode is True or partners:
        yield _problem(made, "and it is left so", file, notice=True)
    else:
        yield _problem(made, f"and `{function.name}` leaves it so", file)


def _constant_at_the_end(made: PlainSet, others: list[PlainSet]) -> bool | None:
    """Return the constant to which the function's last call sets the mode, if it is another."""
    last = max(others, key=lambda one: one.statement.lineno, default=made)
    after = last.statement.lineno > made.statement.lineno
    return last.mode if after and last.mode is not made.mode else None


def _problem(made: PlainSet, then: str, file: File, *, notice: bool = False) -> Problem:
    call = ast.unparse(made.statement.value)
    package = "gradguard" if "gradguard" in str(file.names.full(_func(made))) else "torch"
    argument = call.partition("(")[2]
    return Problem(
        made.statement,
        f"`{call}` switches the grad mode of the thread, {then}. Write "
        f"`with {package}.set_grad_enabled({argument}:` around the lines that it is for.",
        "notice" if notice else "fault",
    )


def _func(made: PlainSet) -> ast.expr:
    return made.statement.value.func  # type: ignore[attr-defined,no-any-return]


def _is_fixture(function: Function, file: File) -> bool:
    """Tell whether a test's failure is not raised at the `yield` of this generator."""
    shown = " ".join(ast.unparse(one) for one in function.decorator_list)
    return "fixture" in shown and file.tree.is_generator(function)


def _has_end(function: Function, file: File) -> bool:
    """Tell whether the other half of a pair switches the mode, or a clean-up is registered."""
    if any(
        isinstance(each, ast.Call)
        and re.search(r"addCleanup|addClassCleanup|addfinalizer|callback$", ast.unparse(each.func))
        and "grad" in ast.unparse(each)
        for each in file.tree.own(function)
    ):
        return True
    cls = file.tree.class_of(function)
    body = cls.body if cls else file.tree.root.body
    ends = [one for one in body if isinstance(one, FUNCTIONS) and one.name in _PAIRS[function.name]]
    return any("grad" in ast.unparse(one) for one in ends)


def _partners(function: Function, made: PlainSet, file: File) -> list[str]:
    """Return the names of the other methods of the class that switch the other way."""
    cls = file.tree.class_of(function)
    methods = [one for one in cls.body if isinstance(one, FUNCTIONS)] if cls else []
    return [
        other.name
        for other in methods
        for one in plain_sets(other, file)
        if other is not function and (one.saved or one.mode is None or one.mode != made.mode)
    ]


def _at_module_level(made: PlainSet, file: File) -> Iterator[Problem]:
    """Look at a call that runs when the module is imported."""
    if made.mode is True or not isinstance(file.tree.frame(made.statement), ast.Module):
        return
    for parent, _ in file.tree.ancestors(made.statement):
        if isinstance(parent, ast.If) and "__name__" in ast.unparse(parent.test):
            return
        if isinstance(parent, (ast.Try, *LOOPS)):
            return
    later = [each for each in file.tree.root.body if each.lineno > made.statement.lineno]
    if any((other := plain_set(each, file)) and other.mode is not False for each in later):
        return
    name = PurePath(file.filename).name
    sure = name == "__init__.py" or bool(TEST_FILE.match(name))
    then = "and everything that imports this module goes on so"
    yield _problem(made, then, file, notice=True)._replace(on_import=sure, if_imported=not sure)
