"""The mode left switched, by what the trace of a run has recorded."""

import re
import sys
from types import CodeType, FrameType

from gradguard._core.frames import LIBRARY, outwards, whose
from gradguard._core.state import grad_state
from gradguard._judge.facts import Left
from gradguard._judge.lines import Line
from gradguard._judge.scene import is_recording
from gradguard._locate.blocks import is_in_with
from gradguard._trace import recorder
from gradguard._trace.causes import can_be_suspended_in_with
from gradguard._trace.switch import Holder, RecordedSwitch, lineno_of

_CONSTANT = re.compile(r"set_grad_enabled\(\s*(?:mode\s*=\s*)?False\s*\)|__enter__")
_MOST_PLACES = 10_000  # code may be made anew again and again
# Whether a function at an instruction is in the `with` that it entered at another.
_within: dict[tuple[int, int, int], tuple[CodeType, bool]] = {}


def left(caller: FrameType | None = None) -> Left | None:
    """Return the mode left switched, by what an active trace has recorded.

    None where operations are recorded, where the block that switched is still running on this
    thread's stack, and where something switched that no trace sees (autograd, in C++).
    """
    recording = recorder.current
    if recording is None or is_recording():
        return None
    opened = recording.thread.opened
    if caller is not None and opened.is_held_by(caller.f_code):
        return None  # by far the most: a call right in the block that switched
    record = opened.last() or opened.exit
    if record is None or record.after != grad_state() or _is_open(record.holder):
        return None
    if record.library_code is not None and _is_in_library():
        return None  # a library's own business: it switches back in a place of its own
    line = _line(record)
    constant = _CONSTANT.search(line.source or "") is not None
    returned = _frame_of(record.code) is None
    suspended = _is_suspended(record.holder)
    return Left(record.after, line, record.number, returned, constant, suspended)


def open_switches() -> frozenset[int]:
    """Return the numbers of the switches that nothing has taken back, in any thread."""
    recording = recorder.current
    still_open = () if recording is None else recording.still_open()
    return frozenset(record.number for record in still_open)


def _is_open(holder: Holder | None) -> bool:
    """Tell whether who has opened a block is still in it."""
    frame = None if holder is None else _frame_of(holder.code)
    if frame is None or holder is None or holder.entry is None:
        return frame is not None
    place = id(holder.code), holder.entry, frame.f_lasti
    known = _within.get(place)
    if known is None or known[0] is not holder.code:
        if len(_within) > _MOST_PLACES:
            _within.clear()
        known = _within[place] = holder.code, is_in_with(frame, holder.entry)
    return known[1]


def _is_suspended(holder: Holder | None) -> bool:
    """Tell whether who has opened a block is suspended in it: it is open, and does not run.

    Where that is not certain (a manager that may not switch back, an exit stack), it is not said.
    """
    if holder is None or holder.entry is not None or not can_be_suspended_in_with(holder.code):
        return False
    return _frame_of(holder.code) is None


def _frame_of(code: CodeType) -> FrameType | None:
    # By identity: the hash of a code, as its equality, goes over all of it.
    frame = sys._getframe(1)  # noqa: SLF001 - inspect.currentframe may be None
    return next((each for each in outwards(frame) if each.f_code is code), None)


def _is_in_library() -> bool:
    frame = sys._getframe(1)  # noqa: SLF001 - inspect.currentframe may be None
    return any(whose(each) == LIBRARY for each in outwards(frame))


def _line(record: RecordedSwitch) -> Line:
    code = record.code
    return Line(code.co_filename, lineno_of(code, record.instruction), code.co_name)
