"""The engine that replaces attributes of torch and gradguard, for several tools at once."""

import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradguard._trace.patching import Patches, replaced


class Base:
    def inherited(self):
        return ["base"]


class Target(Base):
    def method(self):
        return ["original"]


def layer(name):
    """Make a replacement that says its name before it calls what was there."""

    def make(original):
        def method(self):
            return [name, *original(self)]

        return method

    return make


@given(st.lists(st.sampled_from("abc"), max_size=12))
def test_layers_come_and_go_in_any_order(steps):
    """Whatever the order in which tools begin and end, what acts is what is active, no more."""
    original, before = vars(Target)["method"], replaced()
    active = {}
    for name in steps:
        if name in active:
            active.pop(name).remove()
        else:
            active[name] = Patches()
            active[name].replace(Target, "method", layer(name))
        assert Target().method() == [*reversed(active), "original"]
    for patches in active.values():
        patches.remove()
    assert vars(Target)["method"] is original
    assert replaced() == before


def test_what_is_inherited_is_inherited_again():
    """A method that a class only inherits is not left on the class."""
    patches = Patches()
    patches.replace(Target, "inherited", layer("a"))
    assert Target().inherited() == ["a", "base"]
    assert Base().inherited() == ["base"]
    patches.remove()
    assert "inherited" not in vars(Target)
    assert Target().inherited() == ["base"]


def test_another_tools_replacement_is_left_alone(monkeypatch):
    """What has been put over a layer since stays, and a new layer goes over that."""
    first, second = Patches(), Patches()
    first.replace(Target, "method", layer("first"))
    theirs = layer("theirs")(vars(Target)["method"])
    with monkeypatch.context() as patching:
        patching.setattr(Target, "method", theirs)
        second.replace(Target, "method", layer("second"))
        first.remove()
        assert Target().method()[:2] == ["second", "theirs"]
        second.remove()
        assert vars(Target)["method"] is theirs


def test_the_same_replacement_is_not_made_anew():
    """A layer over a layer leaves the lower one the very same object."""
    below, above = Patches(), Patches()
    below.replace(Target, "method", layer("below"))
    there = vars(Target)["method"]
    above.replace(Target, "method", layer("above"))
    above.remove()
    assert vars(Target)["method"] is there
    below.remove()


def test_everything_replaced_is_listed():
    """`replaced` names what is replaced now."""
    before, patches = replaced(), Patches()
    patches.replace(Target, "method", layer("a"))
    patches.replace(threading, "active_count", lambda original: lambda: original())
    ours = [f"{__name__}.Target.method", "threading.active_count"]
    assert sorted(replaced()) == sorted([*before, *ours])
    patches.remove()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_can_replace():
    """A child that was forked while another thread was replacing something is not locked out."""
    inside, go_on = threading.Event(), threading.Event()
    patches = Patches()

    def make(original):
        inside.set()
        go_on.wait()
        return original

    thread = threading.Thread(target=patches.replace, args=(Target, "method", make))
    thread.start()
    inside.wait()
    if (child := os.fork()) == 0:
        mine = Patches()
        mine.replace(Target, "inherited", layer("child"))
        os._exit(0 if Target().inherited() == ["child", "base"] else 1)
    go_on.set()
    thread.join()
    patches.remove()
    assert os.waitpid(child, 0)[1] == 0


def test_layers_over_a_name_of_gradguard_reach_each_module():
    """What modules of gradguard have bound by name is replaced in each, and put back in each."""
    from gradguard._core import guard_types, state

    original = state.enter_inference
    patches = Patches()
    patches.replace_bound(original, lambda below: ("over", below))
    assert guard_types.enter_inference == state.enter_inference == ("over", original)
    patches.remove()
    assert guard_types.enter_inference is state.enter_inference is original
