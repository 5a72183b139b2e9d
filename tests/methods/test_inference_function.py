"""``inference_function``: predict functions, whatever kind they are and however they get a model."""

import asyncio
import collections
import functools
import inspect
import pickle
import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import gradguard
from gradguard import GradState, evaluating, grad_state, inference_function, inference_method
from gradguard._eval import modules_in_eval as _groups

OUTSIDE = (True, GradState(True, False))
INFERENCE = (False, GradState(False, True))
X = torch.ones(2, 3)


def net():
    return nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.BatchNorm1d(3).eval())


def seen(model):
    return model.training, grad_state()


def flags(*modules):
    return [part.training for module in modules for part in module.modules()]


@pytest.fixture(autouse=True)
def _nothing_left():
    yield
    assert not _groups.groups
    assert grad_state() == GradState(True, False)
    assert gradguard.guards() == ()


# Kinds of functions


@inference_function
def predict(model, x=None):
    """Predict."""
    return seen(model)


@inference_function
def stream(model, n):
    for _ in range(n):
        yield seen(model)


@inference_function
async def answer(model):
    before = seen(model)
    await asyncio.sleep(0)
    return before, seen(model)


@inference_function()
async def tokens(*, model, n):
    for _ in range(n):
        await asyncio.sleep(0)
        yield seen(model)


@inference_function(keep_eval=True)
def kept_stream(model, n):
    for _ in range(n):
        yield seen(model)


def test_a_call_is_in_eval_and_inference_mode():
    """By position and by keyword; afterwards each flag and the mode are as before."""
    model = net()
    before = flags(model)
    assert predict(model) == predict(model=model) == predict(x=X, model=model) == INFERENCE
    assert flags(model) == before
    assert seen(model) == OUTSIDE


def test_a_stream_gives_all_back_at_each_yield():
    """Generator functions run their body in eval mode, and their consumer never sees it."""
    model = net()
    for inside in stream(model, n=3):
        assert inside == INFERENCE
        assert seen(model) == OUTSIDE
    for inside in kept_stream(model, 2):
        assert inside == INFERENCE
        assert seen(model) == (False, GradState(True, False))
    assert seen(model) == OUTSIDE


def test_async_functions_and_generators():
    """At each ``await`` and ``yield`` everything is the others'; the body has its own again."""
    model = net()

    async def main():
        task = asyncio.create_task(answer(model=model))
        await asyncio.sleep(0)
        assert seen(model) == OUTSIDE
        assert await task == (INFERENCE, INFERENCE)
        async for inside in tokens(model=model, n=2):
            assert inside == INFERENCE
            assert seen(model) == OUTSIDE

    asyncio.run(main())
    assert seen(model) == OUTSIDE


def test_the_kind_the_signature_and_the_docstring_stay():
    """Introspection sees the function as it was written."""
    assert inspect.isgeneratorfunction(stream)
    assert inspect.iscoroutinefunction(answer)
    assert inspect.isasyncgenfunction(tokens)
    assert str(inspect.signature(predict)) == "(model, x=None)"
    assert predict.__doc__ == "Predict."
    assert pickle.loads(pickle.dumps(predict)) is predict  # noqa: S301 (its own bytes)


def test_methods_partials_and_callable_objects():
    """What has a module as ``self``, in a partial or in an argument works in the same way."""

    class Model(nn.Identity):
        @inference_function
        def predict(self):
            return seen(self)

        @inference_function
        @staticmethod
        def static(model):
            return seen(model)

        @inference_function
        @classmethod
        def of_class(cls, model):
            return seen(model)

        @inference_function
        @property
        def inside(self):
            return seen(self)

    class Caller:
        def __call__(self, model):
            return seen(model)

    model = Model()
    assert model.predict() == model.inside == INFERENCE
    assert Model.static(model) == model.of_class(model) == INFERENCE
    assert inference_function(functools.partial(predict, x=X))(model) == INFERENCE
    assert inference_function(Caller())(model) == INFERENCE
    assert seen(model) == OUTSIDE


def test_options():
    """``mode`` and ``autocast`` act as those of inference_method do."""

    @inference_function(mode="no_grad", autocast=torch.bfloat16)
    def run(x, model):
        return grad_state(), model(x).dtype

    assert run(X, net()) == (GradState(False, False), torch.bfloat16)


# Which modules


Pair = collections.namedtuple("Pair", "first second")  # noqa: PYI024 (a test of it)

