"""What ``isolate_tasks`` costs at each task switch, as a multiple of a bare loop's.

The task only switches (``await asyncio.sleep(0)``): real tasks do something in between. Run:
``python benchmarks/tasks.py``.
"""

import asyncio
from contextlib import nullcontext
from statistics import median
from time import perf_counter

import torch

import gradguard

ROUNDS = 15
TASKS = 10
SWITCHES = 500  # of each task
HELD = {
    "nothing": nullcontext,
    "torch.no_grad": torch.no_grad,
    "gradguard.no_grad": gradguard.no_grad,
    "gradguard.inference_mode": gradguard.inference_mode,
}


async def switch(guard):
    with guard():
        for _ in range(SWITCHES):
            await asyncio.sleep(0)


async def microseconds(guard, *, isolate):
    if isolate:
        gradguard.isolate_tasks()
    start = perf_counter()
    await asyncio.gather(*(switch(guard) for _ in range(TASKS)))
    return (perf_counter() - start) / (TASKS * SWITCHES) * 1e6


def one_round(guard):
    """Time a bare loop, whose tasks hold nothing (they would leak it), and an isolated one."""
    bare = asyncio.run(microseconds(nullcontext, isolate=False))
    return bare, asyncio.run(microseconds(guard, isolate=True))


def main():
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, medians of {ROUNDS} interleaved rounds")
    print("held over the switch       bare µs  isolated µs  ratio")
    for name, guard in HELD.items():
        rounds = [one_round(guard) for _ in range(ROUNDS)]
        bare, isolated = (median(times) for times in zip(*rounds, strict=True))
        ratio = median(isolated / bare for bare, isolated in rounds)
        print(f"{name:<25}  {bare:>7.2f}  {isolated:>11.2f}  {ratio:>5.2f}")


if __name__ == "__main__":
    main()
