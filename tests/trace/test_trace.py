"""trace(): what is recorded, what stays open, what is put back."""

import asyncio
import copy
import functools
import gc
import gzip
import itertools
import json
import pickle
import random
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

import gradguard
from gradguard import GradModeError, GradState, grad_state
from gradguard._core import state as _state
from gradguard._core.guard_types import Guard
from gradguard._core.inference_guards import INFERENCE_ON
from gradguard._core.places import file_shown
from gradguard._core.suspended_bodies import Body
from gradguard._trace import patching
from gradguard._trace import recorded_functions as _recording
from gradguard._trace import recorder as _recorder
from gradguard._trace.recorder import recorded_origin, snapshot
from gradguard._trace.table import mode, table
from gradguard._trace.trace import Trace, trace

# What is left switched is what these tests are about; a fixture puts it back.
pytestmark = pytest.mark.leaks_grad_mode(reason="it is about what is left")

ON, OFF, INFERENCE = GradState(True, False), GradState(False, False), GradState(False, True)
HERE = __file__
SHOWN = file_shown(__file__)  # as messages write it


@pytest.fixture(autouse=True)
def _mode_put_back():
    yield
    assert _recorder.current is None
    torch.set_grad_enabled(True)


def line(offset=0):
    """Return the line number of the caller."""
    return sys._getframe(1).f_lineno + offset


def changes(recording):
    return [(switch.before, switch.after) for switch in recording]


def lines(recording):
    return [switch.lineno for switch in recording]


def everything():
    """Whatever a trace could replace, by name, with its identity."""
    places = {("torch", key): value for key, value in vars(torch).items()}
    places |= {("torch._C", key): value for key, value in vars(torch._C).items()}
    for module in (torch.autograd.grad_mode, torch.utils._contextlib):
        places |= {(module.__name__, key): value for key, value in vars(module).items()}
    classes = [torch.no_grad, torch.enable_grad, torch.set_grad_enabled, torch.inference_mode]
    classes += [torch._C._InferenceMode, Guard]
    for each in classes:
        classes += each.__subclasses__() if each.__module__.startswith("gradguard") else []
        places |= {(each.__qualname__, key): value for key, value in vars(each).items()}
    for name, module in list(sys.modules.items()):
        if name.startswith("gradguard."):
            for key, value in vars(module).items():
                places[name, key] = value
                if isinstance(value, type) and value.__module__ == name:
                    places |= {(name, key, inner): held for inner, held in vars(value).items()}
    places.pop(("gradguard._trace.recorder", "current"))
    return places


def same(before, after):
    return before.keys() <= after.keys() and all(after[key] is before[key] for key in before)


# --- what is recorded


GUARDS = [
    ("no_grad", (), ON, OFF),
    ("set_grad_enabled", (False,), ON, OFF),
    ("inference_mode", (), ON, INFERENCE),
    ("enable_grad", (), OFF, ON),
    ("set_grad_enabled", (True,), OFF, ON),
    ("inference_mode", (False,), INFERENCE, ON),
]


@pytest.mark.parametrize("library", [torch, gradguard], ids=["torch", "gradguard"])
@pytest.mark.parametrize(("name", "mode", "before", "after"), GUARDS)
def test_each_guard_records_its_entry_and_its_exit(library, name, mode, before, after):
    """A `with` of any of the eight guards is two switches, at the line of the `with`."""
    outer = {ON: torch.enable_grad, OFF: torch.no_grad, INFERENCE: torch.inference_mode}[before]
    with outer(), trace() as found:
        with getattr(library, name)(*mode):
            expected = line(-1)
        assert grad_state() == before
        assert _recorder.current.thread.opened.last() is None
    assert changes(found) == [(before, after), (after, before)]
    assert lines(found) == [expected] * 2
    (switch, _) = found
    assert switch.filename == HERE
    assert switch.function == sys._getframe().f_code.co_name
    assert switch.thread == threading.current_thread().name
    assert found.left_switched() == []


@pytest.mark.parametrize("library", [torch, gradguard], ids=["torch", "gradguard"])
@pytest.mark.parametrize(("name", "mode", "before", "after"), GUARDS)
def test_each_decorator_records_the_line_of_the_call(library, name, mode, before, after):
    """A decorated function switches where it is called."""
    outer = {ON: torch.enable_grad, OFF: torch.no_grad, INFERENCE: torch.inference_mode}[before]
    with outer(), trace() as found:
        decorated = getattr(library, name)(*mode)(grad_state)
        made = len(found)
        assert decorated() == after
        expected = line(-1)
    assert changes(found)[made:] == [(before, after), (after, before)]
    assert lines(found)[made:] == [expected] * 2
    assert found.left_switched() == []


