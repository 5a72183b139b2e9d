"""What a block or call has left switched: found, put back, and said."""

import gc
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from sys import getrefcount
from types import FrameType, MethodType
from typing import Any

from torch.nn import Module

from gradguard._core.abandoned import is_abandoned
from gradguard._core.exits import close_above
from gradguard._core.guard_stack import Boundary, Link, links, thread
from gradguard._core.state import GradState, grad_state, put_back
from gradguard._core.text import one_line
from gradguard._core.torch_versions import TORCH_GUARDS, InferenceToken, never_compiled
from gradguard._eval.flags_of_tree import Modules, tree
from gradguard._eval.giving_flags_back import own_flags, write_own_flags
from gradguard._graph.listing import MOST_ENTRIES
from gradguard._locate.enclosing import Block
from gradguard._locate.guard_expressions import switch_of_object
from gradguard._locate.unread_blocks import is_in_unread_block
from gradguard._locate.where import enclosing, where


class Start:
    """The mode, the open guards and the flags where a block or call began."""

    def __init__(self, roots: tuple[Module, ...], frame: FrameType | None = None) -> None:
        self.begin_here()
        self.roots = roots
        self.modules = tree(roots)
        self.flags = self.flags_now()
        # Its id: what entered is running as long as this counts, and a frame keeps much alive.
        self.entered_by = id(frame)

    def begin_here(self) -> None:
        """Take the mode and the open guards of this thread for those of the beginning."""
        self.state = grad_state()
        self.link = thread.cell[0]

    def flags_now(self) -> dict[int, bool]:
        return own_flags(self.modules)

    def put_back(
        self, subject: str, frame: FrameType, inside: Callable[[], Sequence[Block]]
    ) -> str | None:
        """Bring all back to what it was; return what was not, as a message.

        Args:
            subject: whose message it is, and about what.
            frame: what ends the block.
            inside: finds what in the block may have switched the mode.

        """
        in_use = [] if id(frame) == self.entered_by else self._in_use(frame)
        now = _below(in_use) if in_use else grad_state()
        flags = self.flags_now()
        changed = [key for key, flag in flags.items() if flag is not self.flags[key]]
        if now == self.state and not changed:
            return None
        lines = where(now, inside=inside()) if now != self.state else []
        left_open = [repr(guard) for guard in close_above(self.link, in_use)]
        if not in_use:
            self._put_mode_back(now)
        write_own_flags(self.modules, self.flags)
        names = _names(self.roots, {key: self.modules[key] for key in changed})
        message = _message(subject, self.state, now, left_open, lines, names)
        return f"{message}\n{_end(in_use)}"

    def _put_mode_back(self, now: GradState) -> None:
        leaked = now.inference_mode is not self.state.inference_mode
        put_back(self.state, list(_left_by_torch(self.state)) if leaked else ())

    def _in_use(self, frame: FrameType) -> list[Link]:
        """Return the guards opened since that what now ends the block is in, innermost first.

        They are known by their effect: of a ``with`` block the source shows no more. Where it does
        not show the guard of one, any that somebody can still exit may be that.
        """
        chain = links()
        above = chain[: chain.index(self.link)] if self.link in chain else chain
        blocks = [block for block in enclosing(frame) if _is_open(block)]
        for link in reversed(chain[len(above) :]):  # what was open before, outermost first
            if blocks and _effect(link) == blocks[-1].switch.effect:
                blocks.pop()
        in_use: list[Link] = []
        unread = bool(above) and is_in_unread_block(frame)
        for link in above:
            if isinstance(link[0], Boundary):
                in_use.append(link)
            elif at := [i for i, one in enumerate(blocks) if one.switch.effect == _effect(link)]:
                in_use.append(link)
                del blocks[: at[0] + 1]
            elif unread and not is_abandoned(link):
                in_use.append(link)
        return in_use


def _is_open(block: Block) -> bool:
    return block.certain and block.how in ("with", "decorator") and "gradguard." in block.kind


def _effect(link: Link) -> Any:
    switch = switch_of_object(link[0])
    return None if switch is None else switch.effect


