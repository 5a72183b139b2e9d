"""What the pytest plugin replaces to know the line of a switch; imported once torch has been.

Methods of the guards' classes, never anything of ``torch._C``: Dynamo knows the classes by identity
and follows none of their methods, so the suites of people who compile see no change. Of what else
switches a mode, the plugin sees the effect, not the line. Two more things keep it so where a graph
breaks at a guard, so that its method runs while Dynamo compiles each function that is called:

- the replacements' code says that it is of torch's file, as that of the originals: Dynamo passes
  over it;
- they record nothing then, as what they would call for that is not of torch's files.
"""

from collections.abc import Callable
from functools import partial, update_wrapper
from typing import Any

from torch._C._dynamo.eval_frame import set_eval_frame
from torch.autograd import grad_mode

from gradguard._core.exits import close_above
from gradguard._core.guard_stack import thread as chain
from gradguard._core.state import (
    GradState,
    grad_state,
    is_grad_enabled,
    is_inference_mode_enabled,
    set_grad,
    set_inference,
)
from gradguard._core.suspended_bodies import Body
from gradguard._core.torch_versions import TORCH_GUARDS
from gradguard._pytest.scope import Leak, Scope, ThreadMode, thread
from gradguard._trace.interrupted import put_right, recorded_step
from gradguard._trace.open_switches import Cause, Role
from gradguard._trace.patching import (
    Patches,
    own_methods,
    set_grad_methods,
    torch_methods,
)
from gradguard._trace.recorder import Recorder

_recorder = Recorder()
_patches = Patches()


def mode() -> ThreadMode:
    """Return the mode of this thread, and its innermost open guard."""
    return ThreadMode(is_grad_enabled(), is_inference_mode_enabled(), chain.cell[0])


def leak(scopes: list[Scope]) -> Leak | None:
    """Put back, and return, what the first of the scopes left changed; the others lie within it."""
    before, now = scopes[0].before, mode()
    if now.mode == before.mode:
        return None
    switches = (scope.last_switch() for scope in reversed(scopes))
    switch = next((s for s in switches if s is not None and s.after == now.mode), None)
    left_open = [repr(guard) for guard in close_above(before.link)]
    _put_back(before, [guard for scope in reversed(scopes) for guard in scope.inference])
    return Leak(before.mode, now.mode, switch, left_open)


def _put_back(before: ThreadMode, guards: list[Any]) -> None:
    """Bring back the mode for good.

    torch's inference guards switch back when they are dropped, which for one that a failed test's
    traceback holds is during the next test. So they are exited; a second exit does nothing.
    """
    _recorder.thread.busy = True
    set_inference(before.inference_mode, guards)
    set_grad(before.grad_enabled)
    _recorder.thread.busy = False


def start() -> None:
    """Have the switches in each scope recorded."""
    _patches.replace(Body, "step", _watched_step)
    for owner, name, role in (*torch_methods(), *own_methods(), *set_grad_methods()):
        _patches.replace(owner, name, partial(_watched, role))


def stop() -> None:
    """Put back what was there before."""
    _patches.remove()


def _watched(role: Role, original: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not thread.scopes or _recorder.thread.busy:
            return original(self, *args, **kwargs)
        top, before = chain.cell[0], None
        try:
            # None where nothing compiled is running. Setting is the only way to ask: what torch 2.6
            # has for asking drops a reference each time, and crashes. A function of our own would
            # be compiled before it could ask.
            if (callback := set_eval_frame(None)) is not None:
                set_eval_frame(callback)
                return original(self, *args, **kwargs)
            if role is Role.ENTRY and isinstance(self, TORCH_GUARDS["inference_mode"]):
                thread.scopes[-1].inference[self] = None
            before = grad_state()
            return _watch(before, Cause.by(role, self), original, self, *args, **kwargs)
        except BaseException:
            if not isinstance(self, Body):
                put_right(_recorder.thread, role, self, top, before)
            raise

    return update_wrapper(_as_torchs(method), original)


def _watched_step(original: Callable[..., Any]) -> Callable[..., Any]:
    recorded = recorded_step(original, lambda: _recorder.thread, _note)

    def method(body: Any, call: Any, passed: list[Any], **more: bool) -> Any:
        step = recorded
        if not thread.scopes or _recorder.thread.busy:
            step = original
        elif (callback := set_eval_frame(None)) is not None:  # as above
            set_eval_frame(callback)
            step = original
        calls = [call]
        del call  # that of an async generator holds an error, which would keep this frame
        return step(body, calls.pop(), passed, **more)

    return update_wrapper(_as_torchs(method), original)


def _as_torchs(method: Any) -> Any:
    """See the top of this file. Coverage does not count its lines, therefore."""
    method.__code__ = method.__code__.replace(co_filename=grad_mode.__file__)
    return method


def _watch(
    before: GradState, cause: Cause, call: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    recording = _recorder.thread
    recording.busy = True
    try:
        return call(*args, **kwargs)
    finally:
        recording.busy = False  # a guard's method calls another's: the outermost is what counts
        _note(before, grad_state(), cause)


def _note(before: GradState, after: GradState, cause: Cause) -> None:
    _recorder.thread.opened = thread.scopes[-1].opened
    _recorder.note(before, after, cause)
