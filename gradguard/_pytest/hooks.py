"""What the pytest plugin replaces to know the line of a switch; imported once torch has been.

Methods of the guards' classes, never anything of ``torch._C``: Dynamo knows the classes by identity
and follows none of their methods, so the suites of people who compile see no change. Of what else
switches a mode, the plugin sees the effect, not the line. Two more things keep it so where a graph
breaks at a guard, so that its method runs while Dynamo compiles each function that is called:

- the replacements' code says that it is of torch's file, as that of the originals: Dynamo passes
  over it;
- they record nothing then, as what they would call for that is not of torch's files.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import update_wrapper
from typing import Any

from torch._C._dynamo.eval_frame import set_eval_frame
from torch.autograd import grad_mode

from gradguard._core.guard_stack import close_above
from gradguard._core.guard_stack import thread as chain
from gradguard._core.guard_types import Guard, SetGrad
from gradguard._core.state import (
    GradState,
    is_grad_enabled,
    is_inference_mode_enabled,
    set_grad,
    set_inference,
)
from gradguard._core.suspended_bodies import Body
from gradguard._pytest.scopes import Found, Leak, Scope, thread
from gradguard._trace.open_switches import Deed, Role
from gradguard._trace.recorder import Tracker

_TORCH = (
    grad_mode.no_grad,
    grad_mode.enable_grad,
    grad_mode.set_grad_enabled,
    grad_mode.inference_mode,
)
_SET_GRAD = (grad_mode.set_grad_enabled, SetGrad)  # these switch when they are made
_ROLES = {
    "__init__": Role.CALL,
    "__call__": Role.EXIT,  # as a decorator: it takes back what making it has switched
    "__enter__": Role.ENTRY,
    "__exit__": Role.EXIT,
    "resume": Role.ENTRY,
    "suspend": Role.EXIT,
    "finish": Role.EXIT,
}
_tracker = Tracker()
_replaced: list[tuple[type, str, Any, Any]] = []  # owner, name, what was there, what is there now


def found() -> Found:
    """Return the mode of this thread, and its innermost open guard."""
    return Found(is_grad_enabled(), is_inference_mode_enabled(), chain.cell[0])


def leak(scopes: list[Scope]) -> Leak | None:
    """Put back, and return, what the first of the scopes left changed; the others lie within it."""
    before, now = scopes[0].before, found()
    if now.mode == before.mode:
        return None
    switches = (scope.last_switch() for scope in reversed(scopes))
    switch = next((s for s in switches if s is not None and s.after == now.mode), None)
    left_open = [repr(guard) for guard in close_above(before.link)]
    _put_back(before, [guard for scope in reversed(scopes) for guard in scope.inference])
    return Leak(before.mode, now.mode, switch, left_open, not scopes[0].with_torch)


def _put_back(before: Found, guards: list[Any]) -> None:
    """Bring back the mode for good.

    torch's inference guards switch back when they are dropped, which for one that a failed test's
    traceback holds is during the next test. So they are exited; a second exit does nothing.
    """
    _tracker.thread.busy = True
    set_inference(before.inference_mode, guards)
    set_grad(before.grad_enabled)
    _tracker.thread.busy = False


def start() -> None:
    """Have the switches in each scope recorded."""
    for owner, name in _methods():
        original = vars(owner)[name]
        ours = _watched(original, _ROLES[name])
        _replaced.append((owner, name, original, ours))
        setattr(owner, name, ours)


def stop() -> None:
    """Put back what was there before."""
    while _replaced:
        owner, name, original, ours = _replaced.pop()
        if vars(owner)[name] is ours:  # else another tool has replaced it since
            setattr(owner, name, original)


def _methods() -> Iterator[tuple[type, str]]:
    for owner in (*_TORCH, Guard, *Guard.__subclasses__()):
        yield from _defined(owner, ("__enter__", "__exit__"))
    for owner in _SET_GRAD:
        yield from _defined(owner, ("__init__", "__call__"))
    yield from _defined(Body, ("resume", "suspend", "finish"))


def _defined(owner: type, names: Iterable[str]) -> Iterator[tuple[type, str]]:
    return ((owner, name) for name in names if name in vars(owner))


def _watched(original: Callable[..., Any], role: Role) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not thread.scopes or _tracker.thread.busy:
            return original(self, *args, **kwargs)
        # None where nothing compiled is running. Setting is the only way to ask: what torch 2.6
        # has for asking drops a reference each time, and crashes. A function of our own would be
        # compiled before it could ask.
        if (callback := set_eval_frame(None)) is not None:
            set_eval_frame(callback)
            return original(self, *args, **kwargs)
        if role is Role.ENTRY and isinstance(self, grad_mode.inference_mode):
            thread.scopes[-1].inference[self] = None
        return _watch(Deed.by(role, self), original, self, *args, **kwargs)

    # See the top of this file. Coverage does not count its lines, therefore.
    method.__code__ = method.__code__.replace(co_filename=grad_mode.__file__)
    return update_wrapper(method, original)


def _watch(deed: Deed, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    recording = _tracker.thread
    recording.busy, before = True, found()
    try:
        return call(*args, **kwargs)
    finally:
        recording.busy = False  # a guard's method calls another's: the outermost is what counts
        recording.opened = thread.scopes[-1].opened
        _tracker.note(GradState(*before.mode), GradState(*found().mode), deed)
