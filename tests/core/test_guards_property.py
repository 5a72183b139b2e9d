"""Random programs over several threads, against a model of what the guards promise.

``pytest --hypothesis-profile=many tests/core/test_guards_property.py`` runs 10,000 of them.
"""

import contextlib
import queue
import threading
import types
import warnings

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from mode_model import KINDS, Thread, carried_kind

import gradguard
from gradguard import GradModeWarning, GradState, grad_state, guards
from gradguard._core.state import put_back

MODES = [GradState(grad, inference) for grad in (True, False) for inference in (True, False)]
SHARED = 2  # guards of each kind that all threads may enter
TORCHS = {"no_grad": "no_grad", "enable_grad": "enable_grad", "inference_mode": "inference_on"}


def entered_once(guard):
    """What `set_grad_enabled` found when it was made does not count any more."""
    with guard:
        return guard


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

    def __init__(self, kind, guard, form):
        self.kind, self.guard = kind, guard
        self.state, self.open, self.around = None, [], None
        self.running = False
        decorate = gradguard.isolated if guard is None else guard

        @decorate
        def generator():
            while True:
                (yield)()

        @decorate
        async def coroutine():
            while True:
                (await pause())()

        @decorate
        async def async_generator():
            while True:
                (yield)()

        target = {"generator": generator, "coroutine": coroutine, "async": async_generator}[form]()
        if form == "async":
            self.send = lambda value: step(target.asend(value))
            self.throw = lambda error: step(target.athrow(error))
            self.close = lambda: step(target.aclose())
        else:
            self.send, self.throw, self.close = target.send, target.throw, target.close

    def begin(self, thread):
        """Take the first step, to where it waits for what to do."""
        self.around = thread.grad_outside_inference()
        outside = thread.begin_body(self.around)
        if self.guard is not None:
            thread.enter(self.kind, self.guard)
        self.send(None)
        self.state, self.open = thread.leave_body(outside)

    def step(self, thread, act):
        """Let the body act in a thread; the model's thread is the body's meanwhile."""
        self.running = True
        outside = thread.begin_body(self.around)
        thread.open += self.open
        thread.state = self.state
        try:
            self.send(act)
        finally:
            self.state, self.open = thread.leave_body(outside)
            self.running = False


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


kinds = st.sampled_from(sorted(KINDS))
# One that all threads share, or a new one that the block or call makes.
guard_st = st.tuples(kinds, st.sampled_from([None, *range(SHARED)]))
raw = st.tuples(st.just("raw"), st.sampled_from(["set", "torch", "ours"]), st.booleans())
unbalanced = st.one_of(
    st.tuples(st.just("enter"), guard_st),
    st.tuples(st.just("exit"), kinds, st.integers(0, SHARED - 1)),
    st.tuples(st.just("exit_any"), st.integers(0, 9)),
    raw,
)


def nested(inner):
    """What acts inside a block, a call or a body."""
    several = st.lists(inner, max_size=4)
    return st.one_of(
        st.tuples(st.just("block"), guard_st, several, st.booleans()),
        st.tuples(st.just("call"), guard_st, several, st.booleans()),
        st.tuples(st.just("step"), st.integers(0, 5), several, st.booleans()),
        st.tuples(st.just("carried"), st.integers(0, 2), several, st.booleans()),
    )


def torchs(inner):
    """A block of torch's guards, which restores what it found, whatever has been left open."""
    return st.tuples(
        st.just("torch"),
        st.sampled_from(sorted(TORCHS)),
        st.lists(inner, max_size=3),
        st.booleans(),
    )


balanced = st.recursive(raw, lambda inner: st.one_of(nested(inner), torchs(inner)), max_leaves=4)
acts = st.recursive(st.one_of(unbalanced, torchs(balanced)), nested, max_leaves=8)


