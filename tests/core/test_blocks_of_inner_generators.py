"""Blocks of a plain generator that runs inside a body, and is gone on with outside it.

Its entries sleep with the body: wherever their exits come, they are the body's, and nobody else's
mode changes.
"""

import gc
import sys
import threading
import types
from contextlib import ExitStack, contextmanager, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mode_model import KINDS

import gradguard
from gradguard import GradState, grad_state, guards
from gradguard._core.guard_stack import suspended_in_blocks

START = GradState(grad_enabled=True, inference_mode=False)
OUTER = {
    **{name: kind.make for name, kind in KINDS.items()},
    "isolated": lambda: gradguard.isolated,
}


class Own:
    """A context manager that switches in methods of its own."""

    def __init__(self, guard):
        self.guard = guard

    def __enter__(self):
        self.guard.__enter__()

    def __exit__(self, *error):
        self.guard.__exit__(*error)


@contextmanager
def stacked(guard):
    with ExitStack() as stack:
        stack.enter_context(guard)
        yield


ENTERED = {"itself": lambda guard: guard, "in methods": Own, "on a stack": stacked}


def nested(blocks):
    """Be in ever more blocks, and then in ever fewer."""
    if blocks:
        way, name = blocks[0]
        with ENTERED[way](KINDS[name].make()):
            yield
            yield from nested(blocks[1:])
    yield


@types.coroutine
def pause():
    yield


def generator(held, seen):
    try:
        for _ in held[0]:
            seen.append(grad_state())
            yield
            seen.append(grad_state())
        yield
    finally:
        seen.append(grad_state())


async def coroutine(held, seen):
    try:
        for _ in held[0]:
            seen.append(grad_state())
            await pause()
            seen.append(grad_state())
        await pause()
    finally:
        seen.append(grad_state())


async def async_generator(held, seen):
    try:
        for _ in held[0]:
            seen.append(grad_state())
            yield
            seen.append(grad_state())
        yield
    finally:
        seen.append(grad_state())


FORMS = {form.__name__: form for form in (generator, coroutine, async_generator)}
kinds = st.sampled_from(sorted(KINDS))
forms = st.sampled_from(sorted(FORMS))
outers = st.sampled_from(sorted(OUTER))
acts_outside = st.tuples(st.sampled_from(["step", "next", "close"]), kinds)
several = st.lists(st.tuples(st.sampled_from(sorted(ENTERED)), kinds), min_size=1, max_size=3)


class Running:
    """A decorated body that runs an inner generator, and the modes that its lines have seen."""

    def __init__(self, form, outer, blocks, *, inner_first=True):
        self.seen, held = [], []
        if inner_first:  # a collector closes first what was made first
            held.append(nested(blocks))
        self.body = OUTER[outer]()(FORMS[form])(held, self.seen)
        if not inner_first:
            held.append(nested(blocks))
        self.inner = held[0]
        self.over = False

    def step(self):
        """Step the body, which steps the inner generator, and ends in the step after that's end."""
        try:
            if hasattr(self.body, "asend"):
                self.body.asend(None).send(None)
            else:
                self.body.send(None)
        except StopAsyncIteration:
            self.over = True
        except StopIteration:
            self.over = not hasattr(self.body, "asend")

    def end(self):
        """Close the body."""
        self.over = True
        if hasattr(self.body, "aclose"):
            with suppress(StopIteration, StopAsyncIteration):
                self.body.aclose().send(None)
        else:
            self.body.close()


def modes_by_steps(form, outer, blocks):
    """The mode that the body's lines see after so many steps of the inner generator in it."""
    alone, modes = Running(form, outer, blocks), []
    for _ in range(2 * len(blocks) + 1):
        alone.step()
        modes.append(alone.seen[-1])
    alone.end()
    return modes


def nothing_left():
    return grad_state() == START and guards() == () and not suspended_in_blocks


@given(form=forms, outer=outers, blocks=several, data=st.data())
def test_wherever_it_is_gone_on_with(form, outer, blocks, data):
    """Stepped in the body or outside it, closed or outliving it, an exit is that of its block."""
    modes = modes_by_steps(form, outer, blocks)
    running, done = Running(form, outer, blocks), len(blocks)
    for _ in blocks:
        running.step()
    for act, around in data.draw(st.lists(acts_outside, max_size=7)):
        with KINDS[around].make():
            found = grad_state(), len(guards())
            if act == "next":
                next(running.inner, None)
            elif act == "close":
                running.inner.close()
            elif not running.over:
                running.step()
            assert (grad_state(), len(guards())) == found
        done = len(modes) if act == "close" else min(done + 1, len(modes))
        assert grad_state() == START
        assert guards() == ()
    running.end()
    assert running.seen[-1] == modes[done - 1]
    assert nothing_left()
    running.inner.close()
    assert nothing_left()


@given(form=forms, outer=outers, blocks=several, inner_first=st.booleans())
def test_collected_with_its_body(form, outer, blocks, inner_first):
    """The collector closes either first: each ends in its mode, and nothing is said."""
    said, modes = [], modes_by_steps(form, outer, blocks)
    hook, sys.unraisablehook = sys.unraisablehook, said.append
    try:
        running = Running(form, outer, blocks, inner_first=inner_first)
        for _ in blocks:
            running.step()
        seen, cycle = running.seen, [running.inner, running.body]
        cycle.append(cycle)
        del running, cycle
        gc.collect()
    finally:
        sys.unraisablehook = hook
    assert said == []
    assert seen[-1] in modes[len(blocks) - 1 :]  # so many of its blocks were closed before
    assert nothing_left()


def test_closed_in_another_thread():
    """The body is told there, and goes on where it runs in the mode around the block."""
    running = Running("generator", "no_grad", [("itself", "enable_grad")])
    running.step()
    other = threading.Thread(target=running.inner.close)
    other.start()
    other.join()
    running.step()
    assert running.seen == [START, GradState(grad_enabled=False, inference_mode=False)]
    running.end()
    assert nothing_left()


def test_one_guard_in_two_bodies():
    """Nothing tells whose block ends: it is said, and neither body's mode changes."""
    shared = gradguard.enable_grad()

    def inner():
        with shared:
            yield

    @gradguard.no_grad
    def body(its_own):
        for _ in its_own:
            yield grad_state()
            yield grad_state()

    held = inner(), inner()
    bodies = [body(each) for each in held]
    for each in bodies:
        next(each)
    with pytest.raises(RuntimeError, match=r"enable_grad\(\) is open in 2 suspended generators"):
        held[0].close()
    assert [next(each) for each in bodies] == [START, START]
    for each in bodies:
        each.close()
    assert nothing_left()


def test_an_exit_by_hand_ends_no_block_of_a_body():
    """What exits a guard that it has not entered is told so, though a body has it open."""
    shared = gradguard.no_grad()

    @shared
    def body():
        with gradguard.enable_grad(), shared:
            yield grad_state()
            yield grad_state()

    running = body()
    before = next(running)
    with pytest.raises(RuntimeError, match="not open in this thread"):
        shared.__exit__(None, None, None)
    assert next(running) == before
    running.close()
    assert nothing_left()


def test_an_exit_by_hand_that_is_one_too_many_is_still_told():
    """In a generator, too: the block has not ended with another body."""

    def wrong():
        guard = gradguard.no_grad()
        with guard:
            guard.__exit__(None, None, None)
            yield

    with pytest.raises(RuntimeError, match="not open in this thread"):
        list(wrong())
