"""What keeps graphs alive is named as the program names it."""

import gc
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from gradguard._judge.referrers import of_graphs

LONG = 50


def loss(length=1):
    total = torch.zeros((), requires_grad=True)
    for _ in range(length):
        total = total + 1
    return total


class Meter:
    """What adds losses up with their graphs."""


class Slotted:
    """The same, without a dict."""

    __slots__ = ("sum",)


@pytest.fixture
def module(monkeypatch):
    """A module of the program."""
    made = ModuleType("training")
    monkeypatch.setitem(sys.modules, "training", made)
    return made


@pytest.fixture
def main(monkeypatch):
    """The program's own module."""
    made = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", made)
    return made


def test_nothing_holds_a_graph():
    """Nobody is named."""
    assert of_graphs() is None


def test_an_attribute():
    """It is named with its class, however Python keeps the attributes."""
    meter = Meter()
    meter.sum = loss(LONG)
    assert of_graphs() == "Meter.sum"
    vars(meter)["count"] = 1  # from now on it has a dict
    assert of_graphs() == "Meter.sum"


def test_a_slot():
    """It is named as an attribute."""
    meter = Slotted()
    meter.sum = loss(LONG)
    assert of_graphs() == "Slotted.sum"


def test_a_list_in_a_module(module):
    """A list or tuple is told by what stands in it."""
    module.losses = [loss() for _ in range(5)]
    assert of_graphs() == "training.losses[…]"


def test_a_variable_of_the_program(main):
    """It has no module's name before it."""
    main.total = loss(LONG)
    assert of_graphs() == "total"


def test_a_list_that_is_an_attribute():
    """It is named with the class of what has it."""
    meter = SimpleNamespace(history=[loss(), loss()])
    assert of_graphs() == "SimpleNamespace.history[…]"
    meter = Meter()
    meter.history = [loss(), loss()]
    assert of_graphs() == "Meter.history[…]"


def test_the_longest_graph_is_named(main):
    """Of several holders the one that keeps most alive."""
    main.last, main.total = loss(), loss(LONG)
    assert of_graphs() == "total"


def test_the_process_is_searched_as_often_for_many_graphs_as_for_one(main, monkeypatch):
    """To search it takes long: a list of a thousand losses must not do so a thousand times."""
    searches, search = [], gc.get_referrers
    monkeypatch.setattr(gc, "get_referrers", lambda *of: searches.append(of) or search(*of))
    main.losses = [loss()]
    assert of_graphs() == "losses[…]"
    alone = len(searches)
    main.losses += [loss() for _ in range(100)]
    assert of_graphs() == "losses[…]"
    assert len(searches) == 2 * alone
