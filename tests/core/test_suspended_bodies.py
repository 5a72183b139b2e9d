import asyncio
import contextlib
import functools
import gc
import inspect
import subprocess
import sys
import threading
import traceback
import types
import weakref

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import gradguard
from gradguard import GradModeWarning, GradState, grad_state, guards
from gradguard._core.guard_stack import thread
from gradguard._core.state import put_back

GRAD = GradState(grad_enabled=True, inference_mode=False)
NO_GRAD = GradState(grad_enabled=False, inference_mode=False)
INFERENCE = GradState(grad_enabled=False, inference_mode=True)
GRAD_IN_INFERENCE = GradState(grad_enabled=True, inference_mode=True)
MODES = (GRAD, NO_GRAD, INFERENCE, GRAD_IN_INFERENCE)

DECORATORS = {
    "no_grad": (gradguard.no_grad, NO_GRAD),
    "enable_grad": (gradguard.enable_grad, GRAD),
    "set_off": (lambda fn: gradguard.set_grad_enabled(False)(fn), NO_GRAD),
    "inference": (gradguard.inference_mode, INFERENCE),
    "no_inference": (gradguard.inference_mode(False), GRAD),
}
each_decorator = pytest.mark.parametrize("name", DECORATORS)
INNER = {
    "no_grad": (gradguard.no_grad, NO_GRAD),
    "enable_grad": (gradguard.enable_grad, GRAD),
    "inference": (gradguard.inference_mode, INFERENCE),
    "torch_no_grad": (torch.no_grad, NO_GRAD),
    "torch_inference": (torch.inference_mode, INFERENCE),
}


@pytest.fixture(autouse=True)
def thread_is_clean():
    """Every test begins and ends recording, with no guard open."""
    assert (grad_state(), guards()) == (GRAD, ())
    yield
    ended = grad_state(), guards()
    thread.cell[0] = None  # so that a failure is one failure
    put_back(GRAD)
    assert ended == (GRAD, ())


@types.coroutine
def pause(value=None):
    """Suspend to whoever steps the task, as a future does; return what is sent."""
    return (yield value)


def step(awaitable, feed=None):
    """Run an awaitable to its end, over all its suspensions."""
    iterator = awaitable.__await__()
    try:
        iterator.send(None)
        while True:
            iterator.send(feed)
    except StopIteration as stop:
        return stop.value
    finally:
        del awaitable, iterator  # they hold what is thrown


# What a body sees and does is the same, decorated or not.

THROWN = {
    "value_error": ValueError,
    "key_error": KeyError,
    "stop": StopIteration,
    "stop_async": StopAsyncIteration,
    "cancel": asyncio.CancelledError,
    "interrupt": KeyboardInterrupt,
    "exit": GeneratorExit,
}


def react(log, got):
    log.append(("got", got))
    if got == "raise":
        raise LookupError(got)
    return got == "return"


def outcome_of_exit(log, at_exit):
    log.append("exit")
    if at_exit == "raise":
        raise LookupError
    return at_exit == "return"


def generator_body(log, at_exit):
    try:
        while True:
            try:
                if react(log, (yield len(log))):
                    return "done"
            except (ValueError, asyncio.CancelledError) as error:
                log.append(("caught", repr(error)))
            except GeneratorExit:
                if outcome_of_exit(log, at_exit):
                    return "closed"
                if at_exit != "yield":
                    raise
    finally:
        log.append("finally")


async def coroutine_body(log, at_exit):
    return await types.coroutine(generator_body)(log, at_exit)


async def async_generator_body(log, at_exit):
    try:
        while True:
            try:
                await pause("before")
                if react(log, (yield len(log))):
                    return
                await pause("after")
            except (ValueError, asyncio.CancelledError) as error:
                log.append(("caught", repr(error)))
                await pause("caught")
            except GeneratorExit:
                if outcome_of_exit(log, at_exit):
                    return
                if at_exit != "yield":
                    await pause("closing")
                    raise
    finally:
        await pause("finally")
        log.append("finally")


def outcome(call, *args):
    try:
        return "gave", call(*args)
    except BaseException as error:  # noqa: BLE001 (compared)
        message = str(error).replace("coroutine ignored", "generator ignored")
        return "raised", type(error), message, getattr(error, "value", None)
    finally:
        del args  # a thrown error in it would keep this frame, and itself, until a collection


def driven_by_hand(target):
    """What each operation calls on a generator or coroutine."""
    return target.send, target.throw, target.close


def driven_async(target):
    """The same for an async generator, whose operations are awaited to their end."""
    return (
        lambda value: step(target.asend(value), "fed"),
        lambda error: step(target.athrow(error), "fed"),
        lambda: step(target.aclose(), "fed"),
    )


