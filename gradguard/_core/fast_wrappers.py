"""The two decorators that are called most, with their guard's entry and exit written out.

`with guard:` in the wrapper, as every other guard has it, costs two more Python calls: a third of
the whole for `no_grad`, whose two C calls are cheap.

What the wrappers use they look up in its module: cloudpickle sends a function of `__main__` with
the globals that it names, and a thread-local cannot be sent.
"""

import functools
from collections.abc import Callable
from typing import Any

from gradguard._core import abandoned, exits, guard_stack, state, wrappers


def under_no_grad(fn: Callable[..., Any], guard: Any) -> Callable[..., Any]:
    """Return a wrapper that calls `fn` under `guard`, which is `no_grad()`."""
    ordinary: type | None = None  # the type of the last result, which was not still to run

    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        nonlocal ordinary
        if state.is_dynamo_compiling():
            with guard.while_compiling():
                return fn(*args, **kwargs)
        try:
            cell = guard_stack.fast.cell
        except AttributeError:
            cell = abandoned.own_cell()
        found = state.is_grad_enabled()
        link = (guard, found, None, cell[0])
        try:
            cell[0] = link
            if found:
                state.set_grad(False)
            result = fn(*args, **kwargs) if kwargs else fn(*args)
            if cell[0] is link:
                state.set_grad(found)
                cell[0] = link[3]
            else:
                exits.close(guard)  # the body has closed or left open a guard
        except BaseException as error:
            exits.leave(link, error)
            raise
        if result is not None and type(result) is not ordinary:
            if type(result) in wrappers.STILL_TO_RUN:
                return wrappers.STILL_TO_RUN[type(result)](result, guard)
            ordinary = type(result)
        return result

    return wrapper


def under_inference(fn: Callable[..., Any], guard: Any) -> Callable[..., Any]:
    """Return a wrapper that calls `fn` under `guard`, which is `inference_mode()`."""
    ordinary: type | None = None  # the type of the last result, which was not still to run

    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        nonlocal ordinary
        if state.is_dynamo_compiling():
            with guard.while_compiling():
                return fn(*args, **kwargs)
        try:
            cell = guard_stack.fast.cell
        except AttributeError:
            cell = abandoned.own_cell()
        below = cell[0]
        found = state.is_grad_enabled() or (None if state.is_inference_mode_enabled() else False)
        link = (guard, found, token := state.enter_inference(True), below)
        try:
            cell[0] = link
            result = fn(*args, **kwargs) if kwargs else fn(*args)
            if cell[0] is link:
                state.exit_inference(token, None, None, None)
                cell[0] = below
            else:
                exits.close(guard)  # the body has closed or left open a guard
        except BaseException as error:
            exits.leave(link, error)
            raise
        if result is not None and type(result) is not ordinary:
            if type(result) in wrappers.STILL_TO_RUN:
                return wrappers.STILL_TO_RUN[type(result)](result, guard)
            ordinary = type(result)
        return result

    return wrapper
