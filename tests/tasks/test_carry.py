import asyncio
import copy
import inspect
import pickle
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gradguard
from gradguard import GradState, carry, grad_state

GRAD = GradState(grad_enabled=True, inference_mode=False)
NO_GRAD = GradState(grad_enabled=False, inference_mode=False)
INFERENCE = GradState(grad_enabled=False, inference_mode=True)
GUARDS = {
    torch.no_grad: NO_GRAD,
    torch.inference_mode: INFERENCE,
    torch.enable_grad: GRAD,
    gradguard.no_grad: NO_GRAD,
    gradguard.inference_mode: INFERENCE,
    gradguard.enable_grad: GRAD,
}


@pytest.fixture
def pool():
    with ThreadPoolExecutor(1) as executor:
        yield executor
        assert executor.submit(grad_state).result() == GRAD, "a carried mode stayed in the thread"


def predict(x, *, scale=1):
    """Say what was given, and the mode."""
    return x * scale, grad_state()


def left():
    """Return the mode after leaving inference mode."""
    with gradguard.inference_mode(False):
        return grad_state()


@pytest.mark.parametrize(("guard", "mode"), GUARDS.items())
def test_executor(pool, guard, mode):
    """In an executor, which knows nothing of modes, a function runs under the submitter's."""
    with guard():
        assert pool.submit(carry(predict), 2, scale=3).result() == (6, mode)
        assert list(pool.map(carry(predict), [1, 2])) == [(1, mode), (2, mode)]
        assert pool.submit(predict, 1).result() == (1, GRAD)


def test_thread_after_the_block():
    """The mode is that of the line that calls `carry`, though the function runs later."""
    seen = []
    with gradguard.no_grad():
        thread = threading.Thread(target=carry(lambda: seen.append(grad_state())))
    thread.start()
    thread.join()
    assert seen == [NO_GRAD]


def test_asyncio_threads():
    """`asyncio.to_thread` and ``run_in_executor`` take carried functions, in debug mode too."""

    async def main():
        loop = asyncio.get_running_loop()
        with torch.inference_mode():
            carried = carry(predict)
        first = await asyncio.to_thread(carried, 1, scale=2)
        return first, await loop.run_in_executor(None, carried, 3)

    assert asyncio.run(main(), debug=True) == ((2, INFERENCE), (3, INFERENCE))


def test_in_the_same_thread():
    """Any number of calls, nested and under other guards, end with the mode that they found."""
    with gradguard.no_grad():
        carried = carry(lambda fn: (grad_state(), fn() if fn else None))
    with gradguard.inference_mode():
        assert carried(lambda: carried(None)) == (NO_GRAD, (NO_GRAD, None))
        assert grad_state() == INFERENCE
    assert grad_state() == GRAD


_GUARDS = st.sampled_from(
    [
        gradguard.no_grad,
        gradguard.enable_grad,
        gradguard.inference_mode,
        lambda: gradguard.inference_mode(False),
    ]
)


def _under(guards, fn):
    if not guards:
        return fn()
    with guards[0]():
        return _under(guards[1:], fn)


@given(outer=st.lists(_GUARDS, max_size=4), inner=st.lists(_GUARDS, max_size=3))
def test_any_nesting(outer, inner):
    """Whatever guards surround `carry`, and whatever the function enters, the modes are as here."""

    def fn():
        return grad_state(), _under(inner, grad_state)

    here, carried = _under(outer, lambda: (fn(), carry(fn)))
    seen = []
    thread = threading.Thread(target=lambda: seen.extend([carried(), grad_state()]))
    thread.start()
    thread.join()
    assert seen == [here, GRAD]


def test_carries_the_grad_mode_around_inference(pool):
    """`inference_mode(False)` in the thread brings back what surrounds the block left behind."""
    with gradguard.no_grad(), gradguard.inference_mode():
        in_no_grad = carry(left)
    with gradguard.inference_mode():
        in_grad = carry(left)
    assert pool.submit(in_no_grad).result() == NO_GRAD
    assert pool.submit(in_grad).result() == GRAD


@pytest.mark.parametrize("leak", [torch.no_grad, torch.inference_mode])
def test_what_the_function_leaves_switched_ends_with_it(pool, leak):
    """A mode that the function leaves on does not stay in the worker, nor does an exception's."""
    guard = leak()  # not dropped before the check: an inference block ends with its object

    def leaves():
        guard.__enter__()
        raise LookupError

    with pytest.raises(LookupError):
        pool.submit(carry(leaves)).result()
    assert pool.submit(grad_state).result() == GRAD


async def _coroutine(x):
    await asyncio.sleep(0)
    return x, grad_state()


async def _async_generator(x):
    yield x, grad_state()
    yield x, grad_state()


def _generator(x):
    yield x, grad_state()
    yield x, grad_state()


def test_bodies_that_run_later(pool):
    """A generator's, coroutine's and async generator's body runs under the carried mode."""
    with gradguard.no_grad():
        generator, coroutine, stream = map(carry, (_generator, _coroutine, _async_generator))
        handed_back = carry(lambda x: _generator(x))

    async def main():
        return await coroutine(1), [item async for item in stream(1)]

    twice = [(1, NO_GRAD)] * 2
    assert pool.submit(lambda: list(generator(1))).result() == twice
    assert pool.submit(lambda: list(handed_back(1))).result() == twice
    assert pool.submit(asyncio.run, main()).result() == ((1, NO_GRAD), twice)


