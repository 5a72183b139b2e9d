"""What one function costs under each mode."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch.nn.parameter import is_lazy

from gradguard._compare.figures import ModeComparison, ModeFigures
from gradguard._compare.measuring import count, time, turns
from gradguard._compare.parts_of_batch import Parts
from gradguard._compare.progress import shown
from gradguard._compare.putting_back import snapshot
from gradguard._compare.reachable import reachable_from
from gradguard._core.text import one_line


def compare_modes(
    fn: Callable[..., object],
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    repeats: int = 5,
) -> ModeComparison:
    """Measure what a call costs under grad, `no_grad` and `inference_mode`.

    Runs ``fn(*args, **kwargs)`` under each mode and reports, for each: the time of a call (by
    `torch.utils.benchmark`, with as many threads as torch now uses), the bytes that autograd keeps
    for backward, the nodes of the graph that the result leads to, and on an accelerator the peak
    memory. ``print(compare_modes(model, (x,)))`` shows a table, a
    notebook shows it by itself, and ``plot()`` draws it. On a terminal or in a notebook, what takes
    longer than two seconds shows how far it is (by tqdm where it is installed).

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
    Not put back: the values of parameters and arguments, modules farther off, and everything
    outside torch. Meanwhile a copy of the buffers and gradients takes memory. ``fn`` is called
    many times: twice under each mode, and each turn for 0.05 s or twice, whichever is longer.

    Where the first dimension of the first tensor among the arguments has four items or more, it is
    taken for the batch: ``fn`` also runs with a quarter, a half and three quarters of it, with grad
    and under `no_grad`, and the comparison says how large a batch fits without grad into what this
    one takes with it (`larger_batch`). Memory counts at its peak, inputs included and parameters
    not: on the CPU each allocation, on an accelerator as its statistics have it. Nothing is said
    where ``fn`` does not take the parts, where memory does not grow in a straight line (5 %), and
    of what `torch.compile` would compile for each size.

    Kept bytes: what `torch.autograd.graph.saved_tensors_hooks` are shown, each storage once and
    whole, without parameters but with inputs; the most at one time, so a function that returns
    nothing has them too. What ``fn`` packs with hooks of its own (activation checkpoints,
    offloading) is not seen. `torch.func.grad` and its like refuse these hooks: no comparison.

    On an accelerator the statistics of its peak memory are reset, and the peak that other threads
    cause counts.

    Args:
        fn: a module, or any other callable that can run in all three modes: a forward, not a
            training step. Not a coroutine or generator function, whose call runs nothing.
        args: its arguments, a tuple, as `torch.export.export` takes them.
        kwargs: its keyword arguments, a dict.
        repeats: how many times the modes take turns.

    Raises:
        TypeError: if ``fn`` cannot be called, or returns a coroutine or generator; if ``args`` is
            no tuple, ``kwargs`` no dict with names, or ``repeats`` no int.
        ValueError: if ``repeats`` is less than 1, or a module is lazy and has not run yet.
        RuntimeError: if ``fn`` raises under one of the modes, or leaves the thread in another; the
            message says which, and the exception is its cause.

    Example:
        >>> import torch
        >>> from gradguard import compare_modes
        >>> layer = torch.nn.Linear(4, 2)
        >>> comparison = compare_modes(layer, (torch.ones(8, 4),), repeats=1)
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
    kwargs = kwargs if kwargs is not None else {}
    _check(fn, args, kwargs, repeats)
    reachable = reachable_from(fn, args, dict(kwargs))
    _check_none_is_lazy(reachable)
    call, put_back = partial(fn, *args, **kwargs), snapshot(reachable)
    parts = Parts(fn, args, kwargs, reachable)
    try:
        with shown(turns(repeats) + parts.turns) as step:

            def restore() -> None:
                step()
                put_back()

            counts = count(call, reachable, restore)
            times = time(call, repeats, restore)
            batches, no_batches = parts.measure(restore)
    finally:
        put_back()
    grad, no_grad, inference_mode = (
        ModeFigures(mode, tuple(times[mode]), *counts[mode]) for mode in counts
    )
    return ModeComparison(
        grad,
        no_grad,
        inference_mode,
        torch.get_num_threads(),
        torch.__version__,
        batches,
        no_batches,
    )


def _check(fn: Any, args: Any, kwargs: Any, repeats: Any) -> None:
    if not callable(fn):
        msg = (
            f"compare_modes(fn, ...) takes a module or another callable, got {type(fn).__name__}: "
            "pass the function and its arguments apart, compare_modes(model, (x,)), or "
            "lambda: model(x)."
        )
        raise TypeError(msg)
    if not isinstance(args, tuple):
        msg = (
            "compare_modes(fn, args) takes the arguments of fn as a tuple, got "
            f"{type(args).__name__}: write compare_modes(model, (x,))."
        )
        raise TypeError(msg)
    if not isinstance(kwargs, Mapping) or not all(isinstance(name, str) for name in kwargs):
        msg = (
            "compare_modes(fn, args, kwargs) takes the keyword arguments of fn as a dict by name, "
            f'got {one_line(repr(kwargs))}: write compare_modes(model, (x,), {{"mask": mask}}).'
        )
        raise TypeError(msg)
    if type(repeats) is not int:
        given = f"{one_line(repr(repeats))} of type {type(repeats).__name__}"
        msg = f"compare_modes(repeats=...) takes an int, the rounds to measure, got {given}."
        raise TypeError(msg)
    if repeats < 1:
        msg = f"compare_modes(repeats=...) takes the rounds to measure, at least 1, got {repeats}."
        raise ValueError(msg)


def _check_none_is_lazy(reachable: Iterable[object]) -> None:
    lazy = [
        name
        for module in reachable
        if isinstance(module, torch.nn.Module)
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
        if is_lazy(tensor)
    ]
    if lazy:
        msg = (
            "compare_modes: the module has parameters or buffers without a size yet: "
            f"{one_line(', '.join(lazy))}. A first forward gives them one for good. To do: run the "
            "module once, outside inference mode, before comparing."
        )
        raise ValueError(msg)


compare_modes.__module__ = "gradguard"
