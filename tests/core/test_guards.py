import copy
import gc
import inspect
import pickle
import threading
import tracemalloc
import warnings
from contextlib import ExitStack, contextmanager

import pytest
import torch

import gradguard
from gradguard import GradModeWarning, GradState, grad_state, guards
from gradguard._core.guard_stack import thread as this_thread
from gradguard._core.state import put_back

GRAD = GradState(grad_enabled=True, inference_mode=False)
NO_GRAD = GradState(grad_enabled=False, inference_mode=False)
INFERENCE = GradState(grad_enabled=False, inference_mode=True)
GRAD_IN_INFERENCE = GradState(grad_enabled=True, inference_mode=True)

# Each guard as it is made anew, and what it makes of a thread that records.
MAKERS = {
    "no_grad": (gradguard.no_grad, NO_GRAD),
    "enable_grad": (gradguard.enable_grad, GRAD),
    "set_off": (lambda: gradguard.set_grad_enabled(False), NO_GRAD),
    "set_on": (lambda: gradguard.set_grad_enabled(True), GRAD),
    "inference": (gradguard.inference_mode, INFERENCE),
    "no_inference": (lambda: gradguard.inference_mode(False), GRAD),
}
OUTSIDE = {
    "grad": (),
    "no_grad": (gradguard.no_grad,),
    "inference": (gradguard.inference_mode,),
    "torch_no_grad": (torch.no_grad,),
    "torch_inference": (torch.inference_mode,),
    "grad_in_inference": (torch.inference_mode, torch.enable_grad),
    "inference_in_no_grad": (gradguard.no_grad, gradguard.inference_mode),
}
each_guard = pytest.mark.parametrize("kind", MAKERS)
each_outside = pytest.mark.parametrize("outside", OUTSIDE)


@pytest.fixture(autouse=True)
def thread_is_clean():
    """Every test begins and ends recording, with no guard open."""
    assert (grad_state(), guards()) == (GRAD, ())
    yield
    ended = grad_state(), guards()
    this_thread.cell[0] = None  # so that a failure is one failure
    put_back(GRAD)
    assert ended == (GRAD, ())


@contextmanager
def inside(outside):
    with ExitStack() as stack:
        for guard in OUTSIDE[outside]:
            stack.enter_context(guard())
        yield


def make(kind):
    """A guard as for later use: `set_grad_enabled` has had its first entry already."""
    guard = MAKERS[kind][0]()
    with guard:
        pass
    return guard


def leave(guard):
    guard.__exit__(None, None, None)


def entered(guard):
    guard.__enter__()
    return guard


def records():
    return (torch.ones(1, requires_grad=True) * 2).requires_grad


def in_thread(fn):
    """What `fn` returns or raises in a thread of its own, and the mode in which it leaves it."""
    out = []

    def run():
        try:
            out.append(fn())
        except BaseException as error:  # noqa: BLE001 (handed on)
            out.append(error)
        out.append(grad_state())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return out


# §4.1 exit


@each_guard
@each_outside
def test_exit_brings_back_what_was_found(kind, outside):
    """On exit both flags are what they were on entry."""
    with inside(outside):
        before = grad_state()
        with make(kind):
            pass
        assert grad_state() == before


SWITCHES = {
    "raw_on": lambda: torch._C._set_grad_enabled(True),
    "raw_off": lambda: torch._C._set_grad_enabled(False),
    "torch_on": lambda: torch.set_grad_enabled(True),
    "torch_off": lambda: torch.set_grad_enabled(False),
    "ours_on": lambda: gradguard.set_grad_enabled(True),
    "ours_off": lambda: gradguard.set_grad_enabled(False),
    "torch_enters": lambda: torch.enable_grad().__enter__(),
}


@each_guard
@each_outside
@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("raising", [False, True])
def test_whatever_the_body_calls_and_however_it_leaves(kind, outside, switch, raising):
    """A body that switches grad mode itself, and one that raises, leave nothing behind."""
    with inside(outside):
        before = grad_state()
        try:
            with make(kind):
                SWITCHES[switch]()
                if raising:
                    raise KeyError  # noqa: TRY301
        except KeyError:
            assert raising
        assert grad_state() == before


@pytest.mark.parametrize("kind", ["inference", "no_inference"])
@pytest.mark.parametrize("left_open", [True, False])
def test_inference_guard_takes_back_an_inference_switch_of_its_body(kind, left_open):
    """`inference_mode` governs both flags: torch's guard left open inside it is undone."""
    abandoned = torch.inference_mode(left_open)
    with make(kind):
        abandoned.__enter__()
    assert grad_state() == GRAD
    with gradguard.inference_mode():  # dropped, it would switch at a random time
        leave(abandoned)


