import asyncio
import functools
import gc
import inspect
import pickle
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gradguard
from gradguard import GradState, grad_state, isolated

GRAD = GradState(grad_enabled=True, inference_mode=False)
NO_GRAD = GradState(grad_enabled=False, inference_mode=False)
INFERENCE = GradState(grad_enabled=False, inference_mode=True)
GUARDS = {
    torch.no_grad: NO_GRAD,
    torch.inference_mode: INFERENCE,
    gradguard.no_grad: NO_GRAD,
    gradguard.inference_mode: INFERENCE,
    gradguard.enable_grad: GRAD,
}
guards = pytest.mark.parametrize(("guard", "mode"), GUARDS.items())


@isolated
def generator(guard=torch.no_grad):
    """Yield the modes inside a guard and after it."""
    with guard():
        yield grad_state()
        yield grad_state()
    yield grad_state()


@isolated
async def coroutine(guard=torch.no_grad):
    with guard():
        await asyncio.sleep(0)
        inside = grad_state()
        await asyncio.sleep(0)
    return inside, grad_state()


@isolated
async def async_generator(guard=torch.no_grad):
    with guard():
        yield grad_state()
        await asyncio.sleep(0)
        yield grad_state()
    yield grad_state()


@isolated
def starts():
    yield grad_state()


@guards
def test_generator(guard, mode):
    """What a generator switches lasts in it over its suspensions, and the consumer sees nothing."""
    seen = [(inside, grad_state()) for inside in generator(guard)]
    assert seen == [(mode, GRAD), (mode, GRAD), (GRAD, GRAD)]


def test_without_it_the_consumer_is_switched():
    """An undecorated generator switches its consumer, so the tests here can fail."""
    plain = generator.__wrapped__()
    next(plain)
    assert grad_state() == NO_GRAD
    plain.close()


@guards
def test_coroutine(guard, mode):
    """Other tasks of the loop see nothing of what a coroutine holds over an await."""

    async def main():
        task = asyncio.create_task(coroutine(guard))
        seen = set()
        for _ in range(4):
            await asyncio.sleep(0)
            seen.add(grad_state())
        return await task, seen

    assert asyncio.run(main()) == ((mode, GRAD), {GRAD})


@guards
def test_async_generator(guard, mode):
    """What an async generator switches is not seen by its consumer, nor by other tasks."""

    async def watch():
        seen = set()
        for _ in range(4):
            seen.add(grad_state())
            await asyncio.sleep(0)
        return seen

    async def main():
        task = asyncio.create_task(watch())
        seen = [(inside, grad_state()) async for inside in async_generator(guard)]
        return seen, await task

    expected = [(mode, GRAD), (mode, GRAD), (GRAD, GRAD)]
    assert asyncio.run(main()) == (expected, {GRAD})


@guards
def test_starts_in_the_mode_of_its_first_resumer(guard, mode):
    """A body starts in the mode of its first step, and keeps that under any other resumer."""
    stream = isolated(lambda: ((yield grad_state()), (yield grad_state())))()
    with guard():
        assert next(stream) == mode
        assert grad_state() == mode
    assert next(stream) == mode
    assert grad_state() == GRAD
    stream.close()


def test_a_resumer_in_another_mode():
    """A resumer's guards do not reach the body, and are back after each step."""
    stream = generator()
    assert next(stream) == NO_GRAD
    with gradguard.inference_mode():
        assert next(stream) == NO_GRAD
        assert grad_state() == INFERENCE
    with gradguard.no_grad():
        assert next(stream) == GRAD
        assert grad_state() == NO_GRAD
    assert next(stream, None) is None


@pytest.mark.parametrize("guard", [torch.no_grad, gradguard.inference_mode])
def test_awaited_in_a_guard(guard):
    """A coroutine awaited in a block starts in its mode, and leaves the block's as it was."""

    @isolated
    async def work():
        found = grad_state()
        with gradguard.enable_grad():
            await asyncio.sleep(0)
            return found, grad_state()

    async def main():
        with guard():
            return await work(), grad_state()

    mode = GUARDS[guard]
    assert asyncio.run(main()) == ((mode, GRAD), mode)


@given(st.lists(st.sampled_from([0, 1, 2]), max_size=12), st.lists(st.sampled_from([*GUARDS])))
def test_any_interleaving(order, outer):
    """However bodies are interleaved, and under whatever resumer, each has its own mode."""
    bodies = [
        generator(guard) for guard in (torch.no_grad, torch.inference_mode, gradguard.no_grad)
    ]
    started = {}
    for at, which in enumerate(order):
        with (outer[at] if at < len(outer) else torch.enable_grad)():
            found = grad_state()
            inside = GradState(False, which == 1 or found.inference_mode)
            expected = started.setdefault(which, [inside, inside, found, None])
            assert next(bodies[which], None) == (expected.pop(0) if expected else None)
            assert grad_state() == found
    for body in bodies:
        body.close()
    assert grad_state() == GRAD


def test_send_throw_close_and_return():
    """`send`, `throw`, `close` and the return value are those of the function, under its mode."""
    closed = []

    @isolated
    def body():
        with torch.no_grad():
            try:
                got = yield "first"
                try:
                    yield got
                except LookupError:
                    yield "caught", grad_state()
                return (yield "last")
            finally:
                closed.append(grad_state())

    stream = body()
    assert next(stream) == "first"
    assert stream.send("sent") == "sent"
    assert stream.throw(LookupError()) == ("caught", NO_GRAD)
    assert next(stream) == "last"
    with pytest.raises(StopIteration) as stop:
        stream.send("result")
    assert stop.value.value == "result"
    stream = body()
    next(stream)
    stream.close()
    assert closed == [NO_GRAD] * 2
    assert grad_state() == GRAD