SHAPES = {
    "list": lambda a, b: [[a, b]],
    "tuple": lambda a, b: [(3, (a, [b]))],
    "named tuple": lambda a, b: [Pair(a, b)],
    "dict": lambda a, b: [{"a": a, 3: {"b": b}}],
    "mapping": lambda a, b: [types.MappingProxyType({"a": a, "b": b})],
    "user dict": lambda a, b: [collections.UserDict(a=a, b=[b])],
    "two": lambda a, b: [a, b],
    "module list": lambda a, b: [nn.ModuleList([a, b])],
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("keyword", [False, True])
def test_every_module_among_the_arguments(shape, keyword):
    """Modules in lists, tuples and mappings, nested, count; others stay as they are."""
    one, two, other = net(), net(), net()

    @inference_function
    def run(*args, **kwargs):
        return flags(one, two), other.training

    arguments = SHAPES[shape](one, two)
    named = {f"a{at}": value for at, value in enumerate(arguments)}
    inside, others = run(**named) if keyword else run(*arguments)
    assert not any(inside)
    assert others
    assert flags(one, two) == flags(net(), net())


def test_a_list_that_holds_itself():
    """A cycle among the arguments is walked once."""
    model = net()
    models = [model]
    models.append(models)
    assert inference_function(lambda models: seen(models[0]))(models) == INFERENCE


def test_a_default_counts():
    """A module that is a parameter's default is put in eval mode, unless another is passed."""
    default, other = net(), net()

    @inference_function
    def run(x, model=default):
        return default.training, other.training

    @inference_function
    def run_some(x, *, models=(default,)):
        return default.training

    assert run(X) == (False, True)
    assert run(X, other) == run(X, model=other) == (True, False)
    assert run_some(X) is False


def test_modules_that_the_function_closes_over():
    """``modules=`` names modules; those among the arguments are then left alone."""
    one, two, other = net(), net(), net()

    @inference_function(modules=one)
    def run(x, model=None):
        return one.training, two.training, other.training

    @inference_function(modules=(one, two))
    def run_both(x):
        return one.training, two.training, other.training

    assert run(X) == run(X, other) == (False, True, True)
    assert run_both(X) == (False, False, True)
    assert flags(one, two, other) == flags(net(), net(), net())


class Holder:
    def __init__(self):
        self.model = net()
        self.name = "holder"


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("model", lambda run, model, other: run(other, model)),
        ("model", lambda run, model, other: run(model=model, teacher=other)),
        ("rest", lambda run, model, other: run(other, other, 3, [model])),
        ("only", lambda run, model, other: run(other, other, only={"a": model})),
        ("extra", lambda run, model, other: run(other, other, a=3, b=model)),
        ("a", lambda run, model, other: run(other, other, a=model)),
        ("default", lambda run, model, other: run(other, other)),
    ],
)
def test_strings_name_parameters(name, call):
    """A parameter of any kind may be named; what other parameters hold is left alone."""
    model, other, default = net(), net(), net()

    def function(teacher, model, *rest, only=None, default=default, **extra):
        return [m.training for m in (chosen, other)]

    chosen = default if name == "default" else model
    run = inference_function(function, modules=name)
    assert call(run, model, other) == [False, True]
    assert seen(chosen) == seen(other) == OUTSIDE


def test_dotted_paths_and_mixtures():
    """A path leads from a parameter to what it holds; modules and names may be mixed."""
    model, holder, other = net(), Holder(), net()

    @inference_function(modules=("pipe.model", model))
    def run(other, pipe):
        return holder.model.training, model.training, other.training

    assert run(other, holder) == run(pipe=holder, other=other) == (False, False, True)


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_whatever_holds_the_modules(data):
    """However modules are nested in what is passed, exactly these are in eval for the call."""
    modules = [nn.Dropout() for _ in range(6)]
    passed = data.draw(st.sets(st.sampled_from(range(6)), min_size=1))
    leaves = [modules[at] for at in sorted(passed)]
    while len(leaves) > 1:
        cut = data.draw(st.integers(1, len(leaves)))
        wrap = data.draw(st.sampled_from([list, tuple, lambda v: dict(enumerate(v)), Holding]))
        leaves = [wrap(leaves[:cut]), *leaves[cut:]]
        if cut == 1 and data.draw(st.booleans()):
            break
    at = data.draw(st.integers(0, len(leaves)))

    @inference_function
    def run(*args, **kwargs):
        return [module.training for module in modules]

    by_name = {f"k{number}": value for number, value in enumerate(leaves[at:])}
    assert run(*leaves[:at], 3, **by_name) == [at not in passed for at in range(6)]
    assert all(flags(*modules))


class Holding(collections.abc.Mapping):
    """A mapping of one's own, as configurations are."""

    def __init__(self, values):
        self.values_ = list(values)

    def __getitem__(self, at):
        return self.values_[at]

    def __iter__(self):
        return iter(range(len(self.values_)))

    def __len__(self):
        return len(self.values_)


def test_nested_with_evaluating_and_methods():
    """It may be called inside any other scope on the same model."""

    class Model(nn.Identity):
        @inference_method
        def outer(self):
            return predict(self)

    model = Model()
    assert model.outer() == INFERENCE
    with evaluating(model):
        assert predict(model) == INFERENCE
        assert not model.training
    assert model.training


# Bad input


