"""What an empty guard costs: torch's and gradguard's against the raw C calls, in one run.

Usage: python benchmarks/overhead.py [--quick]

Each case is timed in turn with `torch.utils.benchmark`, round by round, so that a machine that
speeds up or slows down does so for all three. Time of the process, not of the clock: what else runs
on a shared machine does not count. The figures are ratios of each way's best round.
Prints a table and writes overhead.json and overhead.png beside this file.
"""

import argparse
import asyncio
import functools
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib import pyplot as plt
from torch.utils.benchmark import Timer

import gradguard

HERE = Path(__file__).parent
is_grad_enabled, set_grad = torch.is_grad_enabled, torch._C._set_grad_enabled  # noqa: SLF001
InferenceMode = torch._C._InferenceMode  # noqa: SLF001


class Case(NamedTuple):
    """One thing to do, in three ways; the limits are at most, of torch and of the raw calls."""

    name: str
    raw: str
    torch: str
    gradguard: str
    of_torch: float | None = None
    of_raw: float | None = None
    grad: bool = True


def raw_grad(mode: bool) -> None:
    found = is_grad_enabled()
    set_grad(mode)
    try:
        pass
    finally:
        set_grad(found)


def raw_inference() -> None:
    token = InferenceMode(True)
    token.__enter__()
    try:
        pass
    finally:
        token.__exit__(None, None, None)


def raw_nested(depth: int) -> None:
    found = [is_grad_enabled()]
    for _ in range(depth):
        found.append(is_grad_enabled())
        set_grad(False)
    for _ in range(depth):
        set_grad(found.pop())