@each_guard
def test_return_break_and_continue_leave_the_block(kind):
    """However the block is left, the mode comes back."""

    def returns():
        with make(kind):
            return 3

    assert returns() == 3
    assert grad_state() == GRAD
    for _ in range(2):
        with make(kind):
            continue
    while True:
        with make(kind):
            break


@each_guard
def test_exceptions_pass(kind):
    """A guard swallows nothing, and hands the very exception on."""
    error = KeyError()
    with pytest.raises(KeyError) as caught, make(kind):
        raise error
    assert caught.value is error


@each_guard
def test_entering_gives_none(kind):
    """As torch's guards, `with … as x` binds None."""
    with make(kind) as bound:
        assert bound is None


# Sharing and nesting


@each_guard
def test_one_object_nested_in_itself(kind):
    """One object may be entered any number of times, one inside the other."""
    guard, seen = make(kind), []
    with guard:
        mode = grad_state()
        with guard, guard:
            seen.append(grad_state())
        seen.append(grad_state())
    assert seen == [mode, mode] == [MAKERS[kind][1]] * 2


@each_guard
def test_one_object_recursively(kind):
    """A recursive function may share one object."""
    guard = make(kind)

    def down(depth):
        with guard:
            if depth:
                down(depth - 1)
            return grad_state()

    assert down(50) == MAKERS[kind][1]


@pytest.mark.parametrize("kind", ["no_grad", "inference", "enable_grad", "set_off", "no_inference"])
def test_threads_share_one_object(kind):
    """8 threads that share one guard for thousands of entries never see each other's mode."""
    guard, other = make(kind), make("no_grad" if kind != "no_grad" else "enable_grad")
    expected = MAKERS[kind][1], MAKERS["no_grad" if kind != "no_grad" else "enable_grad"][1]
    start, wrong = threading.Barrier(8), []

    def work():
        start.wait()
        for _ in range(1500):
            with guard:
                one = grad_state()
                with other:
                    two = grad_state()
                three = grad_state()
            if (one, two.grad_enabled, three, grad_state()) != (
                expected[0],
                expected[1].grad_enabled,
                expected[0],
                GRAD,
            ):
                wrong.append((one, two, three))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_threads_have_their_own_mode():
    """A guard open in one thread is not seen in another."""
    with gradguard.inference_mode():
        assert in_thread(lambda: (grad_state(), guards())) == [(GRAD, ()), GRAD]


# §4.2 exits out of order


def test_out_of_order_the_innermost_decides():
    """The guard that is still open and innermost decides; when all are closed the thread is back."""
    outer, inner = gradguard.no_grad(), gradguard.enable_grad()
    outer.__enter__()
    inner.__enter__()
    with pytest.warns(GradModeWarning):
        leave(outer)
    assert (grad_state(), guards()) == (GRAD, (inner,))
    leave(inner)
    assert grad_state() == GRAD


@pytest.mark.parametrize("first", MAKERS)
@pytest.mark.parametrize("second", MAKERS)
@pytest.mark.parametrize("third", MAKERS)
@pytest.mark.filterwarnings("ignore::gradguard.GradModeWarning")
def test_any_three_out_of_order(first, second, third):
    """Whatever three guards and in whichever order they are closed: back where it started."""
    for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1)):
        opened = [make(first), make(second), make(third)]
        for guard in opened:
            guard.__enter__()
        inner = grad_state()
        leave(opened[order[0]])
        if order[0] != 2 and opened[order[0]] is not opened[2]:
            assert grad_state().grad_enabled is inner.grad_enabled
        leave(opened[order[1]])
        leave(opened[order[2]])
        assert (grad_state(), guards()) == (GRAD, ())


@each_outside
@pytest.mark.filterwarnings("ignore::gradguard.GradModeWarning")
def test_out_of_order_inside(outside):
    """Inside any other mode, too, the thread is back in it when all are closed."""
    with inside(outside):
        before = grad_state()
        opened = [make(kind) for kind in ("inference", "enable_grad", "no_grad", "set_on")]
        for guard in opened:
            guard.__enter__()
        for guard in opened:
            leave(guard)
        assert grad_state() == before


