import asyncio
import functools
import inspect
import pickle
import sys
import types
from unittest import mock

import pytest
import torch

import gradguard
from gradguard import GradState, grad_state, guards
from gradguard._core.guard_stack import thread
from gradguard._core.state import put_back

GRAD = GradState(grad_enabled=True, inference_mode=False)
NO_GRAD = GradState(grad_enabled=False, inference_mode=False)
INFERENCE = GradState(grad_enabled=False, inference_mode=True)

# Every way to decorate, and the mode in which the body must run.
DECORATORS = {
    "no_grad()": (lambda fn: gradguard.no_grad()(fn), NO_GRAD),
    "no_grad": (gradguard.no_grad, NO_GRAD),
    "enable_grad()": (lambda fn: gradguard.enable_grad()(fn), GRAD),
    "enable_grad": (gradguard.enable_grad, GRAD),
    "set_grad_enabled(False)": (lambda fn: gradguard.set_grad_enabled(False)(fn), NO_GRAD),
    "set_grad_enabled(True)": (lambda fn: gradguard.set_grad_enabled(True)(fn), GRAD),
    "inference_mode()": (lambda fn: gradguard.inference_mode()(fn), INFERENCE),
    "inference_mode": (gradguard.inference_mode, INFERENCE),
    "inference_mode(mode=fn)": (lambda fn: gradguard.inference_mode(mode=fn), INFERENCE),
    "inference_mode(False)": (lambda fn: gradguard.inference_mode(False)(fn), GRAD),
}
each_decorator = pytest.mark.parametrize("name", DECORATORS)


@pytest.fixture(autouse=True)
def thread_is_clean():
    """Every test begins and ends recording, with no guard open."""
    assert (grad_state(), guards()) == (GRAD, ())
    yield
    ended = grad_state(), guards()
    thread.cell[0] = None  # so that a failure is one failure
    put_back(GRAD)
    assert ended == (GRAD, ())


def plain(value=1):
    """What the body's mode is."""
    return value, grad_state()


def generator(value=1):
    """What the body's mode is."""
    yield value, grad_state()


async def coroutine(value=1):
    """What the body's mode is."""
    await asyncio.sleep(0)
    return value, grad_state()


async def async_generator(value=1):
    """What the body's mode is."""
    await asyncio.sleep(0)
    yield value, grad_state()


@types.coroutine
def legacy(value=1):
    """What the body's mode is."""
    yield from asyncio.sleep(0).__await__()
    return value, grad_state()


def to_the_end(result):
    """Run whatever a call has handed back that still has to run; return what it gives."""
    if inspect.isasyncgen(result):

        async def collect():
            return [item async for item in result]

        return asyncio.run(collect())[0]
    if inspect.isawaitable(result):

        async def wait():
            return await result

        return asyncio.run(wait())
    return next(result) if inspect.isgenerator(result) else result


FUNCTIONS = {fn.__name__: fn for fn in (plain, generator, coroutine, async_generator, legacy)}
each_function = pytest.mark.parametrize("fn", FUNCTIONS.values(), ids=FUNCTIONS)
KIND_TESTS = (
    inspect.isfunction,
    inspect.isgeneratorfunction,
    inspect.iscoroutinefunction,
    inspect.isasyncgenfunction,
    *([asyncio.iscoroutinefunction] if sys.version_info < (3, 14) else []),  # deprecated there
)


@each_decorator
@each_function
def test_functions(name, fn):
    """The body of every kind of function runs under the guard, and nothing else does."""
    decorate, mode = DECORATORS[name]
    decorated = decorate(fn)
    assert grad_state() == GRAD
    assert to_the_end(decorated(value=5)) == (5, mode)
    assert to_the_end(decorated(6)) == (6, mode)
    assert grad_state() == GRAD


@each_decorator
@each_function
def test_kind_signature_and_name_stay(name, fn):
    """`inspect` and its relatives see what they saw."""
    decorated = DECORATORS[name][0](fn)
    for is_kind in KIND_TESTS:
        assert is_kind(decorated) == is_kind(fn)
    assert inspect.signature(decorated) == inspect.signature(fn)
    assert decorated.__doc__ == fn.__doc__
    assert decorated.__name__ == fn.__name__
    assert decorated.__qualname__ == fn.__qualname__
    assert decorated.__module__ == fn.__module__
    assert decorated.__wrapped__ is fn


