"""The guards that are open in this thread, as a chain of immutable links, innermost first."""

import threading
from collections.abc import Sequence
from typing import TypeAlias

from gradguard._core.state import (
    InferenceToken,
    enter_inference,
    is_grad_enabled,
    is_inference_mode_enabled,
    set_grad,
)
from gradguard._core.warning import warn
from gradguard._errors import GradModeWarning


class Opener:
    """What a link belongs to: a guard, or a body that can be suspended."""

    __slots__ = ()
    grad: bool | None  # the grad mode that it sets; None: the one that surrounds it
    enters_inference = False


# The guard, the grad mode that it found, what brings inference mode back (where it was switched),
# and the link below. A plain tuple, because a NamedTuple costs three times as much to build; a
# chain, because pushing and popping a list costs twice as much as relinking.
# The mode found by what holds a token may be None: off because of inference mode.
Link: TypeAlias = "tuple[Opener, bool | None, InferenceToken | None, Link | None]"


_USE_WITH = "Use `with`, which exits each guard in the block and the thread that entered it."


class Boundary(Opener):
    """In the place of a guard: the links above it belong to one body that can be suspended."""

    __slots__ = ("grad",)
    grad: bool | None  # the grad mode that surrounds the inference block where it began

    def __repr__(self) -> str:
        return "the running generator or coroutine"


# CPython looks attributes up faster on a plain `local` than on one of a subclass, but only the
# subclass can give each thread its cell: the decorators ask the plain one first.
fast = threading.local()


class _Thread(threading.local):
    def __init__(self) -> None:
        # A list of one, so that the two ends of a guard pay for one thread-local look-up each.
        self.cell: list[Link | None] = [None]
        fast.cell = self.cell


thread = _Thread()


def links() -> list[Link]:
    """The links of this thread, innermost first."""
    found: list[Link] = []
    link = thread.cell[0]
    while link is not None:
        found.append(link)
        link = link[3]
    return found


def guards() -> tuple[Opener, ...]:
    """Return the gradguard guards open in the calling thread, outermost first.

    Decorated functions that are running count, and so do the guards of a generator or coroutine
    while its body runs; torch's own guards cannot be seen.

    >>> import gradguard
    >>> with gradguard.no_grad(), gradguard.enable_grad():
    ...     gradguard.guards()
    (no_grad(), enable_grad())
    """
    return guards_of(links())


def guards_of(chain: list[Link]) -> tuple[Opener, ...]:
    """The guards of a chain of links, outermost first."""
    return tuple(link[0] for link in reversed(chain) if not isinstance(link[0], Boundary))


def grad_inside(grad: bool, inference: bool) -> bool:
    """The grad mode in which inference mode is left, where these two are the modes of now."""
    return grad or (inference and _grad_around_inference())


def _grad_around_inference() -> bool:
    """The grad mode that surrounds the inference block in which this thread is.

    A `no_grad` opened inside the block counts as surrounding, too. True where the block is
    torch's own, which has no link here: torch turns grad on there as well.
    """
    link = thread.cell[0]
    while link is not None:
        guard, found, _, link = link
        if not guard.enters_inference:
            return guard.grad is not False
        if found is not None:
            return found
    return True


def close_out_of_order(guard: Opener) -> None:
    """Close the innermost open `guard` below others, which keep deciding the mode.

    The guard above takes over what the closed one found, so that its exit brings that back.
    Inference tokens must be exited last in, first out, as each brings back the whole state that
    it found: those above are exited, and entered anew.

    Raises:
        RuntimeError: `guard` is not open in this thread; the mode stays as it is.
    """
    chain = links()
    at = next((i for i, link in enumerate(chain) if link[0] is guard), None)
    if at is None:
        raise RuntimeError(_not_open(guard, chain))
    above, (_, found, token, below) = chain[:at], chain[at]
    inner, (next_above, _, its_token, _) = above[:-1], above[-1]
    grad, modes = is_grad_enabled(), _unwind(above)
    if token is not None:
        token.__exit__(None, None, None)
    thread.cell[0] = _rewind([*inner, (next_above, bool(found), its_token, below)], modes, below)
    set_grad(grad)
    closed, innermost = repr(guard), repr(above[0][0])
    warn(
        f"{closed} was exited while {innermost}, entered after it, is still open: {innermost} goes "
        f"on deciding the grad mode, and its exit brings back what {closed} found. Usual causes: a "
        "`with` block that spans a `yield` or an `await` (decorate the function instead, or use "
        f"gradguard.isolated), or __enter__ and __exit__ called by hand. {_USE_WITH}",
        GradModeWarning,
    )


def _not_open(guard: Opener, chain: list[Link]) -> str:
    listing = ", ".join(map(repr, guards_of(chain))) or "none"
    return (
        f"{guard!r} is not open in this thread (open here, outermost first: {listing}), so it "
        "cannot be exited; the mode is unchanged. It was never entered, was exited already, or was "
        f"entered in another thread. {_USE_WITH}"
    )


def close_above(base: "Link | None", in_use: Sequence[Link] = ()) -> tuple[Opener, ...]:
    """Close the guards left open above `base`, innermost first; return them, outermost first.

    Those in use stay open and keep deciding the mode; where there are none, the mode is left to
    the caller. Nothing is closed where `base` itself has been.
    """
    chain = links()
    if base is not None and base not in chain:
        return ()
    above = chain[: chain.index(base)] if base is not None else chain
    used = [any(link is one for one in in_use) for link in above]
    if all(used):
        return ()
    grad, modes = is_grad_enabled(), _unwind(above)
    kept = [(*link[:3], base) for link, keep in zip(above, used, strict=True) if keep]
    if kept and not used[-1]:  # it takes over what the outermost has found
        kept[-1] = (kept[-1][0], above[-1][1], kept[-1][2], base)
    its_modes = [mode for mode, keep in zip(modes, used, strict=True) if keep]
    thread.cell[0] = _rewind(kept, its_modes, base)
    if kept:
        set_grad(grad)
    return guards_of([link for link, keep in zip(above, used, strict=True) if not keep])


def _unwind(above: list[Link]) -> list[bool]:
    """Exit the tokens of `above`, innermost first; return the inference mode that each had set."""
    modes = []
    for _, _, token, _ in above:
        modes.append(is_inference_mode_enabled())
        if token is not None:
            token.__exit__(None, None, None)
    return modes


def _rewind(above: list[Link], modes: list[bool], below: "Link | None") -> "Link | None":
    """Open `above` anew on `below`, outermost first, each in the mode that it had set."""
    top = below
    for (guard, found, old, _), mode in zip(reversed(above), reversed(modes), strict=True):
        grad, token = found, None
        # A guard that found recording possible may now lie in inference mode, and must leave it.
        leaves = guard.grad is not False and mode is not is_inference_mode_enabled()
        if old is not None or leaves or isinstance(guard, Boundary):
            set_grad(bool(found))  # a token brings back the grad mode in which it was made
            grad = found or (None if is_inference_mode_enabled() else False)
            token = enter_inference(mode)
        top = (guard, grad, token, top)
    return top
