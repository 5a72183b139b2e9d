"""The guards in one running function's own source that are, or may be, open at its current line."""

import ast
import linecache
from collections import deque
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from inspect import getattr_static
from types import CodeType, FrameType, MethodType
from typing import Any

from gradguard._core.frames import Line
from gradguard._locate.blocks import (
    Position,
    Scope,
    UnreadableError,
    calls_before,
    calls_of_method,
    has_blocks,
    open_items,
    open_loops,
    position,
    scope_of,
)
from gradguard._locate.guard_expressions import (
    GUARDS,
    Switch,
    guard_called,
    is_a,
    switch_of,
    switch_of_object,
)
from gradguard._locate.helper_functions import switch_of_helper
from gradguard._locate.names import Names
from gradguard._locate.where_text import unread

_ENTER = ("enter_context", "enter_async_context")
_WORDS = {*GUARDS, "_set_grad_enabled"}


@dataclass(frozen=True)
class Block:
    """Something on the call stack that switches the mode, and the line that did it.

    `how` is "with", "choice" (one branch of ``a() if c else b()``), "statement" (a plain call that
    may have run), "stack" (an ExitStack), "decorator", "call" (of torch, which switches inside) or
    "unread" (no source). `source` is the stripped line, None where it cannot be read. `certain` is
    whether it has switched the mode of this code: a statement further up may have been skipped.
    `caller` is the user's line where this one is a library's.
    """

    switch: Switch
    how: str
    filename: str
    lineno: int
    function: str
    source: str | None
    certain: bool
    caller: Line | None = None

    @property
    def line(self) -> Line:
        """The line to name: the user's, with that of a library in it."""
        own = Line(self.filename, self.lineno, self.function)
        return own if self.caller is None else self.caller._replace(library=own)

    @property
    def kind(self) -> str:
        """The guard as it is called, such as ``torch.set_grad_enabled(False)``."""
        return self.switch.kind


Found = tuple[int, Switch, str]  # line, what it switches, how


def block_at(code: CodeType, module_globals: dict[str, Any], found: Found) -> Block:
    """Complete a finding with its file, function and source line."""
    lineno, switch, how = found
    source = linecache.getline(code.co_filename, lineno, module_globals).strip() or None
    certain = switch.certain and how not in ("statement", "unread")
    return Block(switch, how, code.co_filename, lineno, code.co_name, source, certain)


def blocks_in(frame: FrameType, seen: set[int]) -> list[Block]:
    """Return what the function itself holds open at its current line, innermost first.

    `seen` collects the exit stacks found: callees that they are handed to hold them as well.
    """
    names = Names.of_frame(frame)
    code = frame.f_code
    held = _in_exit_stacks(names, seen)
    if not held and not _worth_reading(code, names):
        return []
    at = position(code, frame.f_lasti, frame.f_lineno)
    try:
        scope = scope_of(code, frame.f_globals)
    except UnreadableError as why:
        found = [(at.line, switch, "stack") for switch in held]
        found += _unread(code, at.line, str(why))
    else:
        found = [*_items(scope, at, names), *_loops(scope, at, names)]
        found += [*_statements(scope, at, names), *_stacks(scope, at, names, held)]
        # What comes later in a loop around the line ran in the previous round, before the rest.
        found.sort(key=lambda one: (one[0] <= at.line, one[0]), reverse=True)
    return [block_at(code, frame.f_globals, one) for one in found]


def _worth_reading(code: CodeType, names: Names) -> bool:
    """Tell whether the code may hold a guard open: most cannot, and is not parsed."""
    if code.co_name.startswith("<") and code.co_name != "<module>":
        return False  # a lambda or comprehension: no room for statements
    return has_blocks(code) or any(_is_guard_name(name, names) for name in code.co_names)


def _is_guard_name(name: str, names: Names) -> bool:
    return name in _WORDS or guard_called(names.named(name)) is not None


def _items(scope: Scope, at: Position, names: Names) -> Iterator[Found]:
    for item in open_items(scope, at):
        node = item.context_expr
        switch = switch_of(node, names) or switch_of_helper(node, names)
        if switch is not None:
            yield node.lineno, switch, "with" if switch.certain else "choice"


def _loops(scope: Scope, at: Position, names: Names) -> Iterator[Found]:
    for loop in open_loops(scope, at):
        switch = switch_of_helper(loop.iter, names)
        if switch is not None:
            yield loop.lineno, switch, "with"


def _statements(scope: Scope, at: Position, names: Names) -> Iterator[Found]:
    for call, ended in calls_before(scope, at):
        items = [item for statement in ended for item in statement.items]
        if any(switch_of(item.context_expr, names) for item in items):
            continue  # the end of that block has taken back what was switched inside
        switch = acts_at_once(call, names)
        if switch is not None:
            yield call.lineno, switch, "statement"


def acts_at_once(call: ast.Call, names: Names) -> Switch | None:
    """``set_grad_enabled(…)`` as a call, ``torch._C``'s too, and ``guard.__enter__()``."""
    if isinstance(call.func, ast.Attribute) and call.func.attr == "__enter__":
        return switch_of(call.func.value, names)
    guard = guard_called(names.value(call.func))
    acts = guard is not None and guard.name == "set_grad_enabled"
    return switch_of(call, names) if acts else None


def _in_exit_stacks(names: Names, seen: set[int]) -> list[Switch]:
    """Return what the guards held by the exit stacks among the local variables switch."""
    return [*filter(None, map(switch_of_object, in_exit_stacks(names, seen)))]


def in_exit_stacks(names: Names, seen: set[int] | None = None) -> list[Any]:
    """Return what is held by the exit stacks among the local variables, but those `seen`."""
    known: set[int] = set() if seen is None else seen
    found: list[Any] = []
    for value in list(names.maps[0].values()) if names.maps else []:
        if (is_a(value, ExitStack) or is_a(value, AsyncExitStack)) and id(value) not in known:
            known.add(id(value))
            found += reversed(_held(value))
    return found


def _held(stack: Any) -> list[Any]:
    # Python offers no public look into an exit stack; the name has not changed since 3.3. Its
    # entries are (is sync, callback), and enter_context makes the callback a bound `__exit__`.
    entries = getattr_static(stack, "_exit_callbacks", ())
    callbacks = [entry[-1] for entry in list(entries)] if is_a(entries, deque) else []
    return [callback.__self__ for callback in callbacks if is_a(callback, MethodType)]


def _stacks(scope: Scope, at: Position, names: Names, held: list[Switch]) -> Iterator[Found]:
    """Place what exit stacks hold at the ``enter_context`` calls with that effect, else here."""
    lines: dict[Any, int] = {}
    for call in (call for word in _ENTER for call in calls_of_method(scope, word) if call.args):
        entered = switch_of(call.args[0], names)
        if entered is not None:
            lines[entered.effect] = call.lineno
    for switch in held:
        yield lines.get(switch.effect, at.line), switch, "stack"


def _unread(code: CodeType, line: int, why: str) -> list[Found]:
    words = [name for name in code.co_names if name in _WORDS]
    both = (True, False)
    return [(line, Switch(unread(words, why), both, both), "unread")] if words else []
