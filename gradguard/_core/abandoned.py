"""Entries whose exit will never run, as an interrupt came in its place or it ran in another thread.

They must not stay on a thread's chain: the exit of an outer block, which did nothing wrong, would
be taken for one out of order.
"""

from sys import getrefcount
from typing import TYPE_CHECKING
from weakref import ReferenceType, ref

from gradguard._core.exits_elsewhere import ended_elsewhere, forget_stray, pass_strays_on, strays_of
from gradguard._core.guard_stack import (
    Link,
    Opener,
    Owner,
    disown,
    fast,
    guards_of,
    is_entry_of,
    linked,
    links,
    thread,
    token_of,
)
from gradguard._core.state import grad_state, is_grad_enabled, set_grad, set_inference

if TYPE_CHECKING:
    from types import TracebackType


def own_cell() -> list[Link | None]:
    """This thread's cell, where `fast` has none: at its first entry, or when it is suspected."""
    cell = thread.cell
    if "cell" not in fast.__dict__:
        fast.cell = cell
        bring_back()
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
    if isinstance(link[2], ReferenceType):
        return getrefcount(link[2]())
    return getrefcount(link[0])


_BY_ITS_LINK_ALONE = _references((Opener(), False, None, None))
_owners = [Owner()]
_BY_ONE_STRAY = _references((Opener(), False, ref(_owners[0]), None))


def is_abandoned(link: Link) -> bool:
    """Tell whether nobody is left who could exit it: its guard is referred to by the link alone.

    So it is where an interrupt came at the beginning of the exit of a ``with`` block. And where
    the exits that were tried in other threads are as many as the entries that there are.
    """
    owned = isinstance(link[2], ReferenceType)
    guard: Opener | None = link[2]() if owned else link[0]
    if guard is None:
        return True
    strays = strays_of(guard)
    if strays and ended_elsewhere(guard):
        return True
    del guard
    return _references(link) <= (_BY_ONE_STRAY - 1 if owned else _BY_ITS_LINK_ALONE) + strays


def without_abandoned(
    leaving: Opener | None = None, error: BaseException | None = None
) -> list[Link]:
    """Take what nobody is in any more off this thread's chain; return what is left.

    The guard that is `leaving` is not yet gone, whatever `error` says, which its body has raised.
    What lies above takes over what the abandoned entry found, so that its exit brings that back.
    Where that takes a token, the entry stays until it is innermost.
    """
    gone = [guard for guard in _interrupted(error) if guard is not leaving]
    chain = links()
    over: list[Link] = []
    inner: Link | None = None
    for link in chain:
        ends = is_abandoned(link) or any(is_entry_of(link, guard) for guard in gone)
        if ends and not _needs_a_token(link, inner):
            over.append(link)
            _spend(link, innermost=inner is None)
        else:
            inner = link
    top: Link | None = None
    inherited: list[bool | None] = []
    for link in reversed(chain):
        guard, found, token, _ = link
        if any(link is one for one in over):
            inherited = inherited or [found]
            continue
        if inherited:
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


def _spend(link: Link, *, innermost: bool) -> None:
    """Exit the token of an entry that is taken off: dropped, it would switch at a random time."""
    token = link[2]
    if token is not None and not isinstance(token, ReferenceType):
        grad = is_grad_enabled()
        token.__exit__(None, None, None)
        if not innermost:
            set_grad(grad)


def _needs_a_token(link: Link, inner: Link | None) -> bool:
    """Tell whether only exits of tokens, innermost first, can bring back what `link` found."""
    return (inner is not None and inner[2] is not None) or (
        isinstance(link[2], ReferenceType) and link[2]() is not None
    )


def bring_back() -> None:
    """Bring back the mode that an abandoned innermost entry found, and take it off the chain.

    Where the mode is another by now, somebody has set it since, and it is left.
    """
    chain = links()
    while chain and is_abandoned(chain[0]):
        _bring_back(chain.pop(0))
    without_abandoned()
    pass_strays_on()


def _bring_back(link: Link) -> None:
    opener, found, owner, thread.cell[0] = link
    guard = owner() if isinstance(owner, ReferenceType) else opener
    token, now = token_of(link), grad_state()
    if token is None:
        if now.grad_enabled is opener.grad:
            set_grad(bool(found))
    elif now.inference_mode is opener.inference:
        token.__exit__(None, None, None)
    else:
        set_inference(now.inference_mode, (token,))
        set_grad(now.grad_enabled)
    disown(link)
    forget_stray(guard)