def _below(in_use: Sequence[Link]) -> GradState:
    """Return the mode that the outermost of the guards in use found, and will bring back."""
    found = in_use[-1][1]
    return GradState(bool(found), found is None)


def _left_by_torch(wanted: GradState) -> Iterator[InferenceToken]:
    """Yield torch's guards that have left this thread's inference mode other than `wanted`.

    Such a guard switches back when it is dropped, which may be at any time, so it is exited here;
    a second exit does nothing. Nothing tells which thread has entered it: those that a ``with`` or
    an exit stack holds are passed over, and so are all, where other threads run, if it is not one.
    """
    kind: Any = TORCH_GUARDS["inference_mode"]
    guards: list[Any] = [each for each in gc.get_objects() if type(each) is kind]
    left = [
        guards[at]
        for at in range(len(guards))
        if guards[at].mode is not wanted.inference_mode
        and len(vars(guards[at])) > 1  # entered: it has a token besides its mode
        and not _is_exited_by_somebody(guards, at)
    ]
    if len(left) == 1 or threading.active_count() == 1:
        yield from left


def _is_exited_by_somebody(guards: list[Any], at: int) -> bool:
    """Tell whether a ``with`` or an exit stack holds the guard."""
    referrers = gc.get_referrers(guards[at])
    if any(type(each) is MethodType and each.__name__ == "__exit__" for each in referrers):
        return True
    if sys.version_info < (3, 14):
        return False
    # From there on a `with` holds the guard itself, among what its frame works on: that shows
    # as a reference that neither an object nor a variable has.
    frame: FrameType | None = sys._getframe()  # noqa: SLF001 (inspect.currentframe may be None)
    variables = 0
    while frame is not None:
        variables += sum(value is guards[at] for value in frame.f_locals.values())
        frame = frame.f_back
    others = sum(each is not guards for each in referrers)
    return _references(guards, at) - _BY_A_LIST_ALONE > others + variables


def _references(held: list[Any], at: int) -> int:
    return getrefcount(held[at])


_BY_A_LIST_ALONE = _references([object()], 0)


def _names(roots: tuple[Module, ...], modules: Modules) -> list[str]:
    names: dict[int, str] = {}
    for root in roots:
        for name, module in root.named_modules(prefix=type(root).__name__):
            names.setdefault(id(module), name)
    return [names.get(key, f"{type(m).__name__} (removed since)") for key, m in modules.items()]


def _message(
    subject: str,
    before: GradState,
    after: GradState,
    left_open: Sequence[str],
    lines: Sequence[str],
    modules: Sequence[str],
) -> str:
    """Say what `subject` changed, which guards it left open, where, and what to do."""
    said: list[str] = []
    for name, was, now in zip(("grad mode", "inference mode"), before, after, strict=True):
        if was is not now:
            left = f"{one_line(subject)} left {name} {_on(now)}"
            said.append(f"{left}; it was {_on(was)} when it began.")
    if left_open:
        said.append(f"Guards entered and never exited: {', '.join(map(one_line, left_open))}.")
    if lines:
        said += lines
        said.append("To do: switch the mode with `with` or a decorator, so that it ends there.")
    if modules:
        said += _flags(subject, modules)
    return "\n".join(said)


def _end(in_use: Sequence[Link]) -> str:
    if not in_use:
        return "All has been put back."
    guard = one_line(repr(in_use[0][0]))
    return (
        f"{guard} is still open here: it goes on deciding the mode, and brings back what it found."
    )


def _on(flag: bool) -> str:
    return "on" if flag else "off"


def _flags(subject: str, modules: Sequence[str]) -> list[str]:
    shown = [f"  {one_line(module)}" for module in modules[:MOST_ENTRIES]]
    if len(modules) > MOST_ENTRIES:
        shown.append(f"  and {len(modules) - MOST_ENTRIES} more")
    todo = (
        "To do: put the module in eval mode with `with gradguard.evaluating(module):`, which "
        "brings the flags back."
    )
    return [
        f"{one_line(subject)} left the training flag changed of ({len(modules)}):",
        *shown,
        todo,
    ]


never_compiled(globals())
