"""The picture of a comparison; imported where matplotlib is wanted."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

_COLOURS = ("#4c72b0", "#dd8452", "#55a868")  # one a mode; the colour-blind tell them apart, too


class Panel(NamedTuple):
    """One quantity: a bar a mode, with its ratio to grad's, and the single measurements as dots."""

    title: str
    values: Sequence[float]
    ratios: Sequence[str]
    write: Callable[[float], str]
    dots: Sequence[Sequence[float]] = ()


def bars(modes: Sequence[str], panels: Sequence[Panel], note: str) -> Figure:
    """Draw the panels side by side, with a note below them."""
    figure = Figure(figsize=(4.2 * len(panels), 3.6), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels)), panels, strict=True):
        _draw(axes, modes, panel)
    figure.supxlabel(note, fontsize=8)
    return figure


def _draw(axes: Axes, modes: Sequence[str], panel: Panel) -> None:
    def write(value: float, _: object) -> str:
        return panel.write(value) if value else "0"

    highest = max((dot for dots in panel.dots for dot in dots), default=0.0)
    axes.set_ylim(0, max(highest, *panel.values, 1e-12) * 1.3)
    drawn = axes.bar(modes, panel.values, color=_COLOURS)
    for at, dots in enumerate(panel.dots):
        axes.plot([at] * len(dots), dots, ".", color="black", markersize=4, alpha=0.6)
    tops = [max((value, *dots)) for value, dots in zip(panel.values, panel.dots, strict=False)]
    for bar, top, value, ratio in zip(
        drawn, tops or panel.values, panel.values, panel.ratios, strict=True
    ):
        middle = bar.get_x() + bar.get_width() / 2
        said = f"{panel.write(value)}\n{ratio}"
        axes.annotate(
            said, (middle, top), (0, 4), textcoords="offset points", ha="center", fontsize=8
        )
    axes.set_title(panel.title)
    axes.yaxis.set_major_formatter(FuncFormatter(write))
    axes.spines[["top", "right"]].set_visible(False)
