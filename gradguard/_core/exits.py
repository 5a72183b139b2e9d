"""Exits that are not those of the innermost guard, and guards that were left open."""

from collections.abc import Sequence
from typing import Any
from weakref import ReferenceType, ref

from gradguard._core.abandoned import bring_back, is_abandoned, without_abandoned
from gradguard._core.exits_elsewhere import USE_WITH, close_outside_body, open_elsewhere
from gradguard._core.guard_stack import (
    MADE_BY_TORCH,
    Boundary,
    Link,
    Opener,
    Owner,
    disown,
    guards_of,
    is_entry_of,
    linked,
    links,
    thread,
    token_of,
)
from gradguard._core.state import (
    enter_inference,
    is_any_autocast_enabled,
    is_grad_enabled,
    is_inference_mode_enabled,
    set_grad,
    set_inference,
)
from gradguard._errors import GradModeWarning, add_note


def close(guard: Opener, error: BaseException | None = None) -> None:
    """Close the innermost open `guard`, wherever it lies on the chain.

    Those above it keep deciding the mode. The next above takes over what the closed one found, so
    that its exit brings that back. Inference tokens must be exited last in, first out, as each
    brings back the whole state that it found: those above are exited, and entered anew.

    Args:
        guard: the guard.
        error: what the body has raised, which must not be replaced by a warning.

    Raises:
        RuntimeError: `guard` is not open in this thread; the mode stays as it is.
    """
    chain = links()
    if any(is_entry_of(link, guard) for link in chain):
        chain = without_abandoned(guard, error)
        at = next(i for i, link in enumerate(chain) if is_entry_of(link, guard))
    else:
        elsewhere = open_elsewhere(guard)
        # `no_grad().__enter__()`, and then `no_grad().__exit__()`: as with torch's, any will do.
        equal = (i for i, link in enumerate(chain) if link[0] == guard and is_abandoned(link))
        at = next(equal, -1) if elsewhere is None else -1
        if at < 0:
            close_outside_body(guard, lambda _: close(guard, error), chain, elsewhere)
            return
    if all(link[0] is MADE_BY_TORCH for link in chain[:at]):  # torch's own guard is over
        for link in chain[: at + 1]:
            close_link(link)
        if thread.seen_by_others.strays:
            bring_back()
        return
    innermost = chain[0][0]
    _close_below(chain[:at], chain[at])
    _warn_out_of_order(guard, innermost, error)


def close_link(link: Link) -> None:
    """Bring back what the innermost link found, and take it off the chain.

    In this order, and to the end however often it is interrupted and done again.
    """
    token = token_of(link)
    if token is not None:
        exit_token(token)
    else:
        set_grad(bool(link[1]))
    thread.cell[0] = link[3]
    disown(link)


def leave(link: Link, error: BaseException, *, in_body: bool) -> None:
    """End the call of a decorated function, by an error that may have come at any point of it.

    An interrupt may have come before the link was on the chain, or when it was off again. Where the
    body has closed it, another entry of the guard is closed in its place, as a `with` would; where
    there is none, the body's error says more than that.
    """
    now = thread.cell[0]
    if now is link or (now is link[3] and not in_body):
        thread.cell[0] = link[3]  # a trace tells the entry from the exit by it
        close_link(link)
    elif not in_body and isinstance(error, GradModeWarning):
        pass  # the exit itself has said so, and is over
    elif any(is_entry_of(other, link[0]) for other in links()):
        close(link[0], error)  # the body has closed or left open a guard


def exit_again(guard: Opener, top: Link | None) -> None:
    """Do to its end the exit of `guard`, innermost by `top`, that an interrupt has cut short."""
    now = thread.cell[0]
    if now is not None and (top is None or now is top) and is_entry_of(now, guard):
        close_link(now)


def end_call(guard: object, below: Link | None) -> None:
    """Exit `guard`, entered on `below`, where an interrupt came before its exit had begun."""
    now = thread.cell[0]
    if now is not None and now[0] is guard and now[3] is below:
        close_link(now)


def undo_entry(below: Link | None, found: bool, token: object = None) -> None:
    """Take back an entry that an interrupt has cut short."""
    if token is not None:
        exit_token(token)
    set_grad(found)
    thread.cell[0] = below


