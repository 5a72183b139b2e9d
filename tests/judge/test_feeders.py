"""The three feeders of the judge: what one finds the others find, in the same words."""

import copy
import re

import pytest
import torch
from torch import nn

import gradguard
from gradguard._run.observer import Observer

RUN, TRAINING, INFERENCE = "run", "watch_training", "watch_inference"
PROGRAMS = {}

# What a feeder cannot know, and why.
UNSEEN = {
    ("layers_in_a_list", TRAINING): "its hooks are on the modules that are registered",
    ("guard_as_a_statement", TRAINING): "it is no business of the model's",
    ("flag_of_a_module", TRAINING): "setting an attribute calls no hook",
    ("frozen_norm_woken", TRAINING): "train() and eval() call no hook",
    ("predicts_in_train_mode", TRAINING): "rollouts in train mode belong to many a training",
}
OTHER_LINE = {
    ("eval_not_undone", TRAINING): "eval() calls no hook: the first forward in eval mode",
    ("copied_in_inference_mode", TRAINING): "made before the watch was: the first use",
    ("frozen_with_momentum", TRAINING): "requires_grad calls no hook: the step",
}


def program(*feeders):
    return lambda function: PROGRAMS.setdefault(function.__name__, (function, (RUN, *feeders)))


def net(*more):
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), *more, nn.Linear(8, 2))


def batch():
    return torch.randn(8, 4)


def sgd(model, **options):
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, **options)


def fit(model, optimizer, steps=3):
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(batch()).square().mean()
        if loss.requires_grad:
            loss.backward()
        optimizer.step()


def leave_off():
    torch.set_grad_enabled(False)


@program(TRAINING)
def mode_left(watch):
    model = net()
    optimizer = watch(model, sgd(model))
    for _ in range(2):
        fit(model, optimizer)
        leave_off()


@program(TRAINING)
def gradients_dropped(watch):
    model = net()
    optimizer = watch(model, sgd(model))
    for _ in range(3):
        model(batch()).sum().backward()
        optimizer.zero_grad()
        optimizer.step()


@program(TRAINING)
def head_replaced(watch):
    model = net()
    optimizer = watch(model, sgd(model))
    fit(model, optimizer)
    model[2] = nn.Linear(8, 3)
    fit(model, optimizer)


@program(TRAINING)
def cut_by_detach(watch):
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 1)

        def forward(self, given):
            return self.head(self.body(given).detach())

    model = Cut()
    fit(model, watch(model, sgd(model)))


@program(TRAINING)
def losses_in_a_list(watch):
    model, losses = net(), []
    optimizer = watch(model, sgd(model))
    for _ in range(30):
        loss = model(batch()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss)


@program(TRAINING)
def eval_not_undone(watch):
    model = net(nn.Dropout(0.1))
    optimizer = watch(model, sgd(model))
    fit(model, optimizer)
    model.eval()
    with torch.no_grad():
        model(batch())
    fit(model, optimizer)


@program(TRAINING)
def copied_in_inference_mode(watch):
    with torch.inference_mode():
        model = copy.deepcopy(nn.Linear(4, 2))
    optimizer = watch(model, sgd(model))
    with pytest.raises(RuntimeError, match=r"[Ii]nference tensor"):
        fit(model, optimizer)


@program(TRAINING)
def frozen_with_momentum(watch):
    model = net()
    optimizer = watch(model, sgd(model, momentum=0.9))
    fit(model, optimizer)
    model[0].weight.requires_grad = False
    for _ in range(2):
        model(batch()).square().mean().backward()
        optimizer.step()


@program(TRAINING)
def layers_in_a_list(watch):
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.heads = nn.Linear(4, 4), [nn.Linear(4, 1)]

        def forward(self, given):
            return self.heads[0](self.body(given))

    model = Hidden()
    fit(model, watch(model, sgd(model)))


@program(TRAINING)
def guard_as_a_statement(watch):
    model = net()
    optimizer = watch(model, sgd(model))
    torch.no_grad()
    fit(model, optimizer)


@program(TRAINING)
def flag_of_a_module(watch):
    model = net()
    optimizer = watch(model, sgd(model))
    model[0].requires_grad = False
    fit(model, optimizer)


@program(TRAINING)
def frozen_norm_woken(watch):
    model = net(nn.BatchNorm1d(8))
    model[2].requires_grad_(False).eval()
    optimizer = watch(model, sgd(model))
    model.train()
    fit(model, optimizer)


@program(TRAINING, INFERENCE)
def validation_records(watch):
    model = net(nn.Dropout(0.1)).eval()
    watch(model, sgd(model))
    for _ in range(3):
        model(batch())


@program(TRAINING, INFERENCE)
def predicts_in_train_mode(watch):
    model = net(nn.Dropout(0.1))
    watch(model, sgd(model) if watch.feeder == TRAINING else None)
    with torch.no_grad():
        for _ in range(3):
            model(batch())


@program(TRAINING, INFERENCE)
def all_is_well(watch):
    model = net(nn.Dropout(0.1), nn.BatchNorm1d(8))
    if watch.feeder != INFERENCE:
        optimizer = watch(model, sgd(model))
        fit(model, optimizer)
    model.eval()
    if watch.feeder == INFERENCE:
        watch(model, None)
    with torch.inference_mode():
        model(batch())


class Watching:
    """Attaches a feeder to what the program makes, and gives what it found."""

    def __init__(self, feeder):
        self.feeder = feeder
        self.handle = None

    def __call__(self, model, optimizer):
        quiet = {"on_violation": lambda error: None}
        if self.feeder == TRAINING:
            self.handle = gradguard.watch_training(model, optimizer, **quiet)
        elif self.feeder == INFERENCE:
            self.handle = gradguard.watch_inference(model, **quiet)
        return optimizer

    def findings(self, function):
        torch.manual_seed(0)
        observer = Observer()
        if self.feeder == RUN:
            observer.start()
        try:
            with gradguard.trace():  # a watch does not see who switched; a trace does
                function(self)
        finally:
            observer.finish(crashed=False)
            torch.set_grad_enabled(True)
        if self.feeder == RUN:
            assert observer.failure is None
            return observer.findings()
        self.handle.remove()
        return self.handle.findings


def words(found):
    """What is told, without how often: a watch tells at the first, a run at the end."""
    return [(one.kind, re.sub(r"\d+ (time|step)s?", r"N \1s", one.message)) for one in found]


def lines(found):
    return [(one.filename, one.lineno) for one in found]


@pytest.mark.parametrize(
    ("name", "feeder"),
    [(name, feeder) for name, (_, feeders) in PROGRAMS.items() for feeder in feeders[1:]],
)
def test_what_one_finds_the_others_find(name, feeder):
    """Each program gives the same finding, in the same words and at the same line, or says why."""
    function, _ = PROGRAMS[name]
    by_run, by_watch = Watching(RUN).findings(function), Watching(feeder).findings(function)
    assert len(by_run) == (0 if name == "all_is_well" else 1)
    if (name, feeder) in UNSEEN:
        assert by_watch == []
    else:
        assert words(by_watch) == words(by_run)
        assert (lines(by_watch) != lines(by_run)) is ((name, feeder) in OTHER_LINE)
