"""What is recorded while a trace is active, and by what in torch's and gradguard's places.

All switches from Python end in two C functions. What does not work:

- Patching the guard classes: a direct call of ``torch._C._set_grad_enabled`` is not seen, nor are
  objects of the same kind that others have made.
- A `TorchFunctionMode`: it is one thread's, does not see inference mode, and makes Dynamo compile
  anew.
- ``sys.setprofile``: it sees all, at many times the cost, and takes the place of the user's.
- A plain function for ``torch._C._set_grad_enabled``: Dynamo writes what it finds there into its
  graphs, and FX, export and Dynamo know the original by membership in sets and dicts ("has a side
  effect, never drop it"). So `_Recorded` compares equal to it.
"""

import sys
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import torch

from gradguard._core import state as _state
from gradguard._core.guard_stack import thread as _chain
from gradguard._core.guard_types import Guard
from gradguard._core.state import GradState, grad_state, is_dynamo_compiling
from gradguard._core.suspended_bodies import Body
from gradguard._core.torch_versions import INFERENCE_TOKEN, CompileContext
from gradguard._trace import recorder as _recorder
from gradguard._trace.causes import cause_of, is_call_of_torchs
from gradguard._trace.interrupted import put_right, recorded_step
from gradguard._trace.open_switches import Cause, Role
from gradguard._trace.patching import Patches, own_methods, token_methods, torch_methods
from gradguard._trace.recorded_guards import recorded_entry, recorded_exit
from gradguard._trace.recorder import Recorder, ThreadRecord
from gradguard._trace.switch import RecordedSwitch

_lock = threading.Lock()
_patches = Patches()
_CALL = Cause(Role.CALL)


class _Recorded:
    """Stands for ``torch._C._set_grad_enabled``; also in a graph that outlives the trace."""

    __name__ = __qualname__ = "_set_grad_enabled"
    __module__ = "torch._C"  # FX writes code that looks it up there when it runs

    def __init__(self, original: Callable[..., Any]) -> None:
        self.original = original

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        recorder = _recorder.current
        # By far the most calls: those of a guard whose entry or exit is seen as a whole, and of
        # torch's own functions, an optimizer's step, say.
        if (
            recorder is not None
            and recorder.quiet
            and (
                recorder.thread.busy or is_call_of_torchs(sys._getframe(1))  # noqa: SLF001
            )
        ):
            return self.original(*args, **kwargs)
        return _watch(_CALL, self.original, *args, **kwargs)

    def __eq__(self, other: object) -> bool:
        return other is self or other is self.original

    def __hash__(self) -> int:
        return hash(self.original)

    def __reduce__(self) -> tuple[Any, ...]:
        return _original, ()  # a copy or a pickle, say of a graph, is the original


_OURS = _Recorded(_state.set_grad)


def _original() -> Callable[..., Any]:
    return _OURS.original


def _recorded(direct: Callable[..., Any]) -> _Recorded:
    return _OURS if direct is _OURS.original else _Recorded(direct)


def _watch(otherwise: Cause, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    recorder = _recorder.current
    if is_dynamo_compiling() or recorder is None:
        return call(*args, **kwargs)
    thread = recorder.thread
    if thread.busy:  # torch hands a call to the thread's TorchFunctionMode, which makes it again
        return call(*args, **kwargs)
    thread.busy, before = True, grad_state()
    try:
        try:
            return call(*args, **kwargs)
        finally:
            thread.busy = False
            _note(before, grad_state(), otherwise)
    except BaseException:
        if otherwise is _CALL and _makes_a_guard(sys._getframe(2)):  # noqa: SLF001
            _OURS.original(before.grad_enabled)  # an interrupt: nobody will have the guard
        raise


def _note(before: GradState, after: GradState, cause: Cause) -> None:
    recorder = _recorder.current
    if recorder is not None and CompileContext.try_get() is None:
        recorder.note(before, after, cause)


def _makes_a_guard(frame: FrameType) -> bool:
    """Tell whether a plain call is that of a `set_grad_enabled`, as it is made."""
    cause, _ = cause_of(frame, _CALL)
    return cause.role is Role.CALL and cause.key is not None


def _method(role: Role, original: Callable[..., Any]) -> Callable[..., Any]:
    def method(owner: Any, *args: Any) -> Any:
        top, before = _chain.cell[0], None
        try:
            before = grad_state()
            return _watch(Cause.by(role, owner), original, owner, *args)
        except BaseException:
            # A token's exit is done again by the guard that has the token.
            rights = Guard if role is Role.EXIT else (Guard, INFERENCE_TOKEN)
            if isinstance(owner, rights) and (recorder := _recorder.current) is not None:
                put_right(recorder.thread, role, owner, top, before)
            raise

    return method


def _recording() -> ThreadRecord | None:
    recorder = _recorder.current
    if is_dynamo_compiling() or recorder is None or recorder.thread.busy:
        return None
    return recorder.thread


def _function(original: Callable[..., Any]) -> Callable[..., Any]:
    def function(*args: Any) -> Any:
        return _watch(_CALL, original, *args)

    return function


# Bound by name in gradguard's modules; set_inference and put_back set more than once.
_BOUND: list[tuple[Any, Callable[[Any], Any]]] = [
    (_OURS.original, lambda _: _OURS),
    (_state.set_inference, _function),
    (_state.put_back, _function),
    (_state.exit_inference, partial(_method, Role.EXIT)),
]


def start(ring: deque[RecordedSwitch]) -> tuple[Recorder, int]:
    """Have every switch from now on recorded in `ring`, too; return the last number before."""
    with _lock:
        recorder = _recorder.current
        if recorder is None:
            recorder = _recorder.current = Recorder()
            _replace()
        before = recorder.latest
        recorder.rings = (*recorder.rings, ring)
        recorder.quiet = recorder.quiet and ring.maxlen == 0
        return recorder, before


def stop(ring: deque[RecordedSwitch]) -> None:
    """Stop recording in `ring`; after the last one the process is as it was before the first."""
    with _lock:
        recorder = _recorder.current
        if recorder is None:
            return
        recorder.rings = tuple(other for other in recorder.rings if other is not ring)
        recorder.quiet = all(other.maxlen == 0 for other in recorder.rings)
        if not recorder.rings:
            _recorder.current = None
            _patches.remove()


def _replace() -> None:
    _patches.replace(torch._C, "_set_grad_enabled", _recorded)  # noqa: SLF001
    _patches.replace(Body, "step", lambda original: recorded_step(original, _recording, _note))
    for owner, name, role in (*token_methods(), *own_methods()):
        _patches.replace(owner, name, partial(_method, role))
    for owner, name, role in torch_methods():
        _patches.replace(owner, name, recorded_entry if role is Role.ENTRY else recorded_exit)
    for value, make in _BOUND:
        _patches.replace_bound(value, make)
