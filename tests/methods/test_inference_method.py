import asyncio
import copy
import gc
import inspect
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gradguard import GradState, grad_state, guards, inference_method, no_grad
from gradguard._eval import modules_in_eval as _groups
from gradguard._methods.attributes import modules_of_holder

OUTSIDE = (True, True, GradState(True, False), False)
INFERENCE = (False, False, GradState(False, True), False)
CAST = (False, False, GradState(False, True), torch.bfloat16)


def seen(net):
    """What a body runs under: the flags of a module and its submodule, the mode and autocast."""
    on = torch.is_autocast_enabled("cpu")
    return net.training, net[0].training, grad_state(), on and torch.get_autocast_dtype("cpu")


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Dropout(0.5), nn.Linear(3, 3), nn.BatchNorm1d(3).eval())

    @inference_method
    def predict(self, x):
        """Predict."""
        return seen(self), self(x)

    @inference_method()
    def stream(self, n):
        for _ in range(n):
            got = yield seen(self)
            assert got is None or got == "sent"
        return "done"

    @inference_method
    async def answer(self):
        before = seen(self)
        await asyncio.sleep(0)
        return before, seen(self)

    @inference_method
    async def tokens(self, n):
        for _ in range(n):
            await asyncio.sleep(0)
            yield seen(self)

    @inference_method(keep_eval=True)
    def held_stream(self, n):
        for _ in range(n):
            yield seen(self)

    @inference_method(keep_eval=True)
    async def held_answer(self, event):
        await event.wait()
        return seen(self)

    @inference_method(keep_eval=True)
    async def held_tokens(self, n):
        for _ in range(n):
            yield seen(self)

    @inference_method(autocast=torch.bfloat16)
    def cast(self, x):
        return seen(self), self(x)

    @inference_method(autocast=torch.bfloat16)
    def cast_stream(self):
        yield seen(self)
        with torch.autocast("cpu", torch.float16):
            yield seen(self)
            with torch.autocast("cpu", enabled=False):
                yield seen(self)
                yield seen(self)
            yield seen(self)
        yield seen(self)

    @inference_method(autocast=torch.bfloat16)
    async def cast_answer(self):
        await asyncio.sleep(0)
        return seen(self)


class Service:
    def __init__(self, net=None):
        self.net = net or Net()
        self.other = nn.Dropout()
        self.count = 3
        self.empty = None
        self.listed = [nn.Identity()]
        self.kind = nn.Identity

    @inference_method(module="net")
    def predict(self):
        return seen(self.net), self.other.training

    @inference_method(module=("other", "net.0"))
    def several(self):
        return seen(self.net), self.other.training

    @inference_method
    def bare(self):
        raise NotImplementedError


X = torch.ones(2, 3)


@pytest.fixture(autouse=True)
def _nothing_kept():
    yield
    assert not _groups.groups
    assert guards() == ()
    assert grad_state() == GradState(True, False)
    assert not torch.is_autocast_enabled("cpu")


@pytest.fixture
def net():
    return Net()


def flags(module):
    return [part.training for part in module.modules()]


# The four kinds of method


def test_a_call_is_in_eval_and_inference_mode(net):
    """For the call all is in eval and inference mode; afterwards each flag is its own again."""
    before = flags(net)
    inside, result = net.predict(X)
    assert inside == INFERENCE
    assert result.is_inference()
    assert seen(net) == OUTSIDE
    assert flags(net) == before
    assert not net[2].training


def test_mode_no_grad():
    """With mode="no_grad" nothing is recorded, and the result is no inference tensor."""

    @inference_method(mode="no_grad")
    def predict(net):
        return seen(net), net(X)

    inside, result = predict(Net())
    assert inside == (False, False, GradState(False, False), False)
    assert not result.requires_grad
    assert not result.is_inference()


