"""The two decorators that are called most, with their guard's entry and exit written out.

`with guard:` in the wrapper, as every other guard has it, costs two more Python calls: a third of
the whole for `no_grad`, whose two C calls are cheap.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from gradguard._core.guard_stack import fast, thread
from gradguard._core.guard_types import Guard
from gradguard._core.state import (
    enter_inference,
    exit_inference,
    is_dynamo_compiling,
    is_grad_enabled,
    is_inference_mode_enabled,
    set_grad,
)

# By the type of a result that still has to run: what makes it run under the guard.
StillToRun: TypeAlias = Mapping[type, Callable[[Any, Guard], Any]]


def under_no_grad(
    fn: Callable[..., Any], guard: Guard, still_to_run: StillToRun
) -> Callable[..., Any]:
    """Return a wrapper that calls `fn` under `guard`, which is `no_grad()`."""
    ordinary: type | None = None  # the type of the last result, which was not still to run

    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        nonlocal ordinary
        if is_dynamo_compiling():
            with guard.traced():
                return fn(*args, **kwargs)
        try:
            cell = fast.cell
        except AttributeError:  # this thread's first entry
            cell = thread.cell
        below = cell[0]
        found = is_grad_enabled()
        cell[0] = link = (guard, found, None, below)
        if found:
            set_grad(False)
        try:
            result = fn(*args, **kwargs) if kwargs else fn(*args)
        finally:
            if cell[0] is link:
                cell[0] = below
                set_grad(found)
            else:
                guard.__exit__()  # the body has closed or left open a guard
        if result is not None and type(result) is not ordinary:
            if type(result) in still_to_run:
                return still_to_run[type(result)](result, guard)
            ordinary = type(result)
        return result

    return wrapper


def under_inference(
    fn: Callable[..., Any], guard: Guard, still_to_run: StillToRun
) -> Callable[..., Any]:
    """Return a wrapper that calls `fn` under `guard`, which is `inference_mode()`."""
    ordinary: type | None = None  # the type of the last result, which was not still to run

    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        nonlocal ordinary
        if is_dynamo_compiling():
            with guard.traced():
                return fn(*args, **kwargs)
        try:
            cell = fast.cell
        except AttributeError:  # this thread's first entry
            cell = thread.cell
        below = cell[0]
        cell[0] = link = (
            guard,
            is_grad_enabled() or (None if is_inference_mode_enabled() else False),
            token := enter_inference(True),
            below,
        )
        try:
            result = fn(*args, **kwargs) if kwargs else fn(*args)
        finally:
            if cell[0] is link:
                cell[0] = below
                exit_inference(token, None, None, None)
            else:
                guard.__exit__()  # the body has closed or left open a guard
        if result is not None and type(result) is not ordinary:
            if type(result) in still_to_run:
                return still_to_run[type(result)](result, guard)
            ordinary = type(result)
        return result

    return wrapper
