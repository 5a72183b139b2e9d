"""Entries whose exit will never run, as an interrupt came in its place or it ran in another thread.

They must not stay on a thread's chain: the exit of an outer block, which did nothing wrong, would
be taken for one out of order.
"""

from sys import getrefcount
from typing import TYPE_CHECKING
from weakref import ReferenceType

from gradguard._core.guard_stack import (
    Link,
    Opener,
    chains,
    fast,
    guards_of,
    is_entry_of,
    linked,
    links,
    links_from,
    thread,
)
from gradguard._core.state import is_grad_enabled, set_grad

if TYPE_CHECKING:
    from types import TracebackType


def own_cell() -> list[Link | None]:
    """This thread's cell, where `fast` has none: at its first entry, or when it is suspected."""
    cell = thread.cell
    if "cell" not in fast.__dict__:
        fast.cell = cell
        _bring_back()
    return cell


def guards() -> tuple[Opener, ...]:
    """Return the gradguard guards open in the calling thread, outermost first.

    Decorated functions that are running count, and so do the guards of a generator or coroutine
    while its body runs; torch's own guards cannot be seen.

    >>> import gradguard
    >>> with gradguard.no_grad(), gradguard.enable_grad():
    ...     gradguard.guards()
    (no_grad(), enable_grad())
    """
    return guards_of([link for link in links() if not is_abandoned(link)])


guards.__module__ = "gradguard"


def _references(link: Link) -> int:
    return getrefcount(link[0])


_BY_ITS_LINK_ALONE = _references((Opener(), False, None, None))


def is_abandoned(link: Link) -> bool:
    """Tell whether nobody is left who could exit it: its guard is referred to by the link alone.

    So it is where an interrupt came at the beginning of the exit of a ``with`` block.
    """
    if isinstance(link[2], ReferenceType):
        return link[2]() is None
    return _references(link) <= _BY_ITS_LINK_ALONE


def without_abandoned(
    leaving: Opener | None = None, error: BaseException | None = None
) -> list[Link]:
    """Take what nobody is in any more off this thread's chain; return what is left.

    The guard that is `leaving` is not yet gone, whatever `error` says, which its body has raised.
    What lies above takes over what the abandoned entry found, so that its exit brings that back.
    """
    gone = _interrupted(error)
    top: Link | None = None
    inherited: list[bool | None] = []
    for link in reversed(links()):
        guard, found, token, _ = link
        if is_abandoned(link) or any(
            is_entry_of(link, other) for other in gone if other is not leaving
        ):
            inherited = inherited or [found]
            continue
        if inherited and token is None:
            found = bool(inherited[0])
        inherited = []
        top = link if link[3] is top else linked(guard, found, token, top, link)
    thread.cell[0] = top
    return links()


def _interrupted(error: BaseException | None) -> list[Opener]:
    """The guards whose entry or exit did not come to its end, as the error's traceback shows."""
    found: list[Opener] = []
    while error is not None:
        tb: TracebackType | None = error.__traceback__
        while tb is not None:
            code = tb.tb_frame.f_code
            if code.co_name in ("__enter__", "__exit__") and code.co_argcount:
                owner = tb.tb_frame.f_locals.get(code.co_varnames[0])
                found += [owner] if isinstance(owner, Opener) else []
            tb = tb.tb_next
        error = error.__context__
    return found


def open_elsewhere(guard: Opener) -> str | None:
    """The name of another thread in which `guard` is open; that thread is to look at its chain."""
    for other in list(chains):
        if other.cell is not thread.cell and any(
            is_entry_of(link, guard) for link in links_from(other.cell[0])
        ):
            other.suspect()
            return other.name
    return None


def _bring_back() -> None:
    """Bring back the mode that an abandoned innermost entry found, and take it off the chain.

    Where the mode is another by now, somebody has set it since, and it is left.
    """
    chain = links()
    while chain and is_abandoned(chain[0]):
        guard, found, token, thread.cell[0] = chain.pop(0)
        if token is None and is_grad_enabled() is guard.grad:
            set_grad(bool(found))
    without_abandoned()