def exit_token(token: object) -> None:
    token.__exit__(None, None, None)  # type: ignore[attr-defined]


def _close_below(above: list[Link], closed: Link) -> None:
    _, found, _, below = closed
    grad, inference = is_grad_enabled(), is_inference_mode_enabled()
    tokens = [token for link in (*above, closed) if (token := token_of(link)) is not None]
    # A token's exit would end what autocast has been switched to since.
    present = enter_inference(inference) if tokens and is_any_autocast_enabled() else None
    modes = unwind(above)
    if (token := token_of(closed)) is not None:
        exit_token(token)
    disown(closed)
    if present is not None:
        before = is_inference_mode_enabled()
        exit_token(present)
        if before is not inference:
            set_inference(before)
    above[-1] = linked(above[-1][0], bool(found), above[-1][2], below, above[-1])
    thread.cell[0] = rewind(above, modes, below)
    set_grad(grad)


def unwind(above: list[Link]) -> list[bool]:
    """Exit the tokens of `above`, innermost first; return the inference mode that each had set."""
    modes = []
    for link in above:
        modes.append(is_inference_mode_enabled())
        if (token := token_of(link)) is not None:
            exit_token(token)
    return modes


def rewind(
    above: list[Link], modes: list[bool], below: Link | None, made: list[Any] | None = None
) -> Link | None:
    """Open `above` anew on `below`, outermost first, each in the mode that it had set.

    The tokens are `made` in this order: where an interrupt comes, they are to be exited.
    """
    top, made = below, [] if made is None else made
    for link, mode in zip(reversed(above), reversed(modes), strict=True):
        guard, grad, token, _ = link
        # A guard that found recording possible may now lie in inference mode, and must leave it.
        leaves = guard.inference is False and mode is not is_inference_mode_enabled()
        if token is not None or leaves or isinstance(guard, Boundary):
            set_grad(bool(grad))  # a token brings back the grad mode in which it was made
            grad = grad or (None if is_inference_mode_enabled() else False)
            made.append(enter_inference(mode))
            token = _entered_anew(token, made[-1])
        top = linked(guard, grad, token, top, link)
    return top


def _entered_anew(old: object, token: Any) -> object:
    owner = old() if isinstance(old, ReferenceType) else old
    if not isinstance(owner, Owner):
        return token
    owner.token = token
    return ref(owner)


def close_above(base: Link | None, in_use: Sequence[Link] = ()) -> tuple[Opener, ...]:
    """Close the guards left open above `base`, innermost first; return them, outermost first.

    Those in use stay open and keep deciding the mode; where there are none, the mode is left to
    the caller. Nothing is closed where `base` itself has been.
    """
    above: list[Link] = []
    for link in links():
        if link is base:
            break
        above.append(link)
    else:
        if base is not None:
            return ()
    used = [any(link is one for one in in_use) for link in above]
    if all(used):
        return ()
    grad, modes = is_grad_enabled(), unwind(above)
    kept = [link for link, keep in zip(above, used, strict=True) if keep]
    if kept and not used[-1]:  # it takes over what the outermost has found
        kept[-1] = linked(kept[-1][0], above[-1][1], kept[-1][2], base, kept[-1])
    its_modes = [mode for mode, keep in zip(modes, used, strict=True) if keep]
    thread.cell[0] = rewind(kept, its_modes, base)
    if kept:
        set_grad(grad)
    return guards_of([link for link, keep in zip(above, used, strict=True) if not keep])


def _warn_out_of_order(guard: Opener, inner: Opener, error: BaseException | None) -> None:
    # The one way up: what finds the user's line is loaded when there is something to say.
    from gradguard._core.warning import warn

    closed, innermost = repr(guard), repr(inner)
    text = (
        f"{closed} was exited while {innermost}, entered after it, is still open: {innermost} goes "
        f"on deciding the grad mode, and its exit brings back what {closed} found. Usual causes: a "
        "`with` block that spans a `yield` or an `await` (decorate the function instead, or use "
        f"gradguard.isolated), or __enter__ and __exit__ called by hand. {USE_WITH}"
    )
    try:
        warn(text, GradModeWarning)
    except GradModeWarning:
        if error is None:
            raise
        add_note(error, text)  # a warning that is an error must not hide what the body raised