@each_function
def test_what_a_call_returns_is_of_the_same_kind(fn):
    """A decorated call hands back a native generator, coroutine or async generator, with its name."""
    undecorated, decorated = fn(), gradguard.no_grad(fn)()
    assert type(decorated) is type(undecorated)
    if fn is not plain:
        assert decorated.__name__ == undecorated.__name__
        assert decorated.__qualname__ == undecorated.__qualname__
    assert inspect.isawaitable(decorated) == inspect.isawaitable(undecorated)
    for result in (undecorated, decorated):
        if hasattr(result, "close"):
            result.close()


decorated_plain = gradguard.no_grad(plain)
decorated_coroutine = gradguard.inference_mode()(coroutine)
decorated_plain.__qualname__ = decorated_plain.__name__ = "decorated_plain"
decorated_coroutine.__qualname__ = decorated_coroutine.__name__ = "decorated_coroutine"


@gradguard.no_grad()
def by_name():
    return grad_state()


@pytest.mark.parametrize("fn", [by_name, decorated_plain, decorated_coroutine])
def test_pickling_by_name(fn):
    """A decorated function is pickled by its name, as any function."""
    assert pickle.loads(pickle.dumps(fn)) is fn  # noqa: S301 (just made)


@each_decorator
@each_function
def test_handed_back_by_a_plain_function(name, fn):
    """What a plain function hands back and still has to run, runs under the guard."""
    decorate, mode = DECORATORS[name]

    def hands_back(*args, **kwargs):
        return fn(*args, **kwargs)

    result = decorate(hands_back)(5)
    undecorated = fn(5)
    assert type(result) is type(undecorated)
    assert getattr(result, "__qualname__", "") == getattr(undecorated, "__qualname__", "")
    assert to_the_end(result) == (5, mode)
    assert to_the_end(undecorated) == (5, GRAD)
    assert grad_state() == GRAD


@pytest.mark.parametrize("name", ["no_grad", "inference_mode", "enable_grad"])
def test_handed_back_now_and_then(name):
    """A function that hands back different kinds has each right, in whichever order."""
    decorate, mode = DECORATORS[name]
    decorated = decorate(lambda fn: fn())
    for fn in (plain, generator, plain, coroutine, async_generator, generator, plain):
        assert decorated(lambda: None) is None
        assert to_the_end(decorated(fn)) == (1, mode)


def test_results_that_need_not_run_are_handed_back_as_they_are():
    """Nothing but generators, coroutines and async generators is touched."""
    for result in (iter([1]), map(str, [1]), object(), torch.ones(1), plain, [1]):
        assert gradguard.no_grad(lambda result=result: result)() is result


@each_decorator
@each_function
def test_partials(name, fn):
    """A partial is called with its arguments, and seen as what it wraps."""
    decorate, mode = DECORATORS[name]
    partial = functools.partial(functools.partial(fn), value=7)
    decorated = decorate(partial)
    assert to_the_end(decorated()) == (7, mode)
    for is_kind in KIND_TESTS[1:]:
        assert is_kind(decorated) == is_kind(partial)
    assert inspect.signature(decorated) == inspect.signature(partial)


def callable_of(fn):
    class Callable:
        """An object that can be called."""

        label = "mine"

        def __init__(self):
            self.kept = "kept"

    if fn is plain:
        Callable.__call__ = lambda self, value=1: fn(value)
    elif fn is generator:

        def call(self, value=1):
            yield value, grad_state()

        Callable.__call__ = call
    elif fn is coroutine:

        async def call_async(self, value=1):
            return value, grad_state()

        Callable.__call__ = call_async
    else:

        async def call_asyncgen(self, value=1):
            yield value, grad_state()

        Callable.__call__ = call_asyncgen
    return Callable()


