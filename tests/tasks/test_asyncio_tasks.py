import asyncio
import contextlib
import contextvars
import functools
import gc
import io
import itertools
import sys
import warnings
from inspect import CORO_SUSPENDED, getcoroutinestate

import pytest
import torch

import gradguard
from gradguard import GradState, grad_state, guards, isolate_tasks

GRAD = GradState(grad_enabled=True, inference_mode=False)
NO_GRAD = GradState(grad_enabled=False, inference_mode=False)
INFERENCE = GradState(grad_enabled=False, inference_mode=True)
TORCHS = [torch.no_grad, torch.inference_mode]
OURS = [gradguard.no_grad, gradguard.inference_mode]


def run(main, *, debug=False):
    """Run a coroutine function in a loop whose tasks are isolated, and check the thread's mode."""

    async def isolated_main():
        isolate_tasks()
        return await asyncio.create_task(main())

    result = asyncio.run(isolated_main(), debug=debug)
    assert grad_state() == GRAD
    return result


async def hold(guard, *, turns=3):
    """Keep a guard open over some turns of the loop; return the modes seen inside and after."""
    with guard():
        mode, seen = grad_state(), []
        for _ in range(turns):
            await asyncio.sleep(0)
            seen.append(grad_state())
    return set(seen) == {mode}, grad_state()


async def watch(turns=5):
    """Return the modes that a task which switches nothing sees."""
    seen = set()
    for _ in range(turns):
        seen.add(grad_state())
        await asyncio.sleep(0)
    return seen


@pytest.mark.parametrize("guard", TORCHS + OURS)
def test_nothing_leaks(guard):
    """A guard held over an await switches its own task only, and survives all the others."""

    async def main():
        guards = [guard, gradguard.enable_grad, torch.no_grad, gradguard.inference_mode]
        held, seen = [hold(each) for each in guards], [watch() for _ in guards]
        return await asyncio.gather(*held, *seen)

    *held, a, b, c, d = run(main)
    assert held == [(True, GRAD)] * 4
    assert a == b == c == d == {GRAD}


def test_a_bare_loop_leaks():
    """Without it the guard of one task reaches the others, so the tests here can fail."""

    async def main():
        _, seen = await asyncio.gather(hold(torch.no_grad), watch())
        return seen

    assert NO_GRAD in asyncio.run(main())


def test_any_interleaving():
    """Overlapping tasks that end in any order leave each other's mode, and the thread's, alone."""

    async def main(turns):
        tasks = [hold(guard, turns=n) for guard, n in zip(TORCHS + OURS, turns, strict=True)]
        return await asyncio.gather(*tasks, watch(8))

    for turns in itertools.permutations((1, 2, 3, 5)):
        *held, seen = run(lambda turns=turns: main(turns))
        assert held == [(True, GRAD)] * 4
        assert seen == {GRAD}


@pytest.mark.parametrize("guard", TORCHS + OURS)
def test_starts_in_the_mode_at_create_task(guard):
    """A task starts in the mode of the line that creates it, not of the one that first runs it."""

    async def main():
        with guard():
            mode = grad_state()
            task = asyncio.create_task(watch())
        return mode, await task

    mode, seen = run(main)
    assert seen == {mode}


def test_takes_the_grad_mode_around_inference_along():
    """In a task made in inference mode, leaving that mode brings back what surrounds it there."""

    async def left():
        with gradguard.inference_mode(False):
            return grad_state()

    async def main():
        with gradguard.inference_mode():
            inside_grad = asyncio.create_task(left())
        with gradguard.no_grad(), gradguard.inference_mode():
            inside_no_grad = asyncio.create_task(left())
        return await inside_grad, await inside_no_grad

    assert run(main) == (GRAD, NO_GRAD)


SHARED = gradguard.inference_mode()


