"""Exits out of order: what must not be lost by them, autocast and the body's own exception."""

import asyncio
import contextlib
import copy
import itertools

import pytest
import torch

import gradguard
from gradguard import GradModeWarning, GradState
from gradguard._core.guard_stack import links
from gradguard._core.state import put_back

MAKE = {
    "no_grad": gradguard.no_grad,
    "enable_grad": gradguard.enable_grad,
    "inference_mode": gradguard.inference_mode,
}
each_guard = pytest.mark.parametrize("name", MAKE)


def autocast():
    return torch.is_autocast_enabled("cpu")


@pytest.fixture(autouse=True)
def as_it_was():
    """Every test ends recording, with no guard open and autocast off."""
    yield
    ended = gradguard.grad_state(), gradguard.guards(), autocast()
    torch.set_autocast_enabled("cpu", False)
    assert ended == ((True, False), (), False)


def seen_after(library, kinds, order):
    """Enter guards of torch or gradguard and autocast, exit them in an order; say what was seen."""
    opened = [
        torch.autocast("cpu", torch.bfloat16) if kind == "autocast" else getattr(library, kind)()
        for kind in kinds
    ]
    for each in opened:
        each.__enter__()
    seen = []
    for at in order:
        opened[at].__exit__(None, None, None)
        seen.append(autocast())
    opened.clear()  # a token that torch has not used up yet switches when it is dropped
    torch.set_autocast_enabled("cpu", False)
    put_back(GradState(grad_enabled=True, inference_mode=False))
    return seen


@pytest.mark.filterwarnings("ignore::gradguard.GradModeWarning")
@pytest.mark.parametrize(
    "kinds",
    [
        ("inference_mode", "autocast"),
        ("autocast", "inference_mode"),
        ("inference_mode", "autocast", "no_grad"),
        ("no_grad", "inference_mode", "autocast"),
        ("inference_mode", "inference_mode", "autocast"),
    ],
)
def test_autocast_is_ended_no_more_often_than_by_torch(kinds):
    """Whatever the order of the exits: autocast is on for as long as with torch's guards, at least.

    The exit of an inference block brings back the autocast state that the block found, torch's as
    well as gradguard's: an autocast opened inside it and still open is off then.
    """
    for order in itertools.permutations(range(len(kinds))):
        ours, theirs = (seen_after(library, kinds, order) for library in (gradguard, torch))
        at = order.index(kinds.index("autocast"))
        for open_still, (our, their) in enumerate(zip(ours, theirs, strict=True)):
            if open_still < at:
                assert our or not their, (order, ours, theirs)


def misnested(name):
    """Exit a guard while one that was entered after it is open."""
    outer, inner = MAKE[name](), gradguard.no_grad()
    outer.__enter__()
    inner.__enter__()
    try:
        outer.__exit__(None, None, None)
    finally:
        inner.__exit__(None, None, None)


class BodyError(Exception):
    """What the body raises."""


def in_with(name):
    inner = gradguard.no_grad()
    try:
        with MAKE[name]():
            inner.__enter__()
            raise BodyError
    finally:
        inner.__exit__(None, None, None)


def in_decorator(name):
    inner = gradguard.no_grad()

    @MAKE[name]
    def function():
        inner.__enter__()
        raise BodyError

    try:
        function()
    finally:
        inner.__exit__(None, None, None)


def in_exit_stack(name):
    inner = gradguard.no_grad()
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(MAKE[name]())
            inner.__enter__()
            raise BodyError
    finally:
        inner.__exit__(None, None, None)


def body_of(name):
    outer, inner = MAKE[name](), gradguard.no_grad()
    outer.__enter__()
    try:
        inner.__enter__()
        raise BodyError  # noqa: TRY301 (as a body does)
    except BodyError as error:
        outer.__exit__(type(error), error, error.__traceback__)
        raise
    finally:
        inner.__exit__(None, None, None)