@pytest.mark.parametrize(
    "switch",
    [torch._C._set_grad_enabled, torch.set_grad_enabled, gradguard.set_grad_enabled],
    ids=["torch._C", "torch", "gradguard"],
)
def test_direct_calls_are_recorded(switch):
    """Plain calls, of torch's C function too, are switches at their own line."""
    name = switch.__name__
    with trace() as found:
        owner = torch._C if name == "_set_grad_enabled" else sys.modules[switch.__module__]
        getattr(owner, name)(False)
        first = line(-1)
        assert recorded_origin(grad_state()).startswith(f"{SHOWN}:{first} in test_direct")
        getattr(owner, name)(True)
        assert recorded_origin(grad_state()) is None
    assert changes(found) == [(ON, OFF), (OFF, ON)]
    assert lines(found) == [first, first + 3]


def test_what_changes_nothing_is_no_switch():
    """Entering a guard whose mode is on already is not recorded, and neither is its exit."""
    with trace() as found:
        with torch.enable_grad(), gradguard.enable_grad():
            torch._C._set_grad_enabled(True)
        with torch.inference_mode(False):
            pass
    assert len(found) == 0
    assert list(found) == []


def test_wrong_arguments_fail_as_without_a_trace():
    """The replaced functions raise torch's own errors, and record nothing."""
    with trace() as found:
        for call in (torch._C._set_grad_enabled, torch._C._InferenceMode):
            with pytest.raises(TypeError):
                call("no")
        assert torch._C._set_grad_enabled(True) is None
    assert list(found) == []


def test_suspended_bodies_are_switches_of_the_line_that_resumes_them():
    """Gradguard's generators and coroutines switch at each step, once; all are switched back."""

    @gradguard.inference_mode()
    def stream():
        with torch.inference_mode(False), torch.no_grad():
            yield 1
        yield 2

    @gradguard.no_grad
    async def answer():
        await asyncio.sleep(0)

    async def main():
        await answer()

    with trace() as found:
        assert list(stream()) == [1, 2]
        stepped = line(-1)
        assert {switch.lineno for switch in found} >= {stepped}
        asyncio.run(main())
    outside = [c for s, c in zip(found, changes(found), strict=True) if s.lineno == stepped]
    assert outside[0] == (ON, INFERENCE)
    assert outside[1] == (OFF, ON)  # once, though it takes two settings
    assert found.left_switched() == []
    assert sum(switch.function == "main" for switch in found) == 4


def test_guard_that_sets_both_flags_is_one_switch():
    """What a guard passes through on its way is not recorded."""
    with gradguard.no_grad(), gradguard.inference_mode():
        with trace() as found, gradguard.inference_mode(False):
            pass
    assert changes(found) == [(INFERENCE, OFF), (OFF, INFERENCE)]


def test_mode_put_back_by_gradguard_is_one_switch():
    """As by `leak_check`, which must leave inference mode by several tokens."""
    guard = torch.inference_mode()
    with trace() as found:
        with torch.no_grad(), pytest.raises(gradguard.GradLeakError), gradguard.leak_check():
            guard.__enter__()
        assert found.left_switched() == []
    assert changes(found) == [(ON, OFF), (OFF, INFERENCE), (INFERENCE, OFF), (OFF, ON)]
    guard.__exit__(None, None, None)


def test_dropped_suspended_body_switches_nothing():
    """Its tokens are used up, which passes through other modes."""
    body = Body(INFERENCE_ON)
    body.resume()
    body.suspend()
    with torch.inference_mode(), trace() as found:
        del body
        assert grad_state() == INFERENCE
    assert list(found) == []


def test_inference_token_made_before_the_trace_is_seen_to_exit():
    """Also where the class was bound before; the switch is recorded though its entry is not."""
    token = torch._C._InferenceMode(True)
    with trace() as found:
        token.__exit__(None, None, None)
    assert changes(found) == [(INFERENCE, ON)]