@pytest.mark.parametrize("made", [gradguard.inference_mode, lambda: SHARED], ids=["own", "shared"])
@pytest.mark.parametrize("creator", [gradguard.no_grad, gradguard.enable_grad])
def test_an_inference_block_held_over_many_switches(made, creator):
    """It lasts as long as the block, whatever is opened inside, and ends in the creator's mode."""

    async def task():
        seen = []
        with made():
            for opens in (contextlib.nullcontext, gradguard.enable_grad, torch.no_grad) * 2:
                await asyncio.sleep(0)
                with opens():
                    await asyncio.sleep(0)
                    seen.append(grad_state())
                await asyncio.sleep(0)
                with torch.autocast("cpu"):
                    await asyncio.sleep(0)
                seen.append((grad_state(), guards()[-1]))
        return seen, grad_state(), guards()

    async def main():
        with creator():
            tasks = [asyncio.create_task(task()) for _ in range(2)]
            before = grad_state()
        seen = set()
        while not all(one.done() for one in tasks):
            await asyncio.sleep(0)
            seen.add((grad_state(), *map(repr, guards())))
        return before, seen, [one.result() for one in tasks]

    with torch.autocast("cpu", enabled=False):  # which each task leaves as the other had it
        before, outside, results = run(main)
    assert outside == {(GRAD, "isolate_tasks()")}
    for inside, after, its_guards in results:
        block = (INFERENCE, gradguard.inference_mode())
        assert inside == [INFERENCE, block, GRAD, block, INFERENCE, block] * 2
        assert after == before
        assert list(map(repr, its_guards)) == ["isolate_tasks()"]


def test_task_of_its_caller_is_not_isolated():
    """The task that calls it keeps leaking into callbacks, but not into tasks made from then on."""

    async def main():
        isolate_tasks()
        task = asyncio.create_task(watch())
        with torch.no_grad():
            for _ in range(3):
                await asyncio.sleep(0)
        return await task

    assert asyncio.run(main()) == {GRAD}


def test_wait_for_and_cancellation():
    """A task cancelled inside its guard cleans up under it, and is seen as cancelled."""
    cleaned = []

    async def stuck():
        try:
            with torch.no_grad(), gradguard.inference_mode():
                try:
                    await asyncio.Event().wait()
                finally:
                    await asyncio.sleep(0)
                    cleaned.append(grad_state())
        finally:
            cleaned.append(grad_state())

    async def main():
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(stuck(), 0.01)
        task = asyncio.create_task(stuck())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return task.cancelled(), grad_state()

    assert run(main) == (True, GRAD)
    assert cleaned == [INFERENCE, GRAD] * 2


def test_cancelled_before_its_start():
    """A task cancelled before it has run ends without a word, as in a bare loop."""

    async def main():
        task = asyncio.create_task(watch())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main)
    gc.collect()  # "never awaited" would be an error here


def test_closed_before_its_start():
    """Closing a coroutine that has not begun says nothing, as for a bare one."""

    async def main():
        factory = asyncio.get_running_loop().get_task_factory()
        made = []
        inner = type(factory)(lambda _, coro: made.append(coro))
        inner(None, watch())
        made.pop().close()

    run(main)
    gc.collect()


def test_exception_and_result():
    """What a task returns or raises comes out of it, with the user's frames in the traceback."""

    async def fails():
        with gradguard.no_grad():
            await asyncio.sleep(0)
            msg = "mine"
            raise KeyError(msg)

    async def main():
        return await asyncio.gather(fails(), watch(), return_exceptions=True)

    error, seen = run(main)
    frames = []
    traceback = error.__traceback__
    while traceback is not None:
        frames.append(traceback.tb_frame.f_code.co_name)
        traceback = traceback.tb_next
    assert isinstance(error, KeyError)
    assert frames[-1] == "fails"
    assert seen == {GRAD}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="TaskGroup is new in 3.11")
def test_task_group():
    """Tasks of a TaskGroup are isolated, those that it cancels after a failure included."""
    seen = []

    async def fails():
        with torch.inference_mode():
            await asyncio.sleep(0)
            msg = "mine"
            raise ValueError(msg)

    async def cancelled():
        with torch.no_grad():
            try:
                await asyncio.Event().wait()
            finally:
                seen.append(grad_state())

    async def main():
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(cancelled())
                group.create_task(fails())
                watching = group.create_task(watch(1))
        except BaseException as error:  # noqa: BLE001 (an ExceptionGroup, which 3.10 cannot name)
            return error.exceptions, watching.result(), grad_state()

    (error,), watched, mode = run(main)
    assert isinstance(error, ValueError)
    assert seen == [NO_GRAD]
    assert watched == {GRAD}
    assert mode == GRAD