def test_an_exception_passes_and_all_comes_back(net):
    """What the method raises comes out as it is, and flags and mode are those from before."""

    @inference_method(autocast=torch.bfloat16)
    def predict(net):
        raise KeyError(seen(net))

    with pytest.raises(KeyError) as caught:
        predict(net)
    assert caught.value.args == (CAST,)
    assert seen(net) == OUTSIDE


def test_a_generator_gives_all_back_at_each_yield(net):
    """The body has eval and inference mode, its consumer never sees them."""
    stream = net.stream(3)
    assert seen(net) == OUTSIDE
    assert next(stream) == INFERENCE
    assert seen(net) == OUTSIDE
    with no_grad():
        assert stream.send("sent") == INFERENCE
        assert seen(net)[2] == GradState(False, False)
    net.eval()
    assert next(stream) == INFERENCE
    assert not any(flags(net))
    with pytest.raises(StopIteration) as stop:
        next(stream)
    assert stop.value.value == "done"
    assert not any(flags(net))


def test_a_generator_that_is_closed_or_thrown_into(net):
    """close() and throw() reach the body under eval mode, and all is given back."""
    ends = []

    @inference_method
    def stream(net):
        try:
            yield 1
        except KeyError:
            yield seen(net)
        finally:
            ends.append(seen(net))

    closed, thrown = stream(net), stream(net)
    next(closed)
    next(thrown)
    closed.close()
    assert ends == [INFERENCE]
    assert thrown.throw(KeyError()) == INFERENCE
    assert seen(net) == OUTSIDE
    thrown.close()
    assert ends == [INFERENCE] * 2
    assert seen(net) == OUTSIDE


def test_async_methods_give_all_back_at_each_await(net):
    """Other tasks run in their own mode, on a module in train mode, while a method waits."""

    async def others():
        found = []
        for _ in range(4):
            found.append(seen(net))
            await asyncio.sleep(0)
        return found

    async def main():
        (before, after), found = await asyncio.gather(net.answer(), others())
        assert before == after == INFERENCE
        assert found == [OUTSIDE] * 4

    asyncio.run(main())


def test_async_generators(net):
    """The body of an async generator has eval and inference mode, its consumer never sees them."""

    async def main():
        found = []
        async for inside in net.tokens(3):
            found.append(inside)
            assert seen(net) == OUTSIDE
        assert found == [INFERENCE] * 3

    asyncio.run(main())


def test_overlapping_streams(net):
    """Streams of one module, stepped in turns and ended in any order, each stay right."""
    first, second = net.stream(3), net.held_stream(3)
    next(first)
    next(second)
    assert [next(first), next(second)] == [INFERENCE] * 2
    assert not net.training
    first.close()
    assert not net.training
    second.close()
    assert seen(net) == OUTSIDE


def test_what_a_plain_function_hands_back_is_covered(net):
    """A plain method that returns a generator runs its body in eval mode, too."""

    @inference_method(autocast=torch.bfloat16)
    def stream(net):
        return (seen(net) for _ in range(2))

    assert list(stream(net)) == [CAST] * 2
    assert seen(net) == OUTSIDE


# Holding eval mode while suspended


def test_keep_eval_keeps_eval_while_suspended(net):
    """Between steps the module stays in eval mode, the mode is the consumer's; the end frees it."""
    stream = net.held_stream(2)
    assert net.training
    for inside in stream:
        assert inside == INFERENCE
        assert seen(net) == (False, False, GradState(True, False), False)
    assert seen(net) == OUTSIDE


@pytest.mark.parametrize("end", ["close", "throw", "drop"])
def test_keep_eval_ends_with_the_generator(net, end):
    """close(), throw() and dropping the last reference free the module."""
    stream = net.held_stream(2)
    next(stream)
    assert not net.training
    if end == "close":
        stream.close()
    elif end == "throw":
        with pytest.raises(KeyError):
            stream.throw(KeyError())
    del stream
    gc.collect()
    assert seen(net) == OUTSIDE


