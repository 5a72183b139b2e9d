"""Arguments that do not fit: an error at the call, in Python's words, as undecorated."""

import asyncio
import functools
import gc
import inspect
import warnings
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gradguard

NET = torch.nn.Linear(1, 1)
DECORATORS = {
    "no_grad": gradguard.no_grad,
    "no_grad()": gradguard.no_grad(),
    "enable_grad": gradguard.enable_grad,
    "set_grad_enabled": lambda fn: gradguard.set_grad_enabled(False)(fn),
    "inference_mode": gradguard.inference_mode,
    "isolated": gradguard.isolated,
    "carry": gradguard.carry,
    "leak_check": gradguard.leak_check(),
    "evaluating": gradguard.evaluating(NET),
    "inference_function": gradguard.inference_function(modules=NET),
    "keep_eval": gradguard.inference_function(modules=NET, keep_eval=True),
    "autocast": gradguard.inference_function(modules=NET, autocast=torch.bfloat16),
}
each_decorator = pytest.mark.parametrize("name", DECORATORS)
# Names that a wrapper might use itself are among the parameters.
NAMES = ["fn", "guard", "wrapper", "body", "target", "call", "error", "args", "kwargs", "self", "x"]
HEADS = {"generator": "def", "coroutine": "async def", "async_generator": "async def"}


def made(kind, header):
    """Return a function of a kind that hands over all that it is called with."""
    end = "return" if kind == "coroutine" else "yield"
    names = {}
    exec(f"{HEADS[kind]} function({header}):\n    {end} dict(locals())", names)  # noqa: S102 (of names in this file)
    return names["function"]


def run(made):
    """Return what the body of a generator, coroutine or async generator hands over."""
    if inspect.isgenerator(made):
        return next(made)
    return asyncio.run(made if inspect.iscoroutine(made) else anext(made))


def outcome(function, args, kwargs):
    """Return what a call gives, or the text of the TypeError that the call itself raises."""
    try:
        made = function(*args, **kwargs)
    except TypeError as error:
        return str(error)
    return run(made)


@st.composite
def headers(draw):
    """Parameters as a ``def`` may have them."""
    names = iter(draw(st.permutations(NAMES)))
    counts = [draw(st.integers(0, 2)) for _ in range(3)]
    unnamed, either, by_name = ([next(names) for _ in range(count)] for count in counts)
    defaults = draw(st.integers(0, len(unnamed) + len(either)))
    parts = [*unnamed, *either]
    first = len(parts) - defaults
    parts = [name if at < first else f"{name}={at}" for at, name in enumerate(parts)]
    if unnamed:
        parts.insert(len(unnamed), "/")
    rest = draw(st.booleans())
    if rest or by_name:
        parts.append(f"*{next(names)}" if rest else "*")
    parts += [draw(st.sampled_from([name, f"{name}='{name}'"])) for name in by_name]
    return ", ".join([*parts, *([f"**{next(names)}"] if draw(st.booleans()) else [])])


calls = st.tuples(
    st.lists(st.integers(), max_size=5),
    st.dictionaries(st.sampled_from([*NAMES, "unknown"]), st.integers(), max_size=4),
)


@pytest.mark.parametrize("kind", HEADS)
@given(header=headers(), call=calls, name=st.sampled_from(sorted(DECORATORS)))
def test_any_call_of_any_function_is_bound_as_undecorated(kind, header, call, name):
    """Whatever it takes and is given: the same parameters in the body, or the same error."""
    function = made(kind, header)
    decorated = DECORATORS[name](function)
    assert outcome(decorated, *call) == outcome(function, *call)