def test_names_and_contexts():
    """A task keeps its name, and the context that it is given (which tasks take from 3.11 on)."""
    variable = contextvars.ContextVar("variable", default="outer")
    context = contextvars.copy_context()
    context.run(variable.set, "given")

    async def read():
        return variable.get(), asyncio.current_task().get_name()

    async def main():
        loop, options = asyncio.get_running_loop(), {"name": "mine"}
        if sys.version_info >= (3, 11):
            options["context"] = context
        task = loop.create_task(read(), **options)
        return task.get_name(), await task

    given = "given" if sys.version_info >= (3, 11) else "outer"
    assert run(main) == ("mine", (given, "mine"))


def test_to_thread():
    """A worker thread of an isolated task has its own mode, and `carry` takes the task's along."""

    async def main():
        with torch.no_grad():
            bare = await asyncio.to_thread(grad_state)
            return bare, await asyncio.to_thread(gradguard.carry(grad_state)), grad_state()

    assert run(main) == (GRAD, NO_GRAD, NO_GRAD)


def test_an_async_generator_left_open_closes_in_a_task_of_its_own():
    """What the loop closes for a task that left it is isolated, too, and switches nothing."""
    closed = []

    async def stream():
        try:
            while True:
                with torch.no_grad():
                    yield grad_state()
        finally:
            closed.append(grad_state())

    async def leaves():
        return await anext(stream())

    async def main():
        results = await asyncio.gather(gradguard.isolated(leaves)(), watch())
        gc.collect()
        await asyncio.sleep(0.01)
        return *results, grad_state()

    mode, _, after = run(main)
    assert mode == NO_GRAD
    assert len(closed) == 1
    assert after == GRAD


@pytest.mark.parametrize("debug", [False, True])
def test_stack_and_repr_show_the_users_frames(debug):
    """A task's repr, get_stack and print_stack name the user's function, file and line."""

    async def main():
        loop = asyncio.get_running_loop()
        task = loop.create_task(hold(torch.no_grad))
        waiting = repr(task)
        await asyncio.sleep(0)
        printed = io.StringIO()
        task.print_stack(file=printed)
        stack, running = task.get_stack(), repr(task)
        coro = repr(task.get_coro())
        await task
        return waiting, running, repr(task), stack, printed.getvalue(), coro

    waiting, running, done, (frame,), printed, coro = run(main, debug=debug)
    line = hold.__code__.co_firstlineno
    assert f"coro=<hold() running at {__file__}:{line}>" in waiting
    assert f"coro=<hold() running at {__file__}:{line + 5}>" in running
    assert f"coro=<hold() done, defined at {__file__}:{line}>" in done
    assert frame.f_code is hold.__code__
    assert f'File "{__file__}", line {line + 5}, in hold' in printed
    assert coro.startswith("<isolated <coroutine object hold at ")
    created = f" created at {__file__}:{main.__code__.co_firstlineno + 2}>"
    assert waiting.endswith(created) is debug


def test_debug_mode():
    """asyncio's debug mode, which checks every coroutine, runs isolated tasks and nothing leaks."""

    async def main():
        return await asyncio.gather(hold(torch.no_grad), watch())

    assert run(main, debug=True) == [(True, GRAD), {GRAD}]


def test_coroutine_attributes():
    """What looks into a task's coroutine, as anyio does, finds the state of the user's."""

    async def main():
        task = asyncio.create_task(hold(torch.no_grad))
        await asyncio.sleep(0)
        coro = task.get_coro()
        state = getcoroutinestate(coro), asyncio.iscoroutine(coro), coro.__name__
        await task
        return state

    assert run(main) == (CORO_SUSPENDED, True, "hold")


def test_composes_with_a_factory():
    """A task factory that was set before makes the tasks, with the arguments that it was given."""
    made = []

    class Mine(asyncio.Task):
        pass

    def factory(loop, coro, **kwargs):
        made.append((coro.__name__, kwargs.get("context")))
        return Mine(coro, loop=loop, **kwargs)

    async def main():
        asyncio.get_running_loop().set_task_factory(factory)
        isolate_tasks()
        tasks = [asyncio.create_task(hold(torch.no_grad)), asyncio.create_task(watch(), **options)]
        return tasks, await asyncio.gather(*tasks)

    context = contextvars.copy_context() if sys.version_info >= (3, 11) else None
    options = {"context": context} if context else {}
    tasks, (held, seen) = asyncio.run(main())
    assert made[:2] == [("hold", None), ("watch", context)]
    assert all(type(task) is Mine for task in tasks)
    assert held == (True, GRAD)
    assert seen == {GRAD}