def raw_no_grad_decorator(fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        found = is_grad_enabled()
        set_grad(False)
        try:
            return fn(*args, **kwargs)
        finally:
            set_grad(found)

    return wrapper


def raw_inference_decorator(fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        token = InferenceMode(True)
        token.__enter__()
        try:
            return fn(*args, **kwargs)
        finally:
            token.__exit__(None, None, None)

    return wrapper


def empty() -> None:
    """The body of every decorated function."""


def ticks():
    while True:
        yield


def raw_ticks():
    """A generator that switches by hand around each of its steps."""
    while True:
        found = is_grad_enabled()
        set_grad(False)
        set_grad(found)
        yield


def raw_inference_ticks():
    while True:
        raw_inference()
        yield


async def naps() -> None:
    """A coroutine that suspends ten times."""
    for _ in range(10):
        await asyncio.sleep(0)


async def raw_naps() -> None:
    for _ in range(10):
        found = is_grad_enabled()
        set_grad(False)
        set_grad(found)
        await asyncio.sleep(0)


async def torch_naps() -> None:
    """What torch's decorator would have to be on an async def, where it does nothing."""
    for _ in range(10):
        with torch.no_grad():
            pass
        await asyncio.sleep(0)


def run(coroutine: Any) -> None:
    """Step a coroutine to its end, without the cost of an event loop."""
    try:
        while True:
            coroutine.send(None)
    except StopIteration:
        pass


def nested(guard: str, depth: int) -> Callable[[], None]:
    """Return a function of so many nested blocks; its own, as Python allows no more than 20."""
    lines = [f"{' ' * level}with {guard}:" for level in range(1, depth + 1)]
    source = "\n".join(["def blocks():", *lines, f"{' ' * (depth + 1)}pass"])
    names: dict[str, Any] = {"torch": torch, "no_grad": gradguard.no_grad}
    exec(source, names)  # noqa: S102 (it is the source above)
    return names["blocks"]


DEPTHS = (1, 5, 20)
CASES = [
    Case("with no_grad()", "raw_grad(False)", "with torch.no_grad(): pass",
         "with no_grad(): pass", 0.495, 3.08),
    Case("with no_grad(), grad off", "raw_grad(False)", "with torch.no_grad(): pass",
         "with no_grad(): pass", 0.418, 2.64, grad=False),
    Case("with enable_grad()", "raw_grad(True)", "with torch.enable_grad(): pass",
         "with enable_grad(): pass", 0.88, 2.86),
    Case("with inference_mode()", "raw_inference()", "with torch.inference_mode(): pass",
         "with inference_mode(): pass", 0.825, 2.31),
    Case("@no_grad", "raw_no_grad()", "torch_no_grad()", "our_no_grad()", 0.308, 1.98),
    Case("@inference_mode", "raw_inf()", "torch_inf()", "our_inf()", 0.528, 1.65),
    *(Case(f"nested {depth}", f"raw_nested({depth})", f"torch_nested_{depth}()",
           f"our_nested_{depth}()") for depth in DEPTHS),
    Case("@no_grad generator, per resume", "next(raw_ticks)", "next(torch_ticks)",
         "next(our_ticks)", 0.65),
    Case("@inference_mode generator, per resume", "next(raw_inf_ticks)", "next(torch_inf_ticks)",
         "next(our_inf_ticks)", 1.0),
    Case("@no_grad async def, 10 awaits", "run(raw_naps())", "run(torch_naps())",
         "run(our_naps())", 1.0),
]  # fmt: skip

NAMES = {
    "torch": torch,
    "no_grad": gradguard.no_grad,
    "enable_grad": gradguard.enable_grad,
    "inference_mode": gradguard.inference_mode,
    "raw_grad": raw_grad,
    "raw_inference": raw_inference,
    "raw_nested": raw_nested,
    **{f"torch_nested_{depth}": nested("torch.no_grad()", depth) for depth in DEPTHS},
    **{f"our_nested_{depth}": nested("no_grad()", depth) for depth in DEPTHS},
    "raw_no_grad": raw_no_grad_decorator(empty),
    "torch_no_grad": torch.no_grad()(empty),
    "our_no_grad": gradguard.no_grad()(empty),
    "raw_inf": raw_inference_decorator(empty),
    "torch_inf": torch.inference_mode()(empty),
    "our_inf": gradguard.inference_mode()(empty),
    "raw_ticks": raw_ticks(),
    "torch_ticks": torch.no_grad()(ticks)(),
    "our_ticks": gradguard.no_grad()(ticks)(),
    "raw_inf_ticks": raw_inference_ticks(),
    "torch_inf_ticks": torch.inference_mode()(ticks)(),
    "our_inf_ticks": gradguard.inference_mode()(ticks)(),
    "run": run,
    "raw_naps": raw_naps,
    "torch_naps": torch_naps,
    "our_naps": gradguard.no_grad()(naps),
}


def measure(rounds: int, seconds: float) -> dict[str, dict[str, float]]:
    """Time every way of every case in each round; return the ratios of the best rounds."""
    timed: dict[str, list[dict[str, float]]] = {case.name: [] for case in CASES}
    for _ in range(rounds):
        for case in CASES:
            timed[case.name].append(one_round(case, seconds))
    return {name: summary(found) for name, found in timed.items()}


def one_round(case: Case, seconds: float) -> dict[str, float]:
    with torch.set_grad_enabled(case.grad):
        return {
            way: Timer(statement, timer=time.process_time, globals=NAMES)
            .blocked_autorange(min_run_time=seconds)
            .median
            for way, statement in (
                ("raw", case.raw), ("torch", case.torch), ("gradguard", case.gradguard)
            )
        }  # fmt: skip


def summary(found: list[dict[str, float]]) -> dict[str, float]:
    best = {way: min(each[way] for each in found) for way in ("raw", "torch", "gradguard")}
    return {
        "of torch": best["gradguard"] / best["torch"],
        "of raw": best["gradguard"] / best["raw"],
        "torch of raw": best["torch"] / best["raw"],
    }


def table(figures: dict[str, dict[str, float]]) -> str:
    lines = [f"{'':38}{'of torch':>9}{'limit':>7}{'of raw C':>10}{'limit':>7}{'torch of raw':>14}"]
    for case in CASES:
        row = figures[case.name]
        limits = [f"{limit:.3g}" if limit else "" for limit in (case.of_torch, case.of_raw)]
        lines.append(
            f"{case.name:38}{row['of torch']:9.2f}{limits[0]:>7}{row['of raw']:10.2f}"
            f"{limits[1]:>7}{row['torch of raw']:14.2f}"
        )
    return "\n".join(lines)


def chart(figures: dict[str, dict[str, float]], title: str) -> None:
    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    rows = range(len(CASES))
    ours = [figures[case.name]["of torch"] for case in CASES]
    raw = [1 / figures[case.name]["torch of raw"] for case in CASES]
    axes.barh([row - 0.2 for row in rows], ours, 0.38, label="gradguard", color="#3b6fb6")
    axes.barh([row + 0.2 for row in rows], raw, 0.38, label="raw C calls", color="#b9c4d0")
    axes.axvline(1, color="#c0392b", linewidth=1.2, label="torch = 1")
    axes.set_yticks(rows, [case.name for case in CASES])
    axes.invert_yaxis()
    axes.set_xlabel("time of an empty body, as a share of torch's own guard")
    axes.set_title(title, fontsize=9)
    axes.legend(loc="upper right")
    figure.savefig(HERE / "overhead.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer, shorter rounds")
    quick = parser.parse_args().quick
    figures = measure(rounds=3 if quick else 20, seconds=0.05 if quick else 0.1)
    machine = (
        f"torch {torch.__version__}, Python {platform.python_version()}, {os.cpu_count()} cores"
    )
    print(machine, table(figures), sep="\n")
    text = json.dumps({"machine": machine, "figures": figures}, indent=2)
    (HERE / "overhead.json").write_text(text + "\n", encoding="utf-8")
    chart(figures, machine)


if __name__ == "__main__":
    main()
