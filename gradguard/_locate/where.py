"""Where on the call stack the mode was switched: looked for only when a message is made.

Entering a guard records nothing (that would cost something each time), so this reads what a
running program has anyway: its frames, their source and the closures of decorators.
"""

import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING

from gradguard._core import suspendable, suspended_bodies, suspended_modes
from gradguard._core.frames import is_library, module_of, outwards, user_line
from gradguard._locate.autograd_frames import forwards, function_forward
from gradguard._locate.enclosing import Block, blocks_in
from gradguard._locate.torch_frames import origin_of
from gradguard._locate.where_text import describe, describe_inside, failed
from gradguard._trace.recorder import last_switch as last_switch  # noqa: PLC0414 (for mypy)
from gradguard._trace.recorder import recorded_origin

if TYPE_CHECKING:
    from gradguard._core.state import GradState


# The modules whose functions step a body that can be suspended.
_STEPS_BODIES = {each.__name__ for each in (suspendable, suspended_modes, suspended_bodies)}


def enclosing(frame: FrameType | None = None) -> tuple[Block, ...]:
    """Return what switches the mode around the line `frame` (the caller) is at, innermost first.

    The whole stack is looked at: ``with`` blocks, exit stacks and earlier plain calls in each
    function's source, the wrappers of decorators, and autograd, which runs forward and backward
    functions and hooks with a mode of its own.
    """
    frames = list(outwards(frame or sys._getframe(1)))  # noqa: SLF001 - as in user_frame
    seen: set[int] = set()
    found: list[Block] = []
    functions = forwards()
    # Outermost first: who holds an exit stack is who made it, not those it was handed to.
    for here, callee in reversed(list(zip(frames, [None, *frames], strict=False))):
        if callee is not None and _steps_bodies(callee) and not _steps_bodies(here):
            # A suspended body keeps its own mode: what now resumes it may not have begun it.
            found = [replace(block, certain=False) for block in found]
        found[:0] = [*_around(here, callee, seen), *function_forward(here, functions)]
    return tuple(found)


def _steps_bodies(frame: FrameType) -> bool:
    return module_of(frame) in _STEPS_BODIES


def _around(frame: FrameType, callee: FrameType | None, seen: set[int]) -> list[Block]:
    origin = origin_of(frame, callee)
    blocks = blocks_in(frame, seen) if origin is None else origin
    return [_with_caller(block, frame) for block in blocks]


def _with_caller(block: Block, frame: FrameType) -> Block:
    return replace(block, caller=user_line(frame)) if is_library(block.filename) else block


def decisive(blocks: Iterable[Block], state: "GradState") -> Block | None:
    """Return the block that made the mode what it is, None if it was none of these.

    That is the innermost that sets the flag in question so; in inference mode that flag is
    inference mode, else the grad flag. One that sets it otherwise ends the search: what lies
    outside was overridden. One that only may have run counts if no other explains the mode.
    """
    flag, value = _decides(state)
    possible: Block | None = None
    for block in _in_effect(blocks):
        values: tuple[bool, ...] = getattr(block.switch, flag)
        if value in values and block.certain:
            return block
        if value in values or (value and _leaves_inference(block)):
            possible = possible or block
        elif values and block.certain:
            break
    return possible


def _decides(state: "GradState") -> tuple[str, bool]:
    return ("inference", True) if state.inference_mode else ("grad", state.grad_enabled)


def _in_effect(blocks: Iterable[Block]) -> Iterator[Block]:
    """Leave out the inference blocks that an inference_mode(False) of gradguard has undone."""
    undone = False
    for block in blocks:
        if not undone or block.switch.inference != (True,):
            yield block
        undone = undone or _leaves_inference(block)


def _leaves_inference(block: Block) -> bool:
    """Tell gradguard's inference_mode(False), which brings back the grad mode of further out."""
    return block.switch.effect == ((), (False,))


def where(
    state: "GradState", *, recorded: str | None = None, inside: Sequence[Block] = ()
) -> list[str]:
    """Return the lines, at most eight, that say where the mode `state` was switched.

    Never raises: a failure of the search becomes its text.

    Args:
        state: the mode to explain, usually the present one.
        recorded: the last switch that was never switched back; by default, what an active trace
            knows of this thread.
        inside: where the mode was left by a block or call that has ended, what in it switches.

    """
    try:
        flag, value = _decides(state)
        within = [block for block in inside if value in getattr(block.switch, flag)]
        if within:
            return describe_inside(within)
        blocks = enclosing(sys._getframe(1))  # noqa: SLF001 - as in user_frame
        first = decisive(blocks, state)
        recorded = recorded or recorded_origin(state)
    except Exception as error:  # noqa: BLE001 - the message it is for must come out; it says so
        return failed(type(error))
    others = [block for block in blocks if block is not first and block.certain]
    return describe(
        others if first is None else [first, *others],
        decided=first is not None and first.certain,
        possible=first is not None,
        recorded=recorded,
        recording_in=_thread_recording(state),
    )


def _thread_recording(state: "GradState") -> str | None:
    """Return this thread's name if it records, as each does from its start; "" for the main one."""
    thread = threading.current_thread()
    if not state.grad_enabled or state.inference_mode:
        return None
    return "" if thread is threading.main_thread() else thread.name
