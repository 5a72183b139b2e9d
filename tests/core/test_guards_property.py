"""Random programs over several threads, against a model of what the guards promise."""

import contextlib
import queue
import threading
import types
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

import gradguard
from gradguard import GradState, grad_state, guards
from gradguard._core.state import put_back

MODES = [GradState(grad, inference) for grad in (True, False) for inference in (True, False)]


def entered_once(guard):
    with guard:
        return guard


SET_ON = entered_once(gradguard.set_grad_enabled(True))
SET_OFF = entered_once(gradguard.set_grad_enabled(False))
NO_GRAD, ENABLE_GRAD = gradguard.no_grad(), gradguard.enable_grad()
INFERENCE_ON, INFERENCE_OFF = gradguard.inference_mode(), gradguard.inference_mode(False)
GUARDS = [NO_GRAD, ENABLE_GRAD, SET_ON, SET_OFF, INFERENCE_ON, INFERENCE_OFF]


# The model: what a thread's mode must be, by the nine points and nothing of the implementation.


@dataclass
class Entry:
    """An open guard, or (`guard` None) where a body that can be suspended begins."""

    guard: object
    found: GradState
    around: bool = True  # of a body: the grad mode around the inference block where it began


@dataclass
class Thread:
    """One thread's mode and open guards, outermost first."""

    state: GradState
    open: list = field(default_factory=list)

    def enter(self, guard):
        self.open.append(Entry(guard, self.state))
        grad, inference = self.state
        if guard in (NO_GRAD, SET_OFF):
            grad = False
        elif guard in (ENABLE_GRAD, SET_ON):
            grad, inference = True, False
        elif guard is INFERENCE_ON:
            grad, inference = False, True
        else:
            del self.open[-1]
            grad = grad or (inference and self.around_inference())
            self.open.append(Entry(guard, self.state))
            inference = False
        self.state = GradState(grad, inference)

    def around_inference(self):
        for entry in reversed(self.open):
            if entry.guard is None:
                return entry.around
            if entry.guard is not INFERENCE_ON:
                return entry.guard not in (NO_GRAD, SET_OFF)
            if entry.found.grad_enabled or not entry.found.inference_mode:
                return entry.found.grad_enabled
        return True

    def exit(self, guard):
        """Close the innermost entry of a guard; False if there is none."""
        places = [at for at, entry in enumerate(self.open) if entry.guard is guard]
        if not places:
            return False
        at = places[-1]
        closed = self.open.pop(at)
        if at == len(self.open):
            both = guard in (INFERENCE_ON, INFERENCE_OFF) or closed.found.inference_mode
            inference = self.state.inference_mode
            keeps = GradState(closed.found.grad_enabled, inference)
            self.state = closed.found if both else keeps
        else:
            self.take_over(at, closed.found)
        return True

    def take_over(self, at, found):
        """The entry above takes over what the closed one found; inference mode follows upwards."""
        self.open[at].found = replace_grad(self.open[at].found, found.grad_enabled)
        inference = found.inference_mode
        for entry in self.open[at:]:
            entry.found = GradState(entry.found.grad_enabled, inference)
            if entry.guard is None:
                return  # a body's own mode goes on
            if entry.guard is INFERENCE_ON:
                inference = True
            elif entry.guard not in (NO_GRAD, SET_OFF):
                inference = False
        self.state = GradState(self.state.grad_enabled, inference)


def replace_grad(state, grad):
    return GradState(grad, state.inference_mode)


@types.coroutine
def pause(value=None):
    return (yield value)


def step(awaitable):
    """Run an awaitable that suspends nowhere."""
    try:
        awaitable.__await__().send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError


