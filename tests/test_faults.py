"""A gallery of faults: how grad modes break training and serving, and what catches each.

Each test is the smallest program that fails *silently* with stock torch, modelled on a public issue
where one is named, and then the line of gradguard that catches it or makes it right.
"""

import asyncio
import contextlib
import copy
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import gradguard
from gradguard import GradLeakError, GradModeError, GradModeWarning

# What is left switched is what these tests are about; a fixture puts it back.
pytestmark = pytest.mark.leaks_grad_mode(reason="it is about what is left")


@pytest.fixture(autouse=True)
def mode():
    """Faults leave modes switched; the next test must not suffer from it."""
    yield
    torch.set_grad_enabled(True)


def make(model=None):
    torch.manual_seed(0)
    model = model or nn.Linear(3, 1)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def snapshot(model):
    return copy.deepcopy(model.state_dict())


def unchanged(model, before):
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def train(model, optimizer, steps=3):
    """A loop that, as many AMP and accumulation loops do, goes on where a loss has no graph."""
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(torch.ones(4, 3)).mean()
        if loss.requires_grad:
            loss.backward()
        optimizer.step()


def validate_and_forget(model):
    torch.set_grad_enabled(False)
    return model(torch.ones(4, 3)).mean().item()


def test_01_validation_leaves_grad_off():
    """A validation function switches grad off and never on again: the weights stand still."""
    model, optimizer = make()
    validate_and_forget(model)
    before = snapshot(model)
    train(model, optimizer)
    assert unchanged(model, before)

    with pytest.raises(GradModeError, match="grad mode is off"):
        gradguard.assert_grad_enabled()
    torch.set_grad_enabled(True)
    with pytest.raises(GradLeakError, match="validate_and_forget"):
        gradguard.leak_check()(validate_and_forget)(model)


def test_02_step_without_gradients():
    """optimizer.step() with every grad None does nothing, silently."""
    model, optimizer = make()
    before = snapshot(model)
    optimizer.step()
    assert unchanged(model, before)

    with (
        gradguard.watch_training(model, optimizer),
        pytest.raises(GradModeError, match="none of its 2 trainable parameters"),
    ):
        for _ in range(3):  # a first step alone may be a scheduler's
            model(torch.ones(1, 3)).sum().backward()
            optimizer.zero_grad()
            optimizer.step()


def test_03_lazy_layer_born_in_inference_mode():
    """A shape check in inference mode makes LazyLinear's weight an inference tensor."""
    model = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 1))
    with torch.inference_mode():
        model(torch.ones(1, 3))
    model, optimizer = make(model)
    model(torch.ones(1, 3)).sum().backward()
    assert model[0].weight.requires_grad
    assert model[0].weight.grad is None

    with pytest.raises(GradModeError, match=r"created in inference mode(.|\n)*0\.weight"):
        gradguard.assert_trainable(model)
    with (
        gradguard.watch_training(model, optimizer),
        pytest.raises(GradModeError, match="reated in inference mode"),
    ):
        optimizer.step()


def test_04_model_copied_in_inference_mode():
    """roboflow/rf-detr PR 559: predict() under inference_mode makes the copy that is trained."""
    with torch.inference_mode():
        model = copy.deepcopy(nn.Linear(3, 1))
    model(torch.ones(1, 3)).sum().backward()
    assert model.weight.grad is None

    with pytest.raises(GradModeError, match="Created in inference mode"):
        gradguard.assert_gradients(model)


def test_05_checkpoint_assigned_in_inference_mode():
    """load_state_dict(assign=True) inside inference mode makes the weights inference tensors."""
    model, _ = make()
    with torch.inference_mode():
        state = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(state, assign=True)
    model(torch.ones(1, 3)).sum().backward()
    assert model.weight.grad is None

    with pytest.raises(GradModeError, match="cannot be trained as asked"):
        gradguard.assert_trainable(model)


def test_06_decorator_on_async_def():
    """@torch.no_grad() on a coroutine function does nothing."""

    async def answer():
        return torch.is_grad_enabled()

    assert asyncio.run(torch.no_grad()(answer)()) is True
    assert asyncio.run(gradguard.no_grad()(answer)()) is False


def test_07_async_handlers_share_one_mode():
    """`with no_grad(): await` in one task turns grad off in every other task of the loop."""

    async def handler():
        with torch.no_grad():
            await asyncio.sleep(0.01)

    async def trainer():
        await asyncio.sleep(0.005)
        return torch.is_grad_enabled()

    async def main(isolate):
        if isolate:
            gradguard.isolate_tasks()
        return (await asyncio.gather(handler(), trainer()))[1]

    assert asyncio.run(main(isolate=False)) is False
    assert asyncio.run(main(isolate=True)) is True


