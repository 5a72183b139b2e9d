"""The three feeders of the judge: what one finds the others find, in the same words."""

import contextlib
import copy
import itertools
import logging
import re
from collections import Counter

import pytest
import torch
from torch import nn

import gradguard
from gradguard._findings.kinds import RUN_KINDS
from gradguard._run.observer import Observer

RUN, TRAINING, INFERENCE = "run", "watch_training", "watch_inference"
FAULTS, TWINS = {}, {}

# What the watches cannot know, and why; all else of these kinds they find as a run does.
UNSEEN_KINDS = {
    "unregistered": "their hooks are on the modules that are registered",
    "no-effect": "what is made or set and changes nothing calls no hook",
    "frozen-batchnorm": "train() and eval() call no hook",
}
UNSEEN = {
    ("predicts_in_train_mode", TRAINING): "rollouts in train mode belong to many a training",
    ("normalises_by_the_batch", TRAINING): "as above",
}
OTHER_LINE = {
    ("eval_not_undone", TRAINING): "eval() calls no hook: the first forward in eval mode",
    ("evaluated_before_the_first_step", TRAINING): "as above",
    ("copied_in_inference_mode", TRAINING): "made before the watch was: the first use",
    ("frozen_with_momentum", TRAINING): "requires_grad calls no hook: the step",
    ("frozen_between_backward_and_step", TRAINING): "as above",
}


def fault(kind, *feeders):
    """Note a program with a fault of this kind, and the watches that can be given to it."""
    return lambda program: FAULTS.setdefault(program.__name__, (program, kind, feeders))


def healthy(kind, *feeders):
    return lambda program: TWINS.setdefault(program.__name__, (program, kind, feeders))


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


def made(watch, *more, **options):
    model = net(*more)
    return model, watch(model, sgd(model, **options))


class Cut(nn.Module):
    """A network in two parts; between them may be a `detach` or a guard."""

    def __init__(self, between):
        super().__init__()
        self.body, self.head, self.between = nn.Linear(4, 4), nn.Linear(4, 1), between

    def forward(self, given):
        with torch.no_grad() if self.between == "guard" else contextlib.nullcontext():
            hidden = self.body(given)
        return self.head(hidden.detach() if self.between == "detach" else hidden)


# mode-leak


def leave_off():
    torch.set_grad_enabled(False)


@fault("mode-leak", TRAINING)
def mode_left(watch):
    model, optimizer = made(watch)
    for _ in range(2):
        fit(model, optimizer)
        leave_off()


@fault("mode-leak", TRAINING)
def left_by_a_generator(watch):
    model, optimizer = made(watch)

    def batches():
        yield batch()
        torch.set_grad_enabled(False)
        yield batch()

    for given in batches():
        optimizer.zero_grad()
        loss = model(given).square().mean()
        if loss.requires_grad:
            loss.backward()
        optimizer.step()


class Quiet:
    def __enter__(self):
        self.was = torch.is_grad_enabled()
        torch.set_grad_enabled(False)

    def __exit__(self, *exc):
        torch.set_grad_enabled(self.was)


@healthy("mode-leak", TRAINING)
def own_scope(watch):
    model, optimizer = made(watch)
    for _ in range(3):
        fit(model, optimizer, 1)
        with Quiet():
            model(batch())


@healthy("mode-leak", TRAINING)
def rollouts(watch):
    model, optimizer = made(watch)
    for _ in range(3):
        with torch.no_grad():
            for _ in range(3):
                model(batch())
        fit(model, optimizer, 1)


# empty-step


@fault("empty-step", TRAINING)
def gradients_dropped(watch):
    model, optimizer = made(watch)
    for _ in range(3):
        model(batch()).sum().backward()
        optimizer.zero_grad()
        optimizer.step()


@fault("empty-step", TRAINING)
def another_model_is_trained(watch):
    model, optimizer = made(watch)
    fit(model, optimizer, 1)
    for _ in range(6):
        optimizer.zero_grad()
        model(batch()).square().mean()
        optimizer.step()


@healthy("empty-step", TRAINING)
def schedule_plotted(watch):
    model, optimizer = made(watch)
    model(batch())
    for _ in range(20):
        optimizer.step()
    fit(model, optimizer)


