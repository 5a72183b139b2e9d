"""What is running now that must leave the grad mode as it found it: fixtures and a test's body.

A fixture's scope lasts from its set-up until after its tear-down, so those of a thread nest, like
the fixtures: the test's own is the innermost. Nothing here imports torch: a suite may not use it.
"""

import sys
from collections.abc import Callable
from typing import Any

from gradguard._core.when_imported import when_imported
from gradguard._pytest.scope import Leak, Scope, ThreadMode, thread

_side: Any = None
_waiting: list[Callable[[], None]] = []  # what ends each session's waiting for torch
_sessions = 0  # one, unless tests run pytest themselves within this process


def enter() -> Scope:
    """Begin a fixture's set-up or a test's body."""
    scope = Scope(_mode())
    thread.scopes.append(scope)
    return scope


def hold(scope: Scope) -> None:
    """End a fixture's set-up: what it has switched lasts, as it may, until its tear-down."""
    scope.holds = _mode().mode != scope.before.mode


def tear_down(scope: Scope) -> None:
    """Begin a fixture's tear-down: if it holds nothing, it must leave what it finds now.

    That may differ from what its set-up found: a hook of the suite's has switched the mode, say; or
    a fixture within it, which has still to answer for that.
    """
    inner = thread.scopes[thread.scopes.index(scope) + 1 :] if scope in thread.scopes else []
    if not scope.holds and not any(other.holds for other in inner):
        scope.before = _mode()


def leave(scope: Scope) -> Leak | None:
    """End a test's body or a fixture's tear-down; put back what it left changed, and return that.

    One that ends before a fixture within it (a fixture that a test asks for in its body, say)
    cannot be told from that one where that one holds a mode: it answers for both.
    """
    scopes = thread.scopes
    if scope not in scopes:
        return None  # its set-up failed and was checked then, or was in another thread
    at = scopes.index(scope)
    inner = scopes[at + 1 :]
    del scopes[at]
    holding = next((other for other in inner if other.holds), None)
    if holding is not None:
        holding.before = scope.before
        return None
    torch_side = _torch_side()
    return None if torch_side is None else torch_side.leak([scope, *inner])


def leave_off() -> Leak | None:
    """Put back, and return, what the innermost scope has left changed so far; it goes on."""
    torch_side = _torch_side()
    if torch_side is None or not thread.scopes:
        return None
    scope = thread.scopes[-1]
    leak: Leak | None = torch_side.leak([scope])
    if leak is not None:
        scope.forget_switches()
    return leak


def abandon(scope: Scope) -> None:
    """End a scope without looking at what it left."""
    if scope in thread.scopes:
        thread.scopes.remove(scope)


def begin_session() -> None:
    """Have each switch's line known from when torch is imported on."""
    global _sessions  # noqa: PLW0603 (what is patched is patched once for the process)
    _sessions += 1
    _waiting.append(when_imported("torch", _watch_torch))


def end_session() -> None:
    """Take the patches back with the last session."""
    global _sessions, _side  # noqa: PLW0603 (as above)
    _sessions -= 1
    _waiting.pop()()
    if _side is not None and not _sessions:
        _side.stop()
        _side = None


def _mode() -> ThreadMode:
    torch_side = _torch_side()
    return ThreadMode() if torch_side is None else torch_side.mode()


def torch_was_used() -> bool:
    """Tell whether there was anything to look at."""
    return _side is not None


def _watch_torch() -> None:
    _torch_side()


def _torch_side() -> Any:
    """Return `gradguard._pytest.mode_changes`, or None as long as the suite has not imported torch.

    A stand-in under torch's name is not torch: the guards' module knows the real one.
    """
    global _side  # noqa: PLW0603 (as above)
    if _side is None and (torch := sys.modules.get("torch")) is not None:
        guards = sys.modules.get("torch.autograd.grad_mode")
        if getattr(guards, "torch", None) is torch:
            from gradguard._pytest import mode_changes as _pytest_watch

            _side = _pytest_watch
            _side.start()
    return _side
