"""Where a mode was switched: the part that every message about a wrong mode ends with."""

from collections.abc import Sequence
from typing import Any, Protocol

from gradguard._core.frames import Line
from gradguard._core.places import place, written
from gradguard._core.text import one_line

_SHOWN = 5
_CERTAIN = "The mode was switched on this call stack:"
_MAYBE = "The mode may have been switched on this call stack, by the first of these:"
_NOT_THESE = "These switch the mode on this call stack, but not to what it is:"
_INSIDE = "The mode was switched inside it, probably by the first of these:"
_FIND_IT = (
    "To find it, run the program under `python -m gradguard run SCRIPT`, or put "
    "`with gradguard.trace() as switches:` around it and print(switches)."
)


class Block(Protocol):
    """What is read of a block here; `gradguard._locate.enclosing.Block` is one."""

    @property
    def kind(self) -> str: ...
    @property
    def how(self) -> str: ...
    @property
    def filename(self) -> str: ...
    @property
    def lineno(self) -> int: ...
    @property
    def function(self) -> str: ...
    @property
    def source(self) -> str | None: ...
    @property
    def caller(self) -> Line | None: ...


_HOW = {
    "with": "{kind} entered at {place} in {function}",
    "choice": "{kind} may have been entered at {place} in {function}",
    "statement": "{kind} may have been called at {place} in {function}",
    "stack": "{kind} held open by an ExitStack, at {place} in {function}",
    "decorator": "{kind} decorates {function}, at {place}",
    "call": "{kind} called at {place} in {function}",
    "unread": "{kind} at {place} in {function}",
}


def block_text(block: Block) -> str:
    """Say in one line what switches, how, and where."""
    text = _HOW[block.how].format(
        kind=block.kind, place=place(block.filename, block.lineno), function=block.function
    )
    text += f": {one_line(block.source or '(source not available)')}"
    if block.caller is None:
        return text
    return f"{written(block.caller._replace(library=None))} (inside it: {text})"


def read(argument: str, mode: Any) -> str:
    """Write what an argument that is not a constant was found to be."""
    return f" [{argument} is {mode} here]" if type(mode) is bool else " [argument not known]"


def unread(names: Sequence[str], why: str) -> str:
    """Say that a function uses guards, but not whether around this line."""
    return f"{', '.join(names)} used, perhaps around this line ({why}),"


def through(function: str, kind: str) -> str:
    """Name a guard that a context manager or generator of the user's holds open."""
    return f"{kind}, held open by {function}() while it yields,"


def made(function: str, kind: str) -> str:
    """Name a guard that a function of the user's returns."""
    return f"{kind}, made by {function}(),"


def forward(name: str) -> str:
    """Name the forward of an autograd function, inside which torch turns grad off."""
    return f"{name}.forward, an autograd.Function.forward (torch turns grad off inside),"


def backward(create_graph: Any) -> str:
    """Name a backward pass, in which grad is on only with ``create_graph=True``."""
    given = create_graph if type(create_graph) is bool else "unknown"
    return f"a backward pass with create_graph={given} (its functions and hooks run in that mode)"


def describe(
    blocks: Sequence[Block],
    *,
    decided: bool,
    possible: bool = False,
    recorded: str | None = None,
    recording_in: str | None = None,
) -> list[str]:
    """Return the lines that say where the mode was switched, at most eight.

    Args:
        blocks: what encloses the failing line, the one that decided the mode first.
        decided: whether the first of them did decide it,
        possible: or may have.
        recorded: what a trace has recorded as the last switch that was never switched back.
        recording_in: where the mode is the one that each thread starts with, the worker thread's
            name ("" in the main thread).

    """
    lines = [f"  {block_text(block)}" for block in blocks[:_SHOWN]]
    if len(blocks) > _SHOWN:
        lines.append(f"  … and {len(blocks) - _SHOWN} more")
    if decided:
        return [_CERTAIN, *lines]
    if lines:
        lines.insert(0, _MAYBE if possible else _NOT_THESE)
    return [*lines, _elsewhere(recorded, recording_in)]


def describe_inside(blocks: Sequence[Block]) -> list[str]:
    """Return the lines that say what in a block or call that has ended may have switched."""
    lines = list(dict.fromkeys(f"  {block_text(block)}" for block in blocks))
    more = [f"  … and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return [_INSIDE, *lines[:_SHOWN], *more]


def _elsewhere(recorded: str | None, recording_in: str | None) -> str:
    if recorded is not None:
        return f"Last switched, and never switched back, as trace() has recorded: {recorded}"
    if recording_in:
        return (
            f"This is thread {recording_in!r}: each thread starts with grad on, whatever the mode "
            "of the one that started it. gradguard.carry(fn) takes the mode along."
        )
    if recording_in is not None:
        return "Grad is on unless something turns it off: nothing on this call stack does."
    return f"What switched it is not seen on this call stack: it has probably returned. {_FIND_IT}"


def failed(error: type[BaseException]) -> list[str]:
    """Say that the search itself failed, and what to do instead.

    By the error's type alone: its own text may be what fails.
    """
    return [f"The search for the line that switched it failed ({error.__name__}). {_FIND_IT}"]
