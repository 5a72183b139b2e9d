"""An exception from outside wherever it can come in an entry, step or exit: that of a signal.

Up to Python 3.11 a trace function raises at each bytecode, which is more than signals reach. From
3.12 on it is raised exactly where CPython looks for signals, which `sys.monitoring` shows.
"""

import asyncio
import gc
import sys

import pytest
import torch
from interrupting import EACH_BYTECODE, Interrupt, Tracing

import gradguard
from gradguard._core.guard_stack import thread
from gradguard._core.state import set_inference
from gradguard._eval.modules_in_eval import groups

NET = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Dropout())
IN_EVAL = torch.nn.Dropout().eval()


def step_through(coroutine):
    try:
        while True:
            coroutine.send(None)
    except StopIteration:
        pass


async def drain(items):
    async for _ in items:
        pass


def forms(library):
    """Return what only enters and exits, in each way that torch has, too."""

    @library.no_grad()
    def plain():
        pass

    @library.enable_grad()
    def plain_enable():
        pass

    @library.inference_mode()
    def plain_inference():
        pass

    @library.no_grad()
    def generator():
        yield
        yield

    @library.inference_mode()
    def generator_inference():
        yield
        with library.no_grad():
            yield

    def block(make):
        def work():
            with make():
                pass

        return work

    return {
        "with no_grad": block(library.no_grad),
        "with enable_grad": block(library.enable_grad),
        "with set_grad_enabled": block(lambda: library.set_grad_enabled(False)),
        "with inference_mode": block(library.inference_mode),
        "with inference_mode(False)": block(lambda: library.inference_mode(False)),
        "@no_grad": plain,
        "@enable_grad": plain_enable,
        "@inference_mode": plain_inference,
        "@no_grad generator": lambda: list(generator()),
        "@inference_mode generator": lambda: list(generator_inference()),
    }


def own_forms():
    """Return what torch has no such form of, or one that does nothing: nothing may be left."""

    @gradguard.no_grad
    async def coroutine():
        await asyncio.sleep(0)
        with gradguard.enable_grad():
            await asyncio.sleep(0)

    @gradguard.inference_mode
    async def async_generator():
        yield
        await asyncio.sleep(0)
        yield

    @gradguard.evaluating(NET)
    def evaluated():
        pass

    @gradguard.inference_function
    def predict(net):
        pass

    @gradguard.inference_function
    def stream(net):
        yield
        yield

    def block():
        with gradguard.evaluating(NET):
            pass

    return {
        "@no_grad async def": lambda: step_through(coroutine()),
        "@inference_mode async generator": lambda: step_through(drain(async_generator())),
        "with evaluating": block,
        "@evaluating": evaluated,
        "@inference_function": lambda: predict(NET),
        "@inference_function, in eval already": lambda: predict(IN_EVAL),
        "@inference_function generator": lambda: list(stream(NET)),
    }


def every_position(library, work, *, start=True):
    """Interrupt at each bytecode in turn; count what is wrong after, by its kind."""
    counts = {"positions": 0, "mode": 0, "guards": 0, "lost": 0, "flags": 0}
    modules = [*NET.modules(), *IN_EVAL.modules()]
    flags = [module.training for module in modules]
    work()  # what the first call imports or makes is no part of it
    while True:
        torch._C._set_grad_enabled(start)
        came, came_out = Tracing(library, counts["positions"]).run(work)
        if not came:
            return counts
        counts["positions"] += 1
        mode = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        counts["mode"] += mode != (start, False)
        counts["guards"] += gradguard.guards() != ()
        counts["lost"] += not came_out
        counts["flags"] += [module.training for module in modules] != flags or bool(groups)
        thread.cell[0] = None
        set_inference(False)
        for module, flag in zip(modules, flags, strict=True):
            module.training = flag
        groups.clear()


@pytest.fixture(autouse=True)
def recording_afterwards():
    """Every test ends recording, whatever it found; no collection comes in between."""
    if EACH_BYTECODE and sys.gettrace() is not None:
        pytest.skip("the trace function is coverage's")
    gc.collect()
    gc.disable()
    yield
    gc.enable()
    torch._C._set_grad_enabled(True)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("form", forms(gradguard))
