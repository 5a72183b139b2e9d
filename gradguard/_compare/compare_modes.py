"""What one function costs under each mode."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn.parameter import is_lazy

from gradguard._compare import table as texts
from gradguard._compare.figures import ModeComparison, ModeFigures
from gradguard._compare.measuring import count, time
from gradguard._compare.putting_back import keep
from gradguard._compare.reachable import held_by


def compare_modes(
    fn: Callable[..., object], /, *args: Any, repeats: int = 5, **kwargs: Any
) -> ModeComparison:
    """Measure what a call costs under grad, `no_grad` and `inference_mode`.

    Runs ``fn(*args, **kwargs)`` under each mode and reports, for each: the time of a call (by
    `torch.utils.benchmark`, with as many threads as torch now uses), the bytes that autograd keeps
    for backward, the nodes of the graph that the result leads to, and on an accelerator the peak
    memory. ``print(compare_modes(model, x))`` shows a table.

    The modes take turns, ``repeats`` times, so that a machine that slows down does so for all
    three. Before each turn everything listed next is put back, so the three draw the same random
    numbers and start alike; and once more at the end, also after an exception:

    - the grad mode and inference mode;
    - of each module that ``fn`` leads to: every ``training`` flag (modules with a ``train()`` of
      their own are told), buffers (BatchNorm's statistics), and tensors stored in plain attributes;
    - the gradients of their parameters, and of each leaf tensor that ``fn`` leads to;
    - the random state of torch (CPU and accelerator), `random`, NumPy, and of each
      `torch.Generator` that ``fn`` leads to.

    ``fn`` leads to itself, its arguments, what a bound method, closure or `functools.partial`
    holds, and the globals that it names: directly, or within a few containers and objects.
    Not put back: the values of parameters and arguments, modules held farther off, and everything
    outside torch. Meanwhile a copy of the buffers and gradients takes memory. ``fn`` is called
    many times: twice under each mode, and each turn for 0.05 s or twice, whichever is longer.

    Kept bytes: what `torch.autograd.graph.saved_tensors_hooks` are shown, each storage once and
    whole, without parameters but with inputs; the most at one time, so a function that returns
    nothing has them too. What ``fn`` packs with hooks of its own (activation checkpoints,
    offloading) is not seen. `torch.func.grad` and its like refuse these hooks: no comparison.

    On an accelerator the statistics of its peak memory are reset, and the peak that other threads
    cause counts.

    Args:
        fn: a module, or any other callable that can run in all three modes: a forward, not a
            training step. Not a coroutine or generator function, whose call runs nothing.
        *args: its arguments.
        repeats: how many times the modes take turns.
        **kwargs: its keyword arguments; one called ``repeats`` goes in by a lambda.

    Raises:
        TypeError: if ``fn`` cannot be called, or returns a coroutine or generator.
        ValueError: if ``repeats`` is less than 1, or a module is lazy and has not run yet.
        RuntimeError: if ``fn`` raises under one of the modes, or leaves the thread in another; the
            message says which, and the exception is its cause.

    Example:
        >>> import torch
        >>> from gradguard import compare_modes
        >>> layer = torch.nn.Linear(4, 2)
        >>> comparison = compare_modes(layer, torch.ones(8, 4), repeats=1)
        >>> comparison.grad.kept_bytes  # the input: 8 x 4 floats of 4 bytes
        128
        >>> comparison.no_grad.kept_bytes, comparison.inference_mode.graph_nodes
        (0, 0)
        >>> print(comparison)  # doctest: +ELLIPSIS
                        time/call...ratio  kept for backward  ratio  graph nodes
        grad ...
        no_grad ...
        inference_mode ...
        median of 1 interleaved round(s), ...

    """
    held = _checked(fn, args, kwargs, repeats)
    call, restore = partial(fn, *args, **kwargs), keep(held)
    try:
        counts = count(call, held, restore)
        times = time(call, repeats, restore)
    finally:
        restore()
    grad, no_grad, inference_mode = (
        ModeFigures(mode, tuple(times[mode]), *counts[mode]) for mode in counts
    )
    return ModeComparison(grad, no_grad, inference_mode, torch.get_num_threads(), torch.__version__)


def _checked(fn: Any, args: Any, kwargs: Any, repeats: Any) -> list[Any]:
    if not callable(fn):
        raise TypeError(texts.not_callable(type(fn).__name__))
    if not isinstance(repeats, int) or repeats < 1:
        raise ValueError(texts.bad_repeats(repeats))
    held = held_by(fn, args, kwargs)
    modules = [value for value in held if isinstance(value, torch.nn.Module)]
    lazy = [
        name
        for module in modules
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
        if is_lazy(tensor)
    ]
    if lazy:
        raise ValueError(texts.lazy(lazy))
    return held