def test_line_is_the_first_outside_torch_and_gradguard():
    """Switches inside an optimizer's step, and by gradguard's own checks, are the caller's."""
    weight = torch.nn.Parameter(torch.ones(1))
    weight.grad = torch.ones(1)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    with trace() as found:
        optimizer.step()
        step = line(-1)
        with pytest.raises(gradguard.GradLeakError), gradguard.leak_check():
            torch.set_grad_enabled(False)
            leak = line(-1)
    assert {switch.lineno for switch in found} == {step, leak, leak - 1}
    assert {switch.filename for switch in found} == {HERE}


def test_works_where_a_project_has_rebound_torchs_names(monkeypatch):
    """Stock guards then reach gradguard's plain call; each is recorded once."""
    stock = torch.no_grad
    for name in ("no_grad", "enable_grad", "set_grad_enabled", "inference_mode"):
        monkeypatch.setattr(torch, name, getattr(gradguard, name))
    with trace() as found:
        with stock():
            pass
        with torch.no_grad(), torch.enable_grad():
            torch.set_grad_enabled(False)
        assert found.left_switched() == []
    assert changes(found) == [(ON, OFF), (OFF, ON)] * 3


def test_torch_function_modes_see_and_make_the_call_once():
    """A TorchFunctionMode that passes the call on does not make it two switches."""
    seen = []

    class Mode(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.append(function)
            return function(*args, **(kwargs or {}))

    with trace() as found, Mode():
        torch._C._set_grad_enabled(False)
        expected = line(-1)
        torch._C._set_grad_enabled(True)
    assert lines(found) == [expected, expected + 2]
    assert seen == [torch._C._set_grad_enabled] * 2


def test_all_threads_are_recorded_and_a_left_switch_outlives_its_thread():
    """Also threads that were running before; what a thread left switched is known after its end."""
    started, go = threading.Event(), threading.Event()

    def early():
        started.set()
        go.wait()
        torch.set_grad_enabled(False)

    def late():
        with torch.inference_mode():
            pass

    worker = threading.Thread(target=early, name="early")
    worker.start()
    started.wait()
    with trace() as found:
        go.set()
        worker.join()
        other = threading.Thread(target=late, name="late")
        other.start()
        other.join()
        assert recorded_origin(OFF) is None  # another thread's is not this one's
    assert [(switch.thread, switch.after) for switch in found] == [
        ("early", OFF),
        ("late", INFERENCE),
        ("late", ON),
    ]
    (left,) = found.left_switched()
    assert (left.thread, left.function, left.filename) == ("early", "early", HERE)


def test_many_threads_at_once_lose_nothing():
    """Switches of each thread are all there, in order, and none is left open."""
    count = 200

    def work(_):
        for _ in range(count):
            with torch.no_grad(), gradguard.inference_mode():
                pass

    with trace() as found, ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert len(found) == 4 * count * 4
    for name in {switch.thread for switch in found}:
        own = [change for s, change in zip(found, changes(found), strict=True) if s.thread == name]
        assert all(one[1] == two[0] for one, two in itertools.pairwise(own))
    assert found.left_switched() == []


def test_reading_while_others_record():
    """A trace can be read at any time while threads record into it."""
    stop = threading.Event()

    def work():
        while not stop.is_set():
            with torch.no_grad():
                pass

    workers = [threading.Thread(target=work) for _ in range(2)]
    with trace(limit=50) as found:
        for worker in workers:
            worker.start()
        try:
            for _ in range(200):
                assert len(list(found)) <= 50 + 2
                str(found)
        finally:
            stop.set()
            for worker in workers:
                worker.join()


def test_snapshot_tries_again_where_another_thread_has_added():
    """A copy that fails because the collection grew is made again."""

    class Growing:
        tries = 0

        def __iter__(self):
            self.tries += 1
            if self.tries < 3:
                raise RuntimeError
            return iter([1])

    assert snapshot(Growing()) == [1]


# --- what stays open


def test_last_switch_never_switched_back_is_named():
    """What comes and goes after it, in blocks of either library, does not hide it."""
    with trace() as found:
        torch.set_grad_enabled(False)
        leak = line(-1)
        for library in (torch, gradguard):
            with library.enable_grad():
                pass
            with library.set_grad_enabled(True), library.no_grad():
                torch.set_grad_enabled(True)
            with library.inference_mode(), library.enable_grad():
                assert recorded_origin(grad_state()) is not None
            library.enable_grad()(grad_state)()
        source = "torch.set_grad_enabled(False)"
        name = sys._getframe().f_code.co_name
        assert recorded_origin(grad_state()) == f"{SHOWN}:{leak} in {name}: {source}"
        assert recorded_origin(ON) is None
    assert [switch.lineno for switch in found.left_switched()] == [leak]
    assert recorded_origin(OFF) is None


def test_call_switches_back_an_earlier_call():
    """`set_grad_enabled(False)` and later `set_grad_enabled(True)` leave nothing open."""
    with trace() as found:
        torch.set_grad_enabled(False)
        assert len(found.left_switched()) == 1
        torch._C._set_grad_enabled(True)
        assert found.left_switched() == []
        torch.set_grad_enabled(False)
        with torch.no_grad():
            torch.set_grad_enabled(True)
        torch.set_grad_enabled(True)
        assert found.left_switched() == []


@pytest.mark.parametrize("library", [torch, gradguard], ids=["torch", "gradguard"])
def test_end_of_a_block_takes_back_what_its_body_left(library):
    """Also where the end changes nothing, as the body had switched back by itself."""
    with trace() as found:
        with library.no_grad():
            library.set_grad_enabled(True)
            assert len(found.left_switched()) == 2
        assert found.left_switched() == []
        with library.enable_grad():
            library.set_grad_enabled(False)
        assert found.left_switched() == []


def test_call_in_a_block_does_not_take_back_what_lies_around_the_block():
    """The block's end will switch again, so the call is the one that decides meanwhile."""
    with trace() as found:
        torch.set_grad_enabled(False)
        leak = line(-1)
        with torch.enable_grad():
            torch.set_grad_enabled(False)
            assert recorded_origin(OFF).startswith(f"{SHOWN}:{leak + 3} ")
        assert recorded_origin(OFF).startswith(f"{SHOWN}:{leak} ")
    assert len(found.left_switched()) == 1


@pytest.mark.parametrize("decorate", [gradguard.no_grad, gradguard.inference_mode(mode=True)])
def test_call_in_a_decorated_function_does_not_take_back_its_guard(decorate):
    """A decorated call is a block too."""

    @decorate
    def body():
        torch.set_grad_enabled(True)
        expected = line(-1)
        assert recorded_origin(grad_state()).startswith(f"{SHOWN}:{expected} ")
        assert len(found.left_switched()) == 2

    with trace() as found:
        body()
        assert found.left_switched() == []


def test_guard_made_where_another_was_dropped_is_not_taken_for_it():
    """torch's guards are small objects that reuse each other's memory."""
    with trace() as found:
        torch.set_grad_enabled(False)
        leak = line(-1)
        with torch.no_grad():
            pass
        torch.set_grad_enabled(True)
        assert found.left_switched() == []
        torch.set_grad_enabled(False)
        with torch.enable_grad():
            pass
        assert [switch.lineno for switch in found.left_switched()] == [leak + 6]


def test_exits_out_of_order_leave_nothing_open_unless_the_mode_is():
    """torch's guards closed in the wrong order leave grad off: the exit that did it is named."""
    with trace() as found:
        one, two = torch.no_grad(), torch.enable_grad()
        one.__enter__()
        two.__enter__()
        one.__exit__(None, None, None)
        two.__exit__(None, None, None)
        expected = line(-1)
        assert grad_state() == OFF
        assert [switch.lineno for switch in found.left_switched()] == [expected]
        torch.set_grad_enabled(True)
        with gradguard.no_grad():
            one, two = gradguard.inference_mode(), gradguard.enable_grad()
            one.__enter__()
            two.__enter__()
            with pytest.warns(gradguard.GradModeWarning):
                one.__exit__(None, None, None)
            two.__exit__(None, None, None)
    assert found.left_switched() == []


def test_project_context_managers_are_recorded_where_their_with_is():
    """A generator that holds a guard for its user is the line of the guard."""

    @contextmanager
    def evaluation():
        with torch.no_grad():
            yield

    with trace() as found:
        with evaluation():
            assert recorded_origin(OFF).endswith(" in evaluation: with torch.no_grad():")
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
    assert [switch.function for switch in found][:2] == ["evaluation"] * 2
    assert found.left_switched() == []


def test_assertions_name_the_recorded_line():
    """Where the switch is not on the call stack any more, an active trace knows it."""

    def leak():
        torch.set_grad_enabled(False)

    with trace():
        leak()
        with pytest.raises(GradModeError) as caught:
            gradguard.assert_grad_enabled()
    expected = f"{SHOWN}:{leak.__code__.co_firstlineno + 1} in leak: torch.set_grad_enabled(False)"
    assert f"never switched back, as trace() has recorded: {expected}" in str(caught.value)


def test_switch_that_no_trace_can_see_is_not_blamed_on_another():
    """In an autograd function's forward torch turns grad off in C++: no recorded line did."""
    seen = []

    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            seen.append(recorded_origin(grad_state()))
            return x * 2

        @staticmethod
        def backward(ctx, grad):
            return grad * 2

    with trace() as found, torch.inference_mode(False), torch.no_grad(), torch.enable_grad():
        Double.apply(torch.ones(1, requires_grad=True)).backward()
    assert seen == [None]
    assert len(found) == 4


def test_dropped_inference_guard_is_dropped_as_without_a_trace():
    """A trace keeps no guard alive: torch's leaves inference mode when it is garbage."""
    with trace():
        torch.inference_mode().__enter__()
        assert not torch.is_inference_mode_enabled()
        guard = torch.no_grad()
        with guard:
            dead = weakref.ref(guard)
            del guard
    gc.collect()
    assert dead() is None


LIBRARIES = (torch, gradguard)
BLOCKS = (
    ("no_grad", ()),
    ("enable_grad", ()),
    ("set_grad_enabled", (True,)),
    ("set_grad_enabled", (False,)),
    ("inference_mode", ()),
    ("inference_mode", (False,)),
)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.booleans())
def test_whatever_is_nested_is_recorded_and_closed(seed, leak_first):
    """Any nesting of blocks and calls: each change is one switch, and blocks leave nothing open."""
    chance = random.Random(seed)  # noqa: S311 - a test

    def run(depth):
        for _ in range(chance.randint(0, 3)):
            library, (name, mode) = chance.choice(LIBRARIES), chance.choice(BLOCKS)
            if chance.random() < 0.2:
                library.set_grad_enabled(chance.random() < 0.5)
            elif depth and chance.random() < 0.3:
                getattr(library, name)(*mode)(run)(depth - 1)
            elif depth:
                with getattr(library, name)(*mode):
                    run(depth - 1)
        states.append(grad_state())

    states = []
    with trace() as found:
        if leak_first:
            torch.set_grad_enabled(False)
            leak = line(-1)
        before = grad_state()
        with torch.set_grad_enabled(before.grad_enabled):
            run(3)
        assert grad_state() == before
        left = [switch.lineno for switch in found.left_switched()]
        last = _recorder.current.thread.opened.last()
    torch.set_grad_enabled(True)
    assert left == ([leak] if leak_first else [])
    assert (last is not None) == leak_first
    steps = changes(found)
    assert all(one != two for one, two in steps)
    assert all(one[1] == two[0] for one, two in itertools.pairwise(steps))