def play(fn, driven, program, at_exit):
    """Everything that can be seen of a body while a program is played on it."""
    log, seen = [], []
    target = fn(log, at_exit)
    send, throw, close = driven(target)
    for operation, value in program:
        if operation == "send":
            seen.append(outcome(send, value))
        elif operation == "throw":
            seen.append(outcome(throw, THROWN[value]("thrown")))
        else:
            seen.append(outcome(close))
        seen.append(len(log))
    if at_exit == "yield":
        outcome(send, "return")
    else:
        outcome(close)
    del target, send, throw, close
    return seen, log


programs = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.sampled_from([None, None, None, 1, "raise", "return"])),
        st.tuples(st.just("throw"), st.sampled_from(sorted(THROWN))),
        st.tuples(st.just("close"), st.none()),
    ),
    max_size=8,
)
KINDS = {
    "generator": (generator_body, driven_by_hand),
    "types_coroutine": (types.coroutine(generator_body), driven_by_hand),
    "coroutine": (coroutine_body, driven_by_hand),
    "async_generator": (async_generator_body, driven_async),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("handed_back", [False, True])
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@given(
    program=programs,
    at_exit=st.sampled_from(["pass", "return", "raise", "yield"]),
    name=st.sampled_from(sorted(DECORATORS)),
)
@settings(max_examples=120, deadline=None)
def test_any_program_as_undecorated(kind, handed_back, program, at_exit, name):
    """Whatever is sent, thrown and closed: the same values, errors and order as undecorated.

    Except for a coroutine that goes on after it was closed: an ``async def`` around it cannot.
    """
    assume(not (kind == "coroutine" and at_exit == "yield"))
    fn, driven = KINDS[kind]
    decorate = DECORATORS[name][0]
    decorated = decorate(lambda *args: fn(*args)) if handed_back else decorate(fn)
    assert play(decorated, driven, program, at_exit) == play(fn, driven, program, at_exit)
    assert (grad_state(), guards()) == (GRAD, ())


@each_decorator
def test_return_values(name):
    """A generator's return value reaches `yield from`, a coroutine's its await."""
    decorate, mode = DECORATORS[name]

    @decorate
    def generator():
        yield 1
        return grad_state()

    @decorate
    async def coroutine():
        await pause()
        return grad_state()

    def delegating():
        return (yield from generator())

    running = delegating()
    next(running)
    with pytest.raises(StopIteration) as stopped:
        next(running)
    assert stopped.value.value == mode
    assert step(coroutine()) == mode


def test_early_stop_runs_the_end_of_the_body():
    """A `for` that breaks closes the generator: its `finally` runs, in the body's mode."""
    seen = []

    @gradguard.inference_mode()
    def generator():
        try:
            yield 1
            yield 2
        finally:
            seen.append(grad_state())

    for _ in generator():
        break
    gc.collect()
    assert seen == [INFERENCE]


def test_a_never_started_body_never_runs():
    """Closing or dropping what was never started runs nothing."""
    ran = []

    @gradguard.no_grad
    def generator():
        ran.append(1)
        yield

    @gradguard.no_grad
    async def async_generator():
        ran.append(1)
        yield

    @gradguard.no_grad
    async def coroutine():
        ran.append(1)

    generator().close()
    step(async_generator().aclose())
    coroutine().close()
    with pytest.raises(KeyError):
        generator().throw(KeyError)
    assert ran == []


def test_a_coroutine_that_is_never_awaited_says_so_once():
    """The warning names the function, as for the undecorated one."""

    @gradguard.no_grad
    async def forgotten():
        pass

    with pytest.warns(RuntimeWarning, match="coroutine '.*forgotten' was never awaited") as caught:
        forgotten()
        gc.collect()
    assert len(caught) == 1


def test_a_finished_coroutine_cannot_be_awaited_again():
    """As the undecorated one."""

    @gradguard.no_grad
    async def once():
        return 1

    running = once()
    assert step(running) == 1
    with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
        step(running)


def test_a_running_body_cannot_be_stepped():
    """A generator that steps itself is told so, and its mode and its resumer's stay right."""
    modes = []

    @gradguard.no_grad
    def selfish():
        with pytest.raises(ValueError, match="generator already executing"):
            next(running)
        modes.append(grad_state())
        yield

    running = selfish()
    next(running)
    assert modes == [NO_GRAD]
    assert grad_state() == GRAD


def test_concurrent_steps_of_one_async_generator():
    """As undecorated: the second is refused, and the first goes on in its mode."""

    @gradguard.no_grad
    async def async_generator():
        await pause("one")
        yield grad_state()

    running = async_generator()
    first = running.asend(None)
    assert first.send(None) == "one"
    with pytest.raises(RuntimeError, match="already running"):
        running.asend(None).send(None)
    with pytest.raises(StopIteration) as stopped:
        first.send(None)
    assert stopped.value.value == NO_GRAD
    step(running.aclose())


def test_tracebacks_reach_the_line_of_the_body():
    """What the body raises comes out with its own line, and without an added context."""

    @gradguard.no_grad
    def generator():
        yield
        raise KeyError

    running = generator()
    next(running)
    with pytest.raises(KeyError) as caught:
        next(running)
    assert traceback.extract_tb(caught.value.__traceback__)[-1].line == "raise KeyError"
    assert caught.value.__context__ is None
    running = generator()
    next(running)
    error = ValueError()
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (compared below)
        running.throw(error)
    assert caught.value is error
    assert error.__context__ is None


# A suspended body keeps its own mode.


def each_step(kind, decorate, body):
    """A decorated body as a function that takes its next step and returns what it gives.

    `body` is a generator function that yields what each kind hands out.
    """
    if kind == "generator":
        running = decorate(body)()
        return lambda: next(running, None)
    if kind == "handed_back":
        running = decorate(lambda: body())()
        return lambda: next(running, None)
    if kind == "coroutine":

        @decorate
        async def coroutine():
            await types.coroutine(body)()

        running = coroutine()

        def take():
            try:
                return running.send(None)
            except StopIteration:
                return None

        return take

    @decorate
    async def async_generator():
        with contextlib.closing(body()) as inner:
            for value in inner:
                await pause("ignored")
                yield value

    running = async_generator()

    def take_async():
        try:
            return step(running.asend(None))
        except StopAsyncIteration:
            return None

    return take_async


each_kind = pytest.mark.parametrize("kind", ["generator", "handed_back", "coroutine", "async"])


@each_kind
@each_decorator
def test_the_mode_belongs_to_the_body(kind, name):
    """Each step runs in the body's mode, whatever its resumer's; the resumer keeps its own."""
    decorate, mode = DECORATORS[name]

    def body():
        for _ in range(6):
            yield grad_state(), guards()[-1:]

    take = each_step(kind, decorate, body)
    assert take()[0] == mode
    for resumer in (*MODES, GRAD):
        put_back(resumer)
        state, innermost = take()
        assert state == mode
        assert len(innermost) == 1
        assert (grad_state(), guards()) == (resumer, ())
    assert take() is None


OWN_MODE = {
    **{name: decorate for name, (decorate, _) in DECORATORS.items()},
    "isolated": gradguard.isolated,
}


@given(
    kind=st.sampled_from(["generator", "coroutine", "async"]),
    name=st.sampled_from(sorted(OWN_MODE)),
    blocks=st.lists(st.sampled_from(sorted(INNER)), max_size=3),
    first=st.sampled_from(MODES),
    later=st.lists(st.sampled_from(MODES), min_size=1, max_size=8),
)
def test_any_blocks_of_a_body_do_not_depend_on_its_later_resumers(kind, name, blocks, first, later):
    """What a block brings back at its end is what it found in the body, not in who resumes it."""

    def body(left=tuple(blocks)):
        yield grad_state()
        if left:
            with INNER[left[0]][0]():
                yield from body(left[1:])
            yield grad_state()

    def seen(resumers):
        take = each_step(kind, OWN_MODE[name], body)
        for resumer in (first, *resumers):
            put_back(resumer)
            yield take()
            assert grad_state() == resumer

    steps = 2 * len(blocks) + 1
    try:
        alike = list(seen([first] * steps))
        assert list(seen([later[at % len(later)] for at in range(steps)])) == alike
    finally:
        put_back(GRAD)


@each_kind
@each_decorator
@pytest.mark.parametrize("inner", INNER)
def test_inner_guards_belong_to_the_body(kind, name, inner):
    """A body suspended inside an inner guard, also torch's, finds it open on resume."""
    guard, inner_mode = INNER[inner]

    def body():
        yield grad_state()
        with guard():
            yield grad_state()
            with gradguard.enable_grad():
                yield grad_state()
            yield grad_state()
        yield grad_state()

    decorate, mode = DECORATORS[name]
    take = each_step(kind, decorate, body)
    inside = GradState(inner_mode.grad_enabled, inner_mode.inference_mode)
    if inner in {"no_grad", "torch_no_grad"}:
        inside = GradState(False, mode.inference_mode)
    seen = []
    for resumer in (*MODES, GRAD):
        put_back(resumer)
        seen.append(take())
        assert (grad_state(), guards()) == (resumer, ())
    put_back(GRAD)
    assert seen == [mode, inside, GRAD, inside, mode]
    assert take() is None


@each_kind
@pytest.mark.parametrize("on", [True, False])
def test_a_raw_switch_belongs_to_the_body(kind, on):
    """What a body switches by hand is its own until its end, and not its resumer's."""

    def body():
        torch._C._set_grad_enabled(on)
        yield grad_state()
        yield grad_state()

    take = each_step(kind, gradguard.no_grad, body)
    assert [take(), take(), take()] == [GradState(on, False)] * 2 + [None]
    assert grad_state() == GRAD


@each_kind
@pytest.mark.parametrize("resumer", MODES)
def test_inference_mode_that_a_body_leaves_on_at_its_very_end(kind, resumer):
    """What was switched by torch's own guard in the last step goes with the body."""
    left_on = []

    def body():
        yield grad_state()
        left_on.append(torch.inference_mode())
        left_on[0].__enter__()

    take = each_step(kind, gradguard.no_grad, body)
    put_back(resumer)
    try:
        assert [take(), take()] == [GradState(False, resumer.inference_mode), None]
        assert (grad_state(), guards()) == (resumer, ())
    finally:
        left_on[0].__exit__(None, None, None)
        put_back(GRAD)


@each_kind
@pytest.mark.parametrize("name", ["no_grad", "inference"])
def test_resumed_in_other_threads(kind, name):
    """Each step in another thread has the body's mode, and leaves that thread its own."""
    decorate, mode = DECORATORS[name]

    def body():
        yield grad_state()
        with torch.inference_mode(), gradguard.enable_grad():
            yield grad_state()
            yield grad_state()
        yield grad_state()

    take, seen, after = each_step(kind, decorate, body), [], []

    def run(resumer):
        put_back(resumer)
        seen.append(take())
        after.append((grad_state(), guards()))

    for resumer in (*MODES, NO_GRAD):
        other = threading.Thread(target=run, args=(resumer,))
        other.start()
        other.join()
    assert seen == [mode, GRAD, GRAD, mode, None]
    assert after == [(resumer, ()) for resumer in (*MODES, NO_GRAD)]
    assert grad_state() == GRAD


@each_kind
@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("name", ["no_grad", "inference"])
def test_dropped_unfinished(kind, inner, name):
    """A body dropped inside an inner guard leaves nothing, whatever the mode when it is collected."""

    def body():
        with INNER[inner][0]():
            yield grad_state()
            yield grad_state()

    for resumer in MODES:
        take = each_step(kind, DECORATORS[name][0], body)
        take()
        put_back(resumer)
        del take
        gc.collect()
        assert (grad_state(), guards()) == (resumer, ())
        put_back(GRAD)


def test_dropped_in_another_thread():
    """Collected in another thread, a body ends there in its own mode, and that thread keeps its own."""
    ended = []

    @gradguard.inference_mode
    def generator():
        try:
            yield
        finally:
            ended.append((threading.current_thread().name, grad_state()))

    held = [generator()]
    next(held[0])

    def drop():
        with gradguard.no_grad():
            held.clear()
            ended.append(grad_state())

    other = threading.Thread(target=drop, name="other")
    other.start()
    other.join()
    assert ended == [("other", INFERENCE), NO_GRAD]
    assert grad_state() == GRAD


def test_dropped_without_an_end():
    """An async generator that nothing can close any more takes no mode along."""

    @gradguard.inference_mode
    async def async_generator():
        yield

    loop = asyncio.new_event_loop()
    running = async_generator()
    loop.run_until_complete(running.__anext__())
    loop.close()
    with gradguard.no_grad():
        del running
        gc.collect()
        assert grad_state() == NO_GRAD


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_dropped_against_its_will():
    """A generator that refuses to be closed takes no mode along when it is dropped."""

    @gradguard.inference_mode
    def refusing():
        while True:
            with contextlib.suppress(GeneratorExit):
                yield

    running = refusing()
    next(running)
    with gradguard.no_grad():
        with pytest.raises(RuntimeError, match="generator ignored GeneratorExit"):
            running.close()
        del running
        gc.collect()
        assert grad_state() == NO_GRAD


@each_kind
def test_many_dropped(kind):
    """Dropped bodies, never finished, leave the chain empty and no object behind."""

    def body():
        with gradguard.inference_mode():
            yield 1
            yield 2

    def drop(times):
        for _ in range(times):
            each_step(kind, gradguard.no_grad, body)()

    drop(100)
    gc.collect()
    before = len(gc.get_objects())
    drop(3000)
    gc.collect()
    assert len(gc.get_objects()) - before < 100
    assert guards() == ()


def test_a_hundred_thousand_dropped():
    """10^5 generators and coroutines, started and dropped, leave nothing behind."""

    @gradguard.no_grad
    def generator():
        yield
        yield

    @gradguard.no_grad
    async def coroutine():
        await pause()
        await pause()

    gc.collect()
    before = len(gc.get_objects())
    for _ in range(50_000):
        next(generator())
        coroutine().send(None)
    gc.collect()
    assert len(gc.get_objects()) - before < 100
    assert guards() == ()


def test_unfinished_at_the_end_of_the_program():
    """What is still suspended when the interpreter ends makes no noise."""
    code = """
import gradguard, torch, asyncio
@gradguard.inference_mode
def generator():
    with torch.no_grad(), gradguard.enable_grad():
        yield
        yield
@gradguard.no_grad
async def async_generator():
    with gradguard.inference_mode():
        yield
running = generator(); next(running)
suspended = async_generator()
try:
    suspended.asend(None).send(None)
except StopIteration:
    pass
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


# The start: what a body makes of its first resumer's mode.


@each_kind
@pytest.mark.parametrize("resumer", MODES)
def test_leaving_inference_mode_in_a_body(kind, resumer):
    """`inference_mode(False)` in a body keeps the grad mode that surrounds the block there."""

    def body():
        with gradguard.inference_mode():
            yield 1
            with gradguard.inference_mode(False):
                yield grad_state()

    put_back(resumer)
    take = each_step(kind, gradguard.inference_mode, body)
    take()
    put_back(GRAD)
    assert take() == (NO_GRAD if resumer == NO_GRAD else GRAD)


@pytest.mark.parametrize("off", [True, False])
def test_leaving_inference_mode_in_a_body_resumed_elsewhere(off):
    """What surrounds the block is read where the body began, not where it is resumed."""

    @gradguard.no_grad
    def generator():
        with gradguard.enable_grad():
            with gradguard.inference_mode():
                yield
                with gradguard.inference_mode(False):
                    yield grad_state()

    running = generator()
    next(running)
    with gradguard.no_grad() if off else gradguard.enable_grad():
        assert next(running) == GRAD


def test_leaving_inference_mode_in_a_body_begun_in_two_blocks():
    """What surrounds the outer inference block, in which the body began, counts to its end."""

    @gradguard.inference_mode
    def generator():
        yield
        with gradguard.inference_mode(False):
            yield grad_state()

    for off in (True, False):
        running = generator()
        with gradguard.no_grad() if off else gradguard.enable_grad(), gradguard.inference_mode():
            next(running)
        assert next(running) == (NO_GRAD if off else GRAD)
        running.close()


# Dispatch state that is not the mode stays as it is for an undecorated body.


def autocast():
    return torch.is_autocast_enabled("cpu")


@each_kind
@pytest.mark.parametrize("name", ["no_grad", "inference", "enable_grad"])
@pytest.mark.parametrize("outside", [False, True])
def test_autocast_in_a_body(kind, name, outside):
    """Autocast that a body switches on is still on when it is resumed, and ends with its block."""

    def body():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            yield [autocast()]
            yield [autocast()]
            with gradguard.inference_mode():
                yield [autocast()]
            yield [autocast()]
        yield [autocast()]

    with torch.autocast("cpu", enabled=outside):
        take = each_step(kind, DECORATORS[name][0], body)
        assert [take() for _ in range(5)] == [[True], [True], [True], [True], [outside]]
        assert take() is None
        assert autocast() is outside
    assert not autocast()


@each_kind
@pytest.mark.parametrize("name", ["no_grad", "inference"])
def test_autocast_begun_in_a_later_step(kind, name):
    """Autocast that a body switches on in any step is on in the next, and ends with its block."""

    def body():
        yield [autocast()]
        yield [autocast()]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            yield [autocast()]
            yield [autocast()]
        yield [autocast()]

    take = each_step(kind, DECORATORS[name][0], body)
    assert [take() for _ in range(5)] == [[False], [False], [True], [True], [False]]
    assert take() is None
    assert not autocast()


@pytest.mark.parametrize("name", ["no_grad", "inference"])
def test_autocast_around_some_steps(name):
    """Autocast around a step reaches the body for that step, and never stays on."""

    @DECORATORS[name][0]
    def generator():
        with torch.inference_mode():
            yield autocast()
            yield autocast()
        yield autocast()

    for around in ([True, False, False], [False, True, False], [True, True, False]):
        running, seen = generator(), []
        for on in around:
            with torch.autocast("cpu", enabled=on):
                seen.append(next(running))
        assert seen[:2] == around[:2]
        with torch.autocast("cpu"):
            assert next(running, None) is None
            assert autocast()
        assert not autocast()


@each_kind
@pytest.mark.parametrize("inner", ["inference", "torch_inference"])
def test_a_dispatch_mode_around_some_steps(kind, inner):
    """A `TorchDispatchMode` sees the steps that it encloses; after its end the body goes on."""
    from torch.utils.flop_counter import FlopCounterMode

    def body():
        with INNER[inner][0]():
            while True:
                yield torch.ones(2, 2) @ torch.ones(2, 2)

    take = each_step(kind, gradguard.no_grad, body)
    with FlopCounterMode(display=False) as counter:
        take()
    take()
    assert counter.get_total_flops() == 16
    with FlopCounterMode(display=False) as counter:
        take()
    assert counter.get_total_flops() == 16
    take()


# Nothing is kept alive that an undecorated body would not keep.


class Thing:
    pass


def test_the_resumers_links_are_not_kept():
    """A suspended body holds nothing of the chain on which it lay."""

    @gradguard.inference_mode
    def generator():
        while True:
            yield

    running = generator()
    next(running)
    with gradguard.no_grad():
        link = thread.cell[0]
        before = sys.getrefcount(link)
        next(running)
        assert sys.getrefcount(link) == before
    running.close()


def test_yielded_and_sent_values_are_not_kept():
    """What was yielded, or sent and dropped, is gone while the generator is suspended."""

    @gradguard.inference_mode
    def generator():
        sent = yield Thing()
        del sent
        yield

    running = generator()
    yielded = weakref.ref(next(running))
    assert yielded() is None
    thing = Thing()
    sent = weakref.ref(thing)
    running.send(thing)
    del thing
    assert sent() is None


def test_async_yielded_and_sent_values_are_not_kept():
    """The same for an async generator."""

    @gradguard.inference_mode
    async def async_generator():
        sent = yield Thing()
        del sent
        yield

    running = async_generator()
    yielded = weakref.ref(step(running.asend(None)))
    assert yielded() is None
    thing = Thing()
    sent = weakref.ref(thing)
    step(running.asend(thing))
    del thing
    assert sent() is None
    step(running.aclose())


@each_kind
def test_arguments_are_the_bodys_to_keep(kind):
    """A body that drops its argument frees it, though it goes on."""

    def generator(thing):
        yield 1
        del thing
        yield 2

    async def coroutine(thing):
        await pause(1)
        del thing
        await pause(2)

    async def async_generator(thing):
        yield 1
        del thing
        yield 2

    fns = {"generator": generator, "coroutine": coroutine, "async": async_generator}
    fn = fns.get(kind, generator)
    thing = Thing()
    ref = weakref.ref(thing)
    running = gradguard.no_grad(fn)(thing)
    del thing
    if kind == "async":
        step(running.asend(None))
        step(running.asend(None))
    else:
        running.send(None)
        running.send(None)
    assert ref() is None
    if kind == "async":
        step(running.aclose())


def test_thrown_errors_are_not_kept():
    """An error that was thrown in and caught is gone, without the garbage collector."""

    @gradguard.no_grad
    def generator():
        while True:
            with contextlib.suppress(KeyError):
                yield

    @gradguard.no_grad
    async def async_generator():
        while True:
            with contextlib.suppress(KeyError):
                yield

    class MyError(KeyError):
        pass

    gc.disable()
    try:
        running, suspended = generator(), async_generator()
        next(running)
        step(suspended.asend(None))
        refs = []
        for throw in (running.throw, lambda error: step(suspended.athrow(error))):
            error = MyError()
            refs.append(weakref.ref(error))
            throw(error)
            del error
        assert [ref() for ref in refs] == [None, None]
    finally:
        gc.enable()
    step(suspended.aclose())


@each_kind
def test_errors_that_pass_through_are_not_kept(kind):
    """An error that was thrown in and comes out again goes with its last reference."""

    def generator():
        yield

    async def coroutine():
        await pause()

    async def async_generator():
        yield

    class MyError(KeyError):
        pass

    fns = {"generator": generator, "coroutine": coroutine, "async": async_generator}
    gc.disable()
    try:
        running = gradguard.no_grad(fns.get(kind, generator))()
        error = MyError()
        ref = weakref.ref(error)
        if kind == "async":
            step(running.asend(None))
        else:
            running.send(None)
        try:
            if kind == "async":
                step(running.athrow(error))
            else:
                running.throw(error)
        except MyError:
            pass
        del error
        assert ref() is None
    finally:
        gc.enable()


def test_a_finished_body_frees_without_the_collector():
    """A body's frame and what it holds go when the body ends or is dropped."""
    gc.disable()
    try:

        @gradguard.inference_mode
        def generator(thing):
            with gradguard.enable_grad():
                yield
                yield thing

        refs = []
        for dropped in (True, False):
            thing = Thing()
            refs.append(weakref.ref(thing))
            running = generator(thing)
            next(running)
            if not dropped:
                list(running)
            del running, thing
        assert [ref() for ref in refs] == [None, None]
    finally:
        gc.enable()


# In asyncio


def test_tasks_do_not_see_each_other():
    """Overlapping tasks of decorated coroutines each have their own mode, and so has the loop."""

    @gradguard.no_grad
    async def off():
        for _ in range(3):
            assert grad_state() == NO_GRAD
            await asyncio.sleep(0)

    @gradguard.inference_mode
    async def inference():
        for _ in range(3):
            assert grad_state() == INFERENCE
            await asyncio.sleep(0)

    async def plain():
        for _ in range(6):
            assert grad_state() == GRAD
            await asyncio.sleep(0)

    async def main():
        await asyncio.gather(off(), plain(), inference(), plain(), off())

    asyncio.run(main())


def test_a_cancelled_task_cleans_up_in_its_mode():
    """Cancellation reaches the body at its await; its cleanup may await, in the body's mode."""
    seen = []

    @gradguard.inference_mode
    async def body():
        try:
            await asyncio.sleep(60)
        finally:
            seen.append(grad_state())
            await asyncio.sleep(0)
            seen.append(grad_state())

    async def main():
        task = asyncio.create_task(body())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()
        assert grad_state() == GRAD

    asyncio.run(main())
    assert seen == [INFERENCE, INFERENCE]


def test_a_cancelled_body_that_goes_on():
    """A body that catches its cancellation goes on, and its task ends with its value."""

    @gradguard.no_grad
    async def body():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            return grad_state()

    async def main():
        task = asyncio.create_task(body())
        await asyncio.sleep(0)
        task.cancel()
        return await task

    assert asyncio.run(main()) == NO_GRAD


def test_timeouts():
    """`asyncio.wait_for` ends a decorated coroutine as any other."""

    @gradguard.no_grad
    async def body():
        await asyncio.sleep(60)

    async def main():
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(body(), 0.01)
        return grad_state()

    assert asyncio.run(main()) == GRAD


def _left_unfinished(decorate, stopped):
    """The modes that the end of an async generator sees, one for each step it gets, and errors."""
    seen, said, held = [], [], []

    @decorate
    async def ticks():
        try:
            while True:
                yield 1
                await asyncio.sleep(0)
        finally:
            for _ in range(3):
                seen.append(grad_state())
                await asyncio.sleep(0)

    async def main():
        asyncio.get_running_loop().set_exception_handler(lambda _, what: said.append(what))
        running = ticks()
        async for _ in running:
            break
        if stopped == "held":
            held.append(running)
        if stopped == "dropped":
            del running
            await asyncio.sleep(0.01)
        return grad_state()

    assert asyncio.run(main()) == GRAD
    return seen, said


@pytest.mark.parametrize("stopped", ["dropped", "broken", "held"])
def test_an_unfinished_async_generator_is_closed_by_its_loop(stopped):
    """As undecorated: its end runs once, in its mode, where it may await, without a word."""
    plain, said = _left_unfinished(lambda fn: fn, stopped)
    assert set(plain) == {GRAD}
    assert said == []
    # Of one that is broken off asyncio cancels the end after a step, up to Python 3.12.
    assert _left_unfinished(gradguard.inference_mode, stopped) == ([INFERENCE] * len(plain), [])


def test_async_context_managers_and_comprehensions():
    """Decorated async generators work under `asynccontextmanager` and `async for`."""

    @contextlib.asynccontextmanager
    @gradguard.no_grad
    async def session():
        before = grad_state()
        yield before
        assert grad_state() == NO_GRAD

    @gradguard.no_grad
    async def numbers():
        for number in range(3):
            yield number, grad_state()

    async def main():
        async with session() as mode:
            assert (mode, grad_state()) == (NO_GRAD, GRAD)
            return [pair async for pair in numbers()]

    assert asyncio.run(main()) == [(number, NO_GRAD) for number in range(3)]


def test_context_managers():
    """A decorated generator under `contextmanager` keeps its mode from the block it encloses."""

    @contextlib.contextmanager
    @gradguard.no_grad
    def block():
        yield grad_state()

    with block() as mode:
        assert (mode, grad_state()) == (NO_GRAD, GRAD)


def test_nested_bodies():
    """A body that steps another one has its own mode between the steps."""

    @gradguard.no_grad
    def inner():
        while True:
            yield grad_state()

    @gradguard.inference_mode
    def outer():
        running = inner()
        yield next(running), grad_state()
        with gradguard.enable_grad():
            yield next(running), grad_state()

    running = outer()
    inner_mode = GradState(grad_enabled=False, inference_mode=True)
    assert next(running) == (inner_mode, INFERENCE)
    assert next(running) == (inner_mode, GRAD)
    running.close()


def test_a_body_closes_guards_that_it_left_open():
    """What a body opened and never exited is closed when the body ends."""

    @gradguard.no_grad
    def generator():
        gradguard.inference_mode().__enter__()
        yield
        gradguard.enable_grad().__enter__()

    for ending in (list, lambda running: (next(running), running.close())):
        ending(generator())
        assert (grad_state(), guards()) == (GRAD, ())


def test_a_body_that_leaves_torch_inference_mode_on():
    """At its end a body takes its switches along, also those of torch's guard left open."""
    left = []

    @gradguard.no_grad
    def generator():
        left.append(torch.inference_mode())
        left[-1].__enter__()
        yield grad_state()

    for ending in (list, lambda running: [next(running)]):
        assert ending(generator()) == [INFERENCE]
        assert grad_state() == GRAD
    with gradguard.inference_mode():
        for guard in left:  # dropped, they would switch at a random time
            guard.__exit__(None, None, None)


@pytest.mark.filterwarnings("ignore::gradguard.GradModeWarning")
@pytest.mark.parametrize("name", ["no_grad", "enable_grad", "inference"])
@pytest.mark.parametrize("suspended", [True, False])
@pytest.mark.parametrize("around", ["no_grad", "inference", "enable_grad"])
def test_a_body_that_closes_its_resumers_guard(name, suspended, around):
    """The resumer is where that guard began; the body goes on in its own mode to its end."""
    decorate, mode = DECORATORS[name]
    outer = INNER[around][0]()
    if name == "no_grad" and around == "inference" and not suspended:
        mode = INFERENCE  # in which it began

    @decorate
    def generator():
        if suspended:
            yield
        with gradguard.set_grad_enabled(False):
            outer.__exit__(None, None, None)
            yield grad_state()
        yield grad_state()

    if name == around:
        return  # it would close its own
    running = generator()
    if suspended:
        next(running)
    outer.__enter__()
    assert next(running) == GradState(False, mode.inference_mode)
    assert (grad_state(), guards()) == (GRAD, ())
    with gradguard.inference_mode():
        assert next(running) == mode
        assert grad_state() == INFERENCE
    running.close()


@pytest.mark.filterwarnings("ignore::gradguard.GradModeWarning")
def test_a_body_that_closes_the_inference_block_in_which_it_began():
    """The body stays in inference mode, and the resumer is where the block began, with grad off."""

    @gradguard.no_grad
    def generator():
        outer.__exit__(None, None, None)
        yield grad_state()
        yield grad_state()

    outer = gradguard.inference_mode()
    with gradguard.no_grad():
        outer.__enter__()
        running = generator()
        assert next(running) == INFERENCE
        assert grad_state() == NO_GRAD
    assert next(running) == INFERENCE
    running.close()


@pytest.mark.filterwarnings("ignore::gradguard.GradModeWarning")
def test_a_body_from_inference_mode_that_closes_its_later_resumers_guard():
    """Where the body began does not come back to whoever resumes it now."""

    @gradguard.enable_grad
    def generator():
        yield grad_state()
        gradguard.no_grad().__exit__(None, None, None)
        yield grad_state()

    running = generator()
    with gradguard.inference_mode():
        next(running)
    gradguard.no_grad().__enter__()
    assert next(running) == GRAD
    assert (grad_state(), guards()) == (GRAD, ())
    running.close()


@pytest.mark.filterwarnings("ignore::gradguard.GradModeWarning")
def test_a_body_that_closes_its_resumers_guard_and_ends():
    """What it still had open is closed with it, and nothing switches later."""

    @gradguard.inference_mode
    def generator():
        yield
        gradguard.enable_grad().__exit__(None, None, None)

    running = generator()
    with gradguard.no_grad():
        next(running)
    gradguard.enable_grad().__enter__()
    assert next(running, None) is None
    gc.collect()
    assert (grad_state(), guards()) == (GRAD, ())


@pytest.mark.filterwarnings("ignore::gradguard.GradModeWarning")
def test_a_body_that_closes_its_resumers_guard_under_autocast():
    """Autocast stays on, and the resumer is where that guard began."""

    @gradguard.no_grad
    def generator():
        yield
        gradguard.inference_mode().__exit__(None, None, None)
        yield grad_state()

    running = generator()
    next(running)
    with torch.autocast("cpu"):
        gradguard.inference_mode().__enter__()
        assert next(running) == NO_GRAD
        assert (grad_state(), guards(), autocast()) == (GRAD, (), True)
        running.close()
        assert autocast()


@pytest.mark.filterwarnings("ignore::gradguard.GradModeWarning")
def test_a_body_that_closes_its_own_guard():
    """It is in the mode of its first resumer then, to its end."""
    guard = gradguard.inference_mode()

    @guard
    def generator():
        guard.__exit__(None, None, None)
        yield grad_state()
        yield grad_state()

    running = generator()
    assert next(running) == GRAD
    with gradguard.no_grad():
        assert next(running) == GRAD
    running.close()


def test_generator_state_functions():
    """`inspect` sees a decorated body's state as an undecorated one's."""

    @gradguard.no_grad
    def generator():
        yield

    @gradguard.no_grad
    async def coroutine():
        await pause()

    running, waiting = generator(), coroutine()
    assert inspect.getgeneratorstate(running) == inspect.GEN_CREATED
    assert inspect.getcoroutinestate(waiting) == inspect.CORO_CREATED
    next(running)
    waiting.send(None)
    assert inspect.getgeneratorstate(running) == inspect.GEN_SUSPENDED
    assert inspect.getcoroutinestate(waiting) == inspect.CORO_SUSPENDED
    running.close()
    waiting.close()
    assert inspect.getgeneratorstate(running) == inspect.GEN_CLOSED
    assert inspect.getcoroutinestate(waiting) == inspect.CORO_CLOSED


def test_warned_out_of_order_inside_a_body_names_its_line():
    """A warning from inside a body points at the body's line."""

    @gradguard.no_grad
    def generator():
        gradguard.enable_grad().__enter__()
        gradguard.inference_mode().__enter__()
        functools.partial(gradguard.enable_grad().__exit__)(None, None, None)
        yield

    with pytest.warns(GradModeWarning) as caught:
        running = generator()
        next(running)
    assert caught[0].filename == __file__
    assert caught[0].lineno == generator.__wrapped__.__code__.co_firstlineno + 4
    running.close()
