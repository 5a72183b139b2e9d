import asyncio
import inspect
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import nn

import gradguard
from gradguard import GradLeakError, GradModeError, GradState, grad_state, training_method


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.frozen = nn.BatchNorm1d(3).eval()

    @training_method
    def step(self, make=lambda loss: loss):
        """One step."""
        return make(self.layer(X).mean())

    @training_method()
    async def wait(self, make=lambda loss: loss):
        await asyncio.sleep(0)
        loss = make(self.layer(X).mean())
        await asyncio.sleep(0)
        return loss


class Trainer:
    def __init__(self):
        self.net = Net()
        self.critic = nn.Linear(3, 1)

    @training_method(module=("net", "critic"))
    def step(self):
        return self.net.layer(X).mean() + self.critic(X).mean()


class Output(NamedTuple):
    score: int
    loss: torch.Tensor


X = torch.ones(2, 3)
LOSSES = {
    "tensor": lambda loss: loss,
    "mapping": lambda loss: {"loss": loss, "n": 3},
    "attribute": lambda loss: SimpleNamespace(loss=loss),
    "tuple": lambda loss: (loss, 3),
    "named tuple": lambda loss: Output(3, loss),
    "None": lambda _: None,
}


@pytest.fixture
def net():
    return Net()


@pytest.fixture(params=["step", "wait"])
def call(request, net):
    """Run the plain method, or the async one to its end."""

    def run(*args):
        result = getattr(net, request.param)(*args)
        return asyncio.run(result) if request.param == "wait" else result

    run.function = f"Net.{request.param}"
    return run


def fails(run, *args, kind=GradModeError):
    """Run what must fail; nothing of it stays behind; return its text."""
    before = grad_state(), gradguard.guards()
    with pytest.raises(kind) as caught:
        run(*args)
    assert type(caught.value) is kind
    assert (grad_state(), gradguard.guards()) == before
    return str(caught.value)


# What is accepted


@pytest.mark.parametrize("form", LOSSES)
def test_losses(call, form):
    """Each form in which a loss may be returned is accepted, and handed on as it is."""
    made = []
    assert call(lambda loss: made.append(LOSSES[form](loss)) or made[0]) is made[0]


def test_the_kind_the_signature_and_the_docstring_stay():
    """Introspection sees the method as it was written."""
    assert inspect.iscoroutinefunction(Net.wait)
    assert not inspect.iscoroutinefunction(Net.step)
    assert list(inspect.signature(Net.step).parameters) == ["self", "make"]
    assert Net.step.__doc__ == "One step."


def test_a_frozen_submodule_is_no_failure(net):
    """Only the module itself must be in train mode."""
    assert not net.frozen.training
    assert net.step().requires_grad


def test_a_coroutine_that_a_plain_function_hands_back(net):
    """The checks on return are made when it returns."""

    @training_method
    def step(net, make):
        return Net.wait.__wrapped__.__wrapped__(net, make)

    assert asyncio.run(step(net, lambda loss: loss)).requires_grad
    text = fails(lambda: asyncio.run(step(net, torch.Tensor.detach)))
    assert "returned a loss without a graph" in text


def test_an_async_method_keeps_its_mode_to_itself(net):
    """What it switches while it runs is not seen outside while it waits."""

    async def main():
        task = asyncio.create_task(net.wait(sets_grad_off))
        for _ in range(2):
            await asyncio.sleep(0)
            assert grad_state() == GradState(True, False)
        with pytest.raises(GradLeakError):
            await task

    asyncio.run(main())


def test_what_others_do_meanwhile_is_not_its_doing(net):
    """A caller whose mode changes while an async method waits is not taken for a leak."""

    async def main():
        task = asyncio.create_task(net.wait())
        await asyncio.sleep(0)
        with torch.no_grad():
            return await task

    assert asyncio.run(main()).requires_grad


# On entry


def test_grad_off(call):
    """The message says so, names the block that turned it off, and what to do."""

    def validate():
        with torch.no_grad():
            return call()

    text = fails(validate)
    assert f"{call.function} was called with grad mode off" in text
    assert "its loss would have no graph" in text
    assert "torch.no_grad() entered at" in text
    assert "test_training_method.py" in text
    assert "To do: call it outside that block" in text
    assert "gradguard.enable_grad()" in text