def test_the_warning_names_both_guards_and_what_to_do():
    """The warning names the closed guard, the one that is still open, the causes and the cure."""
    outer, inner = entered(gradguard.no_grad()), entered(gradguard.inference_mode())
    with pytest.warns(GradModeWarning) as caught:
        leave(outer)
    leave(inner)
    assert len(caught) == 1
    text = str(caught[0].message)
    assert text.startswith(
        "no_grad() was exited while inference_mode(mode=True), entered after it, is still open: "
    )
    assert "inference_mode(mode=True) goes on deciding the grad mode" in text
    assert "its exit brings back what no_grad() found" in text
    assert "a `with` block that spans a `yield` or an `await`" in text
    assert "gradguard.isolated" in text
    assert "__enter__ and __exit__ called by hand" in text
    assert text.endswith(
        "Use `with`, which exits each guard in the block and the thread that entered it."
    )


def test_the_warning_points_at_the_exit():
    """Its file and line are the user's, where the guard was exited."""
    outer, inner = entered(gradguard.no_grad()), entered(gradguard.enable_grad())
    with pytest.warns(GradModeWarning) as caught:
        leave(outer)  # leave() itself is this file's, too
    leave(inner)
    assert caught[0].filename == __file__
    assert caught[0].lineno == leave.__code__.co_firstlineno + 1


def test_the_warning_through_with_points_at_the_with():
    """Where a `with` does the exit, the line is that of the block."""
    with pytest.warns(GradModeWarning) as caught:
        with gradguard.no_grad():
            inner = entered(gradguard.enable_grad())
        leave(inner)
    assert caught[0].filename == __file__


def test_the_warning_through_a_decorator_points_at_the_caller():
    """A decorated function that leaves a guard open is reported where it was called."""

    @gradguard.no_grad()
    def leaves():
        inner.__enter__()

    inner = gradguard.enable_grad()

    with pytest.warns(GradModeWarning) as caught:
        line = inspect.currentframe().f_lineno + 1
        leaves()
    leave(inner)
    assert (caught[0].filename, caught[0].lineno) == (__file__, line)


@pytest.mark.parametrize("kinds", [("no_grad", "enable_grad"), ("inference", "no_grad")])
def test_as_an_error_it_leaves_the_mode_right(kinds):
    """With warnings as errors the exit raises, and the guard is closed all the same."""
    outer, inner = map(make, kinds)
    outer.__enter__()
    inner.__enter__()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(GradModeWarning):
            leave(outer)
    assert guards() == (inner,)
    leave(inner)
    assert grad_state() == GRAD


@pytest.mark.filterwarnings("ignore::gradguard.GradModeWarning")
def test_inference_mode_goes_with_its_guard():
    """`no_grad` inside an inference block that is closed first: inference ends, recording stays off."""
    outer, inner = entered(gradguard.inference_mode()), entered(gradguard.no_grad())
    leave(outer)
    assert grad_state() == NO_GRAD
    leave(inner)


@pytest.mark.filterwarnings("ignore::gradguard.GradModeWarning")
def test_out_of_order_keeps_a_raw_switch():
    """What the body has switched by hand since the innermost entry goes on deciding."""
    outer, inner = entered(gradguard.no_grad()), entered(gradguard.enable_grad())
    torch._C._set_grad_enabled(False)
    leave(outer)
    assert grad_state() == NO_GRAD
    leave(inner)


@pytest.mark.filterwarnings("ignore::gradguard.GradModeWarning")
def test_decorated_function_that_closes_its_callers_guard():
    """The caller's guard is closed, the function's own goes on to its end."""

    @gradguard.no_grad()
    def off():
        leave(callers)
        return grad_state()

    @gradguard.inference_mode()
    def inference():
        leave(callers)
        return grad_state()

    for fn, mode in ((off, NO_GRAD), (inference, INFERENCE)):
        callers = entered(gradguard.enable_grad())
        assert fn() == mode
        assert (grad_state(), guards()) == (GRAD, ())


# Exit without an entry


def never_entered(guard):
    leave(guard)


def exited_twice(guard):
    with guard:
        pass
    leave(guard)


@each_guard
@each_outside
@pytest.mark.parametrize("wrong", [never_entered, exited_twice])
def test_exit_without_an_entry(kind, outside, wrong):
    """Exiting what is not open is a `RuntimeError`, and the mode stays as it is."""
    guard = make(kind)
    with inside(outside):
        if guard in guards():
            return
        before = grad_state(), guards()
        with pytest.raises(RuntimeError):
            wrong(guard)
        assert (grad_state(), guards()) == before


