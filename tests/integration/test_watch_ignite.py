"""watch_training and watch_inference under ignite engines."""

import logging
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gradguard import GradModeError, watch_inference, watch_training

with warnings.catch_warnings():
    warnings.simplefilter(
        "ignore"
    )  # ignite scripts functions as it is imported, which is deprecated
    engines = pytest.importorskip("ignite.engine", reason="needs ignite: the extra 'integration'")

# "default": what ignite itself warns of is not gradguard's to judge.
pytestmark = pytest.mark.filterwarnings("default")
logging.getLogger("ignite.engine.engine.Engine").setLevel(
    logging.CRITICAL
)  # it logs what it raises


def make():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    loader = DataLoader(TensorDataset(torch.randn(16, 4), torch.randn(16, 1)), batch_size=4)
    return model, torch.optim.AdamW(model.parameters(), lr=0.01), loader


def validated(trainer, model, loader):
    """Let an evaluator run after each epoch; ignite's calls model.eval(), and never train()."""
    evaluator = engines.create_supervised_evaluator(model)
    trainer.add_event_handler(engines.Events.EPOCH_COMPLETED, lambda _: evaluator.run(loader))
    return trainer


def update(model, optimizer, loss):
    """Make a trainer of a plain update function, as ignite's first examples do."""

    def one(_, batch):
        optimizer.zero_grad()
        loss(*batch).backward()
        optimizer.step()

    return engines.Engine(one)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_healthy_run_is_silent(accumulation):
    """ignite's own trainer, with validation by events and accumulation, has no finding."""
    model, optimizer, loader = make()
    trainer = engines.create_supervised_trainer(
        model, optimizer, nn.MSELoss(), gradient_accumulation_steps=accumulation
    )
    with watch_training(model, optimizer) as watch:
        validated(trainer, model, loader).run(loader, max_epochs=2)
    steps = 8 // accumulation
    assert watch.report() == f"watch_training: {steps} optimizer steps, nothing found"


def test_an_evaluator_that_leaves_eval_mode_is_found():
    """An update without model.train() trains in eval mode from the second epoch: found there."""
    model, optimizer, loader = make()
    trainer = update(model, optimizer, lambda x, y: nn.functional.mse_loss(model(x), y))
    with (
        watch_training(model, optimizer),
        pytest.raises(
            GradModeError, match="at optimizer step 5: The Sequential was left in eval mode"
        ),
    ):
        validated(trainer, model, loader).run(loader, max_epochs=2)


def test_a_detached_layer_is_named():
    """A layer that is cut off from the loss is named, and the run stops."""
    model, optimizer, loader = make()
    trainer = update(
        model,
        optimizer,
        lambda x, y: nn.functional.mse_loss(model[2](model[:2](x).detach()), y),
    )
    with (
        watch_training(model, optimizer),
        pytest.raises(
            GradModeError,
            match=r"4 trainable parameters of \w+ never had a gradient(.|\n)*0\.weight",
        ),
    ):
        trainer.run(loader)


def test_a_handler_that_leaves_grad_off_where_the_update_turns_it_on():
    """What is recorded all the same trains all the same: no fault."""
    model, optimizer, loader = make()

    def loss(x, y):
        with torch.enable_grad():
            return nn.functional.mse_loss(model(x), y)

    trainer = update(model, optimizer, loss)
    trainer.add_event_handler(
        engines.Events.ITERATION_COMPLETED(once=2), lambda: torch.set_grad_enabled(False)
    )
    try:
        with watch_training(model, optimizer, on_violation=(found := []).append):
            trainer.run(loader)
    finally:
        torch.set_grad_enabled(True)
    assert found == []


def test_forwards_of_an_evaluator():
    """ignite's evaluator guards its forwards; one of a plain engine records, and is told once."""
    model, _, loader = make()
    with watch_inference(model, on_violation=(found := []).append) as watch:
        engines.create_supervised_evaluator(model).run(loader)
        assert (watch.forwards, watch.violations) == (4, 0)
        engines.Engine(lambda _, batch: model(batch[0])).run(loader)
    assert (watch.forwards, watch.violations, len(found)) == (8, 4, 1)


INSTALLED = """
import torch, gradguard
gradguard.install()
from ignite.engine import Events, create_supervised_evaluator, create_supervised_trainer
from ignite.metrics import Loss
from torch import nn

class Head(nn.Linear):
    def __init__(self):
        super().__init__(4, 1)
        self.seen = []

    def forward(self, x):
        self.seen.append((self.training, gradguard.guards()))
        return super().forward(x)

model = Head()
data = [(torch.ones(2, 4), torch.ones(2, 1))] * 3
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
trainer = create_supervised_trainer(model, optimizer, nn.MSELoss())
evaluator = create_supervised_evaluator(model, metrics={"loss": Loss(nn.MSELoss())})
trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda _: evaluator.run(data))
with gradguard.watch_training(model, optimizer) as watch:
    trainer.run(data, max_epochs=2)
assert watch.findings == [], watch.findings
assert evaluator.state.metrics["loss"] < 0.2
assert set(model.seen) == {(True, ()), (False, (gradguard.no_grad(),))}, model.seen
trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda _: torch.set_grad_enabled(False))
try:
    with gradguard.watch_training(model, optimizer):
        trainer.run(data, max_epochs=4)
except gradguard.GradModeError as error:
    print(error.finding.kind)
"""


def test_ignite_trains_under_gradguards_guards(tmp_path):
    """With `install()` before its import: evaluators run under no_grad, a leak is found."""
    program = tmp_path / "train.py"  # where a block is open is read from the source
    program.write_text(INSTALLED, encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", program],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.stdout, ran.returncode) == ("mode-leak\n", 0), ran.stderr
