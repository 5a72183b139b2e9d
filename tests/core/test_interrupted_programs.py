"""Random programs of blocks, calls, bodies and tasks, some of them interrupted at a random place.

``pytest --hypothesis-profile=many tests/core/test_interrupted_programs.py`` runs 10,000 of them.
The mode that each line must see is known from where it stands. Every warning is an error here.
"""

import asyncio
import gc
import sys
import types
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from interrupting import EACH_BYTECODE, Interrupt, Signals
from mode_model import KINDS, Entry, Thread

import gradguard
from gradguard import GradState, grad_state, guards
from gradguard._core.guard_stack import thread as stack
from gradguard._core.state import put_back

SHARED = {name: KINDS[name].make() for name in ("no_grad", "enable_grad", "inference_on")}
TORCHS = {"no_grad": "no_grad", "enable_grad": "enable_grad", "inference_mode": "inference_on"}
START = GradState(grad_enabled=True, inference_mode=False)
# It acts when it is made, as torch's.
IN_THE_MAKING = [
    ("set_grad_guard.py", "__init__"),
    ("set_grad_guard.py", "__call__"),
    ("guards.py", "set_grad_enabled"),
]


class Signal(Signals):
    """An interrupt at one place in what a program runs of gradguard, where CPython looks for one."""

    def __init__(self, position):
        super().__init__(gradguard, position)
        self.place = None
        self.looking = False  # what the test itself asks is no part of the program

    def at_start(self, code, offset):
        """Pass by what no `try` of a function covers, where torch's own leave as much."""
        made = code.co_name == "__enter__" and code.co_filename.endswith("set_grad_guard.py")
        if code.co_name != "__exit__" and not made:  # nothing of an exit has run, nor will
            super().at_start(code, offset)

    def point(self, code):
        if not self.looking and not code.co_filename.endswith("installing.py"):
            self.place = Path(code.co_filename).name, code.co_name
            super().point(code)


class Leave(Exception):  # noqa: N818 (nothing is wrong)
    """Leaves a block or a call."""


@types.coroutine
def pause():
    yield


