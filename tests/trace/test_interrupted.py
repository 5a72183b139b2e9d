"""Interrupts amid recording: a trace, ``gradguard run`` and the pytest plugin leave no wrong mode."""

from collections import deque
from contextlib import contextmanager

import pytest
import torch
from interrupting import BOTH, Signals, every_position, forms, own_forms

import gradguard
from gradguard._pytest import mode_changes, scope
from gradguard._trace import recorded_functions
from gradguard._trace import recorder as _recorder
from gradguard._trace.open_switches import OpenSwitches

pytestmark = [
    pytest.mark.usefixtures("recording_afterwards"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited"),
]


@contextmanager
def traced():
    """Record as `trace()` does."""
    with gradguard.trace():
        yield lambda: _recorder.current.thread


@contextmanager
def run():
    """Record as ``gradguard run`` does: only what is still open."""
    ring = deque(maxlen=0)
    recorder, _ = recorded_functions.start(ring)
    try:
        yield lambda: recorder.thread
    finally:
        recorded_functions.stop(ring)


@contextmanager
def watched():
    """Record as the pytest plugin does."""
    mode_changes.start()
    scope.thread.scopes.append(scope.Scope(mode_changes.mode()))
    try:
        yield lambda: mode_changes._recorder.thread
    finally:
        scope.thread.scopes.pop()
        mode_changes.stop()


each_tool = pytest.mark.parametrize("tool", [traced, run, watched])


def interrupted(tool, library, work, *, start=True):
    """Interrupt at each point, and look that the tool goes on recording."""
    with tool() as record:

        def goes_on():
            assert not record().busy
            # What an interrupt has left open is true; it shall not add up.
            for each in scope.thread.scopes:
                each.forget_switches()
            opened = [each.opened for each in scope.thread.scopes]
            record().opened = opened[-1] if opened else OpenSwitches({}, deque(maxlen=0))

        return every_position(library, work, start=start, tracing=Signals, afterwards=goes_on)


@each_tool
@pytest.mark.parametrize("form", forms(gradguard))
def test_recording_leaves_no_more_than_torchs_guard_alone(tool, form):
    """Under a tool gradguard's guards leave no more wrong modes than torch's without one."""
    start = "enable_grad" not in form
    ours = interrupted(tool, BOTH, forms(gradguard)[form], start=start)
    theirs = every_position(torch, forms(torch)[form], start=start, tracing=Signals)
    assert ours["positions"] > 3
    assert (ours["guards"], ours["lost"]) == (0, 0)
    assert ours["mode"] <= theirs["mode"]


# Wherever an interrupt comes, torch's generator drops its body, whose inner guard then sets its mode.
OF_TORCH = [form for form in forms(torch) if form != "@inference_mode generator"]


@each_tool
@pytest.mark.parametrize("form", OF_TORCH)
def test_recording_makes_torchs_guards_no_worse(tool, form):
    """Under a tool torch's guards leave no more wrong modes than without one."""
    start = "enable_grad" not in form
    work = forms(torch)[form]
    recorded = interrupted(tool, BOTH, work, start=start)
    alone = every_position(torch, work, start=start, tracing=Signals)
    assert recorded["positions"] > alone["positions"]
    assert recorded["lost"] == 0
    assert recorded["mode"] <= alone["mode"]


@each_tool
@pytest.mark.parametrize("form", own_forms())
def test_recording_leaves_nothing_of_what_torch_has_not(tool, form):
    """No wrong mode or flag, no guard or eval mode left open, and no interrupt lost."""
    ours = interrupted(tool, BOTH, own_forms()[form])
    assert ours.pop("positions") > 50
    assert set(ours.values()) == {0}, ours
