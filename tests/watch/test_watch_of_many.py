"""watch_training over thousands of layers: what its steps cost, and that it finds the same."""

import gc
import sys
import warnings

import pytest
import torch
from torch import nn

from gradguard import GradModeError, GradModeWarning, watch_training

FEW, MANY = 512, 1024  # layers of two parameters each: more than are looked at at once


class OneByOne(nn.Module):
    """Layers of which a forward of one's own calls one after another."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x)
        return x


def chain(count, kind=OneByOne):
    model = kind(*(nn.Linear(1, 1) for _ in range(count)))
    return model, torch.optim.SGD(model.parameters(), 0.1)


def step(model, optimizer):
    optimizer.zero_grad()
    model(torch.ones(1, 1)).sum().backward()
    optimizer.step()


def calls_of_step(model, optimizer):
    """Count the calls of functions written in Python that a step makes."""
    count = 0

    def counting(_, event, __):
        nonlocal count
        count += event == "call"

    gc.collect()
    gc.disable()  # what goes meanwhile calls functions, too
    sys.setprofile(counting)
    try:
        step(model, optimizer)
    finally:
        sys.setprofile(None)
        gc.enable()
    return count


@pytest.mark.parametrize("kind", [nn.Sequential, OneByOne])
def test_no_step_makes_a_call_for_each_of_many_layers(kind):
    """With more layers, none of the first steps of a watch calls more functions of its own."""
    extra = {}
    for count in (FEW, FEW, MANY):  # the first looks at code that it will know
        model, optimizer = chain(count, kind)
        step(model, optimizer)
        plain = calls_of_step(model, optimizer)
        with watch_training(model, optimizer):
            extra[count] = [calls_of_step(model, optimizer) - plain for _ in range(4)]
    assert [many - few for few, many in zip(*extra.values(), strict=True)] == pytest.approx(
        [0] * 4, abs=30
    )


def test_a_layer_of_many_that_is_cut_off():
    """It is named, where it is not among the outermost: at the next step, once it was asked for."""
    model, optimizer = chain(FEW)
    with watch_training(model, optimizer) as watch:
        for at, cut in enumerate((10, 200)):
            handle = model.layers[cut].register_forward_hook(lambda _, __, output: output.detach())
            with pytest.raises(GradModeError) as caught:
                for _ in range(3):
                    step(model, optimizer)
            handle.remove()
            assert watch.steps == at + (1 if cut == 10 else 2)
            assert f"layers.{cut}.weight" in str(caught.value)


def test_a_layer_of_a_long_sequential_that_is_cut_off():
    """It is named at the first step: what a Sequential calls is known."""
    model, optimizer = chain(FEW, nn.Sequential)
    model[200].register_forward_hook(lambda _, __, output: output.detach())
    with watch_training(model, optimizer), pytest.raises(GradModeError) as caught:
        step(model, optimizer)
    assert "at optimizer step 1" in str(caught.value)
    assert "402 trainable parameters" in str(caught.value)


@pytest.mark.parametrize("kind", [nn.Sequential, OneByOne])
def test_empty_steps_of_many_layers(kind):
    """Why they are empty is said once it is known which layers run."""
    model, optimizer = chain(FEW, kind)
    with watch_training(model, optimizer), pytest.raises(GradModeError) as caught:
        for _ in range(5):
            model(torch.ones(1, 1)).sum().backward()
            optimizer.zero_grad()
            optimizer.step()
    assert "zero_grad() was called between backward() and step()" in str(caught.value)


def test_layers_that_were_not_seen_are_not_said_not_to_run():
    """An empty step of a part whose calls are not seen so far is no step of a foreign optimizer."""
    model, _ = chain(FEW)
    optimizer = torch.optim.SGD(model.layers[-1].parameters(), 0.1)
    with watch_training(model, optimizer, on_violation="warn") as watch, warnings.catch_warnings():
        warnings.simplefilter("ignore", GradModeWarning)
        for _ in range(3):
            model(torch.ones(1, 1)).sum().backward()
            model.layers[-1].zero_grad()
            optimizer.step()
    assert ["zero_grad() was called between" in each.message for each in watch.findings] == [True]


def test_frozen_layers_of_many_that_move():
    """They are looked for from the fourth step on; of few in the first, too."""
    for count, first in ((MANY, 4), (4, 1)):
        model, optimizer = chain(count)
        with pytest.raises(GradModeError, match="1 frozen parameter "):
            with watch_training(model, optimizer) as watch:
                for _ in range(first):
                    optimizer.zero_grad()
                    model.requires_grad_(True)
                    model(torch.ones(1, 1)).sum().backward()
                    model.layers[-1].bias.requires_grad_(False)
                    optimizer.step()
        assert watch.steps == first
