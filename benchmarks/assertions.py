"""What the assertions cost, each as a ratio to what it is measured against, in one run.

    python benchmarks/assertions.py

prints one row a measurement, with the limit that it must keep, and exits with 1 if one is broken.
"""

import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from math import inf
from statistics import median
from time import perf_counter
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer

import gradguard
from gradguard._watch.feeder import Feeder

ROUNDS = 7
PAIRS = 200  # steps, or pairs of neighbouring steps, of which the median is taken


class Row(NamedTuple):
    """One measurement: seconds of the thing and of its yardstick, and the most it may cost."""

    name: str
    seconds: float
    yardstick: float
    limit: float

    @property
    def ratio(self) -> float:
        """How many times the yardstick it costs."""
        return self.seconds / self.yardstick


def seconds(statement: str, setup: str = "pass", **names: object) -> float:
    """Time a statement: the fastest of a few rounds, the one that other processes disturbed least.

    One thread, as `Timer` does by default.
    """
    timer = Timer(statement, setup, globals=names)
    return min(timer.blocked_autorange(min_run_time=0.1).median for _ in range(ROUNDS))


def transformer() -> tuple[nn.Module, Callable[[], Tensor]]:
    """Make a 12-layer transformer of small width, where a walk weighs most against a backward."""
    layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 12, enable_nested_tensor=False)
    x = torch.randn(2, 16, 64)
    return model, lambda: model(x).square().mean()


def parameters_used() -> Row:
    model, make_loss = transformer()
    names = {"model": model, "loss": make_loss(), "check": gradguard.assert_parameters_used}
    check = seconds("check(loss, model)", **names)
    backward = seconds("loss.backward(retain_graph=True)", **names)
    return Row("assert_parameters_used / backward, 12 layers", check, backward, 0.25)


def mode_check(name: str, guard: Callable[[], AbstractContextManager[None]]) -> Row:
    with guard():
        check = seconds("check()", check=getattr(gradguard, name))
        yardstick = seconds("torch.is_grad_enabled()", torch=torch)
    return Row(f"{name} / torch.is_grad_enabled()", check, yardstick, 3.0)


def grad_enabled() -> Row:
    return mode_check("assert_grad_enabled", torch.enable_grad)


def no_grad() -> Row:
    return mode_check("assert_no_grad", torch.inference_mode)


def inference_mode() -> Row:
    return mode_check("assert_inference_mode", torch.inference_mode)


