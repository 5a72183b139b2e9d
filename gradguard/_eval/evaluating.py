"""Eval mode for a block, counted per module over all threads."""

from contextlib import AbstractContextManager, nullcontext
from threading import get_ident

from torch.compiler import is_dynamo_compiling
from torch.nn import Module

from gradguard._core.decorating import decorate
from gradguard._core.guard_types import F
from gradguard._eval import texts as messages
from gradguard._eval.scopes import Scope, close, lock, opened


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
        self._scopes: list[Scope] = []

    def __enter__(self) -> None:
        if not is_dynamo_compiling():
            self._scopes.append(opened(self._modules))

    def __exit__(self, *_: object) -> None:
        if not is_dynamo_compiling():
            close(self._pop())

    def __call__(self, fn: F) -> F:
        decorated: F = decorate(fn, self)
        return decorated

    def __repr__(self) -> str:
        return f"evaluating({self._names()})"

    def while_compiling(self) -> AbstractContextManager[None]:
        """Nothing: this is what it does while Dynamo is compiling."""
        return nullcontext()

    def body(self) -> "EvalBody":
        """Return this scope for one call whose body can be suspended."""
        return EvalBody(self._modules)

    def __reduce__(self) -> tuple[type["evaluating"], tuple[Module, ...]]:
        # A copy or pickle of a module may carry this object along: the copy is in no scope.
        return type(self), self._modules

    def _pop(self) -> Scope:
        """Take out the scope to close: the innermost of this thread.

        Or else of any: a generator may be resumed, and so leave a ``with``, in another thread.
        """
        with lock:
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
        self._scope: Scope | None = None
        self._modules = modules
        self._hold = hold

    def resume(self) -> None:
        if self._scope is None:
            self._scope = opened(self._modules)

    def suspend(self) -> None:
        if not self._hold:
            self.finish()

    def finish(self) -> None:
        scope, self._scope = self._scope, None
        if scope is not None:
            close(scope)

    __del__ = finish
