"""Eval mode for a block, counted per module over all threads."""

from reprlib import repr as shortened
from threading import get_ident
from typing import Any, Generic, TypeVar, overload

from torch.compiler import is_dynamo_compiling
from torch.nn import Module

from gradguard._core.decorating import decorate_each
from gradguard._core.guard_types import F
from gradguard._core.suspendable import Suspendable
from gradguard._core.torch_versions import never_compiled, not_compiled
from gradguard._eval.giving_flags_back import Scope

T = TypeVar("T")
M = TypeVar("M", bound=Module)

_ACCEPTED = "evaluating takes torch.nn.Module objects, one argument each: evaluating(encoder, head)"


class evaluating(Generic[T]):  # noqa: N801 (lower case as torch's own guards)
    """Put modules and all their submodules in eval mode, and give each its own flag back after.

    Afterwards every submodule has exactly the ``training`` flag it had: a BatchNorm that was frozen
    in eval stays so, and a ``train()`` in the block is undone. Entries are counted per module over
    all threads: while any is open the module stays in eval mode; when the last one is left, the
    flags from before the first come back. One object may be entered any number of times, nested,
    by many threads. ``with evaluating(model) as m`` gives the module, for several a tuple.

    A module that overrides ``train()`` gets its override called, in both directions, outermost
    first, and last with its own earlier flag. Such a module takes its submodules along, so it stays
    in eval mode as long as another entry has one of these. Inside, eval means eval: a submodule
    that an override leaves in train mode (Monte Carlo dropout) is put in eval mode all the same.
    What an override raises is passed on, once every flag is back.

    A submodule that is removed inside the block gets its flag back too; one that is added comes
    with its own flag and keeps it (unless a parent's ``train()`` sets it).

    As a decorator, ``@evaluating(model)``, it covers the bodies of functions, generators,
    coroutines and async generators: at each suspension the flags go back, and come again on resume.

    In a function that `torch.compile` compiles the flags are constants. Where all modules are in
    eval mode already, nothing has to change; otherwise the function runs uncompiled up to the
    calls in it, or, with ``fullgraph=True``, compiling fails with an error that says to put
    ``evaluating`` around the compiled call.

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

    Source: `torch.nn.Module.eval`, `torch.nn.Module.train`.
    """

    @overload
    def __init__(self: "evaluating[M]", module: M, /) -> None: ...
    @overload
    def __init__(self: "evaluating[tuple[Module, ...]]", *modules: Module) -> None: ...
    def __init__(self, *modules: Module) -> None:
        if not modules:
            msg = f"evaluating() was given no module to put in eval mode. {_ACCEPTED}."
            raise TypeError(msg)
        for position, module in enumerate(modules, 1):
            if not isinstance(module, Module):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TypeError(_not_a_module(module, position))
        self._modules = modules
        self._scopes: dict[Scope, None] = {}  # in the order of entry

    def __enter__(self) -> T:
        if is_dynamo_compiling():
            self._compile()
            return self._given()
        scope = Scope(self._modules)
        try:
            self._scopes[scope] = None
            scope.enter()
            return self._given()
        except BaseException:
            self._scopes.pop(scope, None)
            scope.leave()
            raise

    def __exit__(self, *_: object) -> None:
        if is_dynamo_compiling():
            self._compile()
            return
        scope = None
        try:
            scope = self._pop()
            scope.leave()
        except BaseException:
            if scope is not None:
                scope.leave()  # the rest of it: an interrupt may come anywhere
            raise

    def __call__(self, fn: F) -> F:
        modules = self._modules

        def scope_for(*_: Any, **__: Any) -> "evaluating[Any]":
            return evaluating(*modules)

        decorated: F = decorate_each(fn, scope_for, f"evaluating({self._names()})")
        return decorated

    def __repr__(self) -> str:
        return f"evaluating({self._names()})"

    def while_compiling(self) -> "evaluating[T]":
        """The same while Dynamo is compiling: it asks each time, as a graph may break inside."""
        return self

    def body(self) -> "EvalBody":
        """Return this scope for one call whose body can be suspended."""
        return EvalBody(self._modules)

    def __reduce__(self) -> tuple[type["evaluating[T]"], tuple[Module, ...]]:
        # A copy or pickle of a module may carry this object along: the copy is in no scope.
        return type(self), self._modules

    def _compile(self) -> None:
        """Go on if nothing has to change: Dynamo compiles anew for other flags than it reads here.

        An entry is there where the graph has broken since it was made.
        """
        if self._scopes or any(
            getattr(module, "training", False)
            for root in self._modules
            for module in root.modules()
        ):
            _put_evaluating_around_the_compiled_call()

    def _given(self) -> T:
        given: Any = self._modules[0] if len(self._modules) == 1 else self._modules
        return given  # type: ignore[no-any-return]

    def _pop(self) -> Scope:
        """Take out the scope to leave: the innermost of this thread, or else of any.

        A generator may be resumed, and so leave a ``with``, in another thread.
        """
        me = get_ident()
        scopes = [*self._scopes]
        for scope in [*scopes, *(scope for scope in scopes if scope.entry.thread == me)][::-1]:
            try:
                del self._scopes[scope]
            except KeyError:  # another thread was faster
                continue
            return scope
        msg = (
            f"evaluating({self._names()}) was exited more often than it was entered; no flag was "
            "changed. Use it as `with evaluating(...):` or as a decorator, which pair the two."
        )
        raise RuntimeError(msg)

    def _names(self) -> str:
        # Of a block that it cannot follow, Dynamo of torch 2.6 shows only this, before __init__.
        modules: tuple[Module, ...] | None = getattr(self, "_modules", None)
        if modules is None:
            return "to be put around the compiled call"
        return ", ".join(type(module).__name__ for module in modules)