class Body:
    """A decorated generator, coroutine or async generator, and the model of it while suspended."""

    def __init__(self, guard, kind):
        self.guard, self.state, self.open, self.around = guard, None, [], None
        self.running = False

        @guard
        def generator():
            while True:
                (yield)()

        @guard
        async def coroutine():
            while True:
                (await pause())()

        @guard
        async def async_generator():
            while True:
                (yield)()

        target = {"generator": generator, "coroutine": coroutine, "async": async_generator}[kind]()
        if kind == "async":
            self.send = lambda value: step(target.asend(value))
            self.throw = lambda error: step(target.athrow(error))
            self.close = lambda: step(target.aclose())
        else:
            self.send, self.throw, self.close = target.send, target.throw, target.close

    def begin(self, thread):
        """Take the first step, to where it waits for what to do."""
        self.around = thread.around_inference()
        outside = Entry(None, thread.state, self.around)
        thread.open.append(outside)
        thread.enter(self.guard)
        self.send(None)
        self.leave(thread, outside)

    def step(self, thread, act):
        """Let the body act in a thread; the model's thread is the body's meanwhile."""
        self.running = True
        outside = Entry(None, thread.state, self.around)
        thread.open += [outside, *self.open]
        thread.state = self.state
        try:
            self.send(act)
        finally:
            self.leave(thread, outside)
            self.running = False

    def leave(self, thread, outside):
        at = next(at for at, entry in enumerate(thread.open) if entry is outside)
        self.state, self.open = thread.state, thread.open[at + 1 :]
        del thread.open[at:]
        thread.state = outside.found


class Worker:
    """A thread that does one thing at a time, when it is told to."""

    def __init__(self, mode):
        self.began = mode
        self.model = Thread(mode)
        self.todo, self.done = queue.SimpleQueue(), queue.SimpleQueue()
        self.thread = threading.Thread(target=self.work, daemon=True)
        self.thread.start()
        self(lambda: put_back(mode))

    def work(self):
        while (fn := self.todo.get()) is not None:
            try:
                fn()
                self.done.put(None)
            except BaseException as error:  # noqa: BLE001 (raised in the test's thread)
                self.done.put(error)

    def __call__(self, fn):
        self.todo.put(fn)
        error = self.done.get()
        if error is not None:
            raise error

    def stop(self):
        self.todo.put(None)
        self.thread.join()


class Leave(Exception):  # noqa: N818 (nothing is wrong)
    """Leaves a block or a call."""


guard_st = st.sampled_from(GUARDS)
simple_acts = st.one_of(
    st.tuples(st.just("enter"), guard_st),
    st.tuples(st.just("exit"), guard_st),
    st.tuples(st.just("raw"), st.sampled_from(["set", "torch", "ours"]), st.booleans()),
    st.tuples(st.just("torch"), st.sampled_from(["no_grad", "enable_grad", "inference_mode"])),
)
acts = st.recursive(
    simple_acts,
    lambda inner: st.one_of(
        st.tuples(st.just("block"), guard_st, st.lists(inner, max_size=4), st.booleans()),
        st.tuples(st.just("call"), guard_st, st.lists(inner, max_size=4), st.booleans()),
        st.tuples(st.just("step"), st.integers(0, 5), st.lists(inner, max_size=4), st.booleans()),
    ),
    max_leaves=8,
)