def test_08_overlapping_tasks_leave_the_thread_grad_off():
    """Two tasks whose no_grad blocks overlap: the last one out leaves grad off for good."""

    async def handler(start, end, guard):
        await asyncio.sleep(start)
        with guard():
            await asyncio.sleep(end)

    async def main(guard):
        await asyncio.gather(handler(0, 0.01, guard), handler(0.005, 0.01, guard))

    asyncio.run(main(torch.no_grad))
    assert not torch.is_grad_enabled()
    torch.set_grad_enabled(True)
    with pytest.warns(GradModeWarning, match="was exited while"):
        asyncio.run(main(gradguard.no_grad))
    assert torch.is_grad_enabled()


def test_09_generator_leaks_its_mode_to_the_consumer():
    """pytorch 31497 and PR 49017: `with no_grad(): yield` leaves the consumer grad-off."""

    def batches():
        with torch.no_grad():
            yield 1

    steps = batches()
    next(steps)
    assert not torch.is_grad_enabled()
    steps.close()

    steps = gradguard.isolated(batches)()
    next(steps)
    assert torch.is_grad_enabled()


def test_10_generator_loses_its_inner_mode():
    """pytorch 48713's kind of body: an inner guard is lost when a decorated generator resumes."""

    def rollout():
        with torch.enable_grad():
            yield torch.is_grad_enabled()
            yield torch.is_grad_enabled()

    assert list(torch.no_grad()(rollout)()) == [True, False]
    assert list(gradguard.no_grad()(rollout)()) == [True, True]


def test_11_web_server_threads_record():
    """pytorch 82145: set_grad_enabled(False) at start-up does not reach the request threads."""
    torch.set_grad_enabled(False)
    model = nn.Linear(3, 1).eval()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(model, torch.ones(1, 3)).result().requires_grad
        assert not pool.submit(gradguard.carry(model), torch.ones(1, 3)).result().requires_grad
        with gradguard.watch_inference(model, on_violation="raise"):
            future = pool.submit(model, torch.ones(1, 3))
            assert isinstance(future.exception(), GradModeError)


def test_12_enable_grad_inside_inference_mode():
    """Lightning 13948: enable_grad in an inference-mode validation loop records nothing."""
    weight = torch.ones(1, requires_grad=True)
    with torch.inference_mode():
        with torch.enable_grad():
            assert torch.is_grad_enabled()
            assert not (weight * 2).requires_grad
            with pytest.raises(GradModeError, match="inference mode is on"):
                gradguard.assert_grad_enabled()
        with gradguard.enable_grad():
            assert (weight * 2).requires_grad


def test_13_leaving_inference_mode_turns_grad_on():
    """inference_mode(False) inside no_grad starts to record: memory grows without a word."""
    weight = torch.ones(1, requires_grad=True)
    with torch.no_grad(), torch.inference_mode(False):
        assert (weight * 2).requires_grad
    with gradguard.no_grad(), gradguard.inference_mode(False):
        assert not (weight * 2).requires_grad


def test_14_one_guard_object_entered_twice():
    """A guard kept as an attribute and entered again inside itself leaves grad off."""
    for module, after in ((torch, False), (gradguard, True)):
        guard = module.no_grad()
        with guard, guard:
            pass
        assert torch.is_grad_enabled() is after
        torch.set_grad_enabled(True)


def test_15_decorated_factory_of_generators():
    """A decorated function that returns a generator: its body runs outside the guard."""

    def stream():
        return (torch.is_grad_enabled() for _ in range(1))

    assert list(torch.no_grad()(stream)()) == [True]
    assert list(gradguard.no_grad()(stream)()) == [False]


def test_16_eval_mode_is_left_after_generation():
    """kohya-ss/musubi-tuner PR 759: sampling between steps leaves the model in eval mode."""
    model, optimizer = make(nn.Sequential(nn.Linear(3, 3), nn.Dropout(), nn.Linear(3, 1)))

    def sample():
        model.eval()
        return model(torch.ones(1, 3))

    watch = gradguard.watch_training(model, optimizer)
    sample()
    model(torch.ones(1, 3)).sum().backward()
    assert torch.equal(model(torch.ones(1, 3)), model(torch.ones(1, 3)))  # no dropout any more
    with pytest.raises(GradModeError, match="in eval mode"):
        optimizer.step()
    watch.remove()
    model.train()
    with gradguard.evaluating(model):
        model(torch.ones(1, 3))
    assert model.training


