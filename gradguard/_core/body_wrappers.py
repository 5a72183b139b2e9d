"""Wrappers of functions whose body can be suspended, with the parameters of what they wrap.

They are generator, coroutine and async generator functions themselves, as `inspect` asks for their
code's flags. Such a function runs none of its code when it is called: that arguments do not fit,
Python says at the call only of parameters that are its own. So each is compiled for the parameters
of what it wraps, once for all that take the same. Names of its own begin with ``_gg_``: they stand
beside those of the parameters.
"""

import functools
import linecache
from collections.abc import Callable
from typing import Any

from gradguard._core import compiling as _gg_compiling
from gradguard._core.signatures import Parameters, Shape, parameters_of
from gradguard._core.state import (
    is_dynamo_compiling as _gg_is_dynamo_compiling,
)
from gradguard._core.suspendable import close_in_its_mode as _gg_close_in_its_mode
from gradguard._core.suspendable import drive as _gg_drive
from gradguard._core.suspendable import first_step as _gg_first_step
from gradguard._core.suspendable import has_ended as _gg_has_ended
from gradguard._core.torch_versions import DYNAMO_STEPS_GENERATORS, not_compiled

# The templates name them.
__all__ = [
    "_gg_close_in_its_mode",
    "_gg_compiling",
    "_gg_drive",
    "_gg_first_step",
    "_gg_has_ended",
    "_gg_is_dynamo_compiling",
]

# Both loops stand in one function, since Dynamo follows neither through another generator.
# Not `yield from drive(...)`: a body that is closed and goes on would be lost with it; and Dynamo
# neither sends nor throws through it; up to torch 2.8 it fails at a `yield` amid a call. An
# interrupt between two steps: as in `drive`.
GENERATOR = """\
def wrapper({header}):
    _gg_guard, _gg_target = _gg_guard_for({arguments}), _gg_fn({arguments})
    _gg_body = None
    if not _gg_is_dynamo_compiling():
        _gg_body = _gg_guard.body()
        {forget}  # they are the body's to keep
    _gg_call = _gg_target.send
    _gg_passed = [None]
    _gg_was_thrown = _gg_interrupted = False
    try:
        while True:
            if _gg_body is not None:
                try:
                    _gg_passed.append(_gg_body.step(_gg_call, _gg_passed))
                except BaseException as _gg_raised:
                    if not _gg_interrupted and not _gg_has_ended(_gg_target):
                        _gg_interrupted, _gg_passed[:] = True, [_gg_raised]
                        _gg_call = _gg_target.throw
                        continue
                    if isinstance(_gg_raised, StopIteration):
                        return _gg_raised.value
                    raise
                _gg_interrupted = False
            else:
                with _gg_guard.while_compiling():
                    _gg_did, _gg_result = _gg_compiling.compiled_step(
                        _gg_target, _gg_passed, thrown=_gg_was_thrown
                    )
                if _gg_did == _gg_compiling.RETURNED:
                    return _gg_result
                if _gg_did == _gg_compiling.RAISED:
                    raise _gg_result
                _gg_passed.append(_gg_result)
            try:
                _gg_received = yield _gg_passed.pop()
                _gg_passed.append(_gg_received)
                _gg_call, _gg_was_thrown, _gg_received = _gg_target.send, False, None
            except BaseException as _gg_thrown:  # it is the body's to answer
                _gg_passed[:] = [_gg_thrown]
                _gg_call, _gg_was_thrown = _gg_target.throw, True
    except BaseException:
        if _gg_body is not None and not _gg_has_ended(_gg_target):
            _gg_close_in_its_mode(_gg_target, _gg_body)
        raise
"""

COROUTINE = """\
async def wrapper({header}):
    _gg_guard, _gg_target = _gg_guard_for({arguments}), _gg_fn({arguments})
    {forget}
    return await _gg_drive(_gg_target, _gg_guard.body(), _gg_target)
"""

