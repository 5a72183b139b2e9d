"""Recording that Ctrl-C, or what a signal's handler raises, may interrupt at any point.

CPython looks for signals wherever a function written in Python begins and a call returns. The
functions that record stand around the entries and exits of guards: one that is cut short must not
leave a mode that torch's and gradguard's own would not have left.
"""

from collections.abc import Callable
from typing import Any

from gradguard._core.exits import close_link, exit_again
from gradguard._core.guard_stack import Link, Opener, is_entry_of
from gradguard._core.guard_stack import thread as chain
from gradguard._core.set_grad_guard import SetGrad
from gradguard._core.state import GradState, grad_state, set_grad
from gradguard._core.torch_versions import TORCH_GUARDS
from gradguard._trace.open_switches import Cause, Role
from gradguard._trace.recorder import ThreadRecord

_SET_GRAD = TORCH_GUARDS["set_grad_enabled"]


def put_right(
    thread: ThreadRecord, role: Role, guard: object, top: Link | None, before: GradState | None
) -> None:
    """Take back an entry or a call, or do an exit to its end, whose recording was interrupted.

    Args:
        thread: what is recorded of this thread; this is not.
        role: which of them.
        guard: torch's or gradguard's.
        top: the innermost of gradguard's guards at the beginning.
        before: the mode then, None where nothing was done yet.

    """
    thread.busy = True
    try:
        if role is Role.EXIT:
            if isinstance(guard, Opener):
                exit_again(guard, top)
            else:
                _exit(guard)  # for torch's, twice is once
        elif role is Role.ENTRY and isinstance(guard, Opener):
            now = chain.cell[0]
            if now is not None and now[3] is top and is_entry_of(now, guard):
                close_link(now)
            elif isinstance(guard, SetGrad):
                guard.undo({"below": top})  # it has switched as it was made
        elif role is Role.ENTRY and isinstance(guard, _SET_GRAD):
            _exit(guard)  # as above
        elif before is not None:
            if grad_state().inference_mode is not before.inference_mode:
                _exit(guard)
            set_grad(before.grad_enabled)
    finally:
        thread.busy = False
        thread.opened.forget(id(guard))


def _exit(guard: Any) -> None:
    type(guard).__exit__(guard, None, None, None)


def recorded_step(
    original: Callable[..., Any],
    recording: Callable[[], ThreadRecord | None],
    note: Callable[[GradState, GradState, Cause], None],
) -> Callable[..., Any]:
    """Make a `Body.step` that notes what the step's beginning and end do to the mode.

    It is the original one that is run, which no interrupt leaves half done; so the beginning is
    noted where that calls the body.

    Args:
        original: the method.
        recording: gives what is recorded of this thread, None where nothing is now.
        note: notes a mode before and after, and the cause.

    """

    def step(body: Any, call: Callable[[Any], Any], passed: list[Any], **more: bool) -> Any:
        thread = recording()
        if thread is None:
            return original(body, call, passed, **more)
        # That of an async generator holds an error that is thrown in, which would keep this frame.
        calls = [call]
        del call
        before, inside = grad_state(), None

        def noted(value: Any) -> Any:
            nonlocal inside
            held = [value]  # as above
            del value
            thread.busy = False
            try:
                note(before, grad_state(), Cause.by(Role.ENTRY, body))
                return calls[0](held.pop())
            finally:
                inside, thread.busy = grad_state(), True

        thread.busy = True
        try:
            return original(body, noted, passed, **more)
        finally:
            thread.busy = False
            calls.clear()
            if inside is not None:
                note(inside, grad_state(), Cause.by(Role.EXIT, body))

    return step