def test_composes_with_a_factory_that_wraps_the_coroutine():
    """A factory may await what it is given in a coroutine of its own."""

    def factory(loop, coro, **kwargs):
        async def timed():
            return await coro

        return asyncio.Task(timed(), loop=loop, **kwargs)

    async def main():
        asyncio.get_running_loop().set_task_factory(factory)
        isolate_tasks()
        return await asyncio.gather(hold(torch.no_grad), watch())

    assert asyncio.run(main()) == [(True, GRAD), {GRAD}]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks are new in 3.12")
def test_eager_tasks():
    """An eager task's first step runs in create_task; its mode does not reach the creator."""

    async def main():
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        isolate_tasks()
        with gradguard.inference_mode():
            task = asyncio.create_task(hold(torch.no_grad))
            at_once = grad_state()
        after, done = grad_state(), asyncio.create_task(asyncio.sleep(0, "done"))
        results = await asyncio.gather(task, watch(), done)
        finished = asyncio.create_task(_returns())
        return at_once, after, results, finished.done(), grad_state()

    at_once, after, results, finished, now = asyncio.run(main())
    assert (at_once, after, now) == (INFERENCE, GRAD, GRAD)
    assert results == [(True, INFERENCE), {GRAD}, "done"]
    assert finished


async def _returns():
    with torch.no_grad():
        return 1


def eagerly(how):
    """Return what creates an isolated task of the running loop that begins as it is created."""
    loop = asyncio.get_running_loop()
    if how == "eager_task_factory":
        loop.set_task_factory(asyncio.eager_task_factory)
    elif how == "a factory of its own":
        loop.set_task_factory(asyncio.create_eager_task_factory(_Task))
    isolate_tasks()
    by_task = {"eager_start": True} if how == "eager_start" else {}
    return functools.partial(loop.create_task, **by_task)


class _Task(asyncio.Task):
    pass


each_eager = pytest.mark.parametrize(
    "how",
    [
        "eager_task_factory",
        "a factory of its own",
        pytest.param(
            "eager_start",
            marks=pytest.mark.skipif(
                sys.version_info < (3, 14), reason="create_task(eager_start=...) is new in 3.14"
            ),
        ),
    ],
)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks are new in 3.12")
@each_eager
@pytest.mark.parametrize("guard", TORCHS + OURS)
def test_what_an_eager_task_switches_stays_in_it(how, guard):
    """However it is made: held over awaits, created in each other, failing at once or cancelled."""

    async def fails():
        with guard():
            raise LookupError

    async def outer(create):
        with guard():
            mode = grad_state()
            inner = create(hold(gradguard.enable_grad))
            at_once = grad_state()
            held = await inner
        return at_once == mode == held[1], held[0]

    async def main():
        create = eagerly(how)
        failed = create(fails())
        assert (failed.done(), grad_state()) == (True, GRAD)
        cancelled = create(hold(guard, turns=99))
        held, nested = create(hold(guard)), create(outer(create))
        assert (held.done(), grad_state()) == (False, GRAD)
        seen = await create(watch())
        cancelled.cancel()
        ended = await asyncio.gather(failed, cancelled, return_exceptions=True)
        return seen, [type(each) for each in ended], await held, await nested, grad_state()

    seen, ended, held, nested, after = asyncio.run(main())
    assert (seen, held, nested, after) == ({GRAD}, (True, GRAD), (True, True), GRAD)
    assert ended == [LookupError, asyncio.CancelledError]
    assert grad_state() == GRAD


def test_twice_isolates_once():
    """Calling it again, also from below another factory, leaves each task isolated once."""

    async def main():
        loop = asyncio.get_running_loop()
        isolate_tasks()
        ours = loop.get_task_factory()
        isolate_tasks(loop)
        same = loop.get_task_factory() is ours
        loop.set_task_factory(functools.partial(ours))
        isolate_tasks()
        task = asyncio.create_task(hold(torch.no_grad))
        coro = repr(task.get_coro())
        return same, coro.count("isolated"), await task

    assert asyncio.run(main()) == (True, 1, (True, GRAD))