def test_no_interrupt_leaves_more_than_torchs_own_guard_leaves(form):
    """No more wrong modes than with torch's guard, no guard left open, and no interrupt lost."""
    start = "enable_grad" not in form
    ours = every_position(gradguard, forms(gradguard)[form], start=start)
    theirs = every_position(torch, forms(torch)[form], start=start)
    assert ours["positions"] > (20 if EACH_BYTECODE else 3)
    assert (ours["guards"], ours["lost"]) == (0, 0)
    assert ours["mode"] <= theirs["mode"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.parametrize("form", own_forms())
def test_no_interrupt_leaves_anything(form):
    """No wrong mode or flag, no guard or eval mode left open, and no interrupt lost."""
    ours = every_position(gradguard, own_forms()[form])
    assert ours.pop("positions") > (100 if EACH_BYTECODE else 90)
    assert set(ours.values()) == {0}, ours


def test_a_block_whose_exit_was_interrupted_is_not_blamed():
    """The exit of the block around it is no exit out of order."""
    inner = gradguard.no_grad()

    def work():
        with gradguard.enable_grad(), inner:
            pass

    position, came = 0, True
    while came:
        came, _ = Tracing(gradguard, position).run(work)
        position += 1
        assert gradguard.guards() == ()
    assert position > (50 if EACH_BYTECODE else 10)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_between_two_steps_is_the_bodys_to_answer():
    """What a decorated generator has open is closed, under its own mode, by its own cleanup."""
    cleaned = []

    @gradguard.no_grad()
    def generator():
        try:
            with gradguard.enable_grad():
                while True:
                    yield
        finally:
            cleaned.append(gradguard.grad_state().grad_enabled)

    for position in range(200):
        running = generator()
        next(running)
        came, came_out = Tracing(gradguard, position).run(lambda running=running: next(running))
        assert came is came_out
        running.close()
        assert torch.is_grad_enabled()
    assert cleaned.count(False) > 190  # a signal's handler never runs at the others


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_between_two_steps_of_an_async_generator_is_the_bodys_to_answer():
    """Also one that comes when a step is over, and what it yielded not yet handed on."""
    answered = []

    @gradguard.no_grad()
    async def generator():
        try:
            while True:
                yield
        except Interrupt:
            answered.append(torch.is_grad_enabled())
            raise

    def begin(running):
        step_through(anext(running).__await__())

    for position in range(150):
        running = generator()
        begin(running)
        came, came_out = Tracing(gradguard, position).run(lambda running=running: begin(running))
        assert came is came_out
        assert torch.is_grad_enabled()
    assert answered.count(False) > (100 if EACH_BYTECODE else 40)


@pytest.mark.parametrize("guard", [gradguard.no_grad(), gradguard.inference_mode()])
def test_an_error_of_a_body_that_has_closed_its_own_guard_comes_out(guard):
    """It is not replaced by an error about the guard, and the mode is what it was."""

    @guard
    def function():
        guard.__exit__(None, None, None)
        raise LookupError

    with pytest.raises(LookupError):
        function()
    assert gradguard.grad_state() == (True, False)


def dropped(kind, cleaned):
    """Return what runs a body to its end, which notes the mode of its cleanup."""

    def note():
        cleaned.append(torch.is_grad_enabled())

    @gradguard.no_grad()
    def generator():
        try:
            yield
            yield
        finally:
            note()

    @gradguard.no_grad()
    async def coroutine():
        try:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        finally:
            note()

    return {
        "generator": lambda: list(generator()),
        "coroutine": lambda: step_through(coroutine()),
    }[kind]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", ["generator", "coroutine"])
def test_a_body_that_an_interrupt_drops_is_closed_in_its_own_mode(kind):
    """Wherever the interrupt comes: nobody holds the body any more, and its cleanup still runs."""
    cleaned, position, came = [], 0, True
    while came:
        came, _ = Tracing(gradguard, position).run(dropped(kind, cleaned))
        position += 1
        torch._C._set_grad_enabled(True)
        thread.cell[0] = None
    assert position > (200 if EACH_BYTECODE else 50)
    assert len(cleaned) > position // 2
    assert not any(cleaned)