@pytest.mark.parametrize(
    ("call", "parts"),
    [
        (lambda run: run(), ["no torch.nn.Module among the arguments of the call (none)"]),
        (lambda run: run(X, top=3), ["(x=Tensor, top=int)", "@inference_function(modules=model)"]),
        (lambda run: run(Holder()), ["(x=Holder)", '@inference_function(modules="x.model")']),
        (lambda run: run([1, 2], {"a": nn.Linear}), ["(x=list, top=dict)"]),
    ],
)
@pytest.mark.parametrize("kind", ["plain", "stream", "async"])
def test_no_module_among_the_arguments(call, parts, kind):
    """Nothing to put in eval mode is a TypeError that names the function and what to do."""

    def plain(x=None, top=None):
        raise NotImplementedError

    def stream(x=None, top=None):
        yield

    async def coroutine(x=None, top=None):
        raise NotImplementedError

    function = {"plain": plain, "stream": stream, "async": coroutine}[kind]
    with pytest.raises(TypeError) as caught:
        made = call(inference_function(function))
        made.send(None)
    for part in [f"inference_function on {function.__qualname__}", *parts]:
        assert part in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("options", "kind", "parts"),
    [
        ({"modules": 3}, TypeError, ["modules=3", "a torch.nn.Module, the name of a parameter"]),
        ({"modules": [nn.Identity()]}, TypeError, ["modules=[Identity()]", "a tuple of these"]),
        ({"modules": nn.Identity}, TypeError, ["of type type"]),
        ({"modules": ()}, ValueError, ["modules=()", "a tuple of these"]),
        ({"modules": "a..b"}, ValueError, ["modules='a..b'", "dotted path"]),
        ({"modules": "modle"}, ValueError, ["no parameter 'modle'", "Did you mean 'model'?"]),
        ({"modules": ("model", "y")}, ValueError, ["no parameter 'y'", "'model', 'x'"]),
        ({"mode": "inference"}, ValueError, ['"inference_mode" or "no_grad"', "Did you mean"]),
        ({"mode": True}, TypeError, ["mode=True"]),
        ({"keep_eval": 1}, TypeError, ["keep_eval=1", "True or False"]),
        ({"autocast": "bf16"}, TypeError, ["autocast='bf16'"]),
        ({"autocast": torch.int8}, ValueError, ["autocast=torch.int8"]),
    ],
)
def test_bad_options(options, kind, parts):
    """A bad option is refused where it decorates; the message names it and the good values."""
    with pytest.raises(kind) as caught:
        inference_function(**options)(lambda model, x: None)
    for part in ["inference_function(", *parts]:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("function", "parts"),
    [
        (nn.Linear, ["inference_function cannot decorate the class Linear"]),
        (nn.Identity(), ["not a module", "instance of Identity", "inference_method"]),
        ("predict", ["inference_function cannot decorate 'predict' of type str"]),
    ],
)
def test_what_cannot_be_decorated(function, parts):
    """What is no function is refused where it decorates, and what to decorate is named."""
    with pytest.raises(TypeError) as caught:
        inference_function(function)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("modules", "call", "parts"),
    [
        ("model", lambda run: run(3), ["'model' is of type int", "no list, tuple or mapping"]),
        ("model.net", lambda run: run(Holder()), ["Holder has no attribute 'net'", "'model'"]),
        ("model.name", lambda run: run(Holder()), ["'model.name' is of type str"]),
        ("model", lambda run: run(None), ["Assign the module before"]),
        ("model", lambda run: run(), ["missing a required argument: 'model'"]),
    ],
)
def test_a_named_module_that_is_none(modules, call, parts):
    """The error of the call names the parameter, the path and what was found there."""
    with pytest.raises(TypeError) as caught:
        call(inference_function(lambda model: None, modules=modules))
    for part in parts:
        assert part in str(caught.value)


def test_arguments_that_do_not_fit():
    """A call with too many arguments fails as that of the undecorated function does."""
    model = net()
    with pytest.raises(TypeError, match="takes from 1 to 2 positional arguments"):
        predict(model, 1, 2)
    assert seen(model) == OUTSIDE


@pytest.mark.parametrize(
    "call",
    [
        lambda run, model: run(X, model),
        lambda run, model: run(model=model, x=X),
        lambda run, model: run(),
    ],
)
def test_inference_method_points_here(call):
    """A plain function under inference_method, called so that it cannot work, is told what to use."""

    @inference_method
    def run(x, model):
        raise NotImplementedError

    with pytest.raises(TypeError, match=r"@gradguard\.inference_function"):
        call(run, net())


def test_inference_method_does_not_point_here_for_methods():
    """For a method the advice is to name the attribute."""

    class Service:
        @inference_method
        def run(self):
            raise NotImplementedError

    with pytest.raises(TypeError) as caught:
        Service().run()
    assert "inference_function" not in str(caught.value)


def test_public_names():
    """The decorators and evaluating say that they are gradguard's, and are pickled by that."""
    for name in ("evaluating", "inference_function", "inference_method", "training_method"):
        public = getattr(gradguard, name)
        assert public.__module__ == "gradguard"
        assert pickle.loads(pickle.dumps(public)) is public  # noqa: S301 (its own bytes)