_AROUND = (
    "gradguard.evaluating, inference_method and inference_function cannot switch a module to eval "
    "mode inside a function that torch.compile compiles: its flags are constants there. Put them "
    "around the compiled call, as in `with gradguard.evaluating(model): compiled(x)`, or call "
    "model.eval() before"
)


@not_compiled(_AROUND)
def _put_evaluating_around_the_compiled_call() -> None:  # Dynamo of torch 2.6 shows but the name
    raise RuntimeError(_AROUND)


class EvalBody(Suspendable):
    """Eval mode around one body that can be suspended, a `Suspendable`.

    With `keep_eval` it stays while the body is suspended, until that ends or is dropped.
    """

    __slots__ = ("_keep_eval", "_modules", "_scope")

    def __init__(self, modules: tuple[Module, ...], *, keep_eval: bool = False) -> None:
        self._scope: Scope | None = None
        self._modules = modules
        self._keep_eval = keep_eval

    def resume(self) -> None:
        if self._scope is None:
            self._scope = scope = Scope(self._modules)
            try:
                scope.enter()
            except BaseException:
                self._scope = None
                scope.leave()
                raise

    def suspend(self) -> None:
        if not self._keep_eval:
            self.finish()

    def finish(self) -> None:
        scope = self._scope
        try:
            self._scope = None
            if scope is not None:
                scope.leave()
        except BaseException:
            if scope is not None:
                scope.leave()
            raise


def _not_a_module(value: object, position: int) -> str:
    found = f"argument {position} is {shortened(value)}, of type {type(value).__name__}"
    return f"evaluating(): {found}, which is not a module. {_ACCEPTED}. {_remedy(value)}"


def _remedy(value: object) -> str:
    if isinstance(value, type):
        return f"This is a class: pass an instance, evaluating({value.__name__}(...))."
    if isinstance(value, (list, tuple, set, frozenset)):
        return "Unpack the collection: evaluating(*modules)."
    if callable(value):
        return "To decorate a function, name its modules first: @evaluating(model)."
    return "If the object holds a module, pass that: evaluating(holder.model)."


never_compiled(globals())
evaluating.__module__ = "gradguard"
