"""watch_training and watch_inference in an accelerate loop."""

import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gradguard import GradModeError, watch_inference, watch_training

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what accelerate imports may warn, before any mark is read
    accelerate = pytest.importorskip(
        "accelerate", reason="needs accelerate: the extra 'integration'"
    )
    from accelerate.state import AcceleratorState, GradientState

# "default": what accelerate itself warns of is not gradguard's to judge.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture
def make():
    """Prepare a model, an optimizer and a loader; accelerate's state is global and put back."""

    def prepared(**options):
        accelerator = accelerate.Accelerator(cpu=True, **options)
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        loader = DataLoader(TensorDataset(torch.randn(16, 4), torch.randn(16, 1)), batch_size=4)
        return accelerator, *accelerator.prepare(model, optimizer, loader)

    yield prepared
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def mse(model, batch):
    return nn.functional.mse_loss(model(batch[0]), batch[1])


def epoch(accelerator, model, optimizer, loader, loss=mse):
    for batch in loader:
        with accelerator.accumulate(model):
            accelerator.backward(loss(model, batch))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()


def validate(model, loader):
    model.eval()
    with torch.inference_mode():
        for batch in loader:
            mse(model, batch)


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, 8),
        ({"gradient_accumulation_steps": 2}, 4),
        ({"gradient_accumulation_steps": 3}, 4),  # accelerate steps at the end of the loader, too
        ({"mixed_precision": "bf16"}, 8),
    ],
)
def test_a_healthy_loop_is_silent(make, options, steps):
    """The steps that accelerate lets through are counted, validation between them is no finding."""
    accelerator, model, optimizer, loader = make(**options)
    with watch_training(model, optimizer) as watch:
        for _ in range(2):
            model.train()
            epoch(accelerator, model, optimizer, loader)
            validate(model, loader)
    assert watch.report() == f"watch_training: {steps} optimizer steps, nothing found"


def test_a_forgotten_backward_is_found(make):
    """A loop without accelerator.backward() is stopped; one step without a gradient may be meant."""
    _, model, optimizer, loader = make()
    with watch_training(model, optimizer):
        with pytest.raises(GradModeError, match="6 trainable parameters"):
            for batch in [*loader, *loader]:
                mse(model, batch)
                optimizer.step()


def test_a_detached_layer_is_named(make):
    """A layer that is cut off from the loss is found when the accumulated step comes."""
    accelerator, model, optimizer, loader = make(gradient_accumulation_steps=2)

    def detached(model, batch):
        hidden = model[1](model[0](batch[0])).detach()
        return nn.functional.mse_loss(model[2](hidden), batch[1])

    with (
        watch_training(model, optimizer) as watch,
        pytest.raises(GradModeError, match=r"at optimizer step 1(.|\n)*\n  0\.weight\n  0\.bias\n"),
    ):
        epoch(accelerator, model, optimizer, loader, detached)
    assert watch.steps == 1


def test_eval_mode_that_validation_leaves_is_found(make):
    """A second epoch without model.train() is found at its first step."""
    accelerator, model, optimizer, loader = make()
    with watch_training(model, optimizer):
        epoch(accelerator, model, optimizer, loader)
        validate(model, loader)
        with pytest.raises(
            GradModeError, match="at optimizer step 5: The Sequential was left in eval"
        ):
            epoch(accelerator, model, optimizer, loader)


def test_forwards_of_a_prepared_model(make):
    """watch_inference passes guarded validation and tells of a forward without a guard."""
    _, model, _, loader = make()
    with watch_inference(model, on_violation=(found := []).append) as watch:
        validate(model, loader)
        assert (watch.forwards, watch.violations) == (4, 0)
        mse(model, next(iter(loader)))
    assert "A forward of the Sequential in eval mode recorded a graph" in str(found[0])