# --- limits, nesting, what is put back


def test_ring_keeps_the_newest_and_the_still_open():
    """Beyond the limit the oldest go, but not what was never switched back."""
    with trace(limit=4) as found:
        torch.set_grad_enabled(False)
        leak = line(-1)
        for _ in range(50):
            with torch.enable_grad():
                pass
    assert len(found) == 5
    assert lines(found)[0] == leak
    assert lines(found)[1:] == [leak + 3] * 4
    assert [switch.lineno for switch in found.left_switched()] == [leak]
    assert "96 older ones not kept" in str(found)
    assert "5 switches of the mode; * never switched back: 1;" in str(found)


def test_blocks_that_are_never_left_do_not_pile_up(monkeypatch):
    """Guards entered again and again, without an exit, that switch nothing."""
    monkeypatch.setattr("gradguard._trace.open_switches._DEEPEST", 8)
    with trace() as found:
        for _ in range(100):
            torch.no_grad().__enter__()
        assert len(_recorder.current.thread.opened._stack) <= 8
        assert len(found.left_switched()) == 1
        torch.set_grad_enabled(True)


def test_one_torch_guard_entered_twice_is_what_left_grad_off():
    """Its second entry forgets the mode that the first one found, so its exit brings back none."""
    guard = torch.no_grad()
    with trace() as found:
        with guard:
            first = line(-1)
            with guard:
                pass
        assert grad_state() == OFF
        assert recorded_origin(OFF).startswith(f"{SHOWN}:{first} ")
        torch.set_grad_enabled(True)
    assert found.left_switched() == []


