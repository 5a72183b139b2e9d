"""Which modules are in eval mode by which entries of ``evaluating``, over all threads.

Simpler designs that do not work:

- Each entry puts back what it found: of two that overlap the one that is left first puts the
  other's module in train mode, and the second then leaves it in eval mode for good.
- A count on the root only: entries on a module and on its submodule would not see each other.
- A count per module: an interrupt between the counting and the noting of it makes it wrong for
  good. An entry that is put into a dict or taken out of it twice does no harm.
- One list of entries, asked which modules they have: each costs what all others have open.
- A lock while flags are changed: a module's own ``train()`` runs meanwhile, and may wait for
  anything, another lock included. See `turns`.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from threading import get_ident

from gradguard._core.torch_versions import never_compiled
from gradguard._eval.flags_of_tree import Modules


class Entry:
    """One time that modules are put in eval mode, and the thread that does it."""

    __slots__ = ("modules", "thread")

    def __init__(self, modules: Modules) -> None:
        self.modules = modules
        self.thread = get_ident()


class Group:
    """Modules that are in eval mode by the same entries.

    Each of these has all the modules: so a turn at those of one entry is alone in changing them,
    and modules that always come together cost as one.
    """

    __slots__ = ("entries", "own")

    def __init__(self, entries: dict[Entry, None], own: dict[int, bool]) -> None:
        self.entries = entries  # in order; none once the flags are being given back
        self.own = own  # each module's flag, by its id, from before the first of them


groups: dict[int, Group] = {}  # by the module's id


def join(entry: Entry, flags: dict[int, bool]) -> None:
    """Put the entry in the groups of its modules, which have these flags now."""
    for group, keys in parts(flags).items():
        if group is None:
            own = flags if len(keys) == len(flags) else {key: flags[key] for key in keys}
            groups.update(dict.fromkeys(keys, Group({entry: None}, own)))
        elif len(group.own) == len(keys):
            group.entries[entry] = None
        else:
            part = Group({**group.entries, entry: None}, {key: group.own[key] for key in keys})
            groups.update(dict.fromkeys(keys, part))
            for key in keys:
                del group.own[key]


def parts(keys: Iterable[int]) -> Mapping[Group | None, Sequence[int]]:
    """Return modules by their groups."""
    keys = [*keys]
    found = [*map(groups.get, keys)]
    if keys and found.count(found[0]) == len(found):
        return {found[0]: keys}
    by_group: dict[Group | None, list[int]] = {}
    for key, group in zip(keys, found, strict=True):
        by_group.setdefault(group, []).append(key)
    return by_group


def forget(free: Modules) -> None:
    """Take modules out of their groups, once their flags have been given back."""
    deque(map(groups.pop, free, repeat(None)), 0)  # in C: half the time of a loop


never_compiled(globals())
