"""Blocks that are entered in one thread and ended in another, as the halves of a dependency."""

import contextlib
import gc
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gradguard
from gradguard import GradState, grad_state, guards

GRAD = GradState(grad_enabled=True, inference_mode=False)
KINDS = {
    "no_grad": gradguard.no_grad,
    "enable_grad": gradguard.enable_grad,
    "set_off": lambda: gradguard.set_grad_enabled(False),
    "inference": gradguard.inference_mode,
    "no_inference": lambda: gradguard.inference_mode(False),
}
OUTSIDE = {
    "grad": contextlib.nullcontext,
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
}
each_kind = pytest.mark.parametrize("kind", KINDS)
each_outside = pytest.mark.parametrize("outside", OUTSIDE)


def block(make):
    with make():
        yield


def named(make):
    guard = make()
    with guard:
        yield


def on_a_stack(make):
    with contextlib.ExitStack() as stack:
        stack.enter_context(make())
        yield


class ByMethods:
    """A context manager with a guard inside, as many are written."""

    def __init__(self, make):
        self.guard = make()

    def __enter__(self):
        self.guard.__enter__()

    def __exit__(self, *exc):
        self.guard.__exit__(*exc)


def by_methods(make):
    with ByMethods(make):
        yield


each_form = pytest.mark.parametrize("form", [block, named, on_a_stack, by_methods])


@pytest.fixture
def one():
    with ThreadPoolExecutor(1, "one") as pool:
        yield lambda fn: pool.submit(fn).result()


@pytest.fixture
def two():
    with ThreadPoolExecutor(1, "two") as pool:
        yield lambda fn: pool.submit(fn).result()


def end(dependency):
    """End it, which is an error."""
    with pytest.raises(RuntimeError, match=r"was entered in another thread.*one_0"):
        next(dependency)


@gradguard.no_grad
def decorated():
    return grad_state(), guards()


@each_form
@each_kind
@each_outside
def test_the_first_thread_comes_back_at_its_next_entry(one, two, kind, outside, form):
    """The mode from before is there in and after the next decorated call; nothing stays open."""
    opened = contextlib.ExitStack()
    one(lambda: opened.enter_context(OUTSIDE[outside]()))
    before = one(grad_state)
    dependency = [form(KINDS[kind])]
    one(lambda: next(dependency[0]))
    two(lambda: end(dependency.pop()))
    gc.collect()  # `by_methods` is over when nobody has it any more
    assert one(decorated) == (before._replace(grad_enabled=False), (gradguard.no_grad(),))
    assert one(lambda: (grad_state(), guards())) == (before, ())
    one(opened.close)


@each_form
@each_kind
@each_outside
def test_the_second_thread_keeps_its_mode(one, two, kind, outside, form):
    """The error changes nothing there, and neither does the end of all that took part."""

    def ended(dependency):
        with OUTSIDE[outside](), gradguard.no_grad():
            before = grad_state(), guards()
            end(dependency[0])
            dependency.clear()
            gc.collect()
            assert (grad_state(), guards()) == before
        return grad_state(), guards()

    dependency = [form(KINDS[kind])]
    one(lambda: next(dependency[0]))
    assert two(lambda: ended(dependency)) == (GRAD, ())
    one(decorated)


@each_kind
def test_a_running_call_of_the_first_thread_is_left_alone(one, two, kind):
    """What was entered there since keeps its mode, and its exit blames nobody."""
    dependency = block(KINDS[kind])

    @gradguard.no_grad
    def meanwhile():
        before = grad_state(), [repr(guard) for guard in guards()][-1:]
        two(lambda: end(dependency))
        assert (grad_state(), [repr(guard) for guard in guards()][-1:]) == before
        with gradguard.enable_grad():
            assert (torch.ones(1, requires_grad=True) * 2).requires_grad
        assert grad_state() == before[0]

    one(lambda: next(dependency))
    one(meanwhile)
    one(decorated)
    assert one(lambda: (grad_state(), guards())) == (GRAD, ())


@each_kind
def test_a_block_of_the_first_thread_brings_it_back_at_its_end(one, two, kind):
    """An exit is as good as an entry."""
    dependency = block(KINDS[kind])

    def meanwhile():
        with gradguard.no_grad():
            two(lambda: end(dependency))
        return grad_state(), guards()

    one(lambda: next(dependency))
    assert one(meanwhile) == (GRAD, ())


@each_kind
def test_a_shared_guard(one, two, kind):
    """It is told for each entry whether its block is over: that of the second thread goes on."""
    guard = KINDS[kind]()
    with guard:
        pass
    dependency = block(lambda: guard)
    one(lambda: next(dependency))
    with guard:
        inside = grad_state()
        two(lambda: end(dependency))
        assert one(decorated)[0].grad_enabled is False
        assert grad_state() == inside
    one(decorated)
    assert one(lambda: (grad_state(), guards())) == (GRAD, ())
    assert grad_state() == GRAD


@each_kind
def test_an_exit_by_mistake_ends_nothing(one, two, kind):
    """A thread that exits what it has not entered gets the error; who is inside stays inside."""

    def inside(guard):
        with guard:
            before = grad_state()
            for _ in range(3):
                with pytest.raises(RuntimeError, match="was entered in another thread"):
                    two(lambda: guard.__exit__(None, None, None))
                with gradguard.enable_grad(), gradguard.no_grad():
                    pass
                decorated()
                assert (grad_state(), guards()) == (before, (guard,))
        return grad_state(), guards()

    assert one(lambda: inside(KINDS[kind]())) == (GRAD, ())


def test_set_grad_enabled_is_made_in_the_threads_own_mode(one, two):
    """Its first exit brings back the mode from before it was made, which is not the stray's."""
    dependency = block(gradguard.no_grad)
    one(lambda: next(dependency))
    two(lambda: end(dependency))

    def entered():
        with gradguard.set_grad_enabled(False):
            pass
        return grad_state()

    assert one(entered) == GRAD


def test_carry_takes_the_threads_own_mode_back(one, two):
    """A carried function leaves its thread in the mode from before the stray."""
    dependency = block(gradguard.no_grad)
    one(lambda: next(dependency))
    two(lambda: end(dependency))
    assert one(gradguard.carry(grad_state)) == GRAD
    assert one(grad_state) == GRAD


steps = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5)), max_size=30)


@pytest.mark.filterwarnings("ignore::gradguard.GradModeWarning")
@given(kinds=st.lists(st.sampled_from(sorted(KINDS)), min_size=6, max_size=6), steps=steps)
def test_any_halves_in_any_threads(kinds, steps):
    """Whatever runs where, a decorated call has its mode, and at the end each thread its own."""
    with contextlib.ExitStack() as stack:
        executors = [stack.enter_context(ThreadPoolExecutor(1)) for _ in range(3)]
        pools = [lambda fn, one=one: one.submit(fn).result() for one in executors]
        started, over = {}, set()
        for thread, at in steps:
            run = pools[thread]
            if at in over:
                assert run(decorated)[0].grad_enabled is False
            elif at not in started:
                started[at] = dependency = block(KINDS[kinds[at]])
                run(lambda: next(dependency))  # noqa: B023 (called at once)
            else:
                over.add(at)
                run(lambda: finish(started[at]))  # noqa: B023 (called at once)
        for dependency in started.values():
            pools[0](lambda: finish(dependency))  # noqa: B023 (called at once)
        for run in pools:
            run(decorated)
            assert run(lambda: (grad_state(), guards())) == (GRAD, ())


def finish(dependency):
    """End it where it is, in its own thread or another."""
    with contextlib.suppress(StopIteration, RuntimeError):
        next(dependency)
