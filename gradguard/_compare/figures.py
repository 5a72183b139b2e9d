"""The figures that `compare_modes` returns."""

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from gradguard._compare.larger_batch import BatchMemory, LargerBatch, larger_batch, told
from gradguard._compare.table import aligned, duration, html, optional, ratio, size

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
    """What a function costs under each mode; printed, or shown in a notebook, a table with ratios.

    Attributes:
        grad: the figures with grad on.
        no_grad: the figures under `no_grad`.
        inference_mode: the figures under `inference_mode`.
        threads: how many threads torch used within an operation.
        torch_version: the version of torch that was measured.
        batches: for parts of the batch, ``(batch, grad, no_grad)``: the most bytes that a call
            takes at one time with grad and under `no_grad`, inputs included. Empty where they
            cannot be had.
        no_batches: why they cannot, where ``fn`` takes no part of the batch.

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
    batches: tuple[BatchMemory, ...] = ()
    no_batches: str = ""

    @property
    def larger_batch(self) -> LargerBatch | None:
        """The batch that fits under `no_grad` into what the measured one takes with grad.

        With its standard error, as a part of it: ``(batch, error)``. By a straight line through
        `batches`; None where they do not lie on one.
        """
        found = larger_batch(self.batches) if self.batches else None
        return found if isinstance(found, LargerBatch) else None

    def __iter__(self) -> Iterator[ModeFigures]:
        return iter((self.grad, self.no_grad, self.inference_mode))

    def __str__(self) -> str:
        return "\n".join((aligned(self._columns()), *self._notes()))

    def _repr_html_(self) -> str:
        return html(self._columns(), self._notes())

    def plot(self) -> "Figure":
        """Draw the time of a call and the bytes kept for backward, by mode.

        Returns:
            A matplotlib figure, which a notebook shows, and ``savefig`` writes to a file.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
        """
        from gradguard._compare.plot import Panel, bars  # matplotlib is optional, and slow to load

        grad, kept = self.grad, [figures.kept_bytes for figures in self]
        panels = (
            Panel(
                "time of a call",
                [figures.seconds for figures in self],
                [f"{figures.ratio_to(grad):.2f}x" for figures in self],
                duration,
                [figures.times for figures in self],
            ),
            Panel("kept for backward", kept, [ratio(one, grad.kept_bytes) for one in kept], size),
        )
        return bars([figures.mode for figures in self], panels, self._how_measured())

    def _columns(self) -> list[list[str]]:
        """Return the figures, each beside its ratio to grad's; what says nothing is left out."""
        grad = self.grad
        columns = [
            self._column("", lambda f: f.mode),
            self._column("time/call", lambda f: duration(f.seconds)),
            self._column("", lambda f: f"±{f.spread:.0%}"),
            self._column("ratio", lambda f: f"{f.ratio_to(grad):.2f}x"),
            self._column("kept for backward", lambda f: size(f.kept_bytes)),
            self._column("ratio", lambda f: ratio(f.kept_bytes, grad.kept_bytes)),
            self._column("graph nodes", lambda f: optional(f.graph_nodes, str)),
        ]
        if any(f.peak_bytes is not None for f in self):
            columns += [
                self._column("peak memory", lambda f: optional(f.peak_bytes, size)),
                self._column("ratio", lambda f: ratio(f.peak_bytes, grad.peak_bytes)),
            ]
        return columns

    def _column(self, heading: str, write: Callable[[ModeFigures], str]) -> list[str]:
        return [heading, *map(write, self)]

    def _notes(self) -> list[str]:
        notes = [self._how_measured()]
        if self.grad.graph_nodes is None:
            notes.append(
                "graph nodes: no tensor in what fn returned, so there is no graph to count."
            )
        if self.grad.kept_bytes and self.batches:
            notes.append(told(self.batches))
        elif self.no_batches:
            notes.append(f"larger batch: not predicted: {self.no_batches}.")
        return notes

    def _how_measured(self) -> str:
        rounds = len(self.grad.times)
        return (
            f"median of {rounds} interleaved round(s), ± half their interquartile range; "
            f"{self.threads} thread(s), torch {self.torch_version}"
        )


ModeFigures.__module__ = ModeComparison.__module__ = "gradguard"