# For decorators that do all they have to around the coroutine.
AWAITING = """\
async def wrapper({header}):
    return await _gg_fn({arguments})
"""

# An exception thrown in would keep the frame, and so itself, alive.
ASYNC_GENERATOR = """\
async def wrapper({header}):
    _gg_guard, _gg_target = _gg_guard_for({arguments}), _gg_fn({arguments})
    _gg_body = _gg_guard.body()
    {forget}
    _gg_step, _gg_interrupted = _gg_first_step(_gg_target), False
    try:
        while True:
            try:
                _gg_yielded = [await _gg_drive(_gg_step, _gg_body, _gg_target, more=True)]
            except StopAsyncIteration:
                return
            except BaseException as _gg_raised:
                if _gg_interrupted or _gg_has_ended(_gg_target) or _gg_target.ag_running:
                    raise
                _gg_interrupted, _gg_step = True, _gg_target.athrow(_gg_raised)
                continue
            _gg_interrupted = False
            _gg_step = None  # it holds what was sent or thrown in
            try:
                _gg_step = _gg_target.asend((yield _gg_yielded.pop()))
            except BaseException as _gg_thrown:  # it is the body's to answer
                _gg_step = _gg_target.athrow(_gg_thrown)
    except BaseException:
        if not _gg_has_ended(_gg_target) and not _gg_target.ag_running:  # as in `drive`
            _gg_step = _gg_target.aclose()
            await _gg_drive(_gg_step, _gg_body, _gg_target, more=True)
        raise
    finally:
        del _gg_step
"""


_KINDS = {
    GENERATOR: "def with yield",
    COROUTINE: "async def",
    AWAITING: "async def, awaited",
    ASYNC_GENERATOR: "async def with yield",
}


def body_wrapper(
    template: str, fn: Callable[..., Any], guard_for: Callable[..., Any], takes: Parameters
) -> Callable[..., Any]:
    """Return a function by `template` that takes what `fn` takes, and runs its body under guard."""
    wrapper = _finished(_maker(template, takes.shape)(fn, guard_for), fn, takes)
    if template is GENERATOR and not DYNAMO_STEPS_GENERATORS:
        return not_compiled("a decorated generator")(wrapper)
    return wrapper


def coroutine_function(fn: Callable[..., Any], run: Callable[..., Any]) -> Callable[..., Any]:
    """Return a coroutine function that takes what `fn` takes, and awaits `run` of that."""
    takes = parameters_of(fn)
    return _finished(_maker(AWAITING, takes.shape)(run, None), fn, takes)


def _finished(wrapper: Any, fn: Callable[..., Any], takes: Parameters) -> Callable[..., Any]:
    wrapper.__defaults__, wrapper.__kwdefaults__ = takes.defaults, takes.by_name
    if takes.function is not None:  # a partial, say, has no name
        wrapper.__name__ = takes.function.__name__
        wrapper.__qualname__ = takes.function.__qualname__
    return functools.wraps(fn)(wrapper)


@functools.cache
def _maker(template: str, shape: Shape) -> Callable[..., Any]:
    header, names = shape.header(), ", ".join(shape.names())
    forget = f"del {names}" if names else "pass"
    text = template.format(header=header, arguments=shape.arguments(), forget=forget)
    lines = ["def make(_gg_fn, _gg_guard_for):", *text.splitlines(), "return wrapper"]
    source = "\n    ".join(lines)
    filename = f"<gradguard's wrapper of {_KINDS[template]}({header})>"  # each of another text
    linecache.cache[filename] = len(source), None, source.splitlines(keepends=True), filename
    made: dict[str, Any] = {}
    # In this module's names: Dynamo looks them up by the name of the module.
    exec(compile(source, filename, "exec"), globals(), made)  # noqa: S102 (of a template above)
    maker: Callable[..., Any] = made["make"]
    return maker