@each_decorator
@pytest.mark.parametrize("kind", HEADS)
def test_other_callables_are_bound_as_undecorated(name, kind):
    """Methods, partials and objects with ``__call__``, for which Python says what fits."""
    function = made(kind, "self, x, *, y=1")

    class Net:
        method = function
        __call__ = function

    net = Net()
    for undecorated in (net.method, net, functools.partial(function, 1), functools.partial(net, 2)):
        decorated = DECORATORS[name](undecorated)
        for args in ((5,), (5, 6), (5, 6, 7), ()):
            ours, theirs = (outcome(each, args, {}) for each in (decorated, undecorated))
            assert type(ours) is type(theirs)
            if isinstance(ours, dict):
                assert ours == theirs
    with pytest.raises(TypeError, match=r"function\(\) missing 1 required positional"):
        DECORATORS[name](net)()


def test_a_partial_that_can_never_be_called_is_decorated_all_the_same():
    """As undecorated: its call says what does not fit."""
    never = functools.partial(made("generator", "x"), 1, 2)
    decorated = gradguard.no_grad(never)
    with pytest.raises(TypeError, match="takes 1 positional argument but 2 were given"):
        next(decorated())


def test_a_signature_that_is_told_is_not_what_is_called():
    """A function may carry another signature for its readers: its code says what it takes."""
    function = made("generator", "*args, **kwargs")
    function.__signature__ = inspect.Signature()
    decorated = gradguard.no_grad(function)
    assert next(decorated(1, a=2)) == {"args": (1,), "kwargs": {"a": 2}}
    assert inspect.signature(decorated) == inspect.Signature()


def test_methods_of_models():
    """`inference_method` and `training_method`, which look at the arguments themselves."""

    class Net(torch.nn.Linear):
        @gradguard.inference_method
        def stream(self, x):
            yield x

        @gradguard.inference_method
        async def answer(self, x):
            return x

        @gradguard.training_method
        async def step(self, x):
            return self(x).sum()

    net = Net(1, 1)
    for method in (net.stream, net.answer, net.step):
        with pytest.raises(TypeError, match=r"Net\.\w+\(\) missing 1 required positional.*'x'"):
            method()
        with pytest.raises(TypeError, match="got an unexpected keyword argument 'y'"):
            method(torch.ones(1), y=1)
    assert asyncio.run(net.step(torch.ones(1))).requires_grad
    assert [each.item() for each in net.stream(x=torch.ones(1))] == [1]


@each_decorator
def test_a_coroutine_that_is_never_awaited_says_so_once(name):
    """Under its own name, and nobody keeps what it was called with."""

    class Batch:
        pass

    async def forgotten(batch):
        pass

    batch = Batch()
    seen = weakref.ref(batch)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        DECORATORS[name](forgotten)(batch)
        del batch
        gc.collect()
    told = [str(one.message) for one in caught]
    caught.clear()  # they hold the coroutine
    assert told == [f"coroutine '{forgotten.__qualname__}' was never awaited"]
    assert seen() is None


@each_decorator
@pytest.mark.parametrize("kind", ["generator", "async_generator"])
def test_a_generator_that_is_never_started_leaves_nothing(name, kind):
    """It is dropped without a word, and what it was called with goes with it."""

    class Batch:
        pass

    batch = Batch()
    seen = weakref.ref(batch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DECORATORS[name](made(kind, "x"))(batch)
        del batch
        gc.collect()
    assert seen() is None
    assert gradguard.guards() == ()
    assert gradguard.grad_state() == (True, False)


def test_a_running_body_keeps_no_arguments_for_itself():
    """What the body has let go of is gone."""

    class Batch:
        pass

    @gradguard.no_grad
    def function(batch, *, other=None):
        del batch
        yield 1
        yield 2

    batch = Batch()
    seen = weakref.ref(batch)
    running = function(batch)
    del batch
    next(running)
    assert seen() is None


def test_tracebacks_show_the_wrappers_line():
    """The line of the wrapper that a traceback names can be read."""
    import traceback

    @gradguard.no_grad
    def function():
        yield 1 / 0

    with pytest.raises(ZeroDivisionError) as caught:
        next(function())
    lines = [frame.line for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert lines[-1] == "yield 1 / 0"
    assert all(lines)
