"""trace(): every switch of the mode in a block, with the line that made it."""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from time import perf_counter_ns
from typing import TYPE_CHECKING

from gradguard._core.places import place
from gradguard._trace import chrome as _chrome
from gradguard._trace import recorded_functions as _recording
from gradguard._trace.recorder import snapshot
from gradguard._trace.switch import RecordedSwitch, Switch
from gradguard._trace.table import html, mode, table

if TYPE_CHECKING:
    import os

_MOST_ROWS = 1000


@contextmanager
def trace(limit: int = 50_000) -> "Generator[Trace, None, None]":
    """RecordedSwitch every switch of the mode while the block runs, in all threads.

    By torch's four guards, direct calls of ``torch._C._set_grad_enabled``, gradguard's guards and
    decorators, and bodies that are suspended and resumed under a mode of their own. A switch is a
    change: entering ``no_grad`` where grad is off already is none, and neither is its exit.
    Assertions that fail meanwhile name the recorded line where the call stack does not show it.

    Not seen: switches in C++ (an `autograd.Function`'s forward and backward, TorchScript), in
    processes started meanwhile, through a ``torch._C._set_grad_enabled`` that was bound to another
    name before the trace, and what `torch.compile` does while it compiles. A compiled function
    switches only where its graph does. Traces nest; when the last one ends, torch and gradguard
    are exactly as before. When none is active, recording costs nothing.

    Args:
        limit: how many switches are kept, the newest ones (0.4 kB each); those that were not
            switched back are kept beyond it (of ended threads, the newest thousand).

    Raises:
        TypeError: `limit` is not an int.
        ValueError: `limit` is less than 1.

    >>> import gradguard, torch
    >>> with gradguard.trace() as switches:
    ...     with torch.no_grad():
    ...         pass
    >>> [(switch.before.grad_enabled, switch.after.grad_enabled) for switch in switches]
    [(True, False), (False, True)]

    Source: `torch.autograd.grad_mode` switches by ``torch._C._set_grad_enabled`` and
    ``torch._C._InferenceMode`` alone.
    """
    if type(limit) is not int:
        msg = f"trace(limit=...) takes an int, the number of switches to keep, got {limit!r}."
        raise TypeError(msg)
    if limit < 1:
        msg = f"trace(limit=...) takes the number of switches to keep, at least 1, got {limit}."
        raise ValueError(msg)
    recording = Trace(limit)
    try:
        yield recording
    finally:
        recording.stop()


class Trace:
    """The switches of one `trace()` block, oldest first; can be read during the block and after.

    ``str()`` is a table, in which an asterisk marks those that were never switched back.

    >>> import gradguard, torch
    >>> with gradguard.trace() as switches:
    ...     torch.set_grad_enabled(False).__class__.__name__
    'set_grad_enabled'
    >>> len(switches), switches.left_switched() == list(switches)
    (1, True)
    >>> _ = torch.set_grad_enabled(True)
    """

    def __init__(self, limit: int) -> None:
        self._ring: deque[RecordedSwitch] = deque(maxlen=limit)
        self._left: list[RecordedSwitch] | None = None
        self._end = 0
        self._recorder, self._before = _recording.start(self._ring)

    def __iter__(self) -> Iterator[Switch]:
        return iter([record.switch for record in self._records()])

    def __len__(self) -> int:
        return len(self._records())

    def __repr__(self) -> str:
        left = len(self.left_switched())
        return f"<Trace: {len(self)} switches, {left} never switched back>"

    def __str__(self) -> str:
        return self._written(table)

    def _repr_html_(self) -> str:
        return self._written(html)

    def _written(self, write: Callable[..., str]) -> str:
        records = self._records()
        still_open = {record.number for record in self._open()}
        newest = len(records) - _MOST_ROWS
        recorded = records[-1].number - self._before if records else 0
        shown = [r for at, r in enumerate(records) if at >= newest or r.number in still_open]
        return write(
            [_row(record) for record in shown],
            [record.number in still_open for record in shown],
            hidden=len(records) - len(shown),
            dropped=max(recorded - len(records), 0),
        )

    def left_switched(self) -> list[Switch]:
        """Return the switches that were not switched back, in all threads, ended ones included.

        After the block: by its end. During it, those of open guards are among them.
        """
        return [record.switch for record in self._open()]

    def export_chrome_trace(self, path: "str | os.PathLike[str]") -> None:
        """Write JSON that https://ui.perfetto.dev and chrome://tracing open.

        Each switch is an instant of its thread, and each that is to be switched back a slice that
        lasts until then. Times are those of `time.perf_counter_ns`, in microseconds.

        Args:
            path: the file to write, compressed if its name ends in ``.gz``, as
                `torch.profiler.profile.export_chrome_trace` does.

        """
        _chrome.write(path, self._records(), self._end or perf_counter_ns())

    def stop(self) -> None:
        """RecordedSwitch no more, and remember what is still open; done at the end of the block."""
        self._left, self._end = self._open(), perf_counter_ns()
        _recording.stop(self._ring)

    def _open(self) -> list[RecordedSwitch]:
        if self._left is not None:
            return self._left
        opened = (r for r in self._recorder.still_open() if r.number > self._before)
        return sorted(opened, key=_number)

    def _records(self) -> list[RecordedSwitch]:
        found = {record.number: record for record in (*self._open(), *snapshot(self._ring))}
        return sorted(found.values(), key=_number)


for _public in (trace, Trace):
    _public.__module__ = "gradguard"
del _public


def _number(record: RecordedSwitch) -> int:
    return record.number


def _row(record: RecordedSwitch) -> tuple[str, str, str, str, str]:
    switch, library = record.switch, record.library
    before, after = mode(switch.before), mode(switch.after)
    where = place(switch.filename, switch.lineno)
    if library is not None:
        where += f" ({place(library.filename, library.lineno)})"
    return where, switch.function, switch.thread, before, after
