"""What a rule is, and what it sees of a file."""

from __future__ import annotations

import ast
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from gradguard._findings.kinds import CHECK_NAMES
from gradguard._lint.guards import Guards
from gradguard._lint.modules import Modules
from gradguard._lint.names import Names
from gradguard._lint.tree import Tree

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gradguard._findings.finding import Severity


class Problem(NamedTuple):
    """What a rule has found: the node at whose place it stands, and what to tell."""

    node: ast.AST
    message: str
    severity: Severity = "fault"
    on_import: bool = False  # it happens when the module is imported: a fault if who does so trains
    if_imported: bool = False  # it is told only if another file imports this one


class File:
    """A parsed file, with what rules ask of it."""

    def __init__(self, filename: str, root: ast.Module) -> None:
        self.filename = filename
        self.tree = Tree(root)
        self.names = Names(self.tree)
        self.guards = Guards(self.tree, self.names)
        self.modules = Modules(self.tree, self.names)

    @cached_property
    def trains(self) -> bool:
        """Whether it calls `backward` and `step`, and never turns grad on."""
        called = [one.func for one in self.tree.of_type(ast.Call)]
        methods = {one.attr for one in called if isinstance(one, ast.Attribute)}
        guards = (self.guards.guard(one) for one in self.tree.of_type(ast.Call))
        return {"backward", "step"} <= methods and not any(
            guard is not None and guard.records is not False for guard in guards
        )

    @cached_property
    def differentiates(self) -> bool:
        """Whether anything in the file is called as `backward` is."""
        attributes = self.tree.of_type(ast.Attribute)
        return any(one.attr.endswith("backward") for one in attributes)


class Rule:
    """One rule. A rule keeps nothing between nodes: one object serves all files.

    Attributes:
        code: its code, ``GG101``.
        on: the types of nodes that it is asked about.
        why: what is wrong with what it finds, with what torch does.
        bad: a program that has the fault; it shows it when it is run.
        good: the same without the fault.
        default: whether it is told without being selected.
    """

    code: ClassVar[str]
    on: ClassVar[tuple[type[ast.AST], ...]]
    why: ClassVar[str]
    bad: ClassVar[str]
    good: ClassVar[str]
    default: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """Its name, such as ``guard-on-async``."""
        return CHECK_NAMES[self.code]

    def check(self, node: Any, file: File) -> Iterator[Problem]:
        """Yield what is wrong at the node."""
        raise NotImplementedError