def test_inference_mode_on(call, net):
    """Inference mode is told from no_grad, and a decorated caller is named."""

    @gradguard.inference_method
    def predict(net):
        return call()

    with torch.no_grad():
        text = fails(lambda: predict(net))
    assert f"{call.function} was called in inference mode" in text
    assert "gradguard.inference_mode(mode=True) decorates predict" in text
    assert "stay inference tensors" in text


def test_eval_mode(call, net):
    """A module that was put in eval mode by hand is named, and that no scope holds it."""
    net.eval()
    text = fails(call)
    assert f"{call.function} was called while its module (Net) is in eval mode" in text
    assert "dropout does not act" in text
    assert (
        "It was put in eval mode by .eval() or .train(False), by no open gradguard.evaluating"
        in text
    )
    assert "To do: call .train() on it" in text


def test_eval_mode_held_in_this_thread(call, net):
    """A scope around the call is named as this thread's."""

    def inside():
        with gradguard.evaluating(net):
            call()

    text = fails(inside)
    assert "An open gradguard.evaluating block, or a running call of inference_method" in text
    assert "(threads: this one)" in text


def test_eval_mode_held_in_another_thread(call, net):
    """The thread whose scope holds the module in eval mode is named, and what to do then."""
    opened, close = threading.Event(), threading.Event()

    def serve():
        with gradguard.evaluating(net):
            opened.set()
            close.wait()

    server = threading.Thread(target=serve, name="server-3")
    server.start()
    opened.wait()
    try:
        text = fails(call)
    finally:
        close.set()
        server.join()
    assert "(threads: 'server-3')" in text
    assert "train a copy (copy.deepcopy)" in text
    assert call() is not None


def test_each_named_module_must_be_in_train_mode():
    """With module= each of the named modules counts."""
    trainer = Trainer()
    assert trainer.step().requires_grad
    trainer.critic.eval()
    assert "Trainer.step was called while its module (Linear)" in fails(trainer.step)


def test_many_threads_in_one_method():
    """Eight threads in one decorated method, switched as often as can be: no check is mixed up."""
    switch_interval = sys.getswitchinterval()
    start = threading.Barrier(8)

    def work(number):
        net, wrong = Net(), 0
        start.wait()
        for at in range(50):
            leaks = (at + number) % 2
            try:
                net.step(sets_grad_off if leaks else LOSSES["tensor"])
                wrong += leaks
            except GradLeakError:
                wrong += not leaks
            wrong += grad_state() != GradState(True, False)
        return wrong

    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(work, range(8))) == 0
    finally:
        sys.setswitchinterval(switch_interval)


# On return: the mode


def sets_grad_off(loss):
    torch.set_grad_enabled(False)
    return loss


def leaves_a_guard_open(loss):
    gradguard.no_grad().__enter__()
    return loss


def leaves_inference_mode_on(loss):
    guard = torch.inference_mode()
    guard.__enter__()
    loss.kept = guard  # dropping it would end it
    return loss


@pytest.mark.parametrize(
    ("leak", "text"),
    [
        (sets_grad_off, "left grad mode off; it was on"),
        (leaves_a_guard_open, "Guards entered and never exited: no_grad()"),
        (leaves_inference_mode_on, "left inference mode on; it was off"),
    ],
)
def test_mode_changed(call, leak, text):
    """A method that leaves the mode changed is named, and the mode is put back."""
    found = fails(call, leak, kind=GradLeakError)
    assert text in found
    assert f"{call.function}()" in found
    assert "put back" in found
    assert "To do:" in found


def test_mode_changed_comes_before_the_loss(call):
    """Where the method turned grad off and so lost the graph, the cause is what is reported."""
    found = fails(call, lambda loss: sets_grad_off(loss) * 2, kind=GradLeakError)
    assert "left grad mode off" in found


def test_an_exception_of_the_method_is_not_hidden(call):
    """It comes out itself, with the mode put back and named in a note."""

    def fail(loss):
        raise KeyError(sets_grad_off(loss))

    with pytest.raises(KeyError) as caught:
        call(fail)
    assert grad_state() == GradState(True, False)
    (note,) = caught.value.__notes__
    assert "left grad mode off" in note


# On return: the loss


def in_inference_mode(loss):
    with torch.inference_mode():
        return loss * 1