def small_training() -> tuple[nn.Module, torch.optim.Optimizer, Callable[[], None]]:
    """Make a 4-layer transformer of width 128 and its training step."""
    layer = nn.TransformerEncoderLayer(128, 4, 256, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
    optimizer = torch.optim.AdamW(model.parameters())
    x = torch.randn(8, 32, 128)

    def step() -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    return model, optimizer, step


def taken(work: Callable[[], object]) -> float:
    begin = perf_counter()
    work()
    return perf_counter() - begin


def watched_step() -> Row:
    """A step's time with the watch, as 1 + what the watch's own functions take of the step.

    They are timed where they run, inside the step, whose forward and backward have put the
    optimizer's tensors out of the processor's caches: in a loop of its own a check takes a third.
    """
    model, optimizer, step = small_training()
    spent = [0.0]

    def timed(function: Callable[..., object]) -> Callable[..., object]:
        def run(*args: object, **kwargs: object) -> object:
            begin = perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent[0] += perf_counter() - begin

        return run

    def whole() -> tuple[float, float]:
        spent[0] = 0.0
        return taken(step), spent[0]

    hooked = Tensor.register_post_accumulate_grad_hook
    with ExitStack() as patches:
        for name in ("_began", "_ended", "before_step", "after_step"):
            patches.enter_context(mock.patch.object(Feeder, name, timed(vars(Feeder)[name])))
        patches.enter_context(
            mock.patch.object(
                Tensor,
                "register_post_accumulate_grad_hook",
                lambda tensor, hook: hooked(tensor, timed(hook)),
            )
        )
        patches.enter_context(gradguard.watch_training(model, optimizer))
        steps = [whole() for _ in range(PAIRS)]
    plain = median(total - part for total, part in steps)
    watch = median(part for _, part in steps)
    return Row("watch_training: step + watch / step", plain + watch, plain, 1.01)


def in_turns(name: str, watched: bool) -> Row:
    """The median ratio of neighbouring steps, the second of which may be watched."""
    model, optimizer, step = small_training()
    pairs: list[tuple[float, float]] = []
    for turn in range(PAIRS):
        times = {}
        for second in (turn % 2 == 0, turn % 2 == 1):  # each goes first as often as the other
            watch = gradguard.watch_training(model, optimizer) if watched and second else None
            times[second] = taken(step)
            if watch:
                watch.remove()
        pairs.append((times[True], times[False]))
    plain = median(first for _, first in pairs)
    return Row(name, plain * median(second / first for second, first in pairs), plain, inf)


def steps_in_turns() -> Row:
    return in_turns("  first step of a new watch / step", watched=True)


class OneByOne(nn.Module):
    """Layers that a forward of one's own calls, one after another."""

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the last one makes of it."""
        for layer in self.layers:
            x = layer(x)
        return x


def first_steps_of_many(name: str, made: Callable[[Iterable[nn.Module]], nn.Module]) -> Row:
    """The first two steps of a new watch over 5,000 parameters, where it has most to do.

    As the median of what each takes of the plain steps before and after it: where other work comes
    between, a machine is a tenth slower for seconds on end.
    """
    model = made(nn.Linear(4, 4) for _ in range(2_500))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    x = torch.randn(2, 4)

    def step() -> None:
        optimizer.zero_grad()
        model(x).sum().backward()
        optimizer.step()

    step()
    plain, first, second = [], [], []
    for _ in range(PAIRS // 4):
        before = taken(step)
        with gradguard.watch_training(model, optimizer):
            watched = taken(step), taken(step)
        plain.append((before + taken(step)) / 2)
        first.append(watched[0] / plain[-1])
        second.append(watched[1] / plain[-1])
    usual = median(plain)
    ratio = max(median(first), median(second))
    return Row(f"watch_training: {name} / step", usual * ratio, usual, 1.05)


def first_steps_of_sequential() -> Row:
    return first_steps_of_many("first steps of 5,000", lambda layers: nn.Sequential(*layers))


def first_steps_one_by_one() -> Row:
    return first_steps_of_many("the same, one by one", OneByOne)


def step_noise() -> Row:
    """The noise of the run: the same, with no watch in either step."""
    return in_turns("  noise: step / step", watched=False)


def watched_forward() -> Row:
    model, _, _ = small_training()
    model.eval()
    x = torch.randn(8, 32, 128)
    names = {"model": model, "x": x, "torch": torch}
    forward = "with torch.inference_mode(): model(x)"
    plain = seconds(forward, **names)
    with gradguard.watch_inference(model):
        watched = seconds(forward, **names)
    return Row("watch_inference: watched forward / forward", watched, plain, inf)


ROWS: tuple[Callable[[], Row], ...] = (
    grad_enabled,
    no_grad,
    inference_mode,
    parameters_used,
    watched_step,
    steps_in_turns,
    first_steps_of_sequential,
    first_steps_one_by_one,
    step_noise,
    watched_forward,
)


def main() -> int:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # what is timed without `Timer`, too
    print(f"torch {torch.__version__}, one thread, the fastest of {ROUNDS} rounds")
    rows = [measure() for measure in ROWS]
    for row in rows:
        times = f"{row.seconds * 1e6:10.1f} us /{row.yardstick * 1e6:10.1f} us"
        limit = "" if row.limit == inf else f" (at most {row.limit})"
        print(f"{row.name:50}{times} = {row.ratio:6.4f}{limit}")
    return int(any(row.ratio > row.limit for row in rows))


if __name__ == "__main__":
    sys.exit(main())
