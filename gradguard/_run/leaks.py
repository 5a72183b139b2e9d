"""Modes left switched: at an optimizer step, when a thread ends, and at the end."""

import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from gradguard._core.frames import outwards
from gradguard._core.state import GradState, grad_state
from gradguard._locate.where import decisive, enclosing
from gradguard._run import texts
from gradguard._run.findings import Finding, Site
from gradguard._trace import recorder as _recorder
from gradguard._trace.switch import Switch
from gradguard._trace.trace import Trace

if TYPE_CHECKING:
    from types import CodeType

_USUAL = GradState(grad_enabled=True, inference_mode=False)  # in which every thread starts
_LOOPS = ("for ", "async for ")  # a generator's block that reaches the loop over it: a leak


class _Leak:
    """What one line has left switched."""

    def __init__(self, after: GradState) -> None:
        self.after = after
        self.switches: set[int] = set()
        self.steps = 0


class Leaks:
    """Looks for modes left switched, with a trace that is active for the whole run."""

    def __init__(self) -> None:
        self._trace = Trace(limit=1)  # those that were not switched back are kept beyond it
        self._leaks: dict[Site, _Leak] = {}
        self._harmless: list[tuple[CodeType, int]] = []

    def step(self) -> None:
        """Look at an optimizer step; inside an open block or decorator it is harmless."""
        state = grad_state()
        recorder = _recorder.current
        if state == _USUAL or recorder is None:
            return
        record = recorder.thread.opened.last()
        if record is None or record.switch.after != state or self._is_open(state):
            return
        self._leak(record.switch, record.number).steps += 1

    def finish(self) -> Iterator[Finding]:
        """Stop the trace, and yield what was left switched."""
        recorder = _recorder.current
        if recorder is not None:
            self._look_at_open(recorder)
        self._trace.stop()
        for site, leak in self._leaks.items():
            message = texts.mode_leak(leak.after, leak.steps)
            yield Finding("mode-leak", site, message, len(leak.switches))

    def _look_at_open(self, recorder: _recorder.Recorder) -> None:
        alive = {thread.ident for thread in threading.enumerate()}
        main = threading.main_thread().ident
        for record in recorder.still_open():
            # A thread that still runs may be in the midst of a block.
            ended = record.thread_id not in alive
            if record.thread_id == main:
                ended = grad_state() == record.switch.after
            if ended and record.switch.after != _USUAL:
                self._leak(record.switch, record.number)

    def _leak(self, switch: Switch, number: int) -> _Leak:
        site = Site(switch.filename, switch.lineno, switch.function)
        leak = self._leaks.setdefault(site, _Leak(switch.after))
        leak.switches.add(number)
        return leak

    def _is_open(self, state: GradState) -> bool:
        stack = [(frame.f_code, frame.f_lasti) for frame in outwards(sys._getframe(1))]  # noqa: SLF001
        if stack == self._harmless:  # a loop that steps inside no_grad comes here each time
            return True
        block = decisive(enclosing(), state)
        if block is None or not block.certain or (block.source or "").startswith(_LOOPS):
            return False
        self._harmless = stack
        return True
