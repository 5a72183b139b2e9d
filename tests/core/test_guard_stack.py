import threading

import pytest
import torch

import gradguard
from gradguard import GradModeWarning, GradState, grad_state, guards
from gradguard._core.exits import close_above
from gradguard._core.guard_stack import links, thread
from gradguard._core.state import put_back

GRAD = GradState(grad_enabled=True, inference_mode=False)
NO_GRAD = GradState(grad_enabled=False, inference_mode=False)
INFERENCE = GradState(grad_enabled=False, inference_mode=True)


@pytest.fixture(autouse=True)
def thread_is_clean():
    """Every test begins and ends recording, with no guard open."""
    assert (grad_state(), guards()) == (GRAD, ())
    yield
    ended = grad_state(), guards()
    thread.cell[0] = None  # so that a failure is one failure
    put_back(GRAD)
    assert ended == (GRAD, ())


def leave(guard):
    guard.__exit__(None, None, None)


def entered(guard):
    guard.__enter__()
    return guard


def test_guards_lists_outermost_first():
    """`guards()` is a tuple of the open guards, each of which says its kind."""
    with gradguard.no_grad(), gradguard.set_grad_enabled(True), gradguard.inference_mode():
        assert isinstance(guards(), tuple)
        assert [repr(guard) for guard in guards()] == [
            "no_grad()",
            "set_grad_enabled(mode=True)",
            "inference_mode(mode=True)",
        ]
    assert guards() == ()


def test_torch_guards_are_not_listed():
    """torch's own guards cannot be seen."""
    with torch.no_grad(), gradguard.enable_grad(), torch.inference_mode():
        assert guards() == (gradguard.enable_grad(),)


@pytest.mark.parametrize(
    "guard", [gradguard.no_grad, gradguard.inference_mode, gradguard.enable_grad]
)
def test_decorated_functions_are_listed_while_they_run(guard):
    """A decorated function's guard is open while its body runs: also a generator's."""

    def generator():
        yield guards()
        yield guards()

    assert guard()(guards)() == (guard(),)
    running = guard()(generator)()
    assert (next(running), guards()) == ((guard(),), ())
    with gradguard.set_grad_enabled(False) as _, gradguard.enable_grad():
        outer = guards()
        assert next(running) == (*outer, guard())
        assert guards() == outer
    running.close()


def test_each_thread_has_its_own_chain():
    """What is open in one thread is not listed in another."""
    seen = []
    with gradguard.no_grad():
        other = threading.Thread(target=lambda: seen.append(guards()))
        other.start()
        other.join()
    assert seen == [()]


@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_closing_any_of_four(at):
    """The guard above the closed one takes over what that found; the others keep their own."""
    off = gradguard.set_grad_enabled(False)
    with off:
        pass  # its first entry, which counts as made at construction
    opened = [
        gradguard.no_grad(),
        gradguard.enable_grad(),
        off,
        gradguard.inference_mode(),
    ]
    inside, found = [], []
    for guard in opened:
        found.append(grad_state())
        guard.__enter__()
        inside.append(grad_state())
    closed = opened.pop(at)
    if at == 3:
        leave(closed)
    else:
        with pytest.warns(GradModeWarning):
            leave(closed)
        assert grad_state() == inside[-1]
        found[at + 1] = found[at]
    del found[at]
    assert guards() == tuple(opened)
    while opened:
        leave(opened.pop())
        assert grad_state().grad_enabled is (found.pop().grad_enabled)


def test_one_object_twice_closes_its_innermost_entry():
    """Of two entries of one object the inner one is closed first."""
    guard, other = gradguard.no_grad(), gradguard.enable_grad()
    guard.__enter__()
    other.__enter__()
    guard.__enter__()
    leave(guard)
    assert (grad_state(), guards()) == (GRAD, (guard, other))
    leave(other)
    assert (grad_state(), guards()) == (NO_GRAD, (guard,))
    leave(guard)


def test_tokens_are_remade_above_a_closed_inference_block():
    """An inference block above a closed one comes to lie on what that had found."""
    with gradguard.no_grad():
        outer = entered(gradguard.inference_mode())
        on = entered(gradguard.enable_grad())
        inner = entered(gradguard.inference_mode(False))
        with pytest.warns(GradModeWarning):
            leave(outer)
        assert grad_state() == GRAD
        leave(inner)
        assert grad_state() == GRAD
        leave(on)
        assert grad_state() == NO_GRAD


def test_recording_goes_on_when_what_had_left_inference_mode_is_closed():
    """A guard that turns recording on leaves inference mode, also where it comes to lie in it."""
    on = gradguard.set_grad_enabled(True)
    with gradguard.inference_mode():
        outer = entered(gradguard.enable_grad())
        with on:
            with pytest.warns(GradModeWarning):
                leave(outer)
            assert grad_state() == GRAD
        assert grad_state() == INFERENCE


def test_nothing_changes_when_nothing_is_open():
    """The refusal comes before anything is touched: chain and mode are as they were."""
    with gradguard.inference_mode(), gradguard.enable_grad():
        before = links()
        with pytest.raises(RuntimeError):
            leave(gradguard.no_grad())
        assert links() == before
        assert grad_state() == GRAD


def test_close_above_closes_to_a_link():
    """All above a link is closed and returned, outermost first; the mode is the caller's."""
    with gradguard.no_grad():
        base = thread.cell[0]
        left = entered(gradguard.inference_mode()), entered(gradguard.enable_grad())
        assert close_above(base) == left
        assert guards() == (gradguard.no_grad(),)
        assert not grad_state().inference_mode
        put_back(NO_GRAD)


def test_close_above_a_link_that_has_gone():
    """Where the link itself was closed, nothing is."""
    with gradguard.no_grad():
        base = thread.cell[0]
    with gradguard.enable_grad():
        assert close_above(base) == ()
        assert guards() == (gradguard.enable_grad(),)


def test_guards_of_a_body_that_closed_its_resumers():
    """A body may close a guard of whoever resumed it; its own stays, and the resumer's mode is right."""

    @gradguard.enable_grad
    def closes():
        with pytest.warns(GradModeWarning) as caught:
            leave(outer)
        yield grad_state(), str(caught[0].message)
        yield grad_state()

    outer = entered(gradguard.inference_mode())
    running = closes()
    mode, text = next(running)
    assert "inference_mode(mode=True) was exited while enable_grad(), entered after it" in text
    assert (mode, grad_state(), guards()) == (GRAD, GRAD, ())
    assert next(running) == GRAD
    running.close()


def test_a_body_that_has_none_of_its_own_open():
    """The warning names the running body where nothing but it lies above the closed guard."""
    decorator = gradguard.enable_grad()

    @decorator
    def closes():
        leave(decorator)
        yield guards()
        with pytest.warns(GradModeWarning) as caught:
            leave(outer)
        yield str(caught[0].message)

    running = closes()
    assert next(running) == ()
    outer = entered(gradguard.no_grad())
    assert "while the running generator or coroutine, entered after it," in next(running)
    assert (grad_state(), guards()) == (GRAD, ())
    running.close()
