"""Which modules are in eval mode by which entries of ``evaluating``, over all threads.

Simpler designs that do not work:

- Each entry puts back what it found: of two that overlap the one that is left first puts the
  other's module in train mode, and the second then leaves it in eval mode for good.
- A count on the root only: entries on a module and on its submodule would not see each other.
- A count per module: an interrupt between the counting and the noting of it makes it wrong for
  good. An entry that is put among others or taken out twice does no harm.
- One list of entries, asked which modules they have: each costs what all others have open.
- A lock while flags are changed: a module's own ``train()`` runs meanwhile, and may wait for
  anything, another lock included. See `turns`.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable
from itertools import repeat
from threading import enumerate as living_threads
from threading import get_ident

from torch.nn import Module

from gradguard._core.torch_versions import never_compiled
from gradguard._eval.training_flags import Modules, call_overrides, overrides_due, tree, write_flags
from gradguard._eval.turns import begin, end, forget_other_threads, is_in_turn


class Entry:
    """One time that modules are put in eval mode, and the thread that does it."""

    __slots__ = ("modules", "thread")

    def __init__(self, modules: Modules) -> None:
        self.modules = modules
        self.thread = get_ident()


# By the module's id.
_entries: dict[int, dict[Entry, None]] = {}  # those that have it in eval mode, in order
_own: dict[int, bool] = {}  # its flag from before the first of them
_told: set[int] = set()  # modules whose override was called, so must be called again

_dropped: deque[Entry] = deque()  # to be left once this thread has no turn


class Scope:
    """Eval mode for modules from `enter` to `leave`, or until this object is dropped."""

    __slots__ = ("entry",)

    def __init__(self, roots: Iterable[Module]) -> None:
        self.entry = Entry(tree(roots))

    def enter(self) -> None:
        self.__class__ = _EnteredScope  # pyright: ignore[reportAttributeAccessIssue]
        _in_turn(_enter, self.entry)

    def leave(self) -> None:
        """Give the flags back. What was left, or was left halfway, may be left again."""
        _in_turn(_leave, self.entry)
        self.__class__ = Scope  # pyright: ignore[reportAttributeAccessIssue]


class _EnteredScope(Scope):
    """A scope that has to be left: an interrupt may come before the first line that would.

    Only such a one has a finalizer: Python drops an interrupt that arrives while it runs one.
    """

    __slots__ = ()

    def __del__(self) -> None:
        _dropped.append(self.entry)
        _leave_dropped()


def threads_in_eval(module: Module) -> list[str]:
    """Return the names of the threads whose entries have ``module`` in eval mode."""
    _leave_dropped()
    key = next(iter(tree((module,))), None)  # of the wrapped module, if torch.compile wraps it
    names = {thread.ident: thread.name for thread in living_threads()}
    threads = dict.fromkeys(entry.thread for entry in [*_entries.get(key or 0, ())])
    return [names.get(thread, f"thread {thread}") for thread in threads]


def own_flags(modules: Modules) -> dict[int, bool]:
    """Return each module's flag; of one in an entry that from before the first."""
    flags: dict[int, bool] = {}

    def read(entry: Entry) -> None:
        flags.update((key, _own.get(key, m.training)) for key, m in entry.modules.items())

    _in_turn(read, Entry(modules))
    return flags


def write_own_flags(modules: Modules, flags: dict[int, bool]) -> None:
    """Give each module its flag; one in an entry gets it when the last is left."""

    def write(entry: Entry) -> None:
        free = {key: m for key, m in entry.modules.items() if key not in _own}
        _own.update((key, flags[key]) for key in entry.modules if key in _own)
        write_flags(free, flags)

    _in_turn(write, Entry(modules))


def _in_turn(change: Callable[[Entry], None], entry: Entry) -> None:
    try:
        begin(entry)
        change(entry)
    finally:
        end(entry)
    if _dropped:
        _leave_dropped()


def _leave_dropped() -> None:
    """Leave what nobody is in any more, unless the collector has come amid this thread's turn."""
    while _dropped and not is_in_turn():
        try:
            entry = _dropped.popleft()
        except IndexError:  # another thread was faster
            return
        try:
            _in_turn(_leave, entry)
        except BaseException:
            _in_turn(_leave, entry)  # the rest of it
            raise


def _enter(entry: Entry) -> None:
    flags = {key: module.training for key, module in entry.modules.items()}
    for key, flag in flags.items():
        _own.setdefault(key, flag)
        if entries := _entries.get(key):
            entries[entry] = None
        else:
            _entries[key] = {entry: None}
    if any(flags.values()):
        in_eval = dict.fromkeys(flags, False)
        due = overrides_due(entry.modules, in_eval, ())
        _told.update(due)
        for module in due.values():
            module.train(False)
        write_flags(entry.modules, in_eval)


def _leave(entry: Entry) -> None:
    free: Modules = {}
    for key, module in entry.modules.items():
        if entries := _entries.get(key):
            entries.pop(entry, None)
        if not entries and key in _own:
            free[key] = module
    if not _told.isdisjoint(free) or any(m.training is not _own[key] for key, m in free.items()):
        _give_back(free)
    else:
        _forget(free)


def _give_back(free: Modules) -> None:
    flags = {key: _own[key] for key in free}
    try:
        due = overrides_due(free, flags, _told)
        for module in due.values():
            _leave_to_others(module, free)
        call_overrides({key: module for key, module in due.items() if key in free}, flags)
    finally:
        write_flags(free, flags)
        _forget(free)


def _leave_to_others(module: Module, free: Modules) -> None:
    """Take out of ``free`` what another entry must free, because of an override.

    An override would take submodules along that another entry has in eval mode, and there is no
    way to call it around them. So it passes to that entry, with all below it that is in eval mode:
    it sets these again whenever it is called, and only what is freed with it gets its own flag
    after that.
    """
    below = {key: m for key, m in tree((module,)).items() if key in _own}
    heir = next((entry for key in below for entry in [*_entries.get(key, ())]), None)
    if heir is not None:
        heir.modules = {**heir.modules, **below}
        for key in below:
            _entries.setdefault(key, {})[heir] = None
            free.pop(key, None)


def _forget(free: Modules) -> None:
    _told.difference_update(free)
    deque(map(_entries.pop, free, repeat(None)), 0)  # in C: half the time of a loop
    deque(map(_own.pop, free, repeat(None)), 0)


def _forget_other_threads() -> None:
    """In a forked child: leave the entries of threads that the fork did not take along.

    But a module's own ``train()`` is not called in the midst of a fork, where locks may be taken
    for ever: it waits until this process next uses ``evaluating``.
    """
    lost = {entry for entries in _entries.values() for entry in entries}
    lost = {entry for entry in lost if entry.thread != get_ident()}
    lost.update(about for about in forget_other_threads() if isinstance(about, Entry))
    for entry in lost:
        if _told.isdisjoint(entry.modules):
            _leave(entry)
        else:
            _dropped.append(entry)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_other_threads)


never_compiled(globals())