@pytest.mark.parametrize("form", ["tensor", "mapping", "attribute", "tuple"])
@pytest.mark.parametrize(
    ("cut", "cause"),
    [
        (torch.Tensor.detach, ["Usual causes", ".detach()", "look for these between"]),
        (lambda loss: loss.detach().requires_grad_(), ["It is a leaf", "by hand", "remove"]),
        (in_inference_mode, ["It is an inference tensor", "look for inference_mode"]),
    ],
)
def test_not_connected(call, form, cut, cause):
    """A loss without a graph is named by where it is, and its cause as far as it can be seen."""
    text = fails(call, lambda loss: LOSSES[form](cut(loss)))
    assert f"{call.function} returned a loss without a graph" in text
    assert "backward() reaches no parameter" in text
    assert {"tensor": "the returned tensor", "mapping": "'loss' of the returned dict"}.get(
        form, f"the {form if form == 'attribute' else 'first element'}"
    ) in text
    assert all(part in text for part in cause)


def test_nothing_to_train(call, net):
    """Where every parameter is frozen the message says that."""
    net.requires_grad_(False)
    text = fails(call)
    assert "No parameter of Net has requires_grad True." in text
    assert "To do: unfreeze" in text


@pytest.mark.parametrize(
    ("made", "parts"),
    [
        (lambda loss: loss.item(), ["the returned value is", "of type float", "without .item()"]),
        (lambda loss: {"los": loss}, ["the returned value is {'los'", "of type dict"]),
        (lambda loss: {"loss": 3}, ["the 'loss' of the returned dict is 3, of type int"]),
        (
            lambda loss: SimpleNamespace(loss=None),
            ["attribute loss of the returned SimpleNamespace is None"],
        ),
        (lambda loss: (3, loss), ["the first element of the returned tuple is 3"]),
        (lambda loss: (), ["the returned value is ()"]),
    ],
)
def test_no_loss(call, made, parts):
    """Without anything that looks like a loss the message says what was returned and what may be."""
    text = fails(call, made)
    assert f"{call.function} returned no loss" in text
    assert 'a mapping with a tensor "loss"' in text
    assert "To do: return the" in text
    assert all(part in text for part in parts)


# What is decorated


def generator(self):
    yield


async def async_generator(self):
    yield


@pytest.mark.parametrize(
    ("method", "part"),
    [
        (generator, "generator, a generator function: it returns no loss"),
        (async_generator, "async_generator, a generator function: it returns no loss"),
        (property(generator), "a property object. Put it below: @property first"),
        (classmethod(generator), "a classmethod object. Put it below: @classmethod first"),
        (staticmethod(generator), "a staticmethod object. Put it below: @staticmethod first"),
        (Net, "training_method cannot decorate the class Net"),
        (nn.Identity(), "training_method decorates a method, not a module"),
        ("net", "training_method cannot decorate 'net' of type str"),
    ],
)
def test_what_cannot_be_decorated(method, part):
    """What is no method with a return value is refused where it decorates."""
    with pytest.raises(TypeError) as caught:
        training_method(method)
    assert part in str(caught.value)


def test_bad_module():
    """A bad module= is refused where it decorates, a missing one in the call."""
    with pytest.raises(TypeError, match=r"training_method\(module=3\)"):
        training_method(module=3)(generator.__call__)
    with pytest.raises(TypeError, match=r"training_method\(module='nett'\).*Did you mean 'net'\?"):
        training_method(Trainer.step.__wrapped__, module="nett")(Trainer())


# Compiling and transforms


def test_nothing_happens_while_dynamo_compiles(net):
    """A compiled step has no graph break and no checks."""
    torch._dynamo.reset()
    step = torch.compile(lambda: net.step() * 2, backend="eager", fullgraph=True)
    net.eval()
    loss = step()
    loss.backward()
    assert net.layer.weight.grad is not None


def test_a_functional_transform(net):
    """Under torch.func.grad the loss counts as connected."""

    class Model(nn.Linear):
        @training_method
        def forward(self, x):
            return super().forward(x).sum()

    model = Model(3, 1)
    weights = {name: p.detach() for name, p in model.named_parameters()}
    found = torch.func.grad(lambda w: torch.func.functional_call(model, w, (X,)))(weights)
    assert found["bias"].item() == 2


def test_a_left_mode_is_said_in_its_own_name():
    """A mode that the method leaves switched is reported by training_method, and put back."""

    class Net(nn.Module):
        @training_method
        def step(self):
            torch.set_grad_enabled(False)

    with pytest.raises(GradLeakError, match=r"training_method: .*Net\.step\(\) left grad mode off"):
        Net().step()
    assert torch.is_grad_enabled()