@each_decorator
@pytest.mark.parametrize("fn", [plain, generator, coroutine, async_generator])
def test_objects_with_a_call(name, fn):
    """An object with `__call__`, also an async one, is called under the guard."""
    decorate, mode = DECORATORS[name]
    target = callable_of(fn)
    decorated = decorate(target)
    assert to_the_end(decorated(5)) == (5, mode)
    assert inspect.iscoroutinefunction(decorated) == (fn is coroutine)
    assert inspect.isasyncgenfunction(decorated) == (fn is async_generator)
    assert list(inspect.signature(decorated).parameters) == ["value"]
    assert decorated.__doc__ == "An object that can be called."
    assert decorated.kept == "kept"


def test_modules_can_be_decorated():
    """A model itself, an object with `__call__`, is called under the guard."""
    net = torch.nn.Linear(1, 1)
    assert net(torch.ones(1)).requires_grad
    assert not gradguard.no_grad(net)(torch.ones(1)).requires_grad
    net.forward = gradguard.inference_mode()(net.forward)
    assert net(torch.ones(1)).is_inference()


def test_builtins_bound_methods_and_mocks():
    """Callables without Python code of their own are decorated as well."""
    weight = torch.ones(1, requires_grad=True)
    assert not gradguard.no_grad(torch.mul)(weight, 2).requires_grad
    assert not gradguard.no_grad(weight.mul)(2).requires_grad
    assert gradguard.no_grad(mock.Mock(side_effect=grad_state))() == NO_GRAD
    assert gradguard.no_grad(mock.MagicMock(side_effect=grad_state))() == NO_GRAD
    awaited = gradguard.no_grad(mock.AsyncMock(side_effect=grad_state))
    assert to_the_end(awaited()) == NO_GRAD
    assert inspect.iscoroutinefunction(awaited)


def test_an_object_that_answers_to_every_attribute():
    """What a proxy gives for `__code__` need not be code."""

    class Proxy:
        __code__ = "no code"

        def __call__(self):
            return grad_state()

    assert gradguard.no_grad(Proxy())() == NO_GRAD


class Methods:
    """One of each kind of method, undecorated."""

    def __init__(self):
        self.stored = 1

    def method(self, value=1):
        return value, grad_state()

    def streaming(self, value=1):
        yield value, grad_state()

    async def waiting(self, value=1):
        return value, grad_state()

    async def ticking(self, value=1):
        yield value, grad_state()


@each_decorator
@pytest.mark.parametrize("method", ["method", "streaming", "waiting", "ticking"])
@pytest.mark.parametrize("kind", [lambda fn: fn, classmethod, staticmethod])
@pytest.mark.parametrize("over", [True, False])
def test_methods(name, method, kind, over):
    """Every kind of method, with the guard over or under `classmethod` and `staticmethod`."""
    decorate, mode = DECORATORS[name]
    fn = Methods.__dict__[method]
    made = decorate(kind(fn)) if over else kind(decorate(fn))
    if kind in {classmethod, staticmethod}:
        assert type(made) is kind
    owner = type("Owner", (), {method: made})
    args = (None,) if kind is staticmethod else ()
    assert to_the_end(getattr(owner(), method)(*args, value=5)) == (5, mode)
    if kind is not staticmethod and kind is not classmethod:
        return
    assert to_the_end(getattr(owner, method)(*args, 6)) == (6, mode)


@each_decorator
@pytest.mark.parametrize("over", [True, False])
def test_properties(name, over):
    """A property's getter, setter and deleter run under the guard; its docstring stays."""
    decorate, mode = DECORATORS[name]
    seen = []

    def get(self):
        """The docstring."""
        return grad_state()

    def put(self, value):
        seen.append((value, grad_state()))

    def remove(self):
        seen.append(grad_state())

    if over:
        prop = decorate(property(get, put, remove))
    else:
        prop = property(decorate(get), decorate(put), decorate(remove))
    owner = type("Owner", (), {"prop": prop})()
    assert owner.prop == mode
    owner.prop = 3
    del owner.prop
    assert seen == [(3, mode), mode]
    assert prop.__doc__ == "The docstring."
    assert type(prop) is property


