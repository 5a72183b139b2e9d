"""The figures that `compare_modes` returns."""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from gradguard._compare import table as texts

Mode = Literal["grad", "no_grad", "inference_mode"]


@dataclass(frozen=True)
class ModeFigures:
    """What a function costs under one mode.

    Attributes:
        mode: the name of the mode.
        times: seconds a call, one figure a round.
        kept_bytes: the most that autograd kept for backward at one time. Each storage counts
            once, parameters do not count, inputs do.
        graph_nodes: the nodes of the graph that the result leads to, or None if there is no
            tensor in the result.
        peak_bytes: on an accelerator that tells, the most memory allocated during a call, less
            what was allocated before it; otherwise None.

    >>> slow = ModeFigures("grad", (2.0, 4.0, 3.0), 128, 3, None)
    >>> fast = ModeFigures("no_grad", (1.0, 2.0, 1.5), 0, 0, None)
    >>> slow.seconds, fast.ratio_to(slow)
    (3.0, 0.5)
    """

    mode: Mode
    times: tuple[float, ...]
    kept_bytes: int
    graph_nodes: int | None
    peak_bytes: int | None

    @property
    def seconds(self) -> float:
        """The median of `times`."""
        return statistics.median(self.times)

    @property
    def spread(self) -> float:
        """How far `times` lie apart: half their interquartile range, as a part of the median."""
        if len(self.times) == 1:
            return 0.0
        first, _, third = statistics.quantiles(self.times, n=4, method="inclusive")
        return (third - first) / 2 / self.seconds

    def ratio_to(self, other: "ModeFigures") -> float:
        """How many times as long as under another mode: the median of the rounds' ratios.

        Not the ratio of the medians: the turns of one round lie close together, so what slows the
        machine down for a while slows both.
        """
        return statistics.median(a / b for a, b in zip(self.times, other.times, strict=True))


@dataclass(frozen=True)
class ModeComparison:
    """What a function costs under each mode; ``str()`` of it is a table with ratios.

    Attributes:
        grad: the figures with grad on.
        no_grad: the figures under `no_grad`.
        inference_mode: the figures under `inference_mode`.
        threads: how many threads torch used within an operation.
        torch_version: the version of torch that was measured.

    >>> import gradguard, torch
    >>> layer = torch.nn.Linear(4, 2)
    >>> comparison = gradguard.compare_modes(layer, (torch.ones(8, 4),), repeats=1)
    >>> [figures.mode for figures in comparison]
    ['grad', 'no_grad', 'inference_mode']
    """

    grad: ModeFigures
    no_grad: ModeFigures
    inference_mode: ModeFigures
    threads: int
    torch_version: str

    def __iter__(self) -> Iterator[ModeFigures]:
        return iter((self.grad, self.no_grad, self.inference_mode))

    def __str__(self) -> str:
        return texts.table(self)


ModeFigures.__module__ = ModeComparison.__module__ = "gradguard"
