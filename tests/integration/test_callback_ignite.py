"""gradguard.integrations.ignite under real engines."""

import warnings

import pytest
import torch
from torch import nn

from gradguard import GradModeError, GradModeWarning

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its imports warn, before any mark is read
    pytest.importorskip("ignite", reason="needs pytorch-ignite: the extra 'integration'")
    from ignite.engine import Engine, Events, create_supervised_evaluator, create_supervised_trainer

    from gradguard.integrations import ignite

pytestmark = pytest.mark.filterwarnings("default")

DATA = [(torch.randn(4, 4), torch.randn(4, 1)) for _ in range(4)]


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(), nn.Linear(8, 1))


@pytest.fixture
def optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.01)


def hooks(model, optimizer):
    """Count what hangs on both."""
    found = [len(one._forward_hooks) + len(one._forward_pre_hooks) for one in model.modules()]
    steps = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)
    return sum(found) + sum(map(len, steps))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_healthy_run_is_silent(model, optimizer, accumulate):
    """With validation between the epochs and accumulated gradients; then nothing hangs on."""
    trainer = create_supervised_trainer(
        model, optimizer, nn.functional.mse_loss, gradient_accumulation_steps=accumulate
    )
    evaluator = create_supervised_evaluator(model)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run(DATA))
    ignite.attach(trainer, model, optimizer)
    for epochs in (2, 4):  # the second run resumes
        assert trainer.run(DATA, max_epochs=epochs).epoch == epochs
        assert hooks(model, optimizer) == 0


def test_a_mode_that_was_left_is_named(model, optimizer):
    """The run ends before a step in it."""

    def step(_, batch):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(batch[0]), batch[1])
        if loss.requires_grad:
            loss.backward()
        optimizer.step()

    trainer = Engine(step)

    @trainer.on(Events.EPOCH_STARTED)
    def leave():
        torch.set_grad_enabled(False)  # left

    ignite.attach(trainer, model, optimizer)
    try:
        with pytest.raises(GradModeError, match="Grad mode was left off"):
            trainer.run(DATA)
    finally:
        torch.set_grad_enabled(True)
    assert hooks(model, optimizer) == 0


def test_a_forgotten_train_is_named(model, optimizer):
    """A process function that leaves out train() after the evaluator's eval()."""

    def step(_, batch):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(batch[0]), batch[1]).backward()
        optimizer.step()

    trainer, evaluator = Engine(step), create_supervised_evaluator(model)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run(DATA))
    ignite.attach(trainer, model, optimizer, on_violation="warn")
    with pytest.warns(GradModeWarning, match="eval mode"):
        trainer.run(DATA, max_epochs=2)


@pytest.mark.parametrize("handled", [False, True])
def test_an_exception_ends_the_watch(model, optimizer, handled):
    """It comes out as without the watch: raised, unless the program handles it."""

    def step(*_):
        raise ValueError("broken")

    trainer = Engine(step)
    said = []
    if handled:
        trainer.add_event_handler(Events.EXCEPTION_RAISED, lambda _, error: said.append(error))
    ignite.attach(trainer, model, optimizer)
    if handled:
        trainer.run(DATA)
        assert str(said[0]) == "broken"
    else:
        with pytest.raises(ValueError, match="broken"):
            trainer.run(DATA)
    assert hooks(model, optimizer) == 0


def test_no_engine():
    """What cannot be attached to is named."""
    with pytest.raises(TypeError, match="trainer must be an ignite Engine, got Linear"):
        ignite.attach(nn.Linear(1, 1), None, None)
