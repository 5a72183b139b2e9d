"""A trace in the format that Perfetto and chrome://tracing open."""

import gzip
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gradguard._core.places import place
from gradguard._trace.switch import RecordedSwitch
from gradguard._trace.table import mode


def write(path: "str | os.PathLike[str]", records: Iterable[RecordedSwitch], end: int) -> None:
    """Write the events; `end` closes what is still open. Compressed if the name ends in .gz."""
    records = list(records)
    events = [*_thread_names(records), *(event for record in records for event in _of(record, end))]
    data = json.dumps({"displayTimeUnit": "ns", "traceEvents": events}).encode()
    Path(path).write_bytes(gzip.compress(data) if os.fspath(path).endswith(".gz") else data)


def _thread_names(records: Iterable[RecordedSwitch]) -> Iterator[dict[str, Any]]:
    names = {record.thread_id: record.switch.thread for record in records}
    for thread_id, name in names.items():
        yield {
            "name": "thread_name",
            "ph": "M",
            "ts": 0,
            "pid": os.getpid(),
            "tid": thread_id,
            "args": {"name": name},
        }


def _of(record: RecordedSwitch, end: int) -> Iterator[dict[str, Any]]:
    """Yield an instant, and a slice that lasts until it is switched back.

    A complete event ("X") instead of a begin and an end: they nest without regard to the order of
    equal times, and what the ring has dropped leaves no end without its begin.
    """
    switch = record.switch
    before, after = mode(switch.before), mode(switch.after)
    where = place(switch.filename, switch.lineno)
    event: dict[str, Any] = {
        "cat": "grad_mode",
        "ts": record.at / 1000,  # microseconds
        "pid": os.getpid(),
        "tid": record.thread_id,
        "args": {"where": where, "function": switch.function, "before": before, "after": after},
    }
    if (library := record.library) is not None:
        event["args"]["library"] = place(library.filename, library.lineno)
    yield {**event, "name": f"{before} -> {after}", "ph": "i", "s": "t"}
    if record.opens:
        until = end if record.closed is None else min(record.closed, end)
        name = f"{after} ({switch.function}, {Path(switch.filename).name}:{switch.lineno})"
        yield {**event, "name": name, "ph": "X", "dur": (until - record.at) / 1000}
