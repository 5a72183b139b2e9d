"""The check that a block or call leaves the mode and the ``training`` flags as it found them."""

import sys
from contextlib import AbstractContextManager, nullcontext
from threading import get_ident
from typing import Any, TypeVar

from torch.nn import Module

from gradguard._assertions.leak_check_texts import left_changed, not_a_module, not_entered
from gradguard._core.decorating import decorate_each
from gradguard._core.guard_stack import close_above, thread
from gradguard._core.state import grad_state, is_dynamo_compiling, put_back
from gradguard._core.suspended_bodies import Body
from gradguard._core.wrappers import CallContext
from gradguard._errors import GradLeakError
from gradguard._eval.entries import own_flags, write_own_flags
from gradguard._eval.training_flags import Modules, tree
from gradguard._locate.where import where

F = TypeVar("F")

_THE_BLOCK = "the block"
_ENDS = (StopIteration, StopAsyncIteration, GeneratorExit)  # a body's own ways to say it is done


class leak_check:  # noqa: N801 (lower case as torch's own guards)
    """Raise if a block leaves the grad mode, or a ``training`` flag, other than it found it.

    What was left is put back, so that the code after it runs in the right mode. An exception of
    the block comes out as it was, with the finding as a note. Works as a context manager and as a
    decorator of functions, generators, coroutines and async generators; a body that can be
    suspended has its own mode (nothing of it is visible outside meanwhile), and is checked when it
    ends. Does nothing while `torch.compile` is compiling.

    Args:
        modules: their ``training`` flags, and those of all their submodules, are checked, too.

    Raises:
        TypeError: an argument is not a module.
        GradLeakError: on exit, naming what changed, the guards left open and, as far as it can be
            found, the line that switched the mode.

    >>> import gradguard, torch
    >>> @gradguard.leak_check()
    ... def validate():
    ...     torch.set_grad_enabled(False)
    >>> validate()
    Traceback (most recent call last):
        ...
    gradguard.GradLeakError: leak_check: validate() left grad mode off; it was on when it began...
    >>> torch.is_grad_enabled()
    True

    Source: `torch.set_grad_enabled`, which as a statement lasts until something switches back.
    """

    def __init__(self, *modules: Module) -> None:
        for module in modules:
            if not isinstance(module, Module):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TypeError(not_a_module(type(module).__name__))
        self._modules = modules
        self._asker = "leak_check"
        self._name = _THE_BLOCK
        self._found: list[tuple[int, _Found]] = []

    def __enter__(self) -> None:
        if not is_dynamo_compiling():
            self._found.append((get_ident(), _Found(self._modules)))

    def __exit__(self, exc_type: object, exc: object, tb: object) -> None:
        __tracebackhide__ = True
        if is_dynamo_compiling():
            return
        _report(self._pop().put_back(self._asker, self._name), exc)

    def _pop(self) -> "_Found":
        """This thread's innermost entry; else any thread's, since a generator may have moved."""
        me = get_ident()
        mine = [at for at, (ident, _) in enumerate(self._found) if ident == me]
        if mine:
            return self._found.pop(mine[-1])[1]
        if not self._found:
            raise RuntimeError(not_entered())
        found = self._found.pop()[1]
        found.state = grad_state()  # the other thread's says nothing here, nor does its chain
        found.link = thread.cell[0]
        return found

    def __call__(self, fn: F) -> F:
        return leaves_mode("leak_check", fn, self._modules)

    def while_compiling(self) -> AbstractContextManager[object]:
        """Nothing: Dynamo follows neither the inference flag nor the module tree."""
        return nullcontext()

    def body(self) -> "_CheckedBody":
        """The check of one call whose body can be suspended."""
        return _CheckedBody(self._modules, self._asker, self._name)


def leaves_mode(asker: str, fn: F, modules: tuple[Module, ...] = ()) -> F:
    """Decorate `fn` with a `leak_check` whose messages are `asker`'s and name the function."""
    check = leak_check(*modules)
    check._asker = asker  # noqa: SLF001 (its own module)
    check._name = f"{getattr(fn, '__qualname__', type(fn).__name__)}()"  # noqa: SLF001

    def check_for(*_: Any, **__: Any) -> CallContext:
        return check

    decorated: F = decorate_each(fn, check_for, f"{asker}()")
    return decorated


class _Found:
    """The mode, the open guards and the flags at the beginning."""

    def __init__(self, roots: tuple[Module, ...]) -> None:
        self.state = grad_state()
        self.link = thread.cell[0]
        self.roots = roots
        self.modules = tree(roots)
        self.flags = self.flags_now()

    def flags_now(self) -> dict[int, bool]:
        return own_flags(self.modules)

    def put_back(self, asker: str, name: str) -> str | None:
        """Bring all back to what it was; return what was not, as a message."""
        now = grad_state()
        flags = self.flags_now()
        changed = [key for key, flag in flags.items() if flag is not self.flags[key]]
        if now == self.state and not changed:
            return None
        lines = where(now) if now != self.state else []
        left_open = [repr(guard) for guard in close_above(self.link)]
        put_back(self.state)
        write_own_flags(self.modules, self.flags)
        names = _names(self.roots, {key: self.modules[key] for key in changed})
        subject = f"{asker}: {name}"
        return left_changed(
            subject, self.state, now, left_open=left_open, modules=names, where=lines
        )


class _CheckedBody(Body):
    """A body under its own mode, which is compared with what it began with when it ends."""

    __slots__ = ("_asker", "_flags", "_found", "_name", "_roots")

    def __init__(self, roots: tuple[Module, ...], asker: str, name: str) -> None:
        super().__init__()
        self._roots = roots
        self._asker = asker
        self._name = name
        self._found: _Found | None = None
        self._flags: dict[int, bool] = {}

    def resume(self) -> None:
        super().resume()
        if self._found is None:
            self._found = _Found(self._roots)
        else:  # flags that others have set meanwhile are not this body's doing
            now = self._found.flags_now()
            self._found.flags |= {k: now[k] for k in now if now[k] is not self._flags[k]}
            self._found.link = self._base

    def suspend(self) -> None:
        if self._found is not None:
            self._flags = self._found.flags_now()
        super().suspend()

    def finish(self) -> None:
        __tracebackhide__ = True
        error = sys.exc_info()[1]  # `drive` finishes a body from its except clauses
        finding = None if self._found is None else self._found.put_back(self._asker, self._name)
        super().finish()
        _report(finding, None if isinstance(error, _ENDS) else error)


def _report(finding: str | None, error: object) -> None:
    __tracebackhide__ = True
    if finding is None:
        return
    if not isinstance(error, BaseException):
        raise GradLeakError(finding)
    add_note(error, finding)


def add_note(error: BaseException, note: str) -> None:
    """Add a note as Python 3.11 does; 3.10 keeps it, too, though its tracebacks do not show it."""
    notes: list[str] = getattr(error, "__notes__", [])
    vars(error)["__notes__"] = [*notes, note]


def _names(roots: tuple[Module, ...], modules: Modules) -> list[str]:
    names: dict[int, str] = {}
    for root in roots:
        for name, module in root.named_modules(prefix=type(root).__name__):
            names.setdefault(id(module), name)
    return [names.get(key, f"{type(m).__name__} (removed since)") for key, m in modules.items()]