def test_keep_eval_over_await(net):
    """An async method keeps eval mode while it waits, and frees it on cancellation."""

    async def main():
        event = asyncio.Event()
        tasks = [asyncio.create_task(net.held_answer(event)) for _ in range(2)]
        await asyncio.sleep(0)
        assert not net.training
        tasks[0].cancel()
        await asyncio.sleep(0)
        assert not net.training
        event.set()
        assert await tasks[1] == INFERENCE
        assert seen(net) == OUTSIDE

    asyncio.run(main())


def test_keep_eval_ends_with_an_async_generator(net):
    """aclose(), and dropping it in a running loop, free the module."""

    async def main():
        tokens = net.held_tokens(2)
        assert await anext(tokens) == INFERENCE
        assert not net.training
        await tokens.aclose()
        assert net.training
        tokens = net.held_tokens(2)
        await anext(tokens)
        del tokens
        await asyncio.sleep(0.01)
        assert net.training

    asyncio.run(main())


def test_keep_eval_ends_where_nothing_can_close_the_body(net):
    """An async generator whose loop was closed under it never ends: its being freed ends the hold."""

    async def begin():
        tokens = net.held_tokens(2)
        await anext(tokens)
        return tokens

    loop = asyncio.new_event_loop()
    tokens = loop.run_until_complete(begin())
    loop.close()
    assert not net.training
    del tokens
    gc.collect()
    assert net.training


# autocast


def test_autocast(net):
    """Operations are computed in the given type for the call alone."""
    inside, result = net.cast(X)
    assert inside == CAST
    assert result.is_inference()
    assert net[1](X).dtype == torch.float32

    @inference_method(autocast=torch.float16, mode="no_grad")
    def predict(net):
        return net[1](X).dtype

    assert predict(net) == torch.float16


def test_autocast_comes_and_goes_with_a_generator(net):
    """At each yield autocast is the consumer's; what the body had switched comes again on resume."""
    kinds = []
    for inside in net.cast_stream():
        kinds.append(inside[3])
        assert seen(net) == OUTSIDE
    assert kinds == [torch.bfloat16, torch.float16, False, False, torch.float16, torch.bfloat16]


def test_autocast_of_the_consumer_comes_back(net):
    """A consumer with an autocast of its own has that between the steps."""
    stream = net.cast_stream()
    with torch.autocast("cpu", torch.float16):
        assert next(stream)[3] == torch.bfloat16
        assert seen(net)[3] == torch.float16
        next(stream)
    assert next(stream)[3] is False


def test_autocast_over_await(net):
    """An async method has autocast when it is resumed, and others do not meanwhile."""

    async def main():
        task = asyncio.create_task(net.cast_answer())
        await asyncio.sleep(0)
        assert seen(net) == OUTSIDE
        assert await task == CAST

    asyncio.run(main())


def test_autocast_is_for_the_device_of_the_module(monkeypatch):
    """The device is that of the first parameter or buffer; a module without any counts as CPU."""
    devices = []

    class Spy(torch.autocast):
        def __init__(self, device, dtype, enabled):
            devices.append(device)
            super().__init__("cpu", dtype, enabled)

    monkeypatch.setattr(torch, "autocast", Spy)

    @inference_method(autocast=torch.bfloat16)
    def predict(net):
        pass

    predict(nn.Linear(1, 1, device="meta"))
    predict(nn.BatchNorm1d(1, affine=False, device="meta"))
    predict(nn.Identity())
    assert devices == ["meta", "meta", "cpu"]


# Which module


def test_a_holder_names_its_module():
    """With module= the named module alone is put in eval mode."""
    service = Service()
    assert service.predict() == (INFERENCE, True)
    assert seen(service.net) == OUTSIDE


def test_several_modules_and_dotted_paths():
    """A tuple names several modules, a dotted path one further in."""
    service = Service()
    (root, dropout, mode, _), other = service.several()
    assert (root, dropout, other) == (True, False, False)
    assert mode == GradState(False, True)
    assert seen(service.net) == OUTSIDE
    assert service.other.training


