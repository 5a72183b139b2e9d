"""Each situation in which torch's guards are wrong: torch shown wrong, gradguard right.

A test that fails in its torch half means that torch has changed: its row can leave the README.
"""

import asyncio
import contextlib
import gc
import inspect
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import gradguard
from gradguard import GradModeWarning, GradState, grad_state, guards
from gradguard._core.state import put_back

GRAD = GradState(grad_enabled=True, inference_mode=False)
NO_GRAD = GradState(grad_enabled=False, inference_mode=False)
INFERENCE = GradState(grad_enabled=False, inference_mode=True)
KINDS = {"no_grad": NO_GRAD, "inference_mode": INFERENCE}
each_kind = pytest.mark.parametrize(("kind", "mode"), KINDS.items())


@pytest.fixture(autouse=True)
def mode_is_put_back():
    """torch's half of a test may leave the thread in any mode; gradguard's half begins recording."""
    assert (grad_state(), guards()) == (GRAD, ())
    yield
    ended, left = grad_state(), guards()
    put_back(GRAD)
    assert (ended, left) == (GRAD, ())


def records():
    return (torch.ones(1, requires_grad=True) * 2).requires_grad


# `@torch.no_grad()` on `async def` or an async generator: a silent no-op


@each_kind
def test_async_functions(kind, mode):
    """torch: the body of an `async def` records all the same."""

    async def predict():
        return grad_state(), records()

    assert asyncio.run(getattr(torch, kind)()(predict)()) == (GRAD, True)
    assert asyncio.run(getattr(gradguard, kind)()(predict)()) == (mode, False)


@each_kind
def test_async_generators(kind, mode):
    """torch: the body of an async generator records all the same."""

    async def stream():
        yield grad_state(), records()

    async def first(fn):
        items = [item async for item in fn()]
        return items[0]

    assert asyncio.run(first(getattr(torch, kind)()(stream))) == (GRAD, True)
    assert asyncio.run(first(getattr(gradguard, kind)()(stream))) == (mode, False)


@each_kind
def test_inspect_sees_what_was_decorated(kind, mode):
    """torch: `iscoroutinefunction` and `isasyncgenfunction` turn False."""

    async def predict():
        pass

    async def stream():
        yield

    theirs, ours = getattr(torch, kind)(), getattr(gradguard, kind)()
    assert not inspect.iscoroutinefunction(theirs(predict))
    assert not inspect.isasyncgenfunction(theirs(stream))
    assert inspect.iscoroutinefunction(ours(predict))
    assert inspect.isasyncgenfunction(ours(stream))


# A function that *returns* a generator or coroutine: its body runs outside the guard


@each_kind
def test_returned_generators(kind, mode):
    """torch: a generator that a decorated function returns runs outside the guard."""

    def body():
        yield grad_state()

    def returns():
        return body()

    assert list(getattr(torch, kind)()(returns)()) == [GRAD]
    assert list(getattr(gradguard, kind)()(returns)()) == [mode]


@each_kind
def test_returned_coroutines(kind, mode):
    """torch: so does a coroutine, as one behind another decorator's plain wrapper."""

    async def body():
        return grad_state()

    def returns():
        return body()

    async def wait(fn):
        return await fn()

    assert asyncio.run(wait(getattr(torch, kind)()(returns))) == GRAD
    assert asyncio.run(wait(getattr(gradguard, kind)()(returns))) == mode


# A `with` that spans an `await` or `yield` inside a decorated body, which alone makes it right


@each_kind
def test_with_across_an_await_in_a_decorated_body(kind, mode):
    """torch: every other task runs grad-off while a task waits inside its `with`."""

    def holding(decorate):
        @decorate
        async def holds():
            with getattr(torch, kind)():
                await asyncio.sleep(0)
                return grad_state()

        async def other():
            return grad_state()

        return lambda: gathered(holds(), other())

    async def gathered(*coroutines):
        return await asyncio.gather(*coroutines)

    assert asyncio.run(holding(lambda fn: fn)()) == [mode, mode]
    assert asyncio.run(holding(gradguard.enable_grad)()) == [mode, GRAD]


@each_kind
def test_with_across_a_yield_in_a_decorated_body(kind, mode):
    """torch: the consumer runs grad-off until the generator resumes."""

    def body():
        with getattr(torch, kind)():
            yield grad_state()

    running = body()
    assert (next(running), grad_state()) == (mode, mode)
    running.close()
    running = gradguard.enable_grad(body)()
    assert (next(running), grad_state()) == (mode, GRAD)
    running.close()


# A decorated generator whose body suspends inside an inner guard: the inner mode is lost