def test_what_ended_threads_left_is_bounded(monkeypatch):
    """A server that ends a thread with grad off for each request does not fill memory."""
    monkeypatch.setattr(_recorder, "_MOST_OF_ENDED_THREADS", 3)
    with trace(limit=2) as found:
        for at in range(8):
            worker = threading.Thread(target=torch.set_grad_enabled, args=(False,), name=f"w{at}")
            worker.start()
            worker.join()
    assert [switch.thread for switch in found.left_switched()] == ["w5", "w6", "w7"]


@pytest.mark.parametrize(
    ("limit", "error"),
    [
        (0, ValueError),
        (-1, ValueError),
        (2.5, TypeError),
        ("many", TypeError),
        (True, TypeError),
        (None, TypeError),
    ],
)
def test_wrong_limit_is_refused(limit, error):
    """What is no number of switches is refused, naming it, and nothing is traced."""
    with pytest.raises(error, match=r"^trace\(limit=\.\.\.\) takes .* got ") as caught:
        with trace(limit=limit):
            pass
    assert repr(limit) in str(caught.value)
    assert _recorder.current is None


def test_nested_traces_each_have_their_own_part():
    """The outer one has all; the inner one what happens in it, and what it leaves open."""
    with trace() as outer:
        torch.set_grad_enabled(False)
        with trace(limit=10) as inner:
            assert inner.left_switched() == []
            with torch.enable_grad():
                pass
            torch.set_grad_enabled(True)
            torch.set_grad_enabled(False)
        with torch.enable_grad():
            pass
        assert len(outer) == 7
    assert changes(inner) == [(OFF, ON), (ON, OFF), (OFF, ON), (ON, OFF)]
    assert len(inner.left_switched()) == 1
    assert len(outer.left_switched()) == 1