@healthy("empty-step", TRAINING)
def other_tasks_have_other_optimizers(watch):
    class Tasks(nn.Module):
        def __init__(self):
            super().__init__()
            self.tasks = nn.ModuleList(nn.Linear(4, 1) for _ in range(2))

        def forward(self, given, task):
            return self.tasks[task](given)

    model = Tasks()
    optimizers = [watch(model, sgd(model.tasks[0])), sgd(model.tasks[1])]
    for _ in range(10):
        model.zero_grad()
        model(batch(), task=1).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()


@healthy("empty-step", TRAINING)
def batches_skipped(watch):
    model, optimizer = made(watch)
    for turn in range(9):
        optimizer.zero_grad()
        loss = model(batch()).square().mean()
        if turn % 3:
            loss.backward()
        optimizer.step()


# no-gradient


@fault("no-gradient", TRAINING)
def cut_by_detach(watch):
    model = Cut("detach")
    fit(model, watch(model, sgd(model)))


@fault("no-gradient", TRAINING)
def cut_by_a_guard(watch):
    model = Cut("guard")
    fit(model, watch(model, sgd(model)))


@healthy("no-gradient", TRAINING)
def experts_of_which_one_runs(watch):
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(4, 2) for _ in range(3))

        def forward(self, given):
            return self.experts[0](given)

    model = Experts()
    fit(model, watch(model, sgd(model)))


