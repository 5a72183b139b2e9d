"""What is replaced in torch and in gradguard while a trace is active, and put back after it.

All switches from Python end in two C functions. What does not work:

- Patching the guard classes: a direct call of ``torch._C._set_grad_enabled`` is not seen, nor are
  objects of the same kind that others have made.
- A `TorchFunctionMode`: it is one thread's, does not see inference mode, and makes Dynamo compile
  anew.
- ``sys.setprofile``: it sees all, at many times the cost, and takes the place of the user's.
- A plain function for ``torch._C._set_grad_enabled``: Dynamo writes what it finds there into its
  graphs, and FX, export and Dynamo know the original by membership in sets and dicts ("has a side
  effect, never drop it"). So `_Recorded` compares equal to it.

The class of inference mode's tokens is not replaced: its methods are, so tokens made before the
trace, and by who bound the class at import, are seen.
"""

import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch

# Dynamo itself switches modes while it compiles, in torch's own functions: only this tells.
from torch._guards import CompileContext

from gradguard._core import compiling as _traced
from gradguard._core import state as _state
from gradguard._core.frames import is_ours
from gradguard._core.guard_types import Guard
from gradguard._core.state import grad_state, is_dynamo_compiling
from gradguard._core.suspended_bodies import Body
from gradguard._trace import recorder as _tracker
from gradguard._trace.open_switches import Deed, Role
from gradguard._trace.recorder import Tracker
from gradguard._trace.switch import Record

_TOKEN = torch._C._InferenceMode  # noqa: SLF001 (its methods are what is replaced)
_lock = threading.Lock()
_replaced: list[tuple[Any, str, Any, Any]] = []  # owner, name, what was there, what is there now


class _Recorded:
    """Stands for ``torch._C._set_grad_enabled``; also in a graph that outlives the trace."""

    __name__ = __qualname__ = "_set_grad_enabled"
    __module__ = "torch._C"  # FX writes code that looks it up there when it runs

    def __init__(self, original: Callable[..., Any]) -> None:
        self.original = original

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _watch(Deed(Role.CALL), self.original, *args, **kwargs)

    def __eq__(self, other: object) -> bool:
        return other is self or other is self.original

    def __hash__(self) -> int:
        return hash(self.original)

    def __reduce__(self) -> tuple[Any, ...]:
        return _original, ()  # a copy or a pickle, say of a graph, is the original


_OURS = _Recorded(_state.set_grad)


def _original() -> Callable[..., Any]:
    return _OURS.original


def _watch(otherwise: Deed, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    tracker = _tracker.current
    if is_dynamo_compiling() or tracker is None or CompileContext.try_get() is not None:
        return call(*args, **kwargs)
    thread = tracker.thread
    if thread.busy:  # torch hands a call to the thread's TorchFunctionMode, which makes it again
        return call(*args, **kwargs)
    thread.busy, before = True, grad_state()
    try:
        return call(*args, **kwargs)
    finally:
        thread.busy = False
        tracker.note(before, grad_state(), otherwise)


def _method(original: Callable[..., Any], role: Role) -> Callable[..., Any]:
    def method(owner: Any, *args: Any) -> Any:
        return _watch(Deed.by(role, owner), original, owner, *args)

    return method


def _function(original: Callable[..., Any]) -> Callable[..., Any]:
    def function(*args: Any) -> Any:
        return _watch(Deed(Role.CALL), original, *args)

    return function


# Bound by name in gradguard's modules; set_inference and put_back set more than once.
_REBOUND: list[tuple[object, object]] = [
    (_OURS.original, _OURS),
    (_state.set_inference, _function(_state.set_inference)),
    (_state.put_back, _function(_state.put_back)),
    (_state.exit_inference, _method(_state.exit_inference, Role.EXIT)),
]


def start(ring: deque[Record]) -> tuple[Tracker, int]:
    """Have every switch from now on recorded in `ring`, too; return the last number before."""
    with _lock:
        tracker = _tracker.current
        if tracker is None:
            tracker = _tracker.current = Tracker()
            _replace_all()
        before = tracker.latest
        tracker.rings = (*tracker.rings, ring)
        return tracker, before


def stop(ring: deque[Record]) -> None:
    """Stop recording in `ring`; after the last one the process is as it was before the first."""
    with _lock:
        tracker = _tracker.current
        if tracker is None:
            return
        tracker.rings = tuple(other for other in tracker.rings if other is not ring)
        if not tracker.rings:
            _tracker.current = None
            _put_back_all()


def _replace_all() -> None:
    direct = torch._C._set_grad_enabled  # noqa: SLF001 (what is replaced)
    ours = _OURS if direct is _OURS.original else _Recorded(direct)
    _replace(torch._C, "_set_grad_enabled", ours)  # noqa: SLF001
    for owner, name, role in _methods():
        _replace(owner, name, _method(vars(owner)[name], role))
    for original, recorded in _REBOUND:
        _rebind(original, recorded)


def _methods() -> Iterator[tuple[type, str, Role]]:
    """Yield inference mode's tokens, and what makes one switch of several settings."""
    yield _TOKEN, "__init__" if _state.enter_inference is _TOKEN else "__enter__", Role.ENTRY
    yield _TOKEN, "__exit__", Role.EXIT
    yield Body, "resume", Role.ENTRY
    yield Body, "suspend", Role.EXIT
    yield Body, "finish", Role.EXIT
    classes: list[type] = [Guard]
    for each in classes:
        classes += each.__subclasses__()
        for name, role in (("__enter__", Role.ENTRY), ("__exit__", Role.EXIT)):
            if name in vars(each):
                yield each, name, role


def _replace(owner: Any, name: str, ours: Any) -> None:
    _replaced.append((owner, name, vars(owner)[name], ours))
    setattr(owner, name, ours)


def _put_back_all() -> None:
    while _replaced:
        owner, name, original, ours = _replaced.pop()
        if vars(owner)[name] is ours:  # else another tool has replaced it since, perhaps for good
            setattr(owner, name, original)
    for original, recorded in _REBOUND:
        _rebind(recorded, original)


def _rebind(old: object, new: object) -> None:
    """Rebind gradguard's own globals, also of modules that were imported during the trace.

    Those of `_traced` are left: only Dynamo runs it, and would compile anew.
    """
    for name, module in list(sys.modules.items()):
        if is_ours(name) and name not in (_traced.__name__, __name__):
            for key in [key for key, value in vars(module).items() if value is old]:
                setattr(module, key, new)