def test_process_is_as_before_after_the_last_trace():
    """Whatever was replaced, in torch and gradguard, is the very same object again."""
    before = everything()
    with trace():
        during = everything()
        with trace():
            pass
        assert same(during, everything())
    assert same(before, everything())
    replaced = {key for key in before if during.get(key) is not before[key]}
    assert ("torch._C", "_set_grad_enabled") in replaced
    assert ("_InferenceMode", "__exit__") in replaced
    assert ("gradguard._core.state", "set_grad") in replaced
    assert ("gradguard._core.compiling", "set_grad") not in replaced
    assert not {key for key in replaced if key[0] == "torch"}


def test_overlapping_traces_put_back_after_the_last_of_them():
    """Traces of several threads may end in any order."""
    before, one, two = everything(), trace(), trace()
    first = one.__enter__()
    second = two.__enter__()
    one.__exit__(None, None, None)
    with torch.no_grad():
        pass
    two.__exit__(None, None, None)
    assert (len(first), len(second)) == (0, 2)
    assert same(before, everything())


def test_exception_in_the_block_comes_out_and_all_is_put_back():
    """And what was recorded can be read."""
    before = everything()
    with pytest.raises(KeyError), trace() as found, torch.no_grad():
        raise KeyError
    assert same(before, everything())
    assert changes(found) == [(ON, OFF), (OFF, ON)]


def test_module_imported_during_a_trace_is_put_back_too():
    """A gradguard module that binds a replaced name meanwhile does not keep it."""
    original = torch._C._set_grad_enabled
    sys.modules["gradguard._late"] = late = type(sys)("gradguard._late")
    try:
        with trace():
            late.set_grad = _state.set_grad  # what an import binds
            assert late.set_grad is not original
        assert late.set_grad is _state.set_grad is original
    finally:
        del sys.modules["gradguard._late"]


def test_another_tools_replacement_is_left_alone():
    """What another tool has put in place meanwhile, over the trace's, stays; it records nothing."""
    original = torch._C._set_grad_enabled
    try:
        with trace() as found:
            inner = torch._C._set_grad_enabled
            theirs = functools.partial(inner)
            torch._C._set_grad_enabled = theirs
        assert torch._C._set_grad_enabled is theirs
        with torch.no_grad():
            assert grad_state() == OFF
        assert list(found) == []
    finally:
        torch._C._set_grad_enabled = original


def test_replacement_that_outlives_the_trace_works_and_records_nothing():
    """Such as one kept in a compiled graph, or a copy or pickle of it."""
    with trace() as found:
        kept = torch._C._set_grad_enabled
        token = torch._C._InferenceMode(True)
        token_exit = token.__exit__
    count = len(found)
    token_exit(None, None, None)
    for function in (kept, copy.deepcopy(kept), pickle.loads(pickle.dumps(kept))):  # noqa: S301
        function(False)
        assert grad_state() == OFF
        function(True)
        assert grad_state() == ON
    assert len(found) == count
    assert copy.deepcopy(kept) is torch._C._set_grad_enabled
    with trace() as again:
        kept(False)
        kept(True)
    assert len(again) == 2