def in_generator(name):
    @gradguard.isolated
    def generator():
        yield
        body_of(name)

    list(generator())


def in_coroutine(name):
    @gradguard.no_grad
    async def coroutine():
        await asyncio.sleep(0)
        body_of(name)

    asyncio.run(coroutine())


def in_async_generator(name):
    @gradguard.no_grad
    async def generator():
        yield
        body_of(name)

    async def main():
        async for _ in generator():
            pass

    asyncio.run(main())


FORMS = [in_with, in_decorator, in_exit_stack, in_generator, in_coroutine, in_async_generator]


@each_guard
@pytest.mark.filterwarnings("error::gradguard.GradModeWarning")
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_a_warning_that_is_an_error_does_not_hide_what_the_body_raised(form, name):
    """The body's exception comes out, with the warning as a note."""
    with pytest.raises(BodyError) as caught:
        form(name)
    (note,) = caught.value.__notes__
    assert "was exited while no_grad()" in note
    assert caught.value.__cause__ is None


@each_guard
@pytest.mark.filterwarnings("always::gradguard.GradModeWarning")
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_otherwise_it_is_a_warning(form, name):
    """The same programs warn once, and the body's exception comes out."""
    with pytest.warns(GradModeWarning) as caught, pytest.raises(BodyError):
        form(name)
    assert len(caught) == 1


@each_guard
@pytest.mark.filterwarnings("error::gradguard.GradModeWarning")
def test_without_an_exception_the_warning_is_raised(name):
    """The exit has been made all the same: the mode is as if it had warned."""
    with pytest.raises(GradModeWarning, match="was exited while no_grad"):
        misnested(name)


def calls_with_its_guard(guard, raising):
    """A decorated function whose body enters or exits the guard, and may raise."""

    @guard
    def function(act):
        act()
        if raising:
            raise LookupError

    return function


@pytest.mark.parametrize("raising", [False, True])
@each_guard
def test_a_call_exits_as_often_as_it_has_entered(name, raising):
    """Whatever its body has done to the guard: one exit, as at the end of a `with`."""
    guard = MAKE[name]()
    function = calls_with_its_guard(guard, raising)
    with contextlib.suppress(LookupError):
        function(guard.__enter__)
    assert gradguard.guards() == (guard,)
    guard.__enter__()
    assert gradguard.guards() == (guard, guard)
    with contextlib.suppress(LookupError):
        function(lambda: guard.__exit__(None, None, None))
    assert gradguard.guards() == (guard,)
    guard.__exit__(None, None, None)


@each_guard
@pytest.mark.filterwarnings("error::gradguard.GradModeWarning")
def test_a_call_whose_warning_is_an_error_exits_once(name):
    """Another entry of the decorator's guard stays open."""
    guard, left_open = MAKE[name](), gradguard.enable_grad()
    with guard:
        with pytest.raises(GradModeWarning, match="was exited while enable_grad"):
            guard(left_open.__enter__)()
        assert gradguard.guards() == (guard, left_open)
        left_open.__exit__(None, None, None)


@pytest.mark.parametrize("inside", [(), (gradguard.no_grad,)])
def test_an_entry_that_nobody_will_exit_ends_with_the_block_around_it(inside):
    """At once, though its link is still held, as the traceback of an interrupt holds it."""
    shared = copy.copy(gradguard.inference_mode())  # its token lies on the thread's chain
    outer, inner = gradguard.no_grad(), [make() for make in inside]
    outer.__enter__()
    shared.__enter__()
    held = links()
    del shared
    for guard in inner:
        guard.__enter__()
    with pytest.warns(gradguard.GradModeWarning) if inner else contextlib.nullcontext():
        outer.__exit__(None, None, None)
    grad = not inside
    assert gradguard.grad_state() == (grad, False)
    del held
    assert gradguard.grad_state() == (grad, False)
    for guard in inner:
        guard.__exit__(None, None, None)
    assert gradguard.grad_state() == (True, False)
    assert gradguard.guards() == ()
