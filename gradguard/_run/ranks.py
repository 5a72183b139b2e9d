"""The ranks of a distributed job: which one this process is, and what the others found.

Where each rank was started under `gradguard run` of its own (``torchrun -m gradguard run …``),
they meet in the store of the process group, while that is alive.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from gradguard._findings import json as json_form

if TYPE_CHECKING:
    from collections.abc import Callable

    from gradguard._findings.report import Report

T = TypeVar("T")

_PATIENCE = 2.0  # seconds; a rank that was killed never says that it has ended
_PAUSE = 0.02


class Rank(NamedTuple):
    """The place of a process in its job."""

    rank: int
    world_size: int


def launched() -> Rank | None:
    """Return the rank that a launcher gave this process; None where there is only one process.

    Source: torchrun's environment variables, which accelerate sets, too.
    """
    try:
        rank = Rank(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    except (KeyError, ValueError):
        return None
    return rank if rank.world_size > 1 else None


def current() -> Rank | None:
    """Return the rank in the process group, else the one that a launcher gave."""
    distributed = _initialized()
    if distributed is None:
        return launched()
    return Rank(distributed.get_rank(), distributed.get_world_size())


def _initialized() -> Any:
    """Return `torch.distributed` while it has a process group."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    return distributed


def before_destroying(look: Callable[[], None]) -> None:
    """Have `look` called before the program destroys its process group."""
    distributed: Any = sys.modules["torch.distributed"]
    if not distributed.is_available():
        return
    original: Any = distributed.destroy_process_group

    @functools.wraps(original)
    def destroy(*args: Any, **kwargs: Any) -> Any:
        look()
        return original(*args, **kwargs)

    for module in (distributed, distributed.distributed_c10d):
        module.destroy_process_group = destroy


class Store:
    """The store of the process group, in which the ranks of one job tell each other.

    The group may be gone when this process ends; the store lives on where rank 0 or the launcher
    serves it. If it does not, each rank speaks for itself.
    """

    def __init__(self) -> None:
        self._store: Any = None

    def look(self) -> None:
        """Remember the store of the process group, if there is one now."""
        distributed = _initialized()
        if self._store is None and distributed is not None:
            from gradguard._core.torch_versions import default_store  # it imports torch

            self._store = distributed.PrefixStore("gradguard", default_store())

    @property
    def is_there(self) -> bool:
        """Whether the ranks can meet."""
        return self._store is not None

    def claim(self, name: str) -> bool:
        """Return whether this rank is the first to claim the name."""

        def claim(store: Any) -> bool:
            return bool(store.add(f"told/{name}", 1) == 1)

        return self._ask(claim, otherwise=True)

    def leave(self, rank: int, report: Report) -> None:
        """Put what this rank found where rank 0 looks."""
        text = json_form.render(report)

        def leave(store: Any) -> None:
            store.set(f"rank/{rank}", text)

        self._ask(leave, otherwise=None)

    def end(self) -> None:
        """Say that this rank has left all it will."""
        self._ended(1)

    def gather(self, world_size: int) -> list[Report]:
        """Return what the other ranks have left; wait a little for those that are at their end."""
        until = time.monotonic() + _PATIENCE
        while self._ended() < world_size - 1 and time.monotonic() < until:
            time.sleep(_PAUSE)
        return [report for rank in range(1, world_size) for report in self._read(rank)]

    def _ended(self, more: int = 0) -> int:
        """Return how many ranks have ended, with `more` that do now."""

        def ended(store: Any) -> int:
            return int(store.add("ended", more))

        return self._ask(ended, otherwise=sys.maxsize)

    def _read(self, rank: int) -> list[Report]:
        def read(store: Any) -> list[Report]:
            key = f"rank/{rank}"
            return [json_form.parse(store.get(key).decode())] if store.check([key]) else []

        return self._ask(read, otherwise=[])

    def _ask(self, question: Callable[[Any], T], *, otherwise: T) -> T:
        if self._store is None:
            return otherwise
        try:
            return question(self._store)
        except RuntimeError:  # the process that served it is gone: torch.distributed.DistError
            self._store = None
            return otherwise
