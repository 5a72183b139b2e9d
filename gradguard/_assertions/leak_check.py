"""The check that a block or call leaves the mode and the ``training`` flags as it found them."""

import sys
from threading import get_ident
from types import FrameType
from typing import Any, TypeVar

from torch.nn import Module

from gradguard._assertions.left_switched import Start
from gradguard._core.decorating import decorate_each
from gradguard._core.rank import with_rank
from gradguard._core.state import is_dynamo_compiling, is_grad_enabled
from gradguard._core.suspendable import Suspendable
from gradguard._core.suspended_bodies import Body
from gradguard._core.torch_versions import never_compiled
from gradguard._core.wrappers import CallContext
from gradguard._errors import GradLeakError
from gradguard._locate.enclosing import Block
from gradguard._locate.inside import switches_in_function, switches_in_with
from gradguard._locate.torch_frames import functions_below

F = TypeVar("F")

_WHILE_COMPILING = (
    "leak_check: the grad mode or a training flag was left changed in a function that "
    "torch.compile is compiling. To do: run it once uncompiled, under "
    "torch.compiler.set_stance('force_eager'), to have what switched it named."
)
_ENDS = (StopIteration, StopAsyncIteration, GeneratorExit)  # a body's own ways to say it is done


class leak_check:  # noqa: N801 (lower case as torch's own guards)
    """Raise if a block leaves the grad mode, or a ``training`` flag, other than it found it.

    What was left is put back, so that the code after it runs in the right mode. An exception of
    the block comes out as it was, with the finding as a note. Works as a context manager and as a
    decorator of functions, generators, coroutines and async generators; a body that can be
    suspended has its own mode (nothing of it is visible outside meanwhile), and is checked when it
    ends. One object may be entered by many threads at once. In a function that `torch.compile`
    compiles the grad flag and the ``training`` flags are checked; where they were left changed the
    function runs uncompiled, and with ``fullgraph=True`` compiling fails.

    A guard opened in the block that is still in use where the block ends (an exit stack closed by
    a decorated function, say) goes on deciding the mode until it ends.

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
                msg = (
                    "leak_check(*modules) takes torch.nn.Module objects, got "
                    f"{type(module).__name__}. As a decorator write @leak_check() or "
                    "@leak_check(model), with the parentheses."
                )
                raise TypeError(msg)
        self._modules = modules
        # By thread, without a lock: each thread appends to its own list, and popping is one step.
        self._entries: dict[int, list[Start]] = {}
        self._compiled: list[_CompiledCheck] = []  # Dynamo follows a plain list

    def __enter__(self) -> None:
        if is_dynamo_compiling():
            self._compiled.append(_CompiledCheck(self._modules))
            self._compiled[-1].__enter__()
            return
        start = Start(self._modules, sys._getframe(1))  # noqa: SLF001 - may be None otherwise
        self._entries.setdefault(get_ident(), []).append(start)

    def __exit__(self, exc_type: object, exc: object, tb: object) -> None:
        __tracebackhide__ = True
        if is_dynamo_compiling():
            self._compiled.pop().__exit__(exc_type, exc, tb)
            return
        frame = sys._getframe(1)  # noqa: SLF001 - as above
        start = self._pop()
        _report(start.put_back("leak_check: the block", frame, lambda: self._inside(frame)), exc)

    def _inside(self, frame: FrameType) -> list[Block]:
        return switches_in_with(frame, self)

    def _pop(self) -> Start:
        """This thread's innermost entry; else any thread's, since a generator may have moved."""
        me = get_ident()
        mine = self._entries.get(me)
        if mine:
            start = mine.pop()
            if not mine:
                self._entries.pop(me, None)
            return start
        for others in list(self._entries.values()):
            try:
                start = others.pop()
            except IndexError:
                continue
            start.begin_here()  # the other thread's mode says nothing here, nor do its open guards
            return start
        msg = (
            "this leak_check is not open, so it cannot be exited: it was never entered, or was "
            "exited already. Use `with gradguard.leak_check():`, which does both."
        )
        raise RuntimeError(msg)

    def __call__(self, fn: F) -> F:
        return leaves_mode("leak_check", fn, self._modules)


def leaves_mode(asker: str, fn: F, modules: tuple[Module, ...] = ()) -> F:
    """Check each call of `fn` as `leak_check` does, in messages of `asker`'s that name it."""
    subject = f"{asker}: {getattr(fn, '__qualname__', type(fn).__name__)}()"

    def check_for(*_: Any, **__: Any) -> CallContext:
        return _Call(modules, subject, fn)

    decorated: F = decorate_each(fn, check_for, f"{asker}()")
    return decorated


