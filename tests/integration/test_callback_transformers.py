"""gradguard.integrations.transformers under a real Trainer."""

import warnings
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from gradguard import GradModeError, GradModeWarning

if find_spec("transformers") is None or find_spec("accelerate") is None:
    pytest.skip(
        "transformers and accelerate are not installed (extra `integration`)",
        allow_module_level=True,
    )
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # their imports warn, before any mark is read
    from transformers import PretrainedConfig, PreTrainedModel, Trainer, TrainerCallback
    from transformers import TrainingArguments as Arguments

    from gradguard.integrations.transformers import GradGuardCallback

pytestmark = pytest.mark.filterwarnings("default")


class Config(PretrainedConfig):
    model_type = "small"


class Small(PreTrainedModel):
    config_class = Config

    def __init__(self, config):
        super().__init__(config)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(), nn.Linear(8, 1))
        self.post_init()

    def forward(self, x, labels=None):
        scores = self.net(x)
        return {"loss": nn.functional.mse_loss(scores, labels), "logits": scores}


def trainer(callback, path, *callbacks, **options):
    data = [{"x": torch.randn(4), "labels": torch.randn(1)} for _ in range(16)]
    given = {"num_train_epochs": 2, "eval_strategy": "epoch", "save_strategy": "no", **options}
    arguments = Arguments(
        str(path),
        per_device_train_batch_size=4,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **given,
    )
    return Trainer(
        Small(Config()),
        arguments,
        train_dataset=data,
        eval_dataset=data,
        callbacks=[callback, *callbacks],
    )


def hooks(training):
    """Count what hangs on the model and on its optimizer."""
    found = [
        len(one._forward_hooks) + len(one._forward_pre_hooks) for one in training.model.modules()
    ]
    optimizer = training.optimizer
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    steps = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)
    return sum(found) + sum(map(len, steps))


class Does(TrainerCallback):
    """Does something after each evaluation."""

    def __init__(self, does):
        self.does = does

    def on_epoch_begin(self, args, state, control, model, **_):
        if state.epoch and state.epoch >= 1:
            self.does(model)


@pytest.mark.parametrize(("options", "steps"), [({}, 8), ({"gradient_accumulation_steps": 2}, 4)])
def test_a_healthy_training_is_silent(options, steps, tmp_path):
    """With evaluation and accumulation; training again makes a new watch."""
    callback = GradGuardCallback()
    training = trainer(callback, tmp_path, **options)
    for _ in range(2):
        training.train()
        assert callback.watch.report() == f"watch_training: {steps} optimizer steps, nothing found"


def test_resuming_is_silent(tmp_path):
    """A training that goes on from a checkpoint has a watch of its own."""
    trainer(GradGuardCallback(), tmp_path, save_strategy="epoch", num_train_epochs=1).train()
    callback = GradGuardCallback()
    trainer(callback, tmp_path, save_strategy="epoch").train(resume_from_checkpoint=True)
    assert callback.watch.report() == "watch_training: 4 optimizer steps, nothing found"


def test_a_mode_that_was_left_is_named(tmp_path):
    """The training ends, with the line that switched it."""

    def leave(_):
        torch.set_grad_enabled(False)  # left

    try:
        with pytest.raises(GradModeError, match="Grad mode was left off"):
            trainer(GradGuardCallback(), tmp_path, Does(leave)).train()
    finally:
        torch.set_grad_enabled(True)


class StaysInEval(Small):
    """A model whose own `train` is a mistake: after the first evaluation it does nothing."""

    def train(self, mode=True):
        if mode and getattr(self, "evaluated", False):
            return self
        self.evaluated = getattr(self, "evaluated", False) or not mode
        return super().train(mode)


@pytest.mark.parametrize("how", ["warn", "callable"])
def test_a_model_that_stays_in_eval_mode_is_named(tmp_path, how):
    """Steps that go on in eval mode after an evaluation are told; the training goes on."""
    said = []
    callback = GradGuardCallback(on_violation="warn" if how == "warn" else said.append)
    training = trainer(callback, tmp_path)
    training.model_init = None
    training.model.__class__ = StaysInEval
    if how == "warn":
        with pytest.warns(GradModeWarning, match="eval mode"):
            training.train()
    else:
        training.train()
        assert "eval mode" in str(said[0])
    assert callback.watch.steps == 8


def test_an_exception_ends_the_watch(tmp_path):
    """The Trainer tells no callback of it: the model's next forward elsewhere takes the watch off."""

    def fail(_):
        raise ValueError("broken")

    callback = GradGuardCallback()
    training = trainer(callback, tmp_path, Does(fail))
    with pytest.raises(ValueError, match="broken"):
        training.train()
    assert hooks(training)
    training.model(torch.ones(1, 4), torch.ones(1, 1))
    assert hooks(training) == 0
    training.model.zero_grad()
    training.optimizer.step()  # without a gradient


def test_it_can_be_removed_by_hand(tmp_path):
    """Before a training, after it, and twice."""
    callback = GradGuardCallback()
    callback.remove()
    training = trainer(callback, tmp_path)
    training.train()
    assert hooks(training) == 0
    callback.remove()
