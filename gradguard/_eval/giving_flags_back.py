"""Putting modules in eval mode, and giving their flags back when nobody needs that any more."""

import os
from collections import deque
from collections.abc import Callable, Iterable
from threading import enumerate as living_threads
from threading import get_ident

from torch.nn import Module

from gradguard._core.torch_versions import never_compiled
from gradguard._eval.flags_of_tree import (
    Modules,
    errors_of_overrides,
    overrides_due,
    tree,
    write_flags,
)
from gradguard._eval.modules_in_eval import Entry, forget, groups, join, parts
from gradguard._eval.turns import begin, end, forget_other_threads, is_in_turn

_overrides_called: set[int] = set()  # modules whose override was called, so must be called again

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
    group = groups.get(key or 0)
    threads = dict.fromkeys(entry.thread for entry in [*group.entries]) if group else ()
    return [names.get(thread, f"thread {thread}") for thread in threads]


def own_flags(modules: Modules) -> dict[int, bool]:
    """Return each module's flag; of one in an entry that from before the first."""
    flags: dict[int, bool] = {}

    def read(_: Entry) -> None:
        for key, module in modules.items():
            group = groups.get(key)
            flags[key] = module.training if group is None else group.own[key]

    _in_turn(read, Entry(modules))
    return flags


def write_own_flags(modules: Modules, flags: dict[int, bool]) -> None:
    """Give each module its flag; one in an entry gets it when the last is left."""

    def write(_: Entry) -> None:
        write_flags({key: m for key, m in modules.items() if key not in groups}, flags)
        for key in modules.keys() & groups.keys():
            groups[key].own[key] = flags[key]

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
    join(entry, flags)
    if any(flags.values()):
        in_eval = dict.fromkeys(flags, False)
        due = overrides_due(entry.modules, in_eval, ())
        _overrides_called.update(due)
        for module in due.values():
            module.train(False)
        write_flags(entry.modules, in_eval)


def _leave(entry: Entry) -> None:
    free: Modules = {}
    own: dict[int, bool] = {}
    for group, keys in parts(entry.modules).items():
        if group is not None:
            group.entries.pop(entry, None)
            if not group.entries:
                whole = len(keys) == len(entry.modules)
                free |= entry.modules if whole else {key: entry.modules[key] for key in keys}
                own |= group.own
    now = {key: module.training for key, module in free.items()}
    if now == own and _overrides_called.isdisjoint(free):
        forget(free)
    else:
        _give_back(free, own)


def _give_back(free: Modules, own: dict[int, bool]) -> None:
    # Not in a `finally`: what an interrupt leaves half done is done again as a whole.
    due = overrides_due(free, own, _overrides_called)
    for module in due.values():
        _leave_to_others(module, free)
    errors = errors_of_overrides({key: m for key, m in due.items() if key in free}, own)
    # An override may have entered for longer than its call; or it has waited for a lock of somebody
    # who went on meanwhile, and who is still in eval mode or has left it and given the flags back.
    entered = {key: m for key, m in free.items() if key in groups and groups[key].entries}
    free = {key: m for key, m in free.items() if key not in entered}
    write_flags(entered, dict.fromkeys(entered, False))
    write_flags(free, own)
    _overrides_called.difference_update(free)
    forget(free)
    for error in errors:
        raise error


def _leave_to_others(module: Module, free: Modules) -> None:
    """Take out of ``free`` what another entry must free, because of an override.

    An override would take submodules along that another entry has in eval mode, and there is no
    way to call it around them. So it passes to that entry, with all below it that is in eval mode:
    it sets these again whenever it is called, and only what is freed with it gets its own flag
    after that.
    """
    below = {key: m for key, m in tree((module,)).items() if key in groups}
    heir = next((entry for key in below for entry in groups[key].entries), None)
    if heir is not None:
        heir.modules = {**heir.modules, **below}
        join(heir, dict.fromkeys(below, False))
        for key in below:
            free.pop(key, None)


def _forget_other_threads() -> None:
    """In a forked child: leave the entries of threads that the fork did not take along.

    But a module's own ``train()`` is not called in the midst of a fork, where locks may be taken
    for ever: it waits until this process next uses ``evaluating``.
    """
    lost = {entry for group in groups.values() for entry in group.entries}
    lost = {entry for entry in lost if entry.thread != get_ident()}
    lost.update(about for about in forget_other_threads() if isinstance(about, Entry))
    for entry in lost:
        if _overrides_called.isdisjoint(entry.modules):
            _leave(entry)
        else:
            _dropped.append(entry)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_other_threads)


never_compiled(globals())
