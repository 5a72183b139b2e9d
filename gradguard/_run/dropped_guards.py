"""Guards made as a statement: the instruction that follows the call drops its value."""

import dis
import functools
import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

import torch

from gradguard._core.frames import USER, whose
from gradguard._judge.judge import Judge
from gradguard._trace.patching import Patches

_JUMPS = ("JUMP_FORWARD", "JUMP_ABSOLUTE")
_GUARDS = ("no_grad", "enable_grad", "inference_mode")
_MOST_CODE = 10_000  # code may be made anew again and again
_dropped: dict[tuple[int, int], tuple[CodeType, bool]] = {}


def dropped_guards(patches: Patches, judge: Judge, attempt: Callable[..., None]) -> None:
    """See guards that are made and dropped at once."""
    for name in _GUARDS:
        patches.replace(getattr(torch, name), "__init__", _maker(name, judge, attempt))


def _maker(name: str, judge: Judge, attempt: Callable[..., None]) -> Callable[[Any], Any]:
    def look(frame: FrameType) -> None:
        if _is_dropped(frame) and whose(frame) == USER:
            judge.no_effect.dropped_guard(name, frame)

    def make(original: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(original)  # TorchScript compiles the source of what stands here
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807 (its place)
            original(self, *args, **kwargs)
            frame = sys._getframe(1)  # noqa: SLF001 - inspect.currentframe may be None
            known = _dropped.get((id(frame.f_code), frame.f_lasti))
            if known is None or known[1] or known[0] is not frame.f_code:
                attempt(look, frame)

        return __init__

    return make


def _is_dropped(frame: FrameType) -> bool:
    code, at = frame.f_code, frame.f_lasti
    known = _dropped.get((id(code), at))
    if known is None or known[0] is not code:
        if len(_dropped) > _MOST_CODE:
            _dropped.clear()
        known = _dropped[id(code), at] = (code, _next_drops(code, at))
    return known[1]


def _next_drops(code: CodeType, at: int) -> bool:
    instructions = {each.offset: each for each in dis.get_instructions(code)}
    offset = min((each for each in instructions if each > at), default=None)
    while offset is not None and instructions[offset].opname in _JUMPS:
        offset = instructions[offset].argval  # out of one branch of a conditional expression
    return offset is not None and instructions[offset].opname == "POP_TOP"