@pytest.mark.parametrize("guard", [gradguard.no_grad, gradguard.inference_mode])
def test_properties_of_their_own_kind_and_with_parts_missing(guard):
    """A subclass of `property` stays one; a doc of its own stays; what is missing stays missing."""

    class Special(property):
        pass

    assert type(guard(Special(grad_state))) is Special
    prop = guard(property(lambda self: grad_state(), doc="mine"))
    assert prop.__doc__ == "mine"
    assert prop.fset is None
    assert prop.fdel is None
    owner = type("Owner", (), {"prop": prop})()
    assert not owner.prop.grad_enabled
    with pytest.raises(AttributeError):
        owner.prop = 1


def test_later_setters_build_on_a_decorated_property():
    """`@prop.setter` works on a decorated property."""

    class Owner:
        @gradguard.no_grad
        @property
        def prop(self):
            return grad_state()

        @prop.setter
        def prop(self, value):
            self.value = value, grad_state()

    owner = Owner()
    owner.prop = 2
    assert (owner.prop, owner.value) == (NO_GRAD, (2, GRAD))


def test_abstract_methods_stay_abstract():
    """A decorated abstract method still has to be overridden."""
    import abc

    class Base(abc.ABC):
        @gradguard.no_grad
        @abc.abstractmethod
        def predict(self): ...

        @gradguard.no_grad
        @property
        @abc.abstractmethod
        def shape(self): ...

    assert Base.__abstractmethods__ == {"predict", "shape"}


def test_attributes_of_a_function_stay():
    """What was set on a function can be read from the decorated one."""

    def fn():
        pass

    fn.label = "mine"
    assert gradguard.no_grad(fn).label == "mine"


@pytest.mark.skipif(sys.version_info < (3, 12), reason="markcoroutinefunction is new in 3.12")
@each_decorator
def test_marked_as_coroutine_function(name):
    """A plain function marked as a coroutine function keeps its mark; both its parts are guarded."""
    decorate, mode = DECORATORS[name]
    seen = []

    @inspect.markcoroutinefunction
    def marked(value=1):
        seen.append(grad_state())
        return coroutine(value)

    decorated = decorate(marked)
    assert inspect.iscoroutinefunction(decorated)
    assert to_the_end(decorated(5)) == (5, mode)
    assert seen == [mode]


def test_plain_part_of_a_function_that_hands_back():
    """Both the plain code and what it hands back run under the guard."""
    seen = []

    @gradguard.inference_mode
    def prepares():
        seen.append(grad_state())
        return generator()

    assert to_the_end(prepares()) == (1, INFERENCE)
    assert seen == [INFERENCE]


# Stacked decorators


def test_stacked_decorators():
    """The innermost guard decides, as nested `with` blocks do."""
    assert gradguard.no_grad(gradguard.enable_grad(grad_state))() == GRAD
    assert gradguard.enable_grad(gradguard.no_grad(grad_state))() == NO_GRAD
    stacked = gradguard.inference_mode(gradguard.inference_mode(False)(generator))
    assert to_the_end(stacked()) == (1, GRAD)
    assert to_the_end(gradguard.enable_grad(gradguard.inference_mode(coroutine))())[1] == INFERENCE
    assert torch.no_grad()(gradguard.enable_grad(grad_state))() == GRAD
    assert gradguard.no_grad(torch.enable_grad()(grad_state))() == GRAD


def test_one_guard_decorates_many():
    """One object decorates any number of functions, which may call each other."""
    guard = gradguard.no_grad()

    @guard
    def outer():
        return inner(), grad_state()

    @guard
    def inner():
        return grad_state()

    assert outer() == (NO_GRAD, NO_GRAD)


def test_recursion():
    """A decorated function may call itself; on exceptions, too, all is put back."""

    @gradguard.inference_mode
    def down(depth):
        if not depth:
            raise KeyError(grad_state())
        down(depth - 1)

    with pytest.raises(KeyError) as caught:
        down(30)
    assert caught.value.args == (INFERENCE,)