class Programs(RuleBasedStateMachine):
    """Threads, shared guards, and bodies that any thread may step."""

    def __init__(self):
        super().__init__()
        self.workers, self.bodies, self.carrying = [], [], []
        self.shared = {
            name: [entered_once(kind.make()) for _ in range(SHARED)] for name, kind in KINDS.items()
        }
        self.catching = warnings.catch_warnings(record=True)
        self.told = self.catching.__enter__()
        self.installed = contextlib.ExitStack()

    @initialize(
        modes=st.lists(st.sampled_from(MODES), min_size=3, max_size=3), strict=st.booleans()
    )
    def begin(self, modes, strict):
        self.workers = [Worker(mode) for mode in modes]
        self.strict = strict
        warnings.simplefilter("error" if strict else "always", GradModeWarning)

    @rule(at=st.integers(0, 2), act=acts)
    def acts(self, at, act):
        """Do something in one thread; the others must not notice."""
        worker = self.workers[at]
        worker(lambda: self.do(worker.model, act))
        for other in self.workers:
            other(lambda: check(other.model))  # noqa: B023 (called at once)

    @rule(guard=st.none() | guard_st, form=st.sampled_from(["generator", "coroutine", "async"]))
    def begin_body(self, guard, form):
        """Make a body, decorated or isolated; nothing of it runs yet."""
        if len(self.bodies) < 6:
            kind, made = (None, None) if guard is None else self.guard(guard)
            self.bodies.append(Body(kind, made, form))

    @rule(
        at=st.integers(0, 2),
        which=st.integers(0, 5),
        how=st.sampled_from(["close", "throw", "drop"]),
    )
    def end_body(self, at, which, how):
        """End a body, in any thread: what it has left open is closed, the thread keeps its mode."""
        if which < len(self.bodies):
            worker = self.workers[at]
            worker(lambda: self.end(which, how))
            worker(lambda: check(worker.model))

    def end(self, which, how):
        body = self.bodies.pop(which)
        if how == "close" or (how == "drop" and body.state is None):
            body.close()  # a coroutine that was never begun must not be dropped
        elif how == "throw":
            with pytest.raises(Leave):
                body.throw(Leave())

    @rule(at=st.integers(0, 2))
    def carry(self, at):
        """Take a thread's mode along; whoever calls it later acts in it."""
        worker = self.workers[at]
        worker(lambda: self.do_carry(worker.model))

    def do_carry(self, thread):
        kind = carried_kind(thread.state, thread.grad_outside_inference())
        fn = gradguard.carry(lambda act: act())
        self.carrying.append((kind, fn))
        del self.carrying[:-3]

    @rule(rebind=st.booleans())
    def install(self, rebind):
        """Put gradguard's guards in torch's places, or torch's back."""
        self.installed.close()
        if rebind:
            self.installed.enter_context(gradguard.install())

    def guard(self, which):
        name, at = which
        return KINDS[name], KINDS[name].make() if at is None else self.shared[name][at]

    def do(self, thread, act):
        getattr(self, f"do_{act[0]}")(thread, *act[1:])
        check(thread)

    def do_enter(self, thread, which):
        kind, guard = self.guard(which)
        guard.__enter__()
        thread.enter(kind, guard)

    def do_exit(self, thread, name, at):
        guard = self.shared[name][at]
        if thread.has_open(guard):
            self.exit(thread, guard)
            return
        told = len(self.told)
        with pytest.raises(
            RuntimeError, match=r"is not open in this thread|was entered in another thread"
        ):
            guard.__exit__(None, None, None)
        assert len(self.told) == told

    def do_exit_any(self, thread, which):
        by_hand = [e.guard for e in thread.open if e.kind is not None and e.kind.make is not None]
        if by_hand:
            self.exit(thread, by_hand[which % len(by_hand)])

    def exit(self, thread, guard):
        told = len(self.told)
        out_of_order = thread.exit(guard)
        with self.judged(told, lambda: out_of_order):
            guard.__exit__(None, None, None)

    @contextlib.contextmanager
    def judged(self, told, out_of_order):
        """An exit out of order is told once, naming both guards; no other exit says anything."""
        error = None
        try:
            yield
        except (Leave, GradModeWarning) as raised:
            error = raised
        new = [str(warning.message) for warning in self.told[told:]]
        if self.strict:
            new += getattr(error, "__notes__", [])
            new += [str(error)] if isinstance(error, GradModeWarning) else []
        expected = out_of_order()
        if expected is None:
            assert new == []
        else:
            closed, innermost = expected
            (text,) = new
            assert text.startswith(
                f"{closed} was exited while {innermost}, entered after it, is still open: "
            )

    def do_raw(self, thread, how, mode):
        if not thread.open:
            return  # outside any guard it would be the thread's own from then on
        switch = {
            "set": torch._C._set_grad_enabled,
            "torch": torch.set_grad_enabled,
            "ours": gradguard.set_grad_enabled,
        }
        switch[how](mode)
        thread.state = thread.state._replace(grad_enabled=mode)

    def do_torch(self, thread, name, inner, raising):
        found, kind = thread.state, KINDS[TORCHS[name]]
        rebound = getattr(torch, name) is getattr(gradguard, name)
        made = getattr(torch, name)()
        with contextlib.suppress(Leave), made:
            if rebound:
                thread.enter(kind, made)
            else:
                thread.state = GradState(
                    kind.grad, kind.inference if name == "inference_mode" else found.inference_mode
                )
            try:
                self.run(thread, inner, raising)
            finally:
                if rebound:
                    assert thread.exit(made) is None
                thread.state = found

    def do_block(self, thread, which, inner, raising):
        kind, guard = self.guard(which)
        out_of_order = []
        with self.judged_at_end(out_of_order), guard:
            thread.enter(kind, guard)
            self.run_and_exit(thread, (kind, guard), inner, raising, out_of_order)

    def do_call(self, thread, which, inner, raising):
        kind, guard = self.guard(which)
        out_of_order = []

        @guard
        def decorated():
            thread.enter(kind, guard)
            self.run_and_exit(thread, (kind, guard), inner, raising, out_of_order)

        with self.judged_at_end(out_of_order):
            decorated()

    def do_carried(self, thread, which, inner, raising):
        if which >= len(self.carrying):
            return
        kind, fn = self.carrying[which]
        out_of_order = []

        def act():
            guard = guards()[-1]
            thread.enter(kind, guard)
            self.run_and_exit(thread, (kind, guard), inner, raising, out_of_order)

        with self.judged_at_end(out_of_order):
            fn(act)

    @contextlib.contextmanager
    def judged_at_end(self, out_of_order):
        """As `judged`; how many had been told when the exit came is the last in the list."""
        error = None
        try:
            yield
        except (Leave, GradModeWarning) as raised:
            error = raised
        expected, told = out_of_order
        with self.judged(told, lambda: expected):
            if error is not None:
                raise error

    def run_and_exit(self, thread, made, inner, raising, out_of_order):
        """Run what is inside; the exit that the block or call does follows at once."""
        kind, guard = made
        try:
            self.run(thread, inner, raising)
        finally:
            if not thread.has_open(guard):
                guard.__enter__()  # closed by the block: its exit would be a RuntimeError
                thread.enter(kind, guard)
            out_of_order += [thread.exit(guard), len(self.told)]

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
        self.installed.close()
        try:
            for at, body in enumerate(self.bodies):
                self.workers[at % 3](body.close)
            for worker in self.workers:
                worker(lambda: self.close_all(worker.model))  # noqa: B023 (called at once)
                worker(lambda: ended.append((grad_state(), guards())))
                worker.stop()
        finally:
            self.catching.__exit__(None, None, None)
        for worker, end in zip(self.workers, ended, strict=True):
            assert end == (worker.began, ())

    def close_all(self, thread):
        while thread.open:
            self.exit(thread, thread.open[len(thread.open) // 2].guard)
            check(thread)


def check(thread):
    """The thread is in the mode of the model, and the same guards are open."""
    assert grad_state() == thread.state
    assert guards() == tuple(entry.guard for entry in thread.open if entry.guard is not None)


Programs.TestCase.settings = settings(
    max_examples=max(150, settings.default.max_examples),
    stateful_step_count=25,
    suppress_health_check=list(HealthCheck),
)
TestPrograms = Programs.TestCase
