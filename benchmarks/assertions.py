"""What the assertions cost, each as a ratio to what it is measured against, in one run.

    python benchmarks/assertions.py

prints one row a measurement, with the limit that it must keep, and exits with 1 if one is broken.
"""

import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer

import gradguard

ROUNDS = 7


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


# Further rows (the three mode assertions against torch.is_grad_enabled(), a watched training step,
# a watched forward) are functions that return a Row, added here.
ROWS: tuple[Callable[[], Row], ...] = (parameters_used,)


def main() -> int:
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, one thread, the fastest of {ROUNDS} rounds")
    rows = [measure() for measure in ROWS]
    for row in rows:
        times = f"{row.seconds * 1e6:10.1f} us /{row.yardstick * 1e6:10.1f} us"
        print(f"{row.name:50}{times} = {row.ratio:6.3f} (at most {row.limit})")
    return int(any(row.ratio > row.limit for row in rows))


if __name__ == "__main__":
    sys.exit(main())