class Wrapper(nn.Module):
    """A wrapper as DistributedDataParallel is: the module is its attribute `module`."""

    def __init__(self, module):
        super().__init__()
        self.module = module


def test_a_wrapped_module():
    """A module behind a DistributedDataParallel-style wrapper or torch.compile is put in eval."""
    for wrap in (Wrapper, lambda net: torch.compile(net, backend="eager")):
        net = Net()
        service = Service(net)
        service.net = wrap(net)

        @inference_method(module="net")
        def predict(service, net=net):
            return seen(net)

        assert predict(service) == INFERENCE
        assert seen(net) == OUTSIDE


def test_a_method_called_on_a_compiled_module(net):
    """The wrapper of torch.compile passes the call on to the module, which is put in eval."""
    assert torch.compile(net, backend="eager").predict(X)[0] == INFERENCE
    assert seen(net) == OUTSIDE


def test_copies_have_their_own_module():
    """A deepcopy or a pickle of the object uses its own module, not the first one's."""
    service = Service()
    for twin in (copy.deepcopy(service), pickle.loads(pickle.dumps(service))):  # noqa: S301 (its own bytes)
        service.net.train()
        assert twin.predict() == (INFERENCE, True)
        service.net.eval()
        assert twin.predict() == (INFERENCE, True)
        assert seen(twin.net) == OUTSIDE


def test_the_module_is_looked_up_in_each_call():
    """A module that is assigned anew is the one that counts."""
    service = Service()
    service.predict()
    service.net = Net()
    assert service.predict() == (INFERENCE, True)


# What is decorated


def test_the_kind_the_signature_and_the_docstring_stay():
    """Introspection sees the method as it was written."""
    assert inspect.isgeneratorfunction(Net.stream)
    assert inspect.iscoroutinefunction(Net.answer)
    assert inspect.isasyncgenfunction(Net.tokens)
    assert list(inspect.signature(Net.predict).parameters) == ["self", "x"]
    assert Net.predict.__doc__ == "Predict."
    assert Net.predict.__qualname__ == "Net.predict"


def test_properties_and_class_and_static_methods():
    """The first argument is what counts: the object, the class, or whatever is passed."""

    class Model(Net):
        shared = Net()

        @inference_method
        @property
        def inside(self):
            return seen(self)

        @property
        @inference_method
        def below(self):
            return seen(self)

        @inference_method(module="shared")
        @classmethod
        def of_class(cls):
            return seen(cls.shared)

        @inference_method
        @staticmethod
        def static(net):
            return seen(net)

    model = Model()
    assert model.inside == model.below == INFERENCE
    assert Model.of_class() == model.of_class() == INFERENCE
    assert model.static(model) == INFERENCE
    assert seen(model) == seen(Model.shared) == OUTSIDE


def test_nested_calls(net):
    """A decorated method may call another, or itself."""

    @inference_method(mode="no_grad")
    def outer(net, depth):
        inner = net.predict(X)[0] if depth == 0 else outer(net, depth - 1)
        return inner if seen(net)[:2] == (False, False) else None

    assert outer(net, 2) == INFERENCE
    assert seen(net) == OUTSIDE


def test_train_is_overridden_outside_the_guard():
    """A module's own train() runs outside inference mode: what it assigns stays an ordinary tensor."""

    class Merging(nn.Linear):
        def train(self, mode=True):
            self.merged = None if mode else self.weight * 2
            return super().train(mode)

        @inference_method
        def predict(self):
            return self.merged.is_inference(), self.merged.requires_grad

    assert Merging(1, 1).predict() == (False, True)


# Compiling


def compiled(fn):
    torch._dynamo.reset()
    return torch.compile(fn, backend="eager", fullgraph=True)