def test_17_two_threads_predict_on_one_module():
    """eval(); predict; train(was) in two threads: one predicts with dropout on."""
    model = nn.Dropout(0.5)

    def by_hand(body):
        was = model.training
        model.eval()
        body()
        model.train(was)

    def ours(body):
        with gradguard.evaluating(model):
            body()

    def overlap(predict):
        """The other way round: the first to enter leaves first, and the second still predicts."""
        gates = [threading.Event() for _ in range(2)]
        flags = []
        model.train()

        def second():
            predict(lambda: (gates[0].set(), gates[1].wait(5), flags.append(model.training)))

        thread = threading.Thread(target=second)
        predict(lambda: (thread.start(), gates[0].wait(5)))
        gates[1].set()
        thread.join()
        return flags[0], model.training

    assert overlap(by_hand) == (True, False)  # dropout on while predicting; then eval for good
    assert overlap(ours) == (False, True)


def test_18_detached_loss_part():
    """A head computed under no_grad trains only the rest of the model."""
    model = nn.ModuleDict({"body": nn.Linear(3, 3), "head": nn.Linear(3, 1)})

    def forward(x):
        with torch.no_grad():
            features = model["body"](x)  # meant for the warm-up only
        return model["head"](features).sum()

    loss = forward(torch.ones(1, 3))
    loss.backward()
    assert model["body"].weight.grad is None

    with pytest.raises(GradModeError, match=r"body\.weight\n  body\.bias"):
        gradguard.assert_parameters_used(forward(torch.ones(1, 3)), model)


def test_19_history_keeps_graphs():
    """losses.append(loss) keeps every graph of the epoch in memory."""
    model, _ = make()
    history = [model(torch.ones(1, 3)).sum() for _ in range(3)]
    assert all(loss.grad_fn is not None for loss in history)

    with pytest.raises(GradModeError, match=r"\[0\]"):
        gradguard.assert_detached(history)


def test_20_serving_records_a_graph():
    """A server that forgot no_grad records a graph for every request."""
    model = nn.Linear(3, 1).eval()
    assert model(torch.ones(1, 3)).grad_fn is not None

    with (
        gradguard.watch_inference(model),
        pytest.warns(GradModeWarning, match="recorded a graph"),
    ):
        model(torch.ones(1, 3))


def test_21_generate_inside_training_has_no_gradient():
    """transformers 28319: a loss on what a no_grad-decorated generate() returns has no graph."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 1)

        @torch.no_grad()
        def generate(self, x):
            return self.layer(x)

        @gradguard.training_method
        def training_step(self, x):
            return self.generate(x).sum()

    model = Model()
    assert not model.generate(torch.ones(1, 3)).requires_grad
    with pytest.raises(GradModeError, match="graph"):
        model.training_step(torch.ones(1, 3))


def test_22_unexited_stack_in_a_callback():
    """An ExitStack that a callback enters and nobody closes leaves grad off."""
    stack = contextlib.ExitStack()

    def on_epoch_end():
        stack.enter_context(torch.no_grad())

    on_epoch_end()
    assert not torch.is_grad_enabled()
    stack.close()
    with pytest.raises(GradLeakError, match="on_epoch_end"):
        gradguard.leak_check()(on_epoch_end)()


def test_23_the_line_that_did_it_is_named():
    """While a trace is active, the message names the line that left grad off."""
    model, _ = make()
    with gradguard.trace():
        validate_and_forget(model)
        with pytest.raises(GradModeError, match=r"test_faults\.py:\d+ in validate_and_forget"):
            gradguard.assert_grad_enabled()


def test_24_guards_exited_out_of_order():
    """Guards of two libraries exited in the order of entry leave a mode nobody asked for."""
    first, second = torch.no_grad(), torch.enable_grad()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert not torch.is_grad_enabled()
    torch.set_grad_enabled(True)

    first, second = gradguard.no_grad(), gradguard.enable_grad()
    first.__enter__()
    second.__enter__()
    with pytest.warns(GradModeWarning, match=r"no_grad\(\) was exited while enable_grad\(\)"):
        first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert torch.is_grad_enabled()


def test_25_frozen_backbone_thawed_by_accident():
    """requires_grad_(True) on the whole model thaws the backbone that was to stay frozen."""
    model = nn.ModuleDict({"backbone": nn.Linear(3, 3), "head": nn.Linear(3, 1)})
    model["backbone"].requires_grad_(False)
    model.requires_grad_(True)  # a library's "prepare for training"

    with pytest.raises(GradModeError, match=r"backbone\.weight"):
        gradguard.assert_trainable(model, frozen=["backbone.*"])


def test_healthy_training_is_silent():
    """None of the checks speaks up in an ordinary loop."""
    model, optimizer = make()
    with warnings.catch_warnings(), gradguard.leak_check(model):
        warnings.simplefilter("error")
        gradguard.assert_trainable(model)
        with gradguard.watch_training(model, optimizer):
            train(model, optimizer)
        gradguard.assert_gradients(model)