@each_kind
def test_inner_guard_of_a_generator(kind, mode):
    """torch: after the first `yield` inside an inner `with` the body is in the outer mode."""

    def body(inner):
        with inner():
            yield grad_state().grad_enabled
            yield grad_state().grad_enabled

    assert list(getattr(torch, kind)()(body)(torch.enable_grad)) == [True, False]
    for inner in (torch.enable_grad, gradguard.enable_grad):
        assert list(getattr(gradguard, kind)()(body)(inner)) == [True, True]


def test_raw_switch_of_a_generator():
    """torch: what a body has switched by hand is lost at its next step."""

    def body():
        torch.set_grad_enabled(True)
        yield grad_state()
        yield grad_state()

    assert list(torch.no_grad()(body)()) == [GRAD, NO_GRAD]
    assert list(gradguard.no_grad()(body)()) == [GRAD, GRAD]


def test_autocast_in_an_inference_generator():
    """torch: autocast that a body switches on is off at its next step."""

    def body():
        with torch.autocast("cpu"):
            yield torch.is_autocast_enabled("cpu")
            yield torch.is_autocast_enabled("cpu")

    assert list(torch.inference_mode()(body)()) == [True, False]
    assert list(gradguard.inference_mode()(body)()) == [True, True]


# One object entered twice


def test_one_no_grad_entered_twice():
    """torch: grad stays off afterwards."""
    guard = torch.no_grad()
    with guard, guard:
        pass
    assert grad_state() == NO_GRAD
    put_back(GRAD)
    guard = gradguard.no_grad()
    with guard, guard:
        pass
    assert grad_state() == GRAD


def test_one_inference_mode_entered_twice():
    """torch: inference mode stays on afterwards."""
    guard = torch.inference_mode()
    with guard, guard:
        pass
    assert grad_state() == INFERENCE
    put_back(GRAD)
    guard = gradguard.inference_mode()
    with guard, guard:
        pass
    assert grad_state() == GRAD


def test_one_object_shared_by_threads():
    """torch: one thread's exit brings back what another had found."""

    def overlap(guard):
        entered, left = threading.Event(), threading.Event()

        def worker():
            torch._C._set_grad_enabled(False)
            with guard:
                entered.set()
                left.wait()
            return grad_state()

        with ThreadPoolExecutor(1) as pool:
            with guard:
                result = pool.submit(worker)
                entered.wait()
            left.set()
            return grad_state(), result.result()

    assert overlap(torch.no_grad()) == (NO_GRAD, NO_GRAD)
    put_back(GRAD)
    assert overlap(gradguard.no_grad()) == (GRAD, NO_GRAD)


def test_set_grad_enabled_entered_again():
    """torch: every later entry brings back the mode from before construction, whatever it finds."""

    def reuse(guard):
        with guard:
            pass
        with torch.no_grad():
            with guard:
                pass
            return grad_state()

    assert reuse(torch.set_grad_enabled(True)) == GRAD
    assert reuse(gradguard.set_grad_enabled(True)) == NO_GRAD


# Guards exited out of order


def test_exits_out_of_order():
    """torch: the thread ends in a mode nobody asked for, silently."""

    def overlap(first, second):
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        between = grad_state()
        second.__exit__(None, None, None)
        return between, grad_state()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert overlap(torch.no_grad(), torch.no_grad()) == (GRAD, NO_GRAD)
        put_back(GRAD)
        assert overlap(torch.no_grad(), torch.enable_grad()) == (GRAD, NO_GRAD)
        put_back(GRAD)
    with pytest.warns(GradModeWarning):
        assert overlap(gradguard.no_grad(), gradguard.no_grad()) == (NO_GRAD, GRAD)
    with pytest.warns(GradModeWarning):
        assert overlap(gradguard.inference_mode(), gradguard.no_grad()) == (NO_GRAD, GRAD)
    with pytest.warns(GradModeWarning):
        assert overlap(gradguard.no_grad(), gradguard.enable_grad()) == (GRAD, GRAD)


def test_overlapping_generators():
    """torch: two generators that hold guards, finished first in first out, leave grad off for good."""

    def holds(guard):
        with guard():
            yield

    def overlap(guard):
        first, second = holds(guard), holds(guard)
        next(first)
        next(second)
        first.close()
        second.close()
        return grad_state()

    assert overlap(torch.no_grad) == NO_GRAD
    put_back(GRAD)
    assert overlap(gradguard.no_grad) == GRAD


# enable_grad inside inference mode


