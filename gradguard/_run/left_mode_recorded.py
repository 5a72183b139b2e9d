"""The mode left switched, by what the trace of a run has recorded."""

import re
import sys
from types import CodeType, FrameType

from gradguard._core.frames import outwards
from gradguard._core.state import grad_state
from gradguard._judge.facts import Left
from gradguard._judge.lines import Line
from gradguard._judge.scene import is_recording
from gradguard._trace import recorder
from gradguard._trace.switch import RecordedSwitch, lineno_of

_CONSTANT = re.compile(r"set_grad_enabled\(\s*(?:mode\s*=\s*)?False\s*\)|__enter__")


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
    if record is None or (caller is not None and record.holder is caller.f_code):
        return None
    state = grad_state()
    if record.after != state or _is_running(record.holder):
        return None
    if record.library_code is not None:
        return None  # a library's own business: it switches back in a place of its own
    line = _line(record)
    constant = _CONSTANT.search(line.source or "") is not None
    returned = not _is_running(record.code)
    return Left(state, line, record.number, returned=returned, constant=constant)


def _is_running(code: CodeType | None) -> bool:
    # By identity: the hash of a code, as its equality, goes over all of it.
    frame = sys._getframe(1)  # noqa: SLF001 - inspect.currentframe may be None
    return code is not None and any(each.f_code is code for each in outwards(frame))


def _line(record: RecordedSwitch) -> Line:
    code = record.code
    return Line(code.co_filename, lineno_of(code, record.instruction), code.co_name)