def test_dynamo_follows_guard_and_autocast():
    """In eval mode already, a compiled function has no graph break; guard and autocast act."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        @inference_method(mode="no_grad")
        def predict(self, x):
            return self.layer(x), self.training

        @inference_method(autocast=torch.bfloat16, keep_eval=True, module=("layer",))
        def cast(self, x):
            return self.layer(x)

    model = Model().eval()
    (result, training), cast, plain = compiled(
        lambda x: (model.predict(x), model.cast(x), model.layer(x))
    )(X)
    assert torch.equal(result, plain)
    assert not result.requires_grad
    assert not training
    assert plain.requires_grad
    assert cast.is_inference()
    assert cast.dtype == torch.bfloat16
    assert compiled(model.cast)(X).dtype == torch.bfloat16


def test_modules_with_decorated_methods_can_be_scripted(net):
    """torch.jit.script takes a module with decorated methods, also when forward is one."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        @inference_method
        def forward(self, x):
            return self.layer(x)

        @inference_method
        def predict(self, x):
            return self.layer(x)

    model = Model()
    scripted = torch.jit.script(model)
    assert torch.equal(scripted(X), model(X))


# Threads


def test_many_threads_on_one_training_module():
    """Of thousands of predictions in 8 threads none is made in train mode; the flags come back."""
    net = Net()
    reference = net.predict(X)[1]
    before = flags(net)

    def serve(_):
        return sum(
            inside == INFERENCE and torch.equal(result, reference)
            for inside, result in (net.predict(X) for _ in range(1000))
        )

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(serve, range(8))) == [1000] * 8
    assert flags(net) == before


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["step", "close"])), max_size=30))
def test_whatever_the_order_of_steps(steps):
    """Streams stepped and closed in any order, holding or not, leave all as it was."""
    net = Net()
    before = flags(net)
    streams = [net.stream(3), net.held_stream(3), net.cast_stream(), net.held_stream(2)]
    for number, what in steps:
        if what == "close":
            streams[number].close()
        else:
            inside = next(streams[number], INFERENCE)
            assert inside[:3] == INFERENCE[:3]
        assert grad_state() == GradState(True, False)
        assert not torch.is_autocast_enabled("cpu")
    for stream in streams:
        stream.close()
    assert flags(net) == before


def test_a_stream_may_move_to_another_thread(net):
    """A stream begun here and ended in another thread leaves both, and the flags, as they were."""
    for stream in (net.held_stream(2), net.cast_stream()):
        assert next(stream)[:3] == INFERENCE[:3]
        thread = threading.Thread(target=stream.close)
        thread.start()
        thread.join()
        assert seen(net) == OUTSIDE


# Bad input


