"""The guards that are open in this thread, as a chain of immutable links, innermost first."""

import threading
from collections.abc import Callable
from typing import Any, TypeAlias
from weakref import ReferenceType, WeakSet

from gradguard._core.state import InferenceToken
from gradguard._core.torch_versions import grad_is_deferred

# The opener, the grad mode that it found, what brings inference mode back (where it was switched),
# and the link below. A plain tuple, because a NamedTuple costs three times as much to build; a
# chain, because pushing and popping a list costs twice as much as relinking.
# The mode found by what holds a token may be None: off because of inference mode.
# In the place of a token may stand a weak reference to an `Owner`, which holds it.
Link: TypeAlias = tuple["Opener", "bool | None", Any, "Link | None"]


class Opener:
    """What a link belongs to: a guard, or a body that can be suspended."""

    __slots__ = ()
    grad: bool | None = None  # the grad mode that it sets; None: the one that surrounds it
    inference: bool | None = None  # the inference mode that it sets; None: it leaves it as it is
    is_inference_block = False  # whether the grad mode that surrounds it lies further down


class Boundary(Opener):
    """In the place of a guard: the links above it belong to one body that can be suspended."""

    __slots__ = ("grad",)

    def __repr__(self) -> str:
        return "the running generator or coroutine"

    def holds(self, guard: Opener) -> bool:
        """Tell whether it is suspended with `guard` open in it."""
        raise NotImplementedError

    def step(self, call: Callable[[Any], Any], passed: list[Any]) -> Any:
        """Call `call` in its mode, with its guards, with the only thing that is `passed`."""
        raise NotImplementedError


# The bodies that are suspended in blocks, such as those of a generator that they run: who closes
# that meanwhile closes a block of theirs. Kept alive, as a weak reference is gone where a body is
# part of a cycle that is collected; each is taken out at its end.
suspended_in_blocks: set[Boundary] = set()


class _MadeByTorch(Opener):
    """In the place of a guard of torch's own that a body has open, for one step of the body."""

    __slots__ = ()
    grad = False
    inference = True
    is_inference_block = True


MADE_BY_TORCH = _MadeByTorch()


class Owner(Opener):
    """A guard that holds the token of one of its entries itself, not the thread's chain.

    Where the block's exit never ran, as an interrupt came at its very beginning, the guard is
    dropped and its token with it: dropping a token brings the mode back, as it does with torch's.
    """

    __slots__ = ("__weakref__", "link", "token")
    link: Any  # the `Link` of that entry; before, the cell of its thread
    token: InferenceToken | None


# CPython looks attributes up faster on a plain `local` than on one of a subclass, but only the
# subclass can give each thread its cell: what is called most asks the plain one first.
fast = threading.local()


class ChainOfThread:
    """A thread's chain for other threads to see, as long as the thread lives."""

    def __init__(self, cell: list[Link | None]) -> None:
        self.cell = cell
        self.name = threading.current_thread().name
        # The guards of its chain that another thread has tried to exit, each with whether its block
        # is over for certain. Kept alive: a token that is dropped switches the mode of the thread
        # in which it is.
        self.strays: list[tuple[Opener, bool]] = []
        self._fast = fast.__dict__  # this thread's own

    def suspect(self) -> None:
        """Have the thread look at its chain at its next entry or exit: see `own_cell`."""
        self._fast.pop("cell", None)


chains: WeakSet[ChainOfThread] = WeakSet()


class _Thread(threading.local):
    def __init__(self) -> None:
        # A list of one, so that the two ends of a guard pay for one thread-local look-up each.
        self.cell: list[Link | None] = [None]
        fast.cell = self.cell
        self.seen_by_others = ChainOfThread(self.cell)
        chains.add(self.seen_by_others)


thread = _Thread()


def links() -> list[Link]:
    """The links of this thread, innermost first."""
    return links_from(thread.cell[0])


def links_from(link: Link | None) -> list[Link]:
    """This link and those below it."""
    found: list[Link] = []
    while link is not None:
        found.append(link)
        link = link[3]
    return found


def guards_of(chain: list[Link]) -> tuple[Opener, ...]:
    """The guards of a chain of links, outermost first."""
    openers = (link[0] for link in reversed(chain))
    return tuple(o for o in openers if not isinstance(o, Boundary) and o is not MADE_BY_TORCH)


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
        if not guard.is_inference_block:
            return guard.grad is not False
        if found is False or (found and not grad_is_deferred()):
            return found
    return True


def token_of(link: Link) -> InferenceToken | None:
    """What brings back the inference mode that was there before this link."""
    token = link[2]
    if isinstance(token, ReferenceType):
        owner: Owner | None = token()
        return None if owner is None else owner.token
    return token  # type: ignore[no-any-return]


def is_entry_of(link: Link, guard: Opener) -> bool:
    """Tell whether `guard` made this link."""
    return link[0] is guard or (isinstance(guard, Owner) and guard.link is link)


def linked(guard: Opener, found: bool | None, token: Any, below: Link | None, old: Link) -> Link:
    """Make the link that takes the place of `old`; an `Owner`'s is known to that."""
    link: Link = (guard, found, token, below)
    owner = token() if isinstance(token, ReferenceType) else None
    if owner is not None and owner.link is old:
        owner.link = link
    return link


def disown(link: Link) -> None:
    """Have the `Owner` that made this link forget it."""
    owner = link[2]() if isinstance(link[2], ReferenceType) else None
    if owner is not None and owner.link is link:
        owner.link = owner.token = None