@each_guard
def test_exit_in_another_thread(kind):
    """Exiting a guard that another thread entered changes the mode of neither."""
    guard = make(kind)
    with guard:
        before = grad_state()
        error, there = in_thread(lambda: leave(guard))
        assert isinstance(error, RuntimeError)
        assert there == GRAD
        assert grad_state() == before


def test_the_error_says_what_is_open_and_what_to_do():
    """The error names the guard, lists what is open here, and gives the causes and the cure."""
    with pytest.raises(RuntimeError) as nothing_open:
        leave(gradguard.no_grad())
    assert str(nothing_open.value) == (
        "no_grad() is not open in this thread (open here, outermost first: none), so it cannot be "
        "exited; the mode is unchanged. It was never entered, or was exited already. Use `with`, "
        "which exits each guard in the block and the thread that entered it."
    )
    both = gradguard.inference_mode(), gradguard.enable_grad()
    with both[0], both[1], pytest.raises(RuntimeError) as two_open:
        leave(gradguard.no_grad())
    assert "(open here, outermost first: inference_mode(mode=True), enable_grad())" in str(
        two_open.value
    )


# §4.3 recording inside inference mode


@pytest.mark.parametrize("kind", ["enable_grad", "set_on"])
@pytest.mark.parametrize("around", [gradguard.inference_mode, torch.inference_mode])
def test_enable_grad_records_inside_inference_mode(kind, around):
    """It leaves inference mode for its block, also torch's, and comes back to it."""
    with around():
        with make(kind):
            assert records()
            assert grad_state() == GRAD
        assert grad_state() == INFERENCE
        with MAKERS[kind][0]():
            assert records()
        assert grad_state() == INFERENCE


def test_enable_grad_trains_inside_inference_mode():
    """What is recorded there can be gone backward through."""
    weight = torch.ones(2, requires_grad=True)
    with torch.inference_mode(), gradguard.enable_grad():
        (weight * 2).sum().backward()
    assert weight.grad.tolist() == [2, 2]


# §4.4 inference_mode(False), no_grad in inference mode


def test_leaving_inference_keeps_the_surrounding_grad_mode():
    """`inference_mode(False)` has the grad mode that surrounds the inference block."""
    with gradguard.inference_mode(), gradguard.inference_mode(False):
        assert grad_state() == GRAD
    with gradguard.no_grad(), gradguard.inference_mode(), gradguard.inference_mode(False):
        assert grad_state() == NO_GRAD
    with torch.no_grad(), gradguard.inference_mode(), gradguard.inference_mode(False):
        assert grad_state() == NO_GRAD


def test_leaving_two_inference_blocks():
    """Of nested inference blocks, what surrounds the outermost counts."""
    nest = gradguard.inference_mode
    with nest(), nest(), nest(), nest(False):
        assert grad_state() == GRAD
    with gradguard.no_grad(), nest(), nest(), nest(False):
        assert grad_state() == NO_GRAD
    with torch.no_grad(), nest(), nest(), nest(False):
        assert grad_state() == NO_GRAD


def test_leaving_torchs_inference_block():
    """Inside torch's own block the surrounding mode cannot be read: grad comes on, as in torch."""
    with torch.no_grad(), torch.inference_mode(), gradguard.inference_mode(False):
        assert grad_state() == GRAD
    with torch.inference_mode(), gradguard.inference_mode(), gradguard.inference_mode(False):
        assert grad_state() == GRAD
    with torch.inference_mode(), torch.inference_mode(False):
        assert grad_state() == GRAD


@pytest.mark.parametrize("off", [torch.no_grad, gradguard.no_grad])
def test_inference_off_never_turns_grad_on(off):
    """Inside `no_grad`, `inference_mode(False)` leaves it off; torch's turns it on."""
    with off():
        with gradguard.inference_mode(False):
            assert grad_state() == NO_GRAD
        with torch.inference_mode(False):
            assert grad_state() == GRAD


def test_a_no_grad_inside_the_inference_block_counts_as_surrounding():
    """`no_grad` stays in inference mode, and `inference_mode(False)` inside it stays off."""
    with gradguard.inference_mode(), gradguard.no_grad():
        assert grad_state() == INFERENCE
        with gradguard.inference_mode(False):
            assert grad_state() == NO_GRAD
        assert grad_state() == INFERENCE