def test_dropped_while_suspended():
    """A body that is dropped closes under its own mode, and its dropper's stays."""
    closed = []

    @isolated
    def body():
        with torch.inference_mode():
            try:
                yield
            finally:
                closed.append(grad_state())

    stream = body()
    next(stream)
    with gradguard.no_grad():
        del stream
        gc.collect()
        assert closed == [INFERENCE]
        assert grad_state() == NO_GRAD


def test_never_awaited():
    """A coroutine that nobody awaits is warned about once, under its name; closing it is fine."""
    coroutine().close()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        coroutine()
        gc.collect()
    assert [str(warning.message) for warning in caught] == [
        "coroutine 'coroutine' was never awaited"
    ]


def test_wrong_arguments():
    """Wrong arguments are the function's own TypeError."""
    with pytest.raises(TypeError, match="unexpected keyword argument 'nope'"):
        next(generator(nope=1))


@pytest.mark.parametrize(
    ("fn", "kind", "made"),
    [
        (generator, inspect.isgeneratorfunction, inspect.isgenerator),
        (coroutine, inspect.iscoroutinefunction, inspect.iscoroutine),
        (async_generator, inspect.isasyncgenfunction, inspect.isasyncgen),
    ],
)
def test_stands_in_for_the_function(fn, kind, made):
    """The kind, name, docstring, signature and pickle are the function's."""
    assert kind(fn)
    assert fn.__doc__ == fn.__wrapped__.__doc__
    assert fn.__qualname__ == fn.__wrapped__.__qualname__
    assert inspect.signature(fn) == inspect.signature(fn.__wrapped__)
    assert pickle.loads(pickle.dumps(fn)) is fn  # noqa: S301 (its own pickle)
    body = fn()
    assert made(body)
    assert body.__name__ == fn.__name__
    if inspect.iscoroutine(body):
        body.close()


class Model:
    @isolated
    def method(self, x):
        with torch.no_grad():
            yield self, x, grad_state()

    @classmethod
    @isolated
    def inner(cls, x):
        with torch.no_grad():
            yield cls, x, grad_state()

    @isolated
    @classmethod
    def outer(cls, x):
        with torch.no_grad():
            yield cls, x, grad_state()

    @isolated
    @staticmethod
    def static(x):
        with torch.no_grad():
            yield x, grad_state()

    def __call__(self, x):
        with torch.no_grad():
            yield self, x, grad_state()


def test_methods_and_other_callables():
    """Methods of all kinds, partials and callable objects can be isolated."""
    model = Model()
    bodies = {
        model.method(1): (model, 1, NO_GRAD),
        Model.method(model, x=1): (model, 1, NO_GRAD),
        model.inner(1): (Model, 1, NO_GRAD),
        Model.outer(1): (Model, 1, NO_GRAD),
        model.static(1): (1, NO_GRAD),
        isolated(model)(1): (model, 1, NO_GRAD),
        isolated(model.__call__)(1): (model, 1, NO_GRAD),
        isolated(functools.partial(Model.__call__, model, x=1))(): (model, 1, NO_GRAD),
        isolated(functools.partial(model.method))(1): (model, 1, NO_GRAD),
    }
    for body, expected in bodies.items():
        assert next(body) == expected
        assert grad_state() == GRAD
        body.close()
    assert inspect.isgeneratorfunction(model.method)


def test_decorated_again():
    """It combines with the guards, in either order."""
    guarded = (
        gradguard.no_grad(starts),
        torch.no_grad()(starts),
        isolated(gradguard.no_grad(starts)),
    )
    assert [list(each()) for each in guarded] == [[NO_GRAD]] * 3
    assert grad_state() == GRAD


def test_a_module_with_one_can_be_scripted():
    """A module that has an isolated method can still be given to `torch.jit.script`."""

    class Net(torch.nn.Module):
        stream = isolated(lambda self: (yield self))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    scripted = torch.jit.script(Net())
    assert scripted(torch.ones(1)).item() == 2


def plain():
    """Return at once."""


@pytest.mark.parametrize("fn", [plain, functools.partial(plain), len])
def test_a_plain_function(fn):
    """A plain function is refused, and what to use for each thing that may be meant is named."""
    with pytest.raises(TypeError) as caught:
        isolated(fn)
    text = str(caught.value)
    name = getattr(fn, "__name__", "partial object")
    assert text.startswith(
        f"isolated() cannot isolate {name}: it is not a generator, coroutine or "
    )
    assert "async generator function, so it is never suspended" in text
    assert "decorate the function that makes it" in text
    for remedy in ("gradguard.no_grad", "gradguard.carry", "gradguard.leak_check"):
        assert remedy in text


def test_a_class():
    """A class is refused, and told what to decorate in it."""
    with pytest.raises(TypeError) as caught:
        isolated(Model)
    text = str(caught.value)
    assert text.startswith("isolated() cannot isolate the class Model. ")
    assert "Decorate those of its methods that yield or await" in text


@pytest.mark.parametrize("value", [3, property(plain), None])
def test_not_callable(value):
    """What cannot be called is named with its type, and told what to decorate."""
    with pytest.raises(TypeError) as caught:
        isolated(value)
    text = str(caught.value)
    assert text.startswith("isolated() cannot isolate ")
    assert f"of type {type(value).__name__}, which is not callable" in text
    assert text.endswith("Decorate a generator, coroutine or async generator function.")