@pytest.mark.parametrize("around", [torch.inference_mode, gradguard.inference_mode])
@pytest.mark.parametrize("form", ["with", "decorator"])
def test_enable_grad_inside_inference_mode(around, form):
    """torch: `is_grad_enabled()` is True there, yet nothing is recorded."""

    def look(guard):
        if form == "decorator":
            return guard(lambda: (torch.is_grad_enabled(), records()))()
        with guard:
            return torch.is_grad_enabled(), records()

    with around():
        assert look(torch.enable_grad()) == (True, False)
        assert look(torch.set_grad_enabled(True)) == (True, False)
        assert look(gradguard.enable_grad()) == (True, True)
        assert look(gradguard.set_grad_enabled(True)) == (True, True)


# inference_mode(False) inside no_grad


@pytest.mark.parametrize("around", [torch.no_grad, gradguard.no_grad])
def test_leaving_inference_inside_no_grad(around):
    """torch: it turns grad on."""
    with around():
        with torch.inference_mode(False):
            assert records()
        with gradguard.inference_mode(False):
            assert not records()
        with gradguard.inference_mode():
            with torch.inference_mode(False):
                assert records()
            with gradguard.inference_mode(False):
                assert not records()


# Over classmethod and property


def test_over_classmethod():
    """torch: it fails at call time."""

    def look(cls):
        return grad_state()

    theirs = type("Theirs", (), {"look": torch.no_grad()(classmethod(look))})
    with pytest.raises(TypeError, match="not callable"):
        theirs.look()
    ours = type("Ours", (), {"look": gradguard.no_grad()(classmethod(look))})
    assert ours.look() == ours().look() == NO_GRAD


def test_over_property():
    """torch: it makes a function of the property, which fails when it is called."""

    def look(self):
        return grad_state()

    theirs = type("Theirs", (), {"look": torch.no_grad()(property(look))})
    assert callable(theirs().look)
    with pytest.raises(TypeError, match="not callable"):
        theirs().look()
    ours = type("Ours", (), {"look": gradguard.no_grad()(property(look))})
    assert ours().look == NO_GRAD


def test_generator_methods_under_staticmethod():
    """torch: a `staticmethod` around a generator function is taken for a plain function."""

    def stream():
        yield grad_state()

    theirs = type("Theirs", (), {"stream": torch.no_grad()(staticmethod(stream))})
    assert list(theirs.stream()) == [GRAD]
    ours = type("Ours", (), {"stream": gradguard.no_grad()(staticmethod(stream))})
    assert list(ours.stream()) == [NO_GRAD]


def test_generators_behind_a_partial():
    """torch: an object whose `__call__` is a generator function is taken for a plain function."""

    class Streams:
        def __call__(self):
            yield grad_state()

    assert list(torch.no_grad()(Streams())()) == [GRAD]
    assert list(gradguard.no_grad()(Streams())()) == [NO_GRAD]


# Decorating a class


def test_decorating_a_class():
    """torch: a `FutureWarning`, and only the constructor is covered; gradguard refuses."""

    class Model:
        def predict(self):
            return grad_state()

    with pytest.warns(FutureWarning, match="Decorating classes is deprecated"):
        decorated = torch.no_grad()(Model)
    assert decorated().predict() == GRAD
    with pytest.raises(TypeError, match="only its constructor would be covered"):
        gradguard.no_grad()(Model)


# Bodies that take modes along


@each_kind
def test_a_generator_dropped_elsewhere(kind, mode):
    """torch: a decorated generator with an inner guard switches the mode where it is collected."""

    def body():
        with torch.no_grad():
            yield

    def drop(decorate):
        running = decorate(body)()
        next(running)
        torch._C._set_grad_enabled(False)
        before = grad_state()
        del running
        gc.collect()
        after = grad_state()
        put_back(GRAD)
        return before == after

    assert drop(lambda fn: fn) is False
    assert drop(getattr(gradguard, kind)()) is True


def test_a_coroutine_finished_in_another_mode():
    """torch: a `with` in a coroutine brings back the mode of where it was entered, wherever it ends."""

    async def body():
        with torch.no_grad():
            await suspend()

    def suspend():
        return asyncio.sleep(0)

    def finish(decorate):
        running = decorate(body)()
        running.send(None)
        with torch.no_grad():
            with contextlib.suppress(StopIteration):
                running.send(None)
            return grad_state()

    assert finish(lambda fn: fn) == GRAD
    put_back(GRAD)
    assert finish(gradguard.enable_grad) == NO_GRAD


def test_a_step_of_training_inside_a_serving_thread():
    """torch: a loss computed under `enable_grad` inside a served request has no graph."""
    net = nn.Linear(2, 1)

    def adapt(guard):
        with guard():
            loss = net(torch.ones(1, 2)).sum()
        return loss.requires_grad

    with torch.inference_mode():
        assert adapt(torch.enable_grad) is False
        assert adapt(gradguard.enable_grad) is True