@pytest.mark.filterwarnings("ignore::gradguard.GradModeWarning")
def test_leaving_inference_after_an_exit_out_of_order():
    """What surrounds an inference block is right, too, when an outer guard was closed first."""
    opened = [gradguard.inference_mode(), gradguard.enable_grad(), gradguard.inference_mode()]
    for guard in opened:
        guard.__enter__()
    leave(opened[1])
    with gradguard.inference_mode(False):
        assert grad_state() == GRAD
    leave(opened[2])
    leave(opened[0])


# §4.5 the double life of set_grad_enabled


def test_a_statement_acts_at_once_on_the_grad_flag_alone():
    """As a statement it switches grad mode where it stands, and opens no guard."""
    gradguard.set_grad_enabled(False)
    assert (grad_state(), guards()) == (NO_GRAD, ())
    gradguard.set_grad_enabled(True)
    with torch.inference_mode():
        gradguard.set_grad_enabled(True)
        assert grad_state() == GRAD_IN_INFERENCE
    assert grad_state() == GRAD


@each_guard
def test_a_statement_lasts_until_an_enclosing_guard_exits(kind):
    """The enclosing guard takes it back."""
    with make(kind):
        gradguard.set_grad_enabled(not grad_state().grad_enabled)
    assert grad_state() == GRAD


@each_outside
@pytest.mark.parametrize("mode", [True, False])
def test_first_entry_counts_as_made_at_construction(outside, mode):
    """Its exit restores the mode from before construction; that of a later entry what it found."""
    with inside(outside):
        before = grad_state()
        guard = gradguard.set_grad_enabled(mode)
        with guard:
            assert grad_state().grad_enabled is mode
            assert not (mode and grad_state().inference_mode)
        assert grad_state() == before
        torch._C._set_grad_enabled(not before.grad_enabled)
        changed = grad_state()
        with guard:
            pass
        assert grad_state() == changed
        torch._C._set_grad_enabled(before.grad_enabled)


def test_first_entry_after_other_switches():
    """What happened between construction and first entry is taken back, as in torch."""
    for library in (gradguard, torch):
        guard = library.set_grad_enabled(False)
        torch._C._set_grad_enabled(True)
        torch._C._set_grad_enabled(False)
        with guard:
            assert grad_state() == NO_GRAD
        assert grad_state() == GRAD


def test_first_entry_in_another_thread_restores_that_threads_mode():
    """Construction did not switch the other thread, so its exit brings back what it found."""
    guard = gradguard.set_grad_enabled(False)

    def enter():
        torch._C._set_grad_enabled(False)
        with guard:
            return grad_state()

    assert in_thread(enter) == [NO_GRAD, NO_GRAD]
    with guard:
        assert grad_state() == NO_GRAD
    assert grad_state() == GRAD  # this thread's first entry counts as made at construction still


def test_leaving_inference_happens_on_entry():
    """`set_grad_enabled(True)` made inside inference mode leaves it when it is entered."""
    with gradguard.inference_mode():
        guard = gradguard.set_grad_enabled(True)
        assert grad_state() == GRAD_IN_INFERENCE
        with guard:
            assert grad_state() == GRAD
            assert records()
        assert grad_state() == INFERENCE


def test_made_outside_and_entered_inside_inference_mode():
    """The mode from before construction comes back, the inference mode is that of the entry."""
    guard = gradguard.set_grad_enabled(False)
    with gradguard.inference_mode():
        with guard:
            assert grad_state() == INFERENCE
        assert grad_state() == GRAD_IN_INFERENCE
    torch._C._set_grad_enabled(True)


@pytest.mark.parametrize("mode", [True, False])
@each_outside
def test_decorating_changes_nothing(outside, mode):
    """As a decorator it leaves the mode as it was before it was made."""
    with inside(outside):
        before = grad_state()
        decorate = gradguard.set_grad_enabled(mode)
        decorated = decorate(grad_state)
        again = decorate(grad_state)
        assert grad_state() == before
        assert decorated().grad_enabled is again().grad_enabled is mode
        assert grad_state() == before


def test_decorating_with_an_object_made_in_another_thread():
    """The thread that decorates keeps its mode."""
    made = []

    def build():
        made.append(gradguard.set_grad_enabled(False))

    in_thread(build)
    with gradguard.no_grad():
        decorated = made[0](grad_state)
        assert grad_state() == NO_GRAD
    assert grad_state() == GRAD
    assert decorated() == NO_GRAD


def test_used_as_statement_then_as_block():
    """One object that was a statement may be a block again and again."""
    guard = gradguard.set_grad_enabled(False)
    for _ in range(3):
        with guard, guard:
            assert grad_state() == NO_GRAD
        assert grad_state() == GRAD


