"""Greenlets (gevent's workers) share the thread's mode: what can be promised of it, and is."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gradguard
from gradguard import GradState, grad_state, guards

greenlet = pytest.importorskip("greenlet")

GRAD = GradState(grad_enabled=True, inference_mode=False)
GUARDS = {
    "no_grad": gradguard.no_grad,
    "enable_grad": gradguard.enable_grad,
    "inference": gradguard.inference_mode,
    "no_inference": lambda: gradguard.inference_mode(False),
}
pairs = pytest.mark.parametrize(("inner", "outer"), list(itertools.product(GUARDS, GUARDS)))
pytestmark = pytest.mark.filterwarnings("ignore::gradguard.GradModeWarning")  # out of order it is


@pytest.fixture(autouse=True)
def thread_is_clean():
    """Every test begins and ends recording, with no guard open."""
    assert (grad_state(), guards()) == (GRAD, ())
    yield
    assert (grad_state(), guards()) == (GRAD, ())


def wait():
    """Let the others run, as a read from a socket does in a gevent worker."""
    greenlet.getcurrent().parent.switch()


def run(*functions, order=()):
    """Run each in a greenlet of its own, by turns, or in an order."""
    all_of_them = [greenlet.greenlet(fn) for fn in functions]
    for at in order:
        all_of_them[at % len(all_of_them)].switch()
    while any(not one.dead for one in all_of_them):
        for one in all_of_them:
            one.switch()


@pytest.mark.parametrize("name", GUARDS)
def test_a_block_keeps_its_mode_for_the_others(name):
    """The thread's mode is everybody's, as with torch's guards; at the end it is the thread's own."""
    seen = []

    def block():
        with GUARDS[name]():
            seen.append(grad_state())
            wait()
            seen.append(grad_state())

    run(block, lambda: seen.append(grad_state()))
    assert seen == [seen[0]] * 3


def torch_after_overlap():
    def block():
        with torch.no_grad():
            wait()

    def longer():
        with torch.no_grad():
            wait()
            wait()

    run(block, longer)
    return grad_state()


def test_torchs_blocks_that_overlap_leave_the_thread_switched():
    """What the tests below would see with torch's."""
    assert torch_after_overlap() == GRAD._replace(grad_enabled=False)
    torch._C._set_grad_enabled(True)


@pairs
def test_blocks_that_overlap(inner, outer):
    """The one entered last decides as long as it is open, and at the end all is as it was."""
    seen = []

    def block():
        with GUARDS[inner]():
            wait()

    def longer():
        with GUARDS[outer]():
            seen.append(grad_state())
            wait()
            seen.append(grad_state())
            wait()
            seen.append(grad_state())

    run(block, longer)
    assert seen[0].grad_enabled == seen[1].grad_enabled == seen[2].grad_enabled


@pairs
def test_decorated_functions_that_overlap(inner, outer):
    """The exit of none fails, whatever waits in its body, and at the end all is as it was."""

    @GUARDS[inner]()
    def shorter():
        wait()

    @GUARDS[outer]()
    def longer():
        wait()
        with GUARDS[inner]():
            wait()

    run(shorter, longer, shorter)


block = st.recursive(
    st.just(("wait",)),
    lambda inner: st.tuples(
        st.just("block"), st.sampled_from(sorted(GUARDS)), st.lists(inner, max_size=3)
    ),
    max_leaves=6,
)


def do(act):
    if act[0] == "wait":
        wait()
    else:
        with GUARDS[act[1]]():
            wait()
            for inner in act[2]:
                do(inner)


@given(
    programs=st.lists(st.lists(block, min_size=1, max_size=3), min_size=2, max_size=4),
    order=st.lists(st.integers(0, 3), max_size=40),
)
def test_any_blocks_in_any_order(programs, order):
    """No exit fails, and when all have ended the thread is in its own mode."""
    run(*(lambda acts=acts: [do(act) for act in acts] for acts in programs), order=order)
    assert (grad_state(), guards()) == (GRAD, ())


def test_gevents_workers():
    """The same under gevent's own loop."""
    gevent = pytest.importorskip("gevent")

    @gradguard.inference_mode
    def predict():
        gevent.sleep(0)

    def blocks():
        for _ in range(5):
            with gradguard.no_grad():
                gevent.sleep(0)

    gevent.joinall(
        [gevent.spawn(fn) for fn in (predict, blocks, predict, blocks)], raise_error=True
    )