def test_a_loop_that_is_not_running_yet():
    """A loop named by the caller has even its first task isolated."""
    loop = asyncio.new_event_loop()
    try:
        isolate_tasks(loop)
        with torch.no_grad():
            task = loop.create_task(watch())
        assert loop.run_until_complete(task) == {NO_GRAD}
        assert grad_state() == GRAD
    finally:
        loop.close()


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="3.12 takes no generators as tasks")
def test_generator_based_coroutines():
    """Before 3.12 asyncio takes plain generators as tasks; they are isolated and shown as others."""

    def legacy():
        with torch.no_grad():
            yield
            mode = grad_state()
        return mode

    async def main():
        task = asyncio.get_running_loop().create_task(legacy())
        shown = repr(task)
        return shown, *await asyncio.gather(task, watch())

    shown, mode, seen = run(main)
    assert f"coro=<{legacy.__qualname__}() running at {__file__}:" in shown
    assert mode == NO_GRAD
    assert seen == {GRAD}


def test_not_a_coroutine_is_asyncios_error():
    """What is no coroutine gets the error that asyncio has for it."""

    async def main():
        with pytest.raises(TypeError, match="a coroutine was expected, got 3"):
            asyncio.get_running_loop().create_task(3)

    run(main)


def test_never_run_is_warned_about_as_in_a_bare_loop():
    """A task that its loop never ran says that its coroutine was never awaited, once."""

    def told(isolate):
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda *_: None)  # "Task was destroyed but it is pending!"
        if isolate:
            isolate_tasks(loop)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            task = loop.create_task(watch())
            loop._ready.clear()
            del task
            gc.collect()
            loop.close()
        return [str(warning.message) for warning in caught]

    assert told(isolate=True) == told(isolate=False) == ["coroutine 'watch' was never awaited"]


def test_a_lost_task(monkeypatch):
    """A waiting task that nobody holds is collected; closing its guard leaves the thread's mode."""
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)  # Python may tell of the closing
    closed = []

    async def lost():
        try:
            with torch.no_grad():
                await asyncio.get_running_loop().create_future()
        finally:
            closed.append(True)

    async def main():
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        task = asyncio.create_task(lost())
        await asyncio.sleep(0)
        before = grad_state()
        del task
        gc.collect()
        return before, grad_state()

    assert run(main) == (GRAD, GRAD)
    assert closed == [True]


def test_keeps_nothing_alive():
    """A task that is done, and all that its body held, is freed without the garbage collector."""

    class Held:
        alive = 0

        def __init__(self):
            Held.alive += 1

        def __del__(self):
            Held.alive -= 1

    async def holds(value):
        with torch.no_grad():
            await asyncio.sleep(0)

    async def main():
        gc.disable()
        try:
            await asyncio.gather(*(holds(Held()) for _ in range(3)))
            await asyncio.sleep(0)
            return Held.alive
        finally:
            gc.enable()

    assert run(main) == 0


def test_open_guards():
    """In an isolated task `guards()` lists what brought its mode, and what it has opened."""

    async def shown():
        with gradguard.no_grad():
            await asyncio.sleep(0)
            return repr(gradguard.guards())

    async def main():
        return await asyncio.create_task(shown())

    assert run(main) == "(isolate_tasks(), no_grad())"


def test_no_running_loop():
    """Without a running loop it says where to call it, and how to name the loop."""
    with pytest.raises(RuntimeError) as caught:
        isolate_tasks()
    text = str(caught.value)
    assert text.startswith("isolate_tasks() found no running event loop in this thread.")
    assert "first thing in main()" in text
    assert "isolate_tasks(loop)" in text
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("value", "named"), [(3, "3 of type int"), ("loop", "'loop' of type str"), (asyncio, "module")]
)
def test_not_a_loop(value, named):
    """Something else than a loop is named with its type, and what to do instead."""
    with pytest.raises(TypeError) as caught:
        isolate_tasks(value)
    text = str(caught.value)
    assert text.startswith("isolate_tasks(loop) takes an asyncio event loop, not ")
    assert named in text
    assert text.endswith("In a coroutine, leave it out: isolate_tasks().")
