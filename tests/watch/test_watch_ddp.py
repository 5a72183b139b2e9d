"""Both watches on a real DistributedDataParallel model, in a group of one process."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gradguard import GradModeError, watch_inference, watch_training

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="needs torch's gloo backend"
)


@pytest.fixture
def make(tmp_path):
    """Wrap a model; the group meets in a file, so that no port is needed."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)

    def made(model, **options):
        model = DistributedDataParallel(model, **options)
        return model, torch.optim.SGD(model.parameters(), lr=0.1)

    yield made
    dist.destroy_process_group()


def net():
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))


def test_healthy_steps_with_no_sync_and_validation_are_silent(make):
    """Accumulation under no_sync() and validation between the steps are no findings."""
    model, optimizer = make(net())
    with watch_training(model, optimizer) as watch:
        for _ in range(2):
            model.train()
            with model.no_sync():
                model(torch.randn(4, 2)).sum().backward()
            model(torch.randn(4, 2)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            model.eval()
            with torch.inference_mode():
                model(torch.randn(4, 2))
    assert watch.report() == "watch_training: 2 optimizer steps, nothing found"


@pytest.mark.parametrize("inner", [False, True])
def test_an_unused_parameter_is_named(make, inner):
    """A parameter that ran and that the loss does not reach is named, by the wrapper or inside."""

    class Faulty(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(2, 1), nn.Linear(2, 1)

        def forward(self, x):
            self.unused(x)
            return self.used(x)

    model, optimizer = make(Faulty(), find_unused_parameters=True)
    name = "unused.weight" if inner else "module.unused.weight"
    with watch_training(model.module if inner else model, optimizer):
        model(torch.ones(1, 2)).sum().backward()
        with pytest.raises(GradModeError, match=rf"2 trainable parameters(.|\n)*\n  {name}\n"):
            optimizer.step()


def test_eval_mode_of_the_wrapper_is_found(make):
    """A wrapper that validation left in eval mode is found, under its own name."""
    model, optimizer = make(net())
    with watch_training(model, optimizer):
        model.eval()
        model(torch.randn(4, 2)).sum().backward()
        with pytest.raises(GradModeError, match="DistributedDataParallel was left in eval mode"):
            optimizer.step()


def test_forwards_of_the_wrapper(make):
    """watch_inference passes guarded forwards of the wrapper and tells of one that records."""
    model, _ = make(net())
    model.eval()
    with watch_inference(model, on_violation=(found := []).append) as watch:
        with torch.no_grad():
            model(torch.randn(4, 2))
        model(torch.randn(4, 2))
    assert (watch.forwards, watch.violations) == (2, 1)
    assert "rank 0 of 1: A forward of the DistributedDataParallel" in str(found[0])
    assert found[0].finding.rank == 0
