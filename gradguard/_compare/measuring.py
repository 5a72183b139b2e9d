"""Running one function under each mode in turn: counting, then timing."""

import inspect
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils.benchmark import Timer

from gradguard._compare.accelerator import accelerator
from gradguard._compare.figures import Mode
from gradguard._compare.putting_back import Restore
from gradguard._compare.saved_bytes import SavedBytes, graph
from gradguard._core.guards import enable_grad, inference_mode, no_grad
from gradguard._core.places import place
from gradguard._core.state import GradState, grad_state
from gradguard._graph.tensors import tensors

T = TypeVar("T")
Call = Callable[[], object]
Counts = tuple[int, int | None, int | None]
"""Bytes kept, graph nodes, peak memory."""

# Grad comes first: a cache that fn fills once is then no inference tensor, which grad would refuse.
_GUARDS: Mapping[Mode, Callable[[], AbstractContextManager[Any]]] = {
    "grad": enable_grad,
    "no_grad": no_grad,
    "inference_mode": inference_mode,
}
_SECONDS = 0.05  # that one mode is timed for in one turn, or two calls if they take longer
_OWN = (str(Path(__file__).parent), str(Path(torch.__file__).parent), "<timeit")


def turns(repeats: int) -> int:
    """Return how many turns `count` and `time` take; each begins with `restore`."""
    return len(_GUARDS) * (2 + repeats)


def count(call: Call, reachable: list[Any], restore: Restore) -> dict[Mode, Counts]:
    """Count under each mode, in the second call: the first one may compile, or fill caches."""
    for mode in _GUARDS:
        _first_call(call, mode, restore)
    return {mode: _count(call, mode, reachable, restore) for mode in _GUARDS}


def time(call: Call, repeats: int, restore: Restore) -> dict[Mode, list[float]]:
    """Time the modes in turns, each in each place of the order: seconds a call, one a turn."""
    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    measure = partial(timer.blocked_autorange, min_run_time=_SECONDS)
    times: dict[Mode, list[float]] = {mode: [] for mode in _GUARDS}
    for turn in range(repeats):
        first = turn % len(_GUARDS)
        for mode in (*_GUARDS, *_GUARDS)[first : first + len(_GUARDS)]:
            measurement = _turn(mode, "timing it", restore, measure)
            times[mode].append(measurement.median)
    return times


def _turn(mode: Mode, step: str, restore: Restore, run: Callable[[], T]) -> T:
    # Not a context manager made of a generator: it would let a StopIteration of fn pass as it is.
    restore()
    try:
        with enable_grad(), _GUARDS[mode]():  # no_grad alone would stay in inference mode
            return run()
    except Exception as error:
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        message = (
            f"compare_modes: fn failed under {mode}, while {step}:\n  {said}{_place(error)}\n"
            f"To do: {_ADVICE[mode]}. {_RESTORED}"
        )
        raise RuntimeError(message) from error


_RESTORED = "Modes, training flags, buffers, gradients and random state are back as they were."
_FORWARD = (
    "give compare_modes what runs without a graph: the forward, no backward or optimizer step"
)
_ADVICE = {
    "grad": "let fn run with grad on, on tensors and modules that were made outside inference mode",
    "no_grad": _FORWARD,
    "inference_mode": f"{_FORWARD}; nor what reads versions of tensors, or keeps them for a graph",
}


def _place(error: Exception) -> str:
    """Say which line of the user's raised: the innermost outside torch and gradguard."""
    frames = reversed(traceback.extract_tb(error.__traceback__))
    outside = (f for f in frames if not f.filename.startswith(_OWN))
    return next((f"\n  at {place(f.filename, f.lineno or 0)} in {f.name}" for f in outside), "")


def _first_call(call: Call, mode: Mode, restore: Restore) -> None:
    def run() -> tuple[object, GradState, GradState]:
        before = grad_state()
        return call(), before, grad_state()

    result, before, after = _turn(mode, "running it for the first time", restore, run)
    if inspect.iscoroutine(result) or inspect.isgenerator(result):
        result.close()  # or Python would warn that the coroutine was never awaited
    if inspect.iscoroutine(result) or inspect.isgenerator(result) or inspect.isasyncgen(result):
        kind = type(result).__name__
        msg = (
            f"compare_modes: fn returned a {kind} whose body has not run, so there is nothing to "
            f"measure. To do: give it a function that runs the body: {_TO_RUN[kind]}."
        )
        raise TypeError(msg)
    if after != before:
        msg = (
            f"compare_modes: fn ran under {mode} and left the thread in another mode ({after}), so "
            "that its next call would be measured in the wrong one. To do: let fn switch the mode "
            f"in a with block, which ends. {_RESTORED}"
        )
        raise RuntimeError(msg)


_TO_RUN = {
    "coroutine": "lambda: asyncio.run(fn(…))",
    "generator": "lambda: list(fn(…))",
    "async_generator": "a function that runs a loop over it",
}


def _count(call: Call, mode: Mode, reachable: list[Any], restore: Restore) -> Counts:
    def run() -> Counts:
        saved, earlier = SavedBytes(), graph(reachable)
        with saved.hooks():
            result, peak = accelerator_peak(call)
        found = [tensor for _, tensor in tensors(result)]
        return saved.most, len(graph(found) - earlier) if found else None, peak

    return _turn(mode, "counting what autograd keeps", restore, run)


def accelerator_peak(call: Call) -> tuple[object, int | None]:
    """Run it; return its result, and what it adds at its peak to the memory of the accelerator."""
    device = accelerator()
    if not hasattr(device, "max_memory_allocated"):
        return call(), None
    device.reset_peak_memory_stats()
    before = device.memory_allocated()
    result = call()
    return result, device.max_memory_allocated() - before
