"""Eval mode for a block, counted per module over all threads."""

import os
from contextlib import AbstractContextManager, nullcontext
from threading import RLock, get_ident
from threading import enumerate as living_threads

from torch.compiler import is_dynamo_compiling
from torch.nn import Module

from gradguard._decorators import decorate
from gradguard._kinds import F
from gradguard._messages import evaluating as messages
from gradguard._train_flags import Modules, call_overrides, overrides_due, tree, write_flags


class _Scope:
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
_lock = RLock()
if hasattr(os, "register_at_fork"):  # a child forked while another thread holds it would hang
    os.register_at_fork(
        before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
    )
_open: dict[_Scope, None] = {}  # in the order of opening
_before: dict[int, bool] = {}  # the flag of each held module, from before its first scope
_told: set[int] = set()  # held modules whose override was called, so must be called again


class evaluating:  # noqa: N801 (lower case as torch's own guards)
    """Put modules and all their submodules in eval mode, and give each its own flag back after.

    Afterwards every submodule has exactly the ``training`` flag it had: a BatchNorm that was frozen
    in eval stays so, and a ``train()`` in the block is undone. Scopes are counted per module over
    all threads: while any is open the module stays in eval mode; when the last one is closed, the
    flags from before the first come back. One object may be entered any number of times, nested,
    by many threads.

    A module that overrides ``train()`` gets its override called, in both directions, outermost
    first, and last with its own earlier flag. Such a module takes its submodules along, so it stays
    in eval mode as long as another scope holds one of these. Inside, eval means eval: a submodule
    that an override leaves in train mode (Monte Carlo dropout) is put in eval mode all the same.
    What an override raises is passed on, once every flag is back.

    A submodule that is removed inside the block gets its flag back too; one that is added comes
    with its own flag and keeps it (unless a parent's ``train()`` sets it).

    As a decorator, ``@evaluating(model)``, it covers the bodies of functions, generators,
    coroutines and async generators: at each suspension the flags go back, and come again on resume.

    While Dynamo is compiling this does nothing: put it around the compiled call.

    Args:
        *modules: the modules, at least one.

    Raises:
        TypeError: for a value that is no module, or no value at all.
        RuntimeError: for an exit without an entry.

    Example:
        >>> from gradguard import evaluating
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2).eval(), nn.Dropout())
        >>> with evaluating(net):
        ...     [layer.training for layer in net]
        [False, False, False]
        >>> [layer.training for layer in net]
        [True, False, True]
        >>> @evaluating(net)
        ... def mode():
        ...     return net.training
        >>> mode(), net.training
        (False, True)

    """

    def __init__(self, *modules: Module) -> None:
        if not modules:
            raise TypeError(messages.no_module())
        for position, module in enumerate(modules, 1):
            if not isinstance(module, Module):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TypeError(messages.not_a_module(module, position))
        self._modules = modules
        self._scopes: list[_Scope] = []

    def __enter__(self) -> None:
        if not is_dynamo_compiling():
            self._scopes.append(_opened(self._modules))

    def __exit__(self, *_: object) -> None:
        if not is_dynamo_compiling():
            _close(self._pop())

    def __call__(self, fn: F) -> F:
        decorated: F = decorate(fn, self)
        return decorated

    def __repr__(self) -> str:
        return f"evaluating({self._names()})"

    def traced(self) -> AbstractContextManager[None]:
        """Nothing: this is what it does while Dynamo is compiling."""
        return nullcontext()

    def body(self) -> "EvalBody":
        """Return this scope for one call whose body can be suspended."""
        return EvalBody(self._modules)

    def __reduce__(self) -> tuple[type["evaluating"], tuple[Module, ...]]:
        # A copy or pickle of a module may carry this object along: the copy is in no scope.
        return type(self), self._modules

    def _pop(self) -> _Scope:
        """Take out the scope to close: the innermost of this thread.

        Or else of any: a generator may be resumed, and so leave a ``with``, in another thread.
        """
        with _lock:
            if not self._scopes:
                raise RuntimeError(messages.not_open(self._names()))
            mine = [scope for scope in self._scopes if scope.thread == get_ident()]
            scope = (mine or self._scopes)[-1]
            self._scopes.remove(scope)
            return scope

    def _names(self) -> str:
        return ", ".join(type(module).__name__ for module in self._modules)


class EvalBody:
    """Eval mode around one body that can be suspended, a `Suspendable`.

    With `hold` it stays while the body is suspended. Such a body may be dropped without an end (an
    async generator whose event loop is closed), hence ``__del__``.
    """

    __slots__ = ("_hold", "_modules", "_scope")

    def __init__(self, modules: tuple[Module, ...], *, hold: bool = False) -> None:
        self._scope: _Scope | None = None
        self._modules = modules
        self._hold = hold

    def resume(self) -> None:
        if self._scope is None:
            self._scope = _opened(self._modules)

    def suspend(self) -> None:
        if not self._hold:
            self.finish()

    def finish(self) -> None:
        scope, self._scope = self._scope, None
        if scope is not None:
            _close(scope)

    __del__ = finish


def holders(module: Module) -> list[str]:
    """Return the names of the threads whose open scopes hold ``module`` in eval mode."""
    key = next(iter(tree((module,))))  # of the wrapped module, if this is a torch.compile wrapper
    names = {thread.ident: thread.name for thread in living_threads()}
    with _lock:
        threads = dict.fromkeys(scope.thread for scope in _open if key in scope.modules)
    return [names.get(thread, f"thread {thread}") for thread in threads]


def own_flags(modules: Modules) -> dict[int, bool]:
    """Return each module's flag; of one held in eval mode that from before its first scope."""
    with _lock:
        return {key: _before.get(key, module.training) for key, module in modules.items()}


def write_own_flags(modules: Modules, flags: dict[int, bool]) -> None:
    """Give each module its flag; one that is held in eval mode gets it when its last scope ends."""
    with _lock:
        _before.update({key: flags[key] for key in modules if key in _before})
        write_flags({key: m for key, m in modules.items() if key not in _before}, flags)


def _opened(roots: tuple[Module, ...]) -> _Scope:
    scope = _Scope(tree(roots))
    with _lock:
        _open[scope] = None  # first, so that nothing it holds is freed while the flags are read
        try:
            for key, module in scope.modules.items():
                _before.setdefault(key, module.training)
            _put_in_eval(scope.modules)
        except BaseException:
            _close(scope)
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


def _close(scope: _Scope) -> None:
    with _lock:
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
