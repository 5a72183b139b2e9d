"""What a decorated plain function hands back: run under the guard, or with a life of its own."""

import asyncio
import gc
import sys

import pytest
import torch

import gradguard

GUARDS = [gradguard.no_grad, gradguard.inference_mode, gradguard.inference_mode()]
each_guard = pytest.mark.parametrize(
    "guard", GUARDS, ids=["no_grad", "inference_mode", "inference_mode()"]
)


async def asynchronous(count):
    for at in range(count):
        yield at, torch.is_grad_enabled()


async def answer():
    return torch.is_grad_enabled()


def generator(count):
    for at in range(count):
        yield at, torch.is_grad_enabled()


async def first(items):
    return await anext(items)


async def every(items):
    return [item async for item in items]


@each_guard
def test_what_was_made_for_the_call_runs_under_the_guard(guard):
    """A generator, coroutine or async generator that nobody else has."""
    assert list(guard(lambda: generator(2))()) == [(0, False), (1, False)]
    assert asyncio.run(every(guard(lambda: asynchronous(2))())) == [(0, False), (1, False)]

    async def awaits():
        return await guard(lambda: answer())()

    assert asyncio.run(awaits()) is False


@each_guard
@pytest.mark.parametrize("begun", [True, False])
def test_a_generator_that_somebody_holds_keeps_its_own_life(guard, begun):
    """Leaving a loop over it does not close it, and no item is lost."""
    held = generator(4)
    if begun:
        next(held)
    handed_back = guard(lambda: held)
    for item in handed_back():
        assert item == (int(begun), True)
        break
    assert list(handed_back()) == [(at, True) for at in range(1 + begun, 4)]


@each_guard
@pytest.mark.parametrize("begun", [True, False])
def test_an_async_generator_that_somebody_holds_keeps_its_own_life(guard, begun):
    """As a generator."""

    async def main():
        held = asynchronous(4)
        if begun:
            await anext(held)
        handed_back = guard(lambda: held)
        assert await first(handed_back()) == (int(begun), True)
        return await every(handed_back())

    assert asyncio.run(main()) == [(at, True) for at in range(1 + begun, 4)]


@each_guard
def test_one_that_was_begun_and_given_away_is_handed_back_as_it_is(guard):
    """Also where nobody holds it any more: what it has run so far was not under the guard."""

    def begun():
        made = generator(3)
        next(made)
        return made

    assert list(guard(begun)()) == [(1, True), (2, True)]


WATCHERS = {
    "nobody": lambda: None,
    "a tracer": lambda: sys.settrace(lambda frame, event, arg: sys.gettrace()),
    "a profiler": lambda: sys.setprofile(lambda frame, event, arg: None),
}


@each_guard
@pytest.mark.parametrize(
    "watcher",
    [
        "nobody",
        "a tracer",
        pytest.param(
            "a profiler",
            marks=pytest.mark.skipif(
                sys.version_info < (3, 11),
                reason="Python 3.10 copies the locals of the frames that a profiler is shown: "
                "what a call hands back counts as held, and keeps a life of its own",
            ),
        ),
    ],
)
def test_whose_it_is_is_known_however_python_runs_the_call(guard, watcher):
    """References are counted: also where Python has specialized the code, or somebody watches it.

    Python 3.14 borrows the references on its stack; a custom evaluation of frames, as Dynamo's,
    passes arguments in another way. So the count is compared with that of the same call.
    """
    if sys.gettrace() is not None:
        pytest.skip("the trace function is coverage's")
    fresh = guard(lambda: generator(1))
    WATCHERS[watcher]()
    try:
        for _ in range(60):
            held = generator(1)
            assert guard(lambda held=held: held)() is held
            assert next(fresh()) == (0, False)
    finally:
        sys.settrace(None)
        sys.setprofile(None)


@each_guard
def test_whose_it_is_is_known_where_dynamo_has_run(guard):
    """Its evaluation of frames stays set, and counts otherwise."""
    fresh = guard(lambda: generator(1))
    torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1))
    held = generator(1)
    for _ in range(20):
        assert guard(lambda: held)() is held
        assert next(fresh()) == (0, False)
    torch.compiler.reset()


def test_a_debugger_that_holds_frames_keeps_a_guard_open():
    """Who holds the frame of a block may go on in it: its guard is not taken for abandoned."""
    frames = []

    def block():
        with gradguard.no_grad():
            frames.append(sys._getframe())
            assert len(gradguard.guards()) == 1
            gc.collect(0)
            assert len(gradguard.guards()) == 1

    for _ in range(60):
        block()
        assert gradguard.guards() == ()
    frames.clear()