@each_decorator
def test_arguments_of_every_kind(name):
    """Positional, keyword and starred arguments arrive, also ones called `self`, `fn` or `guard`."""

    def fn(first, /, *rest, fn, guard=2, **more):
        return first, rest, fn, guard, more

    decorated = DECORATORS[name][0](fn)
    given = decorated(1, 2, 3, fn=4, self=5, args=6)
    assert given == (1, (2, 3), 4, 2, {"self": 5, "args": 6})


@pytest.mark.parametrize("name", ["no_grad", "enable_grad", "inference_mode"])
def test_a_body_that_leaves_a_guard_open(name):
    """It goes on deciding, as out of order; its own exit brings the caller's mode back."""

    @DECORATORS[name][0]
    def leaves():
        left.__enter__()

    left = gradguard.enable_grad() if name == "no_grad" else gradguard.no_grad()
    with pytest.warns(gradguard.GradModeWarning):
        leaves()
    assert torch.is_grad_enabled() is (name == "no_grad")
    assert guards() == (left,)
    left.__exit__(None, None, None)
    assert (grad_state(), guards()) == (GRAD, ())


def test_first_entry_of_a_thread_may_be_a_decorated_call():
    """A thread in which no guard was ever open calls decorated functions as any other."""
    import threading

    for decorate, mode in ((gradguard.no_grad, NO_GRAD), (gradguard.inference_mode, INFERENCE)):
        seen, decorated = [], decorate(lambda: (grad_state(), guards()))
        other = threading.Thread(target=lambda: seen.extend([decorated(), grad_state()]))  # noqa: B023
        other.start()
        other.join()
        assert seen == [(mode, (decorate(),)), GRAD]


# Bad input

EVERY_NAME = {
    "no_grad()": gradguard.no_grad,
    "enable_grad()": gradguard.enable_grad,
    "inference_mode(mode=True)": gradguard.inference_mode,
    "inference_mode(mode=False)": gradguard.inference_mode(False),
    "set_grad_enabled(mode=False)": lambda fn: gradguard.set_grad_enabled(False)(fn),
}


@pytest.mark.parametrize("name", EVERY_NAME)
def test_a_class_is_refused(name):
    """The error says why, and what to decorate instead; the mode is untouched."""

    class Model:
        pass

    with pytest.raises(TypeError) as caught:
        EVERY_NAME[name](Model)
    text = str(caught.value)
    assert text.startswith(f"{name} cannot decorate the class ")
    assert "test_a_class_is_refused.<locals>.Model: only its constructor would be covered." in text
    assert text.endswith(
        f"Decorate the methods that need it, for example __init__ or forward, with {name}."
    )


@pytest.mark.parametrize("name", EVERY_NAME)
@pytest.mark.parametrize("value", [3, "predict", [], object()])
def test_what_cannot_be_called_is_refused(name, value):
    """The error names the value and its type, and what can be decorated; the mode is untouched."""
    if name == "inference_mode(mode=True)":
        decorate = gradguard.inference_mode()
    else:
        decorate = EVERY_NAME[name]
    with pytest.raises(TypeError) as caught:
        decorate(value)
    text = str(caught.value)
    assert text.startswith(f"{name} cannot decorate {value!r} of type {type(value).__name__}, ")
    assert "which is not callable" in text
    assert "Decorate a function, a method, a classmethod, staticmethod or property" in text
    assert "an object with __call__" in text
    assert text.endswith(f"to switch the mode for a block, write `with {name}:`.")


def test_a_long_value_is_cut():
    """A value with a long text does not flood the error."""
    with pytest.raises(TypeError) as caught:
        gradguard.no_grad(torch.zeros(1000).tolist())
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("kind", [classmethod, staticmethod])
def test_a_class_inside_a_method_object_is_refused(kind):
    """What lies inside a `classmethod` or `staticmethod` is looked at, too."""
    with pytest.raises(TypeError, match="cannot decorate the class"):
        gradguard.no_grad(kind(dict))


def test_errors_of_a_call_are_those_of_the_function():
    """Wrong arguments raise the function's own error, and leave the mode alone."""

    @gradguard.no_grad
    def two(first, second):
        pass

    with pytest.raises(
        TypeError, match=r"two\(\) missing 1 required positional argument: 'second'"
    ):
        two(1)
    assert grad_state() == GRAD