@healthy("no-gradient", TRAINING)
def last_bias_of_an_energy(watch):
    class Energy(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = net()

        def forward(self, given):
            given = given.requires_grad_()
            energy = self.body(given).sum()
            return torch.autograd.grad(energy, given, create_graph=True)[0]

    model = Energy()
    fit(model, watch(model, sgd(model)))


@healthy("no-gradient", TRAINING)
def token_for_another_mode(watch):
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.token = nn.Linear(4, 2), nn.Parameter(torch.zeros(4))

        def forward(self, given, mask=None):
            return self.body(given if mask is None else torch.where(mask, self.token, given))

    model = Masked()
    fit(model, watch(model, sgd(model)))


# inference-tensor


@fault("inference-tensor", TRAINING)
def copied_in_inference_mode(watch):
    with torch.inference_mode():
        model = copy.deepcopy(nn.Linear(4, 2))
    optimizer = watch(model, sgd(model))
    with pytest.raises(RuntimeError, match=r"[Ii]nference tensor"):
        fit(model, optimizer)


@fault("inference-tensor", TRAINING)
def set_in_inference_mode(watch):
    model, optimizer = made(watch)
    fit(model, optimizer)
    with torch.inference_mode():
        model[0].bias = nn.Parameter(torch.zeros(8))
    optimizer.add_param_group({"params": [model[0].bias]})
    with pytest.raises(RuntimeError, match=r"[Ii]nference tensor"):
        fit(model, optimizer)


@healthy("inference-tensor", TRAINING)
def step_inside_inference_mode(watch):
    model, optimizer = made(watch)
    for _ in range(3):
        optimizer.zero_grad()
        model(batch()).square().mean().backward()
        with torch.inference_mode():
            optimizer.step()


@healthy("inference-tensor", TRAINING)
def inference_tensors_as_data(watch):
    model, optimizer = made(watch)
    with torch.inference_mode():
        given = batch()
    for _ in range(3):
        optimizer.zero_grad()
        model(given.clone()).square().mean().backward()
        optimizer.step()


# stale-parameter


@fault("stale-parameter", TRAINING)
def head_replaced(watch):
    model, optimizer = made(watch)
    fit(model, optimizer)
    model[2] = nn.Linear(8, 3)
    fit(model, optimizer)


@fault("stale-parameter", TRAINING)
def weight_made_anew(watch):
    model, optimizer = made(watch)
    fit(model, optimizer)
    model[2].weight = nn.Parameter(torch.randn(2, 8))
    fit(model, optimizer)


@healthy("stale-parameter", TRAINING)
def replaced_and_added(watch):
    model, optimizer = made(watch)
    fit(model, optimizer)
    model[2] = nn.Linear(8, 3)
    optimizer.add_param_group({"params": model[2].parameters()})
    fit(model, optimizer)


@healthy("stale-parameter", TRAINING)
def replaced_with_an_optimizer_of_its_own(watch):
    model, optimizer = made(watch)
    fit(model, optimizer)
    model[2] = nn.Linear(8, 3)
    other = sgd(model[2])
    for _ in range(3):
        model.zero_grad()
        model(batch()).square().mean().backward()
        optimizer.step()
        other.step()


@healthy("stale-parameter", TRAINING)
def replaced_by_what_is_frozen(watch):
    model, optimizer = made(watch)
    fit(model, optimizer)
    model[2] = nn.Linear(8, 2).requires_grad_(requires_grad=False)
    fit(model, optimizer)


# frozen-moves


@fault("frozen-moves", TRAINING)
def frozen_with_momentum(watch):
    model, optimizer = made(watch, momentum=0.9)
    fit(model, optimizer)
    model[0].weight.requires_grad = False
    for _ in range(2):
        model(batch()).square().mean().backward()
        optimizer.step()


@fault("frozen-moves", TRAINING)
def frozen_between_backward_and_step(watch):
    model, optimizer = made(watch)
    model(batch()).square().mean().backward()
    model[2].requires_grad_(requires_grad=False)
    optimizer.step()


@healthy("frozen-moves", TRAINING)
def frozen_and_dropped(watch):
    model, optimizer = made(watch, momentum=0.9)
    fit(model, optimizer)
    model[0].requires_grad_(requires_grad=False).zero_grad(set_to_none=True)
    fit(model, optimizer)


@healthy("frozen-moves", TRAINING)
def frozen_with_gradients_of_zero(watch):
    model, optimizer = made(watch)
    fit(model, optimizer)
    model[0].requires_grad_(requires_grad=False)
    for _ in range(2):
        optimizer.zero_grad(set_to_none=False)
        model(batch()).square().mean().backward()
        optimizer.step()


# eval-mode


@fault("eval-mode", TRAINING)
def eval_not_undone(watch):
    model, optimizer = made(watch, nn.Dropout(0.1))
    fit(model, optimizer)
    model.eval()
    with torch.no_grad():
        model(batch())
    fit(model, optimizer)


@fault("eval-mode", TRAINING)
def evaluated_before_the_first_step(watch):
    model, optimizer = made(watch, nn.BatchNorm1d(8))
    model.eval()
    with torch.inference_mode():
        model(batch())
    fit(model, optimizer)


@healthy("eval-mode", TRAINING)
def eval_undone(watch):
    model, optimizer = made(watch, nn.Dropout(0.1))
    for _ in range(2):
        fit(model, optimizer)
        model.eval()
        with torch.no_grad():
            model(batch())
        model.train()


@healthy("eval-mode", TRAINING)
def norm_frozen_after_each_train(watch):
    model, optimizer = made(watch, nn.BatchNorm1d(8))
    for _ in range(2):
        model.train()
        model[2].eval()
        fit(model, optimizer)
        model.eval()
        with torch.no_grad():
            model(batch())


# kept-graph


@fault("kept-graph", TRAINING)
def losses_in_a_list(watch):
    losses = []
    model, optimizer = made(watch)
    for _ in range(30):
        loss = model(batch()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss)


@fault("kept-graph", TRAINING)
def mean_of_the_loss(watch):
    model, optimizer = made(watch)
    mean = torch.zeros(())
    for _ in range(30):
        loss = model(batch()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        mean = 0.9 * mean + 0.1 * loss


@healthy("kept-graph", TRAINING)
def losses_as_numbers(watch):
    losses = []
    model, optimizer = made(watch)
    for _ in range(30):
        loss = model(batch()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())


@healthy("kept-graph", TRAINING)
def one_backward_for_many(watch):
    model, optimizer = made(watch)
    for _ in range(3):
        optimizer.zero_grad()
        torch.stack([model(batch()).square().mean() for _ in range(14)]).mean().backward()
        optimizer.step()


# recorded-eval


@fault("recorded-eval", TRAINING, INFERENCE)
def validation_records(watch):
    model = net(nn.Dropout(0.1)).eval()
    watch(model, sgd(model))
    for _ in range(3):
        model(batch())


@fault("recorded-eval", TRAINING, INFERENCE)
def scores_one_by_one(watch):
    class Scorer(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = net()

        def forward(self, given):
            return {"score": self.body(given).softmax(-1), "count": len(given)}

    model = Scorer().eval()
    watch(model, sgd(model))
    for row in batch()[:4]:
        model(row)["score"].argmax().item()


@healthy("recorded-eval", TRAINING, INFERENCE)
def slope_of_an_energy(watch):
    class Energy(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(4, 1)

        def forward(self, given):
            given = given.requires_grad_()
            energy = self.body(given).square().sum()
            return energy, torch.autograd.grad(energy, given, create_graph=True)[0]

    model = Energy().eval()
    watch(model, sgd(model))
    for _ in range(4):
        model(batch())


@healthy("recorded-eval", TRAINING, INFERENCE)
def evaluated_under_a_guard(watch):
    model = net(nn.Dropout(0.1), nn.BatchNorm1d(8)).eval()
    watch(model, sgd(model))
    for guard in (torch.no_grad, torch.inference_mode, gradguard.inference_mode):
        with guard():
            model(batch())


# train-mode-inference


@fault("train-mode-inference", TRAINING, INFERENCE)
def predicts_in_train_mode(watch):
    model = net(nn.Dropout(0.1))
    watch(model, sgd(model) if watch.feeder == TRAINING else None)
    with torch.no_grad():
        for _ in range(3):
            model(batch())


@fault("train-mode-inference", TRAINING, INFERENCE)
def normalises_by_the_batch(watch):
    model = nn.ModuleDict({"body": net(nn.BatchNorm1d(8))})["body"]
    watch(model, sgd(model) if watch.feeder == TRAINING else None)
    for given in itertools.repeat(batch(), 3):
        with torch.inference_mode():
            model(given)


@healthy("train-mode-inference", TRAINING, INFERENCE)
def dropout_asked_for(watch):
    model = net(nn.Dropout(0.2)).eval()
    model[2].train()
    watch(model, sgd(model) if watch.feeder == TRAINING else None)
    with torch.no_grad():
        torch.stack([model(batch()) for _ in range(4)]).std(0)


@healthy("train-mode-inference", TRAINING, INFERENCE)
def nothing_that_depends_on_the_mode(watch):
    model = net(nn.LayerNorm(8), nn.Dropout(0.0))
    watch(model, sgd(model) if watch.feeder == TRAINING else None)
    with torch.no_grad():
        for _ in range(4):
            model(batch())


# unregistered, no-effect, frozen-batchnorm: what only a run sees


@fault("unregistered", TRAINING)
def layers_in_a_list(watch):
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.heads = nn.Linear(4, 4), [nn.Linear(4, 1)]

        def forward(self, given):
            return self.heads[0](self.body(given))

    model = Hidden()
    fit(model, watch(model, sgd(model)))


@fault("no-effect", TRAINING)
def guard_as_a_statement(watch):
    model, optimizer = made(watch)
    torch.no_grad()
    fit(model, optimizer)


@fault("no-effect", TRAINING)
def flag_of_a_module(watch):
    model, optimizer = made(watch)
    model[0].requires_grad = False
    fit(model, optimizer)


@fault("frozen-batchnorm", TRAINING)
def frozen_norm_woken(watch):
    model = net(nn.BatchNorm1d(8))
    model[2].requires_grad_(False).eval()
    optimizer = watch(model, sgd(model))
    model.train()
    fit(model, optimizer)


class Watching:
    """Attaches a feeder to what the program makes, and gives what it found."""

    def __init__(self, feeder, on_violation=lambda error: None):
        self.feeder = feeder
        self.on_violation = on_violation
        self.handle = None

    def __call__(self, model, optimizer):
        chosen = {"on_violation": self.on_violation}
        if self.feeder == TRAINING:
            self.handle = gradguard.watch_training(model, optimizer, **chosen)
        elif self.feeder == INFERENCE:
            self.handle = gradguard.watch_inference(model, **chosen)
        return optimizer

    def findings(self, function):
        torch.manual_seed(0)
        observer = Observer(self.on_violation if self.feeder == RUN else None)
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


def through(programs):
    return [(name, feeder) for name, (_, _, feeders) in programs.items() for feeder in feeders]


@pytest.mark.parametrize(("name", "feeder"), through(FAULTS))
def test_what_one_finds_the_others_find(name, feeder):
    """Each program gives the same finding, in the same words and at the same line, or says why."""
    program, kind, _ = FAULTS[name]
    by_run, by_watch = Watching(RUN).findings(program), Watching(feeder).findings(program)
    assert [one.kind for one in by_run] == [kind]
    if (name, feeder) in UNSEEN or kind in UNSEEN_KINDS:
        assert by_watch == []
    else:
        assert words(by_watch) == words(by_run)
        assert (lines(by_watch) != lines(by_run)) is ((name, feeder) in OTHER_LINE)


@pytest.mark.parametrize(("name", "feeder"), [*through(TWINS), *((name, RUN) for name in TWINS)])
def test_the_healthy_twin_is_silent_in_all(name, feeder):
    """A program that looks like the fault and is none gives no finding, nor a notice."""
    found = Watching(feeder).findings(TWINS[name][0])
    assert [(one.kind, one.message) for one in found] == []


SEEN = [
    (name, feeder)
    for name, (_, kind, feeders) in FAULTS.items()
    for feeder in feeders
    if kind not in UNSEEN_KINDS and (name, feeder) not in UNSEEN
]


@pytest.mark.parametrize(("name", "feeder"), [*SEEN, *((name, RUN) for name in FAULTS)])
def test_each_is_handed_over_and_logged_once(name, feeder, caplog):
    """However often a fault is met, a callable and the logger are given it once."""
    told = []
    with caplog.at_level(logging.INFO, "gradguard"):
        found = Watching(feeder, told.append).findings(FAULTS[name][0])
    kinds = [getattr(one, "finding", one).kind for one in told]
    assert (
        kinds == [record.finding.kind for record in caplog.records] == [each.kind for each in found]
    )
    assert len(found) == 1


ONE_OF_EACH = {(FAULTS[name][1], feeder): (name, feeder) for name, feeder in SEEN}.values()
NOTICES = {("kept-graph", TRAINING), ("recorded-eval", TRAINING)}


@pytest.mark.parametrize(("name", "feeder"), ONE_OF_EACH)
def test_each_is_warned_of_once(name, feeder):
    """However often a fault is met, there is one warning of it, with its message."""
    with pytest.warns(gradguard.GradModeWarning) as warned:
        (found,) = Watching(feeder, "warn").findings(FAULTS[name][0])
    (text,) = [str(each.message) for each in warned if each.category is gradguard.GradModeWarning]
    assert found.message in text


@pytest.mark.parametrize(("name", "feeder"), ONE_OF_EACH)
def test_faults_are_raised_and_notices_are_not(name, feeder):
    """The error holds the finding; a notice, which may be meant, stops nothing."""
    program, kind, _ = FAULTS[name]
    watching = Watching(feeder, "raise")
    if (kind, feeder) in NOTICES:
        assert [one.severity for one in watching.findings(program)] == ["notice"]
        return
    with pytest.raises(gradguard.GradModeError) as caught:
        watching.findings(program)
    (found,) = watching.handle.findings
    assert (caught.value.finding.kind, caught.value.finding.severity) == (kind, "fault")
    assert found.message in str(caught.value)


def test_each_kind_that_several_see_has_two_faults_and_two_twins():
    """No kind that more than one feeder can see lacks programs that go through those feeders."""
    seen = set(RUN_KINDS) - set(UNSEEN_KINDS)
    faults = Counter(kind for _, kind, feeders in FAULTS.values() if feeders)
    twins = Counter(kind for _, kind, feeders in TWINS.values() if feeders)
    assert {kind: (faults[kind] >= 2, twins[kind] >= 2) for kind in seen} == dict.fromkeys(
        seen, (True, True)
    )