class Run:
    """One run of a program, and what must be so at each line of it."""

    def __init__(self, signal):
        self.model, self.signal = Thread(START), signal
        self.came_out = False  # the interrupt

    def unknown(self):
        """Tell whether the interrupt came while a `set_grad_enabled` was made."""
        return self.signal.came and self.signal.place in IN_THE_MAKING

    def look(self):
        self.signal.looking = True
        if not self.unknown():
            assert grad_state() == self.model.state
        assert [repr(guard) for guard in guards()] == [
            repr(entry.guard) for entry in self.model.open if entry.guard is not None
        ]
        self.signal.looking = False

    def do(self, acts):
        self.look()
        for act in acts:
            getattr(self, f"do_{act[0]}")(*act[1:])
            self.look()

    def inside(self, kind, guard, acts):
        """Run acts inside a guard just entered; the model is left to who reads on after it."""
        self.model.enter(kind, guard)
        self.do(acts)
        self.model.exit(guard)

    def do_block(self, name, acts):
        guard = KINDS[name].make()
        with guard:
            self.inside(KINDS[name], guard, acts)

    def do_shared(self, name, acts):
        with SHARED[name]:
            self.inside(KINDS[name], SHARED[name], acts)

    def do_call(self, name, acts):
        guard = KINDS[name].make()

        @guard
        def function():
            self.inside(KINDS[name], guard, acts)

        function()

    def do_torch(self, name, acts):
        made, kind, found = getattr(torch, name)(), KINDS[TORCHS[name]], self.model.state
        if isinstance(made, gradguard.Guard):
            with made:
                self.inside(kind, made, acts)
            return
        with made:
            inference = kind.inference if name == "inference_mode" else found.inference_mode
            self.model.state = GradState(kind.grad, inference)
            self.do(acts)
        self.model.state = found

    def do_raise(self):
        raise Leave

    def do_catch(self, acts):
        """After an error of any kind all is as it was before the lines that it has ended."""
        state, its_open = self.model.state, list(self.model.open)
        try:
            self.do(acts)
        except (Leave, Interrupt) as error:
            blamed = getattr(error, "__notes__", [])
            self.came_out |= isinstance(error, Interrupt)
            self.model.state, self.model.open = state, its_open
            assert not blamed
        self.look()

    def do_rebound(self, acts):
        with gradguard.install():
            self.do(acts)

    def body(self, name, inner, acts, enters):
        """The lines of a body: a suspension after each act, and one inside a guard and torch's."""
        model, around = self.model, self.model.grad_outside_inference()
        outside = model.begin_body(around)
        if enters is not None:
            model.enter(KINDS[name], enters)

        def suspend():
            nonlocal outside
            state, its_open = model.leave_body(outside)
            yield
            outside = model.begin_body(around)
            model.open += its_open
            model.state = state

        for act in acts:
            self.do([act])
            yield from suspend()
            self.look()
        guard = KINDS[inner].make()
        with guard:
            model.enter(KINDS[inner], guard)
            yield from suspend()
            self.look()
            model.exit(guard)
        found = model.state
        with STOCK_NO_GRAD():
            model.state = found._replace(grad_enabled=False)
            yield from suspend()
            self.look()
        model.state = found
        self.look()
        model.leave_body(outside)

    def do_body(self, form, name, inner, acts, outer, stop):
        """Step a decorated body, with `outer` between its steps; it may be dropped or closed."""
        enters = None if name == "isolated" else KINDS[name].make()
        steps = FORMS[form](enters or gradguard.isolated, self.body, (name, inner, acts, enters))
        for at, _ in enumerate(steps):
            self.do(outer)
            if at == stop:
                break
        if stop % 2:
            steps.close()
        del steps

    def do_tasks(self, programs):
        """Run a loop of isolated tasks, each with a guard held over its switches."""
        loops = self.model
        before = loops.state

        async def task(name, acts):
            mine = Thread(before, [Entry(KINDS["no_grad"], TASK, before)])
            guard = KINDS[name].make()
            with guard:
                mine.enter(KINDS[name], guard)
                for act in acts:
                    step_of(mine, act)
                    await asyncio.sleep(0)
                step_of(mine)

        def step_of(mine, *acts):
            self.model = mine
            try:
                self.do(acts)
            finally:
                self.model = loops

        async def main():
            gradguard.isolate_tasks()
            try:
                tasks = [asyncio.create_task(task(*program)) for program in programs]
                while not all(one.done() for one in tasks):
                    await asyncio.sleep(0)
                    self.look()
            finally:
                self.signal.looking = True  # the end of the loop is no part of the program
            errors = [one.exception() for one in tasks]
            for error in sorted(filter(None, errors), key=lambda error: isinstance(error, Leave)):
                raise error

        try:
            asyncio.run(main())
        finally:
            self.model, self.signal.looking = loops, False


STOCK_NO_GRAD = torch.no_grad


class _Task:
    def __repr__(self):
        return "isolate_tasks()"


TASK = _Task()


def generator(decorate, body, args):
    @decorate
    def running():
        yield from body(*args)

    return running()


def coroutine(decorate, body, args):
    @decorate
    async def running():
        for _ in body(*args):
            await pause()

    made = running()
    with suppress(StopIteration):
        while True:
            made.send(None)
            yield


def async_generator(decorate, body, args):
    @decorate
    async def running():
        for _ in body(*args):
            yield

    made = running()
    while True:
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(None, None)  # a loop that closes it drops what is raised there
        try:
            with suppress(StopIteration):
                made.__anext__().send(None)
        except StopAsyncIteration:
            return
        finally:
            sys.set_asyncgen_hooks(*hooks)
        yield


FORMS = {made.__name__: made for made in (generator, coroutine, async_generator)}