@pytest.mark.parametrize(
    ("options", "kind", "parts"),
    [
        (
            {"mode": "nograd"},
            ValueError,
            ["mode='nograd'", '"inference_mode" or "no_grad"', 'Did you mean "no_grad"?'],
        ),
        ({"mode": 3}, TypeError, ["mode=3", '"inference_mode" or "no_grad"', "not 3 of type int"]),
        (
            {"autocast": "bf16"},
            TypeError,
            ["autocast='bf16'", "torch.bfloat16, torch.float16 or None", "'bf16' of type str"],
        ),
        (
            {"autocast": torch.int8},
            ValueError,
            ["autocast=torch.int8", "torch.bfloat16, torch.float16"],
        ),
        ({"keep_eval": "yes"}, TypeError, ["keep_eval='yes'", "True or False"]),
        ({"module": 3}, TypeError, ["module=3", "name of an attribute", "not 3 of type int"]),
        ({"module": ["net"]}, TypeError, ["module=['net']", "a tuple of these"]),
        ({"module": ("net", 3)}, TypeError, ["module=('net', 3)", "a tuple of these"]),
        ({"module": "net..x"}, ValueError, ["module='net..x'", "dotted path"]),
        ({"module": ()}, ValueError, ["module=()", "a tuple of these"]),
    ],
)
def test_bad_options(options, kind, parts):
    """A bad option is refused where it decorates; the message names it and the good values."""
    with pytest.raises(kind) as caught:
        inference_method(**options)(Net.forward)
    for part in ["inference_method(", *parts]:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("method", "parts"),
    [
        (Net, ["cannot decorate the class Net", "Decorate the methods", "inference_method"]),
        (nn.Identity(), ["not a module", "instance of Identity", 'module="net"']),
        ("net", ["cannot decorate 'net' of type str", "above a method", 'module="net"']),
        (classmethod(seen), ["seen, a classmethod", 'module="net"', "an ordinary method"]),
    ],
)
def test_what_cannot_be_decorated(method, parts):
    """What is not a method is refused where it decorates, and what to decorate is named."""
    with pytest.raises(TypeError) as caught:
        inference_method(method)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("module", "parts"),
    [
        (
            "nett",
            [
                "module='nett'",
                "on look:",
                "Service has no attribute 'nett'",
                "Did you mean 'net'?",
                "modules: 'net', 'other'",
            ],
        ),
        (
            "net.00",
            [
                "Net (at 'net') has no attribute '00'",
                "Did you mean '0'?",
                "of Net that are modules: '0', '1', '2'",
            ],
        ),
        (
            ("other", "zzz"),
            ["module=('other', 'zzz')", "no attribute 'zzz'. Attributes of Service"],
        ),
        ("coun", ["no attribute 'coun'. Did you mean 'count'?"]),
        (
            "count",
            ["Service: its 'count' is 3, of type int, not a torch.nn.Module", "Name the attribute"],
        ),
        ("empty", ["'empty' is None", "Assign the module before"]),
        ("listed", ["'listed' is [Identity()], of type list", "torch.nn.ModuleList"]),
        ("kind", ["'kind' is <class", "assign an instance"]),
        ("net.training", ["Net (at 'net'): its 'training' is True"]),
    ],
)
def test_a_module_that_cannot_be_found(module, parts):
    """The error of the call names the attribute, the object, close matches and its modules."""

    def look(self):
        raise NotImplementedError

    look.__qualname__ = "look"
    with pytest.raises(TypeError) as caught:
        inference_method(look, module=module)(Service())
    for part in ["inference_method(module=", *parts]:
        assert part in str(caught.value)


def test_an_attribute_that_fails_is_the_cause():
    """What a property raised on the way is kept as the cause."""

    class Broken:
        @property
        def net(self):
            return self.missing

        @inference_method(module="net")
        def predict(self):
            raise NotImplementedError

    with pytest.raises(TypeError, match="no attribute 'net'") as caught:
        Broken().predict()
    assert "missing" in str(caught.value.__cause__)


def test_a_holder_without_module():
    """The error names the method, its object and the modules that it holds."""
    with pytest.raises(TypeError) as caught:
        Service().bare()
    text = str(caught.value)
    assert "inference_method on Service.bare: Service is not a torch.nn.Module" in text
    assert '@inference_method(module="net")' in text
    assert "Attributes of Service that are modules: 'net', 'other'." in text
    with pytest.raises(TypeError, match=r"the class Service is not .* that are modules: none\."):
        Service.bare(Service)


def test_many_modules_are_cut_short():
    """At most ten good names are listed."""
    zoo = nn.ModuleDict({f"net{i}": nn.Identity() for i in range(12)})
    text = modules_of_holder(zoo)
    assert "Attributes of ModuleDict that are modules: 'net0', " in text
    assert "'net9', …" in text
    assert "net10" not in text


def test_a_call_without_arguments():
    """A call without self says so, instead of failing inside."""
    with pytest.raises(TypeError) as caught:
        Service.predict()
    assert "Service.predict() was called without a positional argument" in str(caught.value)
    assert "object.method(...)" in str(caught.value)


@pytest.mark.parametrize("method", ["stream", "tokens", "answer"])
def test_a_suspended_body_says_so_at_its_first_step(method):
    """Generators and coroutines raise the same error when they are first run."""
    made = getattr(Net, method)(*([3, 1] if method != "answer" else [3]))
    step = made.__anext__() if method == "tokens" else made
    with pytest.raises(TypeError, match=r"int is not a torch\.nn\.Module"):
        step.send(None)
