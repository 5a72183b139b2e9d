"""The frames of gradguard's decorators, and what they call."""

import asyncio
import sys

import pytest

import gradguard
from gradguard._core.wrappers import decorated_call, is_decorated_call

GUARDS = {
    "no_grad": gradguard.no_grad(),
    "inference_mode": gradguard.inference_mode(),
    "enable_grad": gradguard.enable_grad(),
    "set_grad_enabled": gradguard.no_grad(),
}


def calls():
    """Return what the wrappers on the stack call, innermost first."""
    found, frame = [], sys._getframe(1)
    while frame is not None:
        call = decorated_call(frame)
        assert (call is not None) is is_decorated_call(frame)
        if call is not None:
            found.append(call)
        frame = frame.f_back
    return found


def plain():
    return calls()


def generator():
    yield calls()


async def coroutine():
    return calls()


async def async_generator():
    yield calls()


RUN = {
    plain: lambda fn: fn(),
    generator: lambda fn: next(fn()),
    coroutine: lambda fn: asyncio.run(fn()),
    async_generator: lambda fn: asyncio.run(anext(fn())),
}


@pytest.mark.parametrize("function", RUN, ids=lambda function: function.__name__)
@pytest.mark.parametrize("name", GUARDS)
def test_each_wrapper_is_known(name, function):
    """The frame of any decorator's wrapper tells the guard and the function that it calls."""
    guard = GUARDS[name]
    (call,) = RUN[function](guard(function))
    assert call.guard is guard
    assert call.function is function


@pytest.mark.parametrize("name", GUARDS)
@pytest.mark.parametrize("function", [generator, coroutine, async_generator])
def test_what_is_handed_back_is_known(name, function):
    """Where a plain function hands back a body to be run, the body is what is called."""
    (call,) = RUN[function](GUARDS[name](lambda: function()))
    codes = (getattr(call.function, f"{kind}_code", None) for kind in ("gi", "cr", "ag"))
    assert function.__code__ in codes


def test_the_link_is_on_the_chain_during_the_call():
    """The fast wrappers tell their call's link, which is the innermost of the thread's chain."""
    from gradguard._core.guard_stack import thread

    seen = []

    @gradguard.no_grad()
    def function():
        (call,) = calls()
        seen.append(call.link is thread.cell[0])

    function()
    assert seen == [True]
