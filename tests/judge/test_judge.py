"""The judge by facts written by hand: no hook, nothing replaced."""

import logging
import sys

import torch
from torch import nn

from gradguard._core.state import GradState
from gradguard._judge.facts import Forward, Left
from gradguard._judge.judge import Judge
from gradguard._judge.lines import Line

OFF = GradState(grad_enabled=False, inference_mode=False)
SWITCH = Line("train.py", 7, "validate")


def forward(judge, model, *, training=True, recorded=True, left=None, output=None):
    taken = Forward(model, training, recorded, sys._getframe(1), left)
    judge.began(taken)
    judge.ended(taken, output)


def step(judge, optimizer):
    judge.before_step(optimizer, sys._getframe(), closure=False)
    judge.after_step(optimizer, sys._getframe(), closure=False)


def made():
    model = nn.Linear(2, 1)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def test_a_left_mode_is_a_fault_once_training_goes_on():
    """That a mode is left is none; a step that followed on nothing recorded makes it one."""
    judge = Judge()
    model, optimizer = made()
    left = Left(OFF, SWITCH, 0, returned=True)
    forward(judge, model, recorded=False, left=left)
    assert judge.ledger.findings() == []
    step(judge, optimizer)
    (found,) = judge.ledger.findings()
    assert (found.kind, found.filename, found.lineno) == ("mode-leak", "train.py", 7)
    assert (found.severity, found.first_step) == ("fault", 2)


def test_a_recorded_forward_explains_the_step():
    """After a forward that was recorded, an earlier one in a left mode stopped nothing."""
    judge = Judge()
    model, optimizer = made()
    forward(judge, model, recorded=False, left=Left(OFF, SWITCH, 0, returned=True))
    forward(judge, model)
    model.weight.grad = torch.zeros(1, 2)
    step(judge, optimizer)
    assert judge.ledger.findings() == []


def test_a_train_call_after_the_switch_wants_training():
    """train() in a left mode, then a forward in train mode: told at that forward."""
    judge = Judge()
    model, _ = made()
    left = Left(OFF, SWITCH, 3, returned=True)
    judge.train_called(model, Line("train.py", 9, "loop"), left)
    forward(judge, model, recorded=False, left=left)
    assert [one.kind for one in judge.ledger.findings()] == ["mode-leak"]


def test_each_kind_and_line_is_told_once_and_counted(caplog):
    """A finding is told, and logged, when it is new; what follows is counted."""
    told = []
    judge = Judge(told.append)
    model, optimizer = made()
    forward(judge, model)
    with caplog.at_level(logging.INFO, "gradguard"):
        for _ in range(5):
            judge.backward([torch.ones(1, requires_grad=True)], lambda: None, to_leaves=True)
            judge.zeroed(optimizer)
            step(judge, optimizer)
    judge.finish()
    assert [one.kind for one in told] == ["empty-step"]
    assert judge.ledger.findings()[0].count == 5
    assert [record.finding.kind for record in caplog.records] == ["empty-step"]


def test_a_fork_forgets_what_was_found():
    """A forked child begins with no finding and no count, but knows the modules."""
    judge = Judge()
    model, optimizer = made()
    forward(judge, model, recorded=False, left=Left(OFF, SWITCH, 0, returned=True))
    step(judge, optimizer)
    judge.forked()
    assert judge.ledger.findings() == []
    assert (judge.scene.steps, judge.scene.forwards) == (0, 0)
    assert judge.scene.modules.of(model).called is not None


def test_what_was_not_seen_is_not_guessed():
    """Steps of an optimizer none of whose modules was seen to run are no finding."""
    judge = Judge()
    _, optimizer = made()
    for _ in range(20):
        step(judge, optimizer)
    judge.finish()
    assert judge.ledger.findings() == []


def test_an_id_goes_with_its_module():
    """A layer made anew in each forward may have the id of the one before: it is looked at again."""
    modules = Judge().scene.modules
    root, layer = nn.Linear(2, 2), nn.Linear(2, 2)
    inside, key = modules.of(root).known_inside()[0], id(layer)
    modules.seen_inside(layer, inside)
    assert key in inside
    assert key in modules.by_id
    del layer
    assert inside == set()
    assert key not in modules.by_id


def test_a_shared_part_outlives_what_it_ran_in():
    """Thousands of models made around one backbone leave nothing behind."""
    modules = Judge().scene.modules
    backbone = nn.Linear(2, 2)
    for _ in range(3):
        root = nn.Sequential(backbone)
        modules.seen_inside(backbone, modules.of(root).known_inside()[0])
        assert len(modules.of(backbone).within) == 1
        del root
    assert modules.of(backbone).within == {}


def test_what_is_looked_at_anew_leaves_nothing_behind():
    """Each optimizer that is given a part that ran has all looked at anew, a thousand times, too."""
    modules = Judge().scene.modules
    part = nn.Linear(2, 2)
    root = nn.Sequential(part)
    modules.of(root).ran(sys._getframe(), recorded=True)
    modules.seen_inside(part, modules.of(root).known_inside()[0])
    modules.given(root.parameters())
    assert modules.of(root).known is None
    assert modules.of(part).within == {}
