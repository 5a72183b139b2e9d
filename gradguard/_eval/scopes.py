"""Which modules are held in eval mode, by which scopes, over all threads."""

import os
from threading import RLock, get_ident
from threading import enumerate as living_threads

from torch.nn import Module

from gradguard._eval.training_flags import Modules, call_overrides, overrides_due, tree, write_flags


class Scope:
    """One entry of an ``evaluating`` object: the modules it holds in eval mode, and its thread."""

    __slots__ = ("modules", "thread")

    def __init__(self, modules: Modules) -> None:
        self.modules = modules
        self.thread = get_ident()


# Simpler designs that do not work:
# - each scope puts back what it found: of two overlapping scopes the one that is closed first puts
#   the other one's module in train mode, and the second then leaves it in eval mode for good;
# - a count on the root only: scopes on a module and on its submodule would not see each other;
# - a count per module: a scope closed by the garbage collector amid another's counting loses one.
#   Whether a module is held is a question to the open scopes, answered by set operations;
# - flags without a lock while an override runs: another thread's scope would open, find the module
#   held, and predict while half of its flags are still unset. The lock is reentrant, since an
#   override may itself use ``evaluating``.
lock = RLock()
if hasattr(os, "register_at_fork"):  # a child forked while another thread holds it would hang
    os.register_at_fork(
        before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release
    )
_open: dict[Scope, None] = {}  # in the order of opening
_before: dict[int, bool] = {}  # the flag of each held module, from before its first scope
_told: set[int] = set()  # held modules whose override was called, so must be called again


def holders(module: Module) -> list[str]:
    """Return the names of the threads whose open scopes hold ``module`` in eval mode."""
    key = next(iter(tree((module,))))  # of the wrapped module, if this is a torch.compile wrapper
    names = {thread.ident: thread.name for thread in living_threads()}
    with lock:
        threads = dict.fromkeys(scope.thread for scope in _open if key in scope.modules)
    return [names.get(thread, f"thread {thread}") for thread in threads]


def own_flags(modules: Modules) -> dict[int, bool]:
    """Return each module's flag; of one held in eval mode that from before its first scope."""
    with lock:
        return {key: _before.get(key, module.training) for key, module in modules.items()}


def write_own_flags(modules: Modules, flags: dict[int, bool]) -> None:
    """Give each module its flag; one that is held in eval mode gets it when its last scope ends."""
    with lock:
        _before.update({key: flags[key] for key in modules if key in _before})
        write_flags({key: m for key, m in modules.items() if key not in _before}, flags)


def opened(roots: tuple[Module, ...]) -> Scope:
    scope = Scope(tree(roots))
    with lock:
        _open[scope] = None  # first, so that nothing it holds is freed while the flags are read
        try:
            for key, module in scope.modules.items():
                _before.setdefault(key, module.training)
            _put_in_eval(scope.modules)
        except BaseException:
            close(scope)
            raise
    return scope


def _put_in_eval(modules: Modules) -> None:
    if any(module.training for module in modules.values()):
        flags = dict.fromkeys(modules, False)
        due = overrides_due(modules, flags, ())
        _told.update(due)
        for module in due.values():
            module.train(False)
        write_flags(modules, flags)


def close(scope: Scope) -> None:
    with lock:
        del _open[scope]
        freed = _freed(scope.modules)
        due = _overrides_to_call_back(freed)
        flags = {key: _before.pop(key) for key in freed}
        _told.difference_update(freed)
        try:
            call_overrides(due, flags)
        finally:
            write_flags(freed, flags)


def _freed(modules: Modules) -> Modules:
    """Return what no open scope holds any more; without a flag is what was never reached."""
    held: set[int] = set().union(*(scope.modules for scope in _open))
    return {key: m for key, m in modules.items() if key in _before and key not in held}


def _overrides_to_call_back(freed: Modules) -> Modules:
    """Return the overrides to call for ``freed``, and take out of it what cannot be freed yet.

    An override would take submodules along that another scope holds in eval mode, and there is no
    way to call it around them. So it passes to that scope, with all below it that is held: it sets
    these again whenever it is called, and only what is freed with it gets its own flag after that.
    """
    if _told.isdisjoint(freed) and all(m.training is _before[key] for key, m in freed.items()):
        return {}
    due = overrides_due(freed, _before, _told)
    for module in due.values():
        below = {key: m for key, m in tree((module,)).items() if key in _before}
        heir = next((s for s in _open if not s.modules.keys().isdisjoint(below)), None)
        if heir is not None:
            heir.modules.update(below)
            for key in below:
                freed.pop(key, None)
    return {key: module for key, module in due.items() if key in freed}