class Programs(RuleBasedStateMachine):
    """Threads, shared guards, and bodies that any thread may step."""

    def __init__(self):
        super().__init__()
        self.workers, self.bodies = [], []

    @initialize(modes=st.lists(st.sampled_from(MODES), min_size=3, max_size=3))
    def begin(self, modes):
        self.workers = [Worker(mode) for mode in modes]

    @rule(at=st.integers(0, 2), act=acts)
    def acts(self, at, act):
        """Do something in one thread; the others must not notice."""
        worker = self.workers[at]
        worker(lambda: self.do(worker.model, act))
        for other in self.workers:
            other(lambda: check(other.model))  # noqa: B023 (called at once)

    @rule(guard=guard_st, kind=st.sampled_from(["generator", "coroutine", "async"]))
    def begin_body(self, guard, kind):
        """Make a body; nothing of it runs yet."""
        if len(self.bodies) < 6:
            self.bodies.append(Body(guard, kind))

    @rule(at=st.integers(0, 2), which=st.integers(0, 5), throw=st.booleans())
    def end_body(self, at, which, throw):
        """End a body, in any thread: what it has left open is closed, the thread keeps its mode."""
        if which < len(self.bodies):
            worker, body = self.workers[at], self.bodies.pop(which)
            worker(lambda: self.throw_into(body) if throw else body.close())
            worker(lambda: check(worker.model))

    def throw_into(self, body):
        with pytest.raises(Leave):
            body.throw(Leave())

    def do(self, thread, act):
        getattr(self, f"do_{act[0]}")(thread, *act[1:])
        check(thread)

    def do_enter(self, thread, guard):
        guard.__enter__()
        thread.enter(guard)

    def do_exit(self, thread, guard):
        if thread.exit(guard):
            guard.__exit__(None, None, None)
        else:
            with pytest.raises(
                RuntimeError, match=r"is not open in this thread|was entered in another thread"
            ):
                guard.__exit__(None, None, None)

    def do_raw(self, thread, how, mode):
        if not thread.open:
            return  # outside any guard it would be the thread's own from then on
        switch = {
            "set": torch._C._set_grad_enabled,
            "torch": torch.set_grad_enabled,
            "ours": gradguard.set_grad_enabled,
        }
        switch[how](mode)
        thread.state = replace_grad(thread.state, mode)

    def do_torch(self, thread, name):
        with getattr(torch, name)():
            pass

    def do_block(self, thread, guard, inner, raising):
        with contextlib.suppress(Leave), guard:
            thread.enter(guard)
            try:
                self.run(thread, inner, raising)
            finally:
                left = [entry for entry in thread.open if entry.guard is guard]
                if not left:
                    guard.__enter__()  # closed by the block: its exit would be a RuntimeError
                    thread.enter(guard)
                thread.exit(guard)

    def do_call(self, thread, guard, inner, raising):
        @guard
        def decorated():
            thread.enter(guard)
            try:
                self.run(thread, inner, raising)
            finally:
                if all(entry.guard is not guard for entry in thread.open):
                    guard.__enter__()
                    thread.enter(guard)
                thread.exit(guard)

        with contextlib.suppress(Leave):
            decorated()

    def do_step(self, thread, which, inner, raising):
        if which >= len(self.bodies) or self.bodies[which].running:
            return
        body = self.bodies[which]
        if body.state is None:
            body.begin(thread)
            check(thread)
        try:
            body.step(thread, lambda: self.run(thread, inner, raising))
        except Leave:
            self.bodies.remove(body)

    def run(self, thread, acts, raising):
        check(thread)
        for act in acts:
            self.do(thread, act)
        if raising:
            raise Leave

    def teardown(self):
        """Close all that is open, in any order: every thread is back where it began."""
        ended = []
        for at, body in enumerate(self.bodies):
            self.workers[at % 3](body.close)
        for worker in self.workers:
            worker(lambda: self.close_all(worker.model))  # noqa: B023 (called at once)
            worker(lambda: ended.append((grad_state(), guards())))
            worker.stop()
        for worker, end in zip(self.workers, ended, strict=True):
            assert end == (worker.began, ())

    def close_all(self, thread):
        while thread.open:
            guard = thread.open[len(thread.open) // 2].guard
            guard.__exit__(None, None, None)
            thread.exit(guard)
            check(thread)


def check(thread):
    """The thread is in the mode of the model, and the same guards are open."""
    assert grad_state() == thread.state
    assert guards() == tuple(entry.guard for entry in thread.open if entry.guard is not None)


Programs.TestCase.settings = settings(
    max_examples=150,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestPrograms = pytest.mark.filterwarnings("ignore::gradguard.GradModeWarning")(Programs.TestCase)