class _Call:
    """The check of one call of a decorated function."""

    def __init__(self, modules: tuple[Module, ...], subject: str, fn: object) -> None:
        self._modules = modules
        self._subject = subject
        self._fn = fn

    def __enter__(self) -> None:
        self._start = Start(self._modules, sys._getframe(1))  # noqa: SLF001 - as above

    def __exit__(self, exc_type: object, exc: object, tb: object) -> None:
        __tracebackhide__ = True
        _report(self.put_back(self._start, sys._getframe(1)), exc)  # noqa: SLF001 - as above

    def put_back(self, start: Start, frame: FrameType) -> str | None:
        return start.put_back(self._subject, frame, lambda: _inside_function(self._fn))

    def while_compiling(self) -> "_CompiledCheck":
        """The same while Dynamo is compiling."""
        return _CompiledCheck(self._modules)

    def body(self) -> "_CheckedBody":
        """The check of a call whose body can be suspended."""
        return _CheckedBody(self._modules, self)


class _CompiledCheck:
    """What Dynamo can follow of it: the grad flag, and the flags of the modules as they are now.

    An error leaves nothing compiled: the function runs uncompiled, and is checked there.
    """

    def __init__(self, modules: tuple[Module, ...]) -> None:
        self._modules = modules

    def __enter__(self) -> None:
        self._before = self._now()

    def __exit__(self, exc_type: object, exc: object, tb: object) -> None:
        if exc_type is None and self._now() != self._before:
            raise GradLeakError(_WHILE_COMPILING)

    def _now(self) -> list[bool]:
        flags = [module.training for root in self._modules for module in root.modules()]
        return [is_grad_enabled(), *flags]


def _inside_function(fn: object) -> list[Block]:
    inner = getattr(fn, "__func__", fn)  # of a classmethod or staticmethod
    return [block for each in functions_below(inner) for block in switches_in_function(each)]


class _CheckedBody(Body):
    """A body under its own mode, which is compared with what it began with when it ends."""

    __slots__ = ("_call", "_flags", "_modules", "_start")
    step = Suspendable.step  # by the methods below

    def __init__(self, modules: tuple[Module, ...], call: _Call) -> None:
        super().__init__()
        self._modules = modules
        self._call = call
        self._start: Start | None = None
        self._flags: dict[int, bool] = {}

    def resume(self) -> None:
        super().resume()
        if self._start is None:
            self._start = Start(self._modules)
        else:  # flags that others have set meanwhile are not this body's doing
            now = self._start.flags_now()
            self._start.flags |= {k: now[k] for k in now if now[k] is not self._flags[k]}
            self._start.link = self._base

    def suspend(self) -> None:
        if self._start is not None:
            self._flags = self._start.flags_now()
        super().suspend()

    def finish(self) -> None:
        __tracebackhide__ = True
        error = sys.exc_info()[1]  # `drive` finishes a body from its except clauses
        start, frame = self._start, sys._getframe(1)  # noqa: SLF001 - as above
        finding = None if start is None else self._call.put_back(start, frame)
        super().finish()
        _report(finding, None if isinstance(error, _ENDS) else error)


def _report(finding: str | None, error: object) -> None:
    __tracebackhide__ = True
    if finding is None:
        return
    if not isinstance(error, BaseException):
        raise GradLeakError(with_rank(finding))
    add_note(error, with_rank(finding))


def add_note(error: BaseException, note: str) -> None:
    """Add a note as Python 3.11 does; 3.10 keeps it, too, though its tracebacks do not show it."""
    notes: list[str] = getattr(error, "__notes__", [])
    vars(error)["__notes__"] = [*notes, note]


never_compiled(globals())
leak_check.__module__ = "gradguard"
