"""An exception from outside wherever it can come in an entry, step or exit: see `interrupting`."""

import asyncio
import dis
import sys
from pathlib import Path
from types import CodeType

import pytest
import torch
from interrupting import (
    EACH_BYTECODE,
    Interrupt,
    Signals,
    Tracing,
    drain,
    every_position,
    forms,
    own_forms,
    step_through,
)

import gradguard
from gradguard._core.guard_stack import thread

pytestmark = pytest.mark.usefixtures("recording_afterwards")


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


def holding(kind):
    """Return what runs a body to its end that holds blocks over its suspensions."""

    @gradguard.no_grad
    def generator():
        with gradguard.inference_mode():
            yield
            with gradguard.enable_grad():
                yield

    @gradguard.no_grad
    async def async_generator():
        with gradguard.inference_mode(), gradguard.enable_grad():
            yield
            yield

    return {
        "generator": lambda: list(generator()),
        "async generator": lambda: step_through(drain(async_generator())),
    }[kind]


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.parametrize(
    ("kind", "autocast"),
    [
        ("generator", False),
        ("generator", True),
        ("async generator", False),
        ("async generator", True),
    ],
)
def test_an_interrupt_leaves_the_blocks_to_a_body_that_holds_some(kind, autocast, monkeypatch):
    """Their own exits run and find them open, wherever CPython looks for signals."""
    work, position, came = holding(kind), 0, True
    dropped = []  # errors of exits in a body that nobody holds any more
    monkeypatch.setattr(sys, "unraisablehook", lambda raised: dropped.append(raised.exc_type))
    work()
    with torch.autocast("cpu", enabled=autocast):
        while came:
            came, came_out = Signals(gradguard, position).run(work)
            position += 1
            assert came is came_out
            assert (gradguard.grad_state(), gradguard.guards()) == ((True, False), ())
    assert position > 100
    assert dropped == []


@pytest.mark.skipif(EACH_BYTECODE, reason="the loops of comprehensions lie apart")
def test_no_loop_jumps_back_past_a_handler():
    """An interrupt there would not be seen by the `with` or `try` in which the loop lies."""
    if not unhandled_jumps(unguarded_loop.__code__):
        pytest.skip("this Python's handlers cover every jump")
    home = Path(gradguard.__file__).parent
    sources = [
        path for part in ("_core", "_eval", "_trace") for path in home.glob(f"{part}/**/*.py")
    ]
    assert len(sources) > 30
    for source in sources:
        code = compile(source.read_text(encoding="utf-8"), str(source), "exec")
        assert unhandled_jumps(code) == 0, source


def unguarded_loop(guard, items):
    with guard:
        return [item for item in items if item]


def unhandled_jumps(code):
    """Count the jumps back to a loop's head that lie in a gap of what one handler covers."""
    found = sum(unhandled_jumps(part) for part in code.co_consts if isinstance(part, CodeType))
    entries = dis.Bytecode(code).exception_entries
    at = {each.offset: each for each in dis.get_instructions(code)}

    def handler(start):
        """Return the first that asks for the error: that of a comprehension only cleans up."""
        while start is not None and at[start].opname != "PUSH_EXC_INFO":
            start = next((one.target for one in entries if one.start <= start < one.end), None)
        return start

    for (offset, each), after_it in zip(at.items(), [*at][1:], strict=False):
        if each.opname != "JUMP_BACKWARD" or at[each.argval].opname != "FOR_ITER":
            continue
        if not any(one.start <= offset < one.end for one in entries):
            before = {handler(one.target) for one in entries if one.end == offset}
            after = {handler(one.target) for one in entries if one.start == after_it}
            found += bool((before & after) - {None})
    return found


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
    assert len(cleaned) > position // 3
    assert not any(cleaned)