@pytest.mark.parametrize(
    ("fn", "kind"),
    [
        (predict, None),
        (_generator, inspect.isgeneratorfunction),
        (_coroutine, inspect.iscoroutinefunction),
        (_coroutine, asyncio.iscoroutinefunction)
        if sys.version_info < (3, 14)
        else (_coroutine, inspect.iscoroutinefunction),
        (_async_generator, inspect.isasyncgenfunction),
    ],
)
def test_stands_in_for_the_function(fn, kind):
    """The name, docstring, signature and kind are the function's."""
    carried = carry(fn)
    assert carried.__name__ == fn.__name__
    assert carried.__qualname__ == fn.__qualname__
    assert carried.__module__ == fn.__module__
    assert carried.__doc__ == fn.__doc__
    assert carried.__wrapped__ is fn
    assert inspect.signature(carried) == inspect.signature(fn)
    assert kind is None or kind(carried)


def test_other_callables(pool):
    """Methods, partials, callable objects, builtins and carried functions can be carried."""

    class Model:
        def predict(self, x):
            return predict(x)

        __call__ = predict

    with gradguard.no_grad():
        for fn in (Model().predict, Model(), partial(predict, scale=1), carry(predict)):
            assert pool.submit(carry(fn), 5).result() == (5, NO_GRAD)
        assert pool.submit(carry(torch.is_grad_enabled)).result() is False
        held = torch.ones(2, requires_grad=True)
        assert not pool.submit(carry(torch.relu), held).result().requires_grad


def test_as_a_class_attribute():
    """Assigned in a class it is a method, as a function is."""

    class Model:
        predict = carry(lambda self, x: (self, x))

    model = Model()
    assert model.predict(3) == (model, 3)
    assert Model.predict(model, 3) == (model, 3)


def test_copies():
    """A model that holds a carried function can be copied, and the copy still carries."""
    with gradguard.no_grad():
        carried = carry(predict)
    for copied in (copy.copy(carried), copy.deepcopy({"a": carried})["a"]):
        assert copied(1) == (1, NO_GRAD)


@pytest.mark.parametrize(
    ("fn", "name"), [(predict, "predict"), (partial(predict), "partial object")]
)
def test_pickling(fn, name):
    """Pickling is refused with a text that says why, and what to do in a process pool."""
    with pytest.raises(TypeError) as caught:
        pickle.dumps(carry(fn))
    text = str(caught.value)
    assert text.startswith(f"carry({name}) cannot be pickled: the mode that it carries belongs to")
    assert "a thread of this process" in text
    assert "carry() is for threads and tasks." in text
    assert "For a process pool, decorate the function that runs there" in text
    assert text.endswith("with gradguard.no_grad or another guard.")


def test_process_pool():
    """A process pool hands that error to whoever waits for the result."""
    with ProcessPoolExecutor(1) as processes, pytest.raises(TypeError, match="cannot be pickled"):
        processes.submit(carry(predict), 1).result(timeout=10)


@pytest.mark.parametrize(
    ("value", "named"),
    [(3, "3 of type int"), (torch.ones(1), "of type Tensor"), (property(predict), "property")],
)
def test_not_callable(value, named):
    """What cannot be called is named with its type, and what to pass instead."""
    with pytest.raises(TypeError) as caught:
        carry(value)
    text = str(caught.value)
    assert text.startswith("carry() cannot carry a mode into ")
    assert f"{named}" in text
    assert "which is not callable" in text
    assert text.endswith("executor.submit(carry(fn), *args).")


def test_class():
    """A class is refused, and the two things that may be meant are written out."""
    with pytest.raises(TypeError) as caught:
        carry(torch.nn.Linear)
    text = str(caught.value)
    assert text.startswith(
        "carry() cannot carry a mode into the class Linear: only its constructor"
    )
    assert "carry(Linear(...).method)" in text
    assert text.endswith("carry(lambda: Linear(...)).")


def test_open_guards(pool):
    """In a carried function `guards()` names what brought the mode."""
    assert repr(pool.submit(carry(lambda: gradguard.guards())).result()).startswith("(carry(")


@pytest.mark.parametrize("guard", [torch.enable_grad, gradguard.no_grad, gradguard.inference_mode])
@pytest.mark.parametrize("outer", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_under_compile(guard, outer):
    """Dynamo follows a carried function in one graph, with the results of an eager call."""
    with guard():
        carried = carry(lambda x: (x * 2, torch.is_grad_enabled()))
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: carried(x), backend="eager", fullgraph=True)
    weight = torch.ones(2, requires_grad=True)
    with outer():
        found = grad_state()
        (result, grad), (expected, expected_grad) = compiled(weight), carried(weight)
        assert grad_state() == found
    assert result.requires_grad == expected.requires_grad
    assert result.is_inference() == expected.is_inference()
    assert grad == expected_grad
