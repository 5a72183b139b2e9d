"""watch_training and watch_inference under a real Lightning Trainer."""

import logging
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gradguard import GradModeError, watch_inference, watch_training

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Lightning's own imports warn, before any mark is read
    lightning = pytest.importorskip("lightning", reason="needs Lightning: the extra 'integration'")

# "default": Lightning warns of few workers and many logs, which is not gradguard's to judge.
pytestmark = pytest.mark.filterwarnings("default")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def loader():
    return DataLoader(TensorDataset(torch.randn(16, 4), torch.randn(16, 1)), batch_size=4)


def trainer(**options):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    options = {"max_epochs": 2, "enable_model_summary": False, **quiet, **options}
    return lightning.Trainer(accelerator="cpu", devices=1, **options)


class Module(lightning.LightningModule):
    """A network that is watched from where its optimizer is made."""

    def __init__(self, **options):
        super().__init__()
        parts = [nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 1)]
        self.net = nn.Sequential(*parts)
        self.options = options

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, _):
        x, y = batch
        return nn.functional.mse_loss(self(x), y)

    def validation_step(self, batch, _):
        x, y = batch
        self.log("val_loss", nn.functional.mse_loss(self(x), y))

    def predict_step(self, batch, _):
        return self(batch[0])

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        self.watch = watch_training(self, optimizer, **self.options)
        return optimizer


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, 8),
        ({"accumulate_grad_batches": 2}, 4),
        ({"gradient_clip_val": 0.5, "val_check_interval": 2, "inference_mode": False}, 8),
        ({"precision": "bf16-mixed"}, 8),
    ],
)
def test_a_healthy_fit_is_silent(options, steps):
    """Fit with its sanity check, validation, accumulation, clipping and autocast has no finding."""
    module = Module()
    trainer(**options).fit(module, loader(), loader())
    assert module.watch.report() == f"watch_training: {steps} optimizer steps, nothing found"


def test_a_branch_that_the_loss_does_not_use_is_named():
    """A parameter that the loss never reaches stops fit at the first step, under its name."""

    class Faulty(Module):
        def training_step(self, batch, _):
            x, y = batch
            hidden = self.net[:2](x).detach()
            return nn.functional.mse_loss(self.net[2:](hidden), y)

    with pytest.raises(GradModeError, match=r"at optimizer step 1(.|\n)*\n  net\.0\.weight\n"):
        trainer().fit(Faulty(), loader(), loader())


def test_a_validation_that_leaves_eval_mode_is_found():
    """A module that validation leaves in eval mode is found at the next training step."""

    class Faulty(Module):
        def on_validation_model_train(self):
            """Forget what Lightning does here: put the train mode back."""

        def on_train_start(self):
            self.train()  # the sanity check has left eval mode already

    with pytest.raises(
        GradModeError, match=r"at optimizer step 5: The Faulty was left in eval mode"
    ):
        trainer().fit(Faulty(), loader(), loader())


def test_a_lazy_layer_that_validate_makes_is_found():
    """A lazy layer whose first forward is trainer.validate()'s, in inference mode, is named."""

    class Faulty(Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 1))

    module = Faulty()
    trainer().validate(module, loader(), verbose=False)
    with pytest.raises(GradModeError, match=r"inference(.|\n)*net\.0\.weight"):
        trainer().fit(module, loader(), loader())


def test_a_mode_left_switched_between_batches_does_no_harm():
    """Lightning turns grad on for its closure: all is recorded, and nothing is a fault."""

    class Faulty(Module):
        def on_train_batch_end(self, *_):
            torch.set_grad_enabled(False)

    module = Faulty(on_violation=(found := []).append)
    try:
        trainer(max_epochs=1).fit(module, loader())
    finally:
        torch.set_grad_enabled(True)
    assert found == []


class Adversaries(lightning.LightningModule):
    """Manual optimization of two networks, through the LightningOptimizer wrappers."""

    def __init__(self, **options):
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.judge = nn.Linear(4, 4), nn.Linear(4, 1)
        self.options = options

    def configure_optimizers(self):
        return [torch.optim.SGD(part.parameters(), lr=0.1) for part in self.children()]

    def on_train_start(self):
        self.watches = [watch_training(self, one, **self.options) for one in self.optimizers()]

    def training_step(self, batch, index):
        for optimizer in self.optimizers():
            self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch[0]))
            optimizer.step()
            self.untoggle_optimizer(optimizer)

    def loss(self, x):
        return self.judge(self.generator(x)).square().mean()


def test_two_lightning_optimizers_are_each_watched():
    """A watch made from a LightningOptimizer sees its steps, while the others are toggled off."""
    module = Adversaries()
    trainer().fit(module, loader())
    reports = [watch.report() for watch in module.watches]
    assert reports == ["watch_training: 8 optimizer steps, nothing found"] * 2


def test_a_fault_under_a_lightning_optimizer_is_found():
    """Of two optimizers the one whose parameters get no gradient is found."""

    class Faulty(Adversaries):
        def loss(self, x):
            return self.judge(self.generator(x).detach()).square().mean()

        def toggle_optimizer(self, optimizer, *_):
            """Freeze nothing: torch itself refuses a loss of none but frozen parameters."""

        def untoggle_optimizer(self, optimizer):
            pass

    module = Faulty(on_violation=(found := []).append)
    trainer(max_epochs=1).fit(module, loader())
    assert len(found) == 1  # one optimizer of two, told once a line
    assert "2 trainable parameters" in str(found[0])


def test_fabric_steps_are_watched():
    """A Fabric loop is watched through the optimizer that fabric.setup() returns."""
    fabric = lightning.Fabric(accelerator="cpu", devices=1)
    model = nn.Linear(4, 1)
    model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with watch_training(model, optimizer) as watch:
        fabric.backward(model(torch.randn(3, 4)).mean())
        optimizer.step()
        optimizer.zero_grad()
        assert watch.report() == "watch_training: 1 optimizer steps, nothing found"
        with pytest.raises(GradModeError, match="2 trainable parameters"):
            for _ in range(8):  # one batch may be skipped
                model(torch.randn(3, 4))
                optimizer.step()


def test_a_healthy_predict_is_silent():
    """Predict puts the module in eval and inference mode: its forwards are no violations."""
    module = Module()
    with watch_inference(module, on_violation="raise") as watch:
        trainer().predict(module, loader())
    assert (watch.forwards, watch.violations) == (4, 0)


def test_a_predict_step_that_records_is_found():
    """A predict_step that turns grad on records a graph: each forward counts, the line is told once."""

    class Faulty(Module):
        def predict_step(self, batch, index):
            with torch.enable_grad():
                return super().predict_step(batch, index)

    module = Faulty()
    with watch_inference(module, on_violation=(found := []).append) as watch:
        trainer(inference_mode=False).predict(module, loader())
    assert (watch.forwards, watch.violations, len(found)) == (4, 4, 1)
    assert "A forward of the Faulty in eval mode recorded a graph" in str(found[0])