# Bad input


class Strange:
    def __repr__(self):
        return "<strange>"


@pytest.mark.parametrize("mode", [None, 0, 1, "yes", Strange(), torch.tensor(True)])
def test_set_grad_enabled_takes_a_bool(mode):
    """Anything else is a `TypeError` that names the value, its type and what to write."""
    with pytest.raises(TypeError) as caught:
        gradguard.set_grad_enabled(mode)
    text = str(caught.value)
    assert text.startswith("set_grad_enabled(mode) takes True or False, not ")
    assert f"of type {type(mode).__name__}" in text


@pytest.mark.parametrize("mode", [None, 0, 1, "yes", Strange(), 1.5])
def test_inference_mode_takes_a_bool_or_a_callable(mode):
    """Anything else is a `TypeError` that names the value, its type and what to write."""
    with pytest.raises(TypeError) as caught:
        gradguard.inference_mode(mode)
    assert str(caught.value) == (
        f"inference_mode(mode) takes True or False, not {mode!r} of type {type(mode).__name__}. "
        "To decorate a function, write @inference_mode()."
    )


def test_bare_set_grad_enabled_says_how_to_decorate():
    """`@set_grad_enabled` without a mode says what to write instead."""

    def fn():
        pass

    with pytest.raises(TypeError) as caught:
        gradguard.set_grad_enabled(fn)
    text = str(caught.value)
    assert "of type function" in text
    assert text.endswith("To decorate a function, write @set_grad_enabled(False).")


# Identity, copies, repr


@pytest.mark.parametrize(
    ("guard", "text"),
    [
        (gradguard.no_grad(), "no_grad()"),
        (gradguard.enable_grad(), "enable_grad()"),
        (gradguard.inference_mode(), "inference_mode(mode=True)"),
        (gradguard.inference_mode(False), "inference_mode(mode=False)"),
    ],
)
def test_shared_guards(guard, text):
    """A guard says its kind, and equals every other that does the same, its copies and pickles too."""
    assert repr(guard) == str(guard) == text
    copies = copy.copy(guard), copy.deepcopy(guard), pickle.loads(pickle.dumps(guard))  # noqa: S301 (just made)
    assert copies == (guard,) * 3
    assert len({guard, *copies}) == 1


@pytest.mark.parametrize("mode", [True, False])
def test_set_grad_enabled_copies(mode):
    """A copy or pickle of it switches when it is entered, not when it is made."""
    guard = make("set_on" if mode else "set_off")
    assert repr(guard) == f"set_grad_enabled(mode={mode})"
    for outside in (True, False):
        torch._C._set_grad_enabled(outside)
        copies = copy.copy(guard), copy.deepcopy(guard), pickle.loads(pickle.dumps(guard))  # noqa: S301
        assert torch.is_grad_enabled() is outside
        for made in copies:
            assert repr(made) == repr(guard)
            with made:
                assert torch.is_grad_enabled() is mode
            assert torch.is_grad_enabled() is outside
            assert made(torch.is_grad_enabled)() is mode
            assert torch.is_grad_enabled() is outside
    torch._C._set_grad_enabled(True)


def test_deepcopy_of_what_holds_a_guard():
    """A module that keeps a guard as an attribute can be copied."""
    net = torch.nn.Linear(1, 1)
    net.guard = gradguard.no_grad()
    assert copy.deepcopy(net).guard == net.guard


# Memory


def grown(work):
    """How many bytes `work` leaves behind, once it has been done before."""
    work(1000)
    gc.collect()
    tracemalloc.start()
    try:
        work(10)
        before = tracemalloc.get_traced_memory()[0]
        work(3000)
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


@each_guard
def test_entries_leave_nothing_behind(kind):
    """Entering and exiting again and again keeps no memory."""
    guard = make(kind)

    def work(times):
        for _ in range(times):
            with guard:
                pass

    assert grown(work) < 1000


def test_plain_calls_leave_nothing_behind():
    """torch's own guards, rebound to these, make very many: they keep nothing."""

    def work(times):
        for _ in range(times):
            gradguard.set_grad_enabled(False)
            gradguard.set_grad_enabled(True)

    assert grown(work) < 1000
    assert guards() == ()


def test_a_million_entries():
    """10^6 entries leave the chain empty, and no object behind."""
    guard, other = gradguard.no_grad(), gradguard.enable_grad()
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(250_000):
        with guard, other, guard, other:
            pass
    gc.collect()
    assert len(gc.get_objects()) - before < 50
    assert guards() == ()