def test_replacement_is_the_original_to_sets_and_dicts():
    """FX looks the function up among those that must not be dropped from a graph."""
    original = torch._C._set_grad_enabled
    with trace():
        ours = torch._C._set_grad_enabled
        assert ours is not original
        assert ours == original
        assert original == ours
        assert ours != torch.no_grad
        assert {original: 1}[ours] == {ours: 1}[original] == 1
        assert ours in torch.fx.node._side_effectful_functions


def test_guard_objects_open_across_the_ends_of_a_trace_stay_right():
    """Entered before and exited within, or entered within and exited after."""
    for library, name in itertools.product((torch, gradguard), ("no_grad", "inference_mode")):
        one, two = getattr(library, name)(), getattr(library, name)()
        one.__enter__()
        with trace() as found:
            one.__exit__(None, None, None)
            assert grad_state() == ON
            two.__enter__()
        two.__exit__(None, None, None)
        assert grad_state() == ON
        assert len(found) == 2


# --- what is read


def test_table_shows_each_part():
    """Place, function, thread, both modes, the mark of what was left, and the sums."""
    with trace() as found:
        with torch.inference_mode():
            pass
        torch.set_grad_enabled(False)
        leak = line(-1)
    header, *rows, summary = str(found).splitlines()
    assert header.split() == ["where", "function", "thread", "before", "after"]
    name = sys._getframe().f_code.co_name
    assert rows[0].split()[:2] == [f"{SHOWN}:{leak - 2}", name]
    assert rows[0].endswith("MainThread  grad on    inference")
    assert rows[2].split()[:2] == ["*", f"{SHOWN}:{leak}"]
    assert rows[2].endswith("MainThread  grad on    grad off")
    assert summary == "3 switches of the mode; * never switched back: 1."
    assert repr(found) == "<Trace: 3 switches, 1 never switched back>"


def test_table_of_a_long_trace_shows_the_newest_and_the_open_ones(monkeypatch):
    """It says how many it leaves out."""
    monkeypatch.setattr("gradguard._trace.trace._MOST_ROWS", 4)
    with trace() as found:
        torch.set_grad_enabled(False)
        for _ in range(10):
            with torch.enable_grad():
                pass
    text = str(found)
    assert len(text.splitlines()) == 1 + 5 + 1
    assert text.splitlines()[1].startswith("* ")
    assert "21 switches of the mode" in text
    assert "16 not shown (iterate over the trace)" in text


def test_texts():
    """Texts that need no trace."""
    assert [mode(state) for state in itertools.product((True, False), repeat=2)] == [
        "inference, grad on",
        "grad on",
        "inference",
        "grad off",
    ]
    assert table([], [], hidden=0, dropped=0).endswith("0 switches of the mode.")
    assert "1 switch of" in table([("a",) * 5], [False], hidden=0, dropped=0)


def test_chrome_trace_has_an_instant_a_switch_and_a_slice_a_span(tmp_path):
    """The keys that Perfetto needs, names of threads, times that nest."""
    with trace() as found:
        with torch.no_grad(), gradguard.enable_grad():
            expected = line(-1)
        worker = threading.Thread(target=torch.set_grad_enabled, args=(False,), name="worker")
        worker.start()
        worker.join()
    path = tmp_path / "trace.json"
    found.export_chrome_trace(path)
    events = json.loads(path.read_text())["traceEvents"]
    assert all({"name", "ph", "ts", "pid", "tid"} <= event.keys() for event in events)
    names = {e["tid"]: e["args"]["name"] for e in events if e["ph"] == "M"}
    assert sorted(names.values()) == ["MainThread", "worker"]
    assert len([e for e in events if e["ph"] == "i"]) == len(found) == 5
    outer, inner, left = (e for e in events if e["ph"] == "X")
    assert outer["ts"] <= inner["ts"]
    assert inner["ts"] + inner["dur"] <= outer["ts"] + outer["dur"]
    assert outer["args"] == {
        "where": f"{SHOWN}:{expected}",
        "function": sys._getframe().f_code.co_name,
        "before": "grad on",
        "after": "grad off",
    }
    assert f"{Path(HERE).name}:{expected}" in outer["name"]
    assert (names[left["tid"]], left["dur"] > 0) == ("worker", True)


