"""Eval mode and threads, user locks, interrupts and forks: nothing waits in vain, nothing is left."""

import faulthandler
import gc
import os
import random
import signal
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn

from gradguard import evaluating, inference_function, inference_method
from gradguard._eval import giving_flags_back, modules_in_eval, turns
from gradguard._eval.giving_flags_back import threads_in_eval
from gradguard._eval.stuck_threads import Looks

WATCHDOG = 600  # seconds after which a deadlock ends the whole run, with every thread's traceback
THREADS = 16
ROUNDS = 1000
tells_of_threads = pytest.mark.skipif(
    not Path("/proc/self/task").exists(), reason="elsewhere nobody can tell who waits for ever"
)


def flags(module):
    return [part.training for part in module.modules()]


def nothing_is_left():
    return not (
        modules_in_eval.groups
        or giving_flags_back._overrides_called
        or giving_flags_back._dropped
        or turns._turns
        or turns._ended
        or turns._waits_for
    )


@pytest.fixture(autouse=True)
def _no_deadlock_and_nothing_left():
    faulthandler.dump_traceback_later(WATCHDOG, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()
    gc.collect()
    assert nothing_is_left()


@pytest.fixture
def switching_often():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


class Locked(nn.Sequential):
    """A module whose ``train()`` takes a lock, as one does that others read meanwhile."""

    def __init__(self, lock, *children):
        super().__init__(*children)
        self.lock = lock

    def train(self, mode=True):
        with self.lock:
            return super().train(mode)


class Merging(nn.Linear):
    """A layer that merges its update in eval mode, and must never do so twice."""

    def __init__(self):
        super().__init__(2, 2)
        self.merged = 0

    def train(self, mode=True):
        super().train(mode)
        if mode is bool(self.merged):
            self.merged += -1 if mode else 1
        return self


class Stubborn(nn.Dropout):
    """A layer whose ``train()`` fails now and then, after it has set the flag or before."""

    def __init__(self):
        super().__init__()
        self.random = random.Random(0)  # noqa: S311 (no secret)

    def train(self, mode=True):
        before, after = self.random.random() < 0.02, self.random.random() < 0.02
        if before:
            raise OSError(mode)
        super().train(mode)
        if after:
            raise OSError(mode)
        return self


# Locks


def test_no_lock_is_held_while_an_override_runs():
    """While one thread is inside a ``train()``, scopes on other modules open and close."""
    inside, leave = threading.Event(), threading.Event()

    class Slow(nn.Dropout):
        def train(self, mode=True):
            inside.set()
            leave.wait()
            return super().train(mode)

    def hold():
        with evaluating(slow):
            pass

    slow, other = Slow(), nn.Sequential(Merging(), nn.Dropout())
    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait()
    with evaluating(other):
        assert not any(flags(other))
        assert other[0].merged == 1
    assert all(flags(other))
    leave.set()
    thread.join()
    assert slow.training


def test_a_lock_that_an_override_takes_is_no_deadlock():
    """A thread with the user's lock opens a scope on another module while an override waits for it."""
    lock, inside, done = threading.Lock(), threading.Event(), threading.Event()

    class Waiting(Locked):
        def train(self, mode=True):
            inside.set()
            return super().train(mode)

    def flip():
        with evaluating(waiting):
            pass
        done.set()

    waiting, other = Waiting(lock, nn.Dropout()), Locked(threading.Lock(), nn.Dropout())
    with lock:
        thread = threading.Thread(target=flip)
        thread.start()
        inside.wait()
        with evaluating(other):
            assert not any(flags(other))
        assert not done.is_set()
    thread.join()
    assert all(flags(waiting))


@tells_of_threads
def test_a_lock_that_an_override_of_the_same_module_takes_is_no_deadlock():
    """Also where the scope is on the module whose override waits for the caller's lock."""
    lock, inside = threading.RLock(), threading.Event()

    class Waiting(Locked):
        def train(self, mode=True):
            inside.set()
            return super().train(mode)

    def flip():
        with evaluating(waiting):
            pass

    waiting = Waiting(lock, nn.Dropout())
    with lock:
        thread = threading.Thread(target=flip)
        thread.start()
        inside.wait()
        with evaluating(waiting):
            assert not any(flags(waiting))
    thread.join()
    assert all(flags(waiting))


def test_overrides_that_open_each_others_modules_are_no_deadlock(monkeypatch):
    """Two threads, each inside a ``train()`` that opens a scope on the other's module, go on.

    They wait for each other: for that nobody need look whether they are stuck.
    """
    monkeypatch.setattr(Looks, "is_stuck", lambda *_: False)
    both_inside = threading.Barrier(2)

    class Opening(nn.Sequential):
        def train(self, mode=True):
            if self.met:
                return super().train(mode)
            self.met = True
            both_inside.wait()
            with evaluating(self.other[0]):
                return super().train(mode)

    one, two = Opening(nn.Dropout()), Opening(nn.Dropout())
    one.met, two.met = False, False
    object.__setattr__(one, "other", [two])
    object.__setattr__(two, "other", [one])

    def run(module):
        with evaluating(module):
            return flags(module)

    with ThreadPoolExecutor(2) as pool:
        assert not any(flag for found in pool.map(run, (one, two)) for flag in found)
    assert all(flags(one) + flags(two))


@tells_of_threads
def test_an_override_that_wakes_up_leaves_others_in_eval_mode():
    """It waited for the lock of a thread that went on meanwhile, and is in eval mode by then."""
    lock, entered, leave, inside = threading.Lock(), *(threading.Event() for _ in range(3))

    class Waiting(Locked):
        def train(self, mode=True):
            if mode:
                inside.set()
            return super().train(mode)

    def flip():
        with evaluating(waiting):
            entered.set()
            leave.wait()

    waiting = Waiting(lock, nn.Dropout())
    thread = threading.Thread(target=flip)
    thread.start()
    entered.wait()
    with lock:
        leave.set()
        inside.wait()
        scope = evaluating(waiting)
        scope.__enter__()
    thread.join()
    assert not any(flags(waiting))
    scope.__exit__(None, None, None)
    assert all(flags(waiting))


@pytest.mark.parametrize("deadlocks", [False, True])
def test_sixteen_threads(switching_often, monkeypatch, deadlocks):
    """Random scopes, failing blocks and failing overrides: the flags of the start, none lost.

    Nor where overrides wait for a lock of threads that wait for them. There a thread that waits
    with these may go on, too, and see another's flags for a moment; nowhere else.
    """
    lock = threading.RLock()
    shared = nn.BatchNorm1d(2).eval()
    models = [
        nn.Sequential(Merging(), nn.Dropout(), nn.Sequential(shared, Merging())),
        Locked(lock, nn.Dropout(), shared, nn.Sequential(Merging())),
        nn.Sequential(Stubborn(), nn.Sequential(nn.Dropout().eval(), Merging())),
        Locked(threading.RLock(), Stubborn(), Merging()),
    ]
    models.append(nn.Sequential(models[0][2], models[3]))
    parts = list(dict.fromkeys(part for model in models for part in model.modules()))
    merging = [part for part in parts if isinstance(part, Merging)]
    before = [part.training for part in parts]
    start = threading.Barrier(THREADS)
    rounds = ROUNDS // (10 if deadlocks else 1)
    if deadlocks:  # each goes on after so many looks
        monkeypatch.setattr(turns, "_LOOK_AGAIN", 0.005)

    def work(number):
        choose = random.Random(number)  # noqa: S311 (no secret)
        start.wait()
        wrong = 0
        for _ in range(rounds // THREADS):
            chosen = choose.sample(parts, choose.choice((1, 1, 2)))
            try:
                with evaluating(*chosen):
                    wrong += any(any(flags(part)) for part in chosen)
                    merged = [p.merged for c in chosen for p in c.modules() if p in merging]
                    wrong += any(count != 1 for count in merged)
                    if choose.random() < 0.2:
                        with (
                            lock if deadlocks else nullcontext(),
                            evaluating(choose.choice(models)),
                        ):
                            {}["missing"]
            except (KeyError, OSError):
                pass
        return wrong

    with ThreadPoolExecutor(THREADS) as pool:
        wrong = sum(pool.map(work, range(THREADS)))
    assert deadlocks or wrong == 0
    assert [part.training for part in parts] == before
    assert all(part.merged == 0 for part in merging)


# Interrupts


class Interrupt(BaseException):
    """What a signal's handler raises."""


OURS = os.path.dirname(os.path.abspath(giving_flags_back.__file__))  # noqa: PTH100, PTH120 (as in code objects)


def interrupted_at(step, run):
    """Run with an interrupt at the step-th bytecode or call in this folder; tell whether it came."""
    left = step

    def trace(frame, event, _):
        nonlocal left
        if not frame.f_code.co_filename.startswith(OURS):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event in {"call", "opcode"}:
            left -= 1
            if left == 0:
                raise Interrupt
        return trace

    sys.settrace(trace)
    try:
        run()
    except Interrupt:
        return True
    finally:
        sys.settrace(None)
    return False


def model_of_all_kinds():
    return nn.Sequential(Merging(), nn.BatchNorm1d(2).eval(), nn.Sequential(nn.Dropout()))


def block(model):
    with evaluating(model):
        pass


def decorated(model):
    evaluating(model)(lambda: None)()


def method(model):
    inference_method(lambda model: None)(model)


def stream(model):
    def body(model):
        yield 1
        yield 2

    for _ in inference_function(body)(model):
        pass


def kept_stream(model):
    def body(model):
        yield 1
        yield 2

    for _ in inference_function(body, keep_eval=True)(model):
        pass


@pytest.mark.parametrize("form", [block, decorated, method, stream, kept_stream])
@pytest.mark.parametrize("others", [False, True], ids=["alone", "others inside"])
def test_an_interrupt_at_any_bytecode_leaves_nothing(form, others):
    """Wherever it arrives, each flag is its own again and no scope is counted on."""
    step, stride = 0, 17  # the decorators put the same code around; a prime meets each in turn
    if form is block:
        stride = 3 if others else 1
    while True:
        step += stride
        model = model_of_all_kinds()
        before = flags(model)
        around = evaluating(model[2]) if others else None
        if around is not None:
            around.__enter__()
        came = interrupted_at(step, lambda model=model: form(model))
        if around is not None:
            assert not any(flags(model[2])), step
            around.__exit__(None, None, None)
        assert flags(model) == before, step
        assert model[0].merged == 0, step
        assert nothing_is_left(), step
        assert torch.is_grad_enabled()
        if not came:
            break
    assert step > 100


# Forks


def in_child(check):
    """Run a check in a forked child; tell whether it held there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns of a fork with threads, rightly
        child = os.fork()
    if child == 0:
        held = False
        try:
            signal.alarm(60)  # a child that waits for a thread it does not have must not stay
            held = check()
        finally:
            os._exit(0 if held else 1)
    return os.waitpid(child, 0)[1] == 0


@pytest.fixture
def another_thread_in_eval():
    """Return what opens a scope in another thread, which stays open until the test has ended."""
    leave, threads = threading.Event(), []

    def enter(*modules):
        entered = threading.Event()

        def hold():
            with evaluating(*modules):
                entered.set()
                leave.wait()

        threads.append(threading.Thread(target=hold))
        threads[-1].start()
        entered.wait()

    yield enter
    leave.set()
    for thread in threads:
        thread.join()


forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


@forks
def test_a_forked_child_does_not_count_other_threads(another_thread_in_eval):
    """In the child the flags of plain modules are their own again; in the parent nothing changes."""
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2).eval(), nn.Dropout())
    before = flags(model)
    another_thread_in_eval(model)

    def child():
        own = flags(model) == before
        with evaluating(model[2]):
            inside = not model[2].training
        return own and inside and flags(model) == before and not threads_in_eval(model)

    assert in_child(child)
    assert not any(flags(model))


@forks
def test_a_child_that_is_forked_in_a_turn_has_the_turn():
    """A ``train()`` that forks goes on in the child, where the system calls the thread otherwise."""
    held = []

    class Forking(nn.Dropout):
        def train(self, mode=True):
            if not mode:
                held.append(in_child(turns.is_in_turn))
            return super().train(mode)

    with evaluating(Forking()):
        pass
    assert held == [True]


@forks
def test_a_forked_child_calls_overrides_when_it_next_can(another_thread_in_eval):
    """No ``train()`` of the user's runs amid a fork; the child's next scope calls it."""
    model = nn.Sequential(Merging(), nn.Dropout())
    another_thread_in_eval(model)

    def child():
        amid = model[0].merged
        with evaluating(model):
            inside = model[0].merged
        return (amid, inside, model[0].merged) == (1, 1, 0) and all(flags(model))

    assert in_child(child)
    assert model[0].merged == 1


@forks
def test_a_forked_child_keeps_its_own_scopes(another_thread_in_eval):
    """A scope of the thread that forks is open in the child, and ends there as well."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    another_thread_in_eval(model)
    with evaluating(model[1]):
        assert in_child(lambda: flags(model) == [True, True, False])
    assert in_child(lambda: all(flags(model)))
    assert not any(flags(model))


@forks
def test_a_fork_amid_another_threads_override_leaves_the_child_free():
    """A child forked while another thread is inside a ``train()`` does not wait for it."""
    inside, leave = threading.Event(), threading.Event()

    class Slow(nn.Dropout):
        def train(self, mode=True):
            if threading.current_thread() is not threading.main_thread():
                inside.set()
                leave.wait()
            return super().train(mode)

    def hold():
        with evaluating(model):
            pass

    def child():
        with evaluating(model):
            in_eval = not any(flags(model))
        return in_eval and all(flags(model))

    model = nn.Sequential(Slow(), nn.Dropout())
    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait()
    try:
        assert in_child(child)
    finally:
        leave.set()
        thread.join()