kinds = st.sampled_from(sorted(KINDS))


def nested(inner):
    several = st.lists(inner, max_size=3)
    return st.one_of(
        st.tuples(st.just("block"), kinds, several),
        st.tuples(st.just("shared"), st.sampled_from(sorted(SHARED)), several),
        st.tuples(st.just("call"), kinds, several),
        st.tuples(st.just("torch"), st.sampled_from(sorted(TORCHS)), several),
        st.tuples(st.just("rebound"), several),
        st.tuples(st.just("catch"), several),
        st.tuples(
            st.just("body"),
            st.sampled_from(sorted(FORMS)),
            st.just("isolated") | kinds,
            kinds,
            st.lists(inner, max_size=2),
            st.lists(inner, max_size=2),
            st.integers(0, 4),
        ),
    )


acts = st.recursive(st.just(("raise",)) | st.just(("block", "no_grad", [])), nested, max_leaves=8)
several_tasks = st.lists(st.tuples(kinds, st.lists(acts, max_size=3)), min_size=1, max_size=3)
programs = st.lists(acts | st.tuples(st.just("tasks"), several_tasks), min_size=1, max_size=4)


def run(program, signal, *, traced=True):
    """Run a program; afterwards nothing is left of it, whatever has come out."""
    running, dropped = Run(signal), []

    def note(one):  # not itself, nor its error: they would keep a body until the next program
        dropped.append((one.exc_type, str(one.exc_value)))

    hook, sys.unraisablehook = sys.unraisablehook, note
    try:
        if traced:
            signal.run(lambda: running.do_catch(program))
        else:
            running.do_catch(program)
        gc.collect()  # what is left in cycles is this program's, and must not end amid the next
        gc.freeze()  # and what is alive now is not looked at again
        # Python itself drops what is raised where a body is dropped.
        came_out = running.came_out or any(kind is Interrupt for kind, _ in dropped)
        assert signal.came == came_out
        assert [one for one in dropped if one[0] is not Interrupt] == []
        assert guards() == ()
        assert running.unknown() or grad_state() == START
    finally:
        sys.unraisablehook = hook
        stack.cell[0] = None
        put_back(START)


@pytest.fixture(autouse=True)
def no_other_tracer():
    """The trace function is this test's; nor is anything left to be collected."""
    if EACH_BYTECODE and sys.gettrace() is not None:
        pytest.skip("the trace function is coverage's")
    yield
    gc.collect()


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@settings(
    max_examples=max(150, settings.default.max_examples),
    suppress_health_check=list(HealthCheck),
)
@given(program=programs, at=st.integers(0, 10_000))
def test_any_program_leaves_nothing(program, at):
    """Each line runs in its mode, and no interrupt, wherever it comes, leaves more than torch's."""
    counting = Signal(sys.maxsize)
    run(program, counting, traced=False)
    run(program, counting)
    positions = sys.maxsize - counting.left
    if positions:
        run(program, Signal(at % positions))


FOUND = {
    "a body dropped between two steps": [
        ("body", "async_generator", "isolated", "enable_grad", [], [], 2)
    ],
    "a body dropped amid its resume": [
        ("body", "async_generator", "isolated", "inference_off", [], [], 0),
        ("body", "generator", "inference_on", "inference_off", [], [], 0),
    ],
    "a call whose body raises": [("call", "no_grad", [("raise",)])],
    "a block of what switches in the making": [("block", "set_off", [])],
    "a shared guard": [("shared", "inference_on", []), ("shared", "enable_grad", [])],
}


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.parametrize("name", FOUND)
def test_programs_that_were_wrong_at_a_place(name):
    """They leave nothing, wherever the interrupt comes."""
    counting = Signal(sys.maxsize)
    run(FOUND[name], counting, traced=False)
    run(FOUND[name], counting)
    for at in range(sys.maxsize - counting.left):
        run(FOUND[name], Signal(at))