def test_chrome_slices_end_where_switched_back_or_with_the_trace(tmp_path):
    """A leak lasts through blocks that come after it, and not beyond the end of its trace."""
    with trace():
        with trace() as found:
            torch.set_grad_enabled(False)
            with torch.set_grad_enabled(True):
                pass
        found.export_chrome_trace(tmp_path / "open.json")
        torch.set_grad_enabled(True)
    found.export_chrome_trace(tmp_path / "closed.json")
    events = json.loads((tmp_path / "open.json").read_text())["traceEvents"]
    leak, block = (event for event in events if event["ph"] == "X")
    assert leak["ts"] + leak["dur"] > block["ts"] + block["dur"]
    assert events == json.loads((tmp_path / "closed.json").read_text())["traceEvents"]


def test_chrome_trace_is_compressed_by_name_and_can_be_written_during_the_block(tmp_path):
    """As torch.profiler does for .gz; what is open lasts until now."""
    path = tmp_path / "trace.json.gz"
    with trace() as found, torch.no_grad():
        found.export_chrome_trace(str(path))
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    assert [event["ph"] for event in events] == ["M", "i", "X"]
    assert events[-1]["dur"] > 0


def test_trace_is_read_alike_during_and_after():
    """Iterating twice gives the same."""
    with trace() as found:
        with torch.no_grad():
            pass
        during = list(found)
    assert isinstance(found, Trace)
    assert list(found) == list(found) == during


def test_forked_child_of_a_busy_process_can_go_on():
    """No lock is held where a switch is recorded, so DataLoader workers cannot hang on one."""
    program = (
        "import os, threading, torch\n"
        "from gradguard._trace.trace import trace\n"
        "stop = threading.Event()\n"
        "def work():\n"
        "    while not stop.is_set():\n"
        "        with torch.no_grad(): pass\n"
        "with trace(limit=10):\n"
        "    worker = threading.Thread(target=work); worker.start()\n"
        "    for _ in range(20):\n"
        "        child = os.fork()\n"
        "        if not child:\n"
        "            with torch.no_grad(): pass\n"
        "            os._exit(7)\n"
        "        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7\n"
        "    stop.set(); worker.join()\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, timeout=60)


def test_nothing_is_imported_of_torch_to_say_where():
    """What the pytest plugin uses of it does not import torch."""
    program = (
        "import sys, gradguard._trace.open_switches, gradguard._trace.table\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_no_trace_costs_nothing():
    """When none is active nothing is replaced, so nothing can cost."""
    assert _recorder.current is None
    before = patching.replaced()
    with trace():
        assert len(patching.replaced()) > len(before)
    assert patching.replaced() == before
    assert "torch._C._set_grad_enabled" not in before
    assert not isinstance(torch._C._set_grad_enabled, _recording._Recorded)


def test_switches_can_be_pickled():
    """A list of switches goes to another process, and the types by their public names."""
    with trace() as found, torch.no_grad():
        pass
    switches = list(found)
    assert pickle.loads(pickle.dumps(switches)) == switches  # noqa: S301 (our own)
    for public in (gradguard.Switch, gradguard.Trace):
        assert public.__module__ == "gradguard"
        assert pickle.loads(pickle.dumps(public)) is public  # noqa: S301 (our own)


def test_a_librarys_switch_is_the_users_line(some_trainer, tmp_path):
    """A switch by an installed library is at the line that called it, with its own line second."""
    with trace() as found:
        some_trainer.main(grad_state)
        expected = line(-1)
    assert lines(found) == [expected] * 2
    row = str(found).splitlines()[1]
    assert f"{SHOWN}:{expected} ({some_trainer.__file__}:5)" in row
    found.export_chrome_trace(tmp_path / "trace.json")
    (event, *_) = [
        each
        for each in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
        if each["ph"] == "i"
    ]
    assert event["args"]["library"] == f"{some_trainer.__file__}:5"


def test_what_a_library_left_switched_is_named_by_the_users_line(some_trainer):
    """What assertions quote of a trace is the user's line, then the library's."""
    with trace():
        some_trainer.leave()  # the call
        assert recorded_origin(grad_state()).endswith(
            f"some_trainer.leave()  # the call (inside it: {some_trainer.__file__}:12 in leave)"
        )
        torch.set_grad_enabled(True)
