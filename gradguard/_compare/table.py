"""The table and the errors of `compare_modes`."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradguard._compare.figures import ModeComparison, ModeFigures


def table(comparison: "ModeComparison") -> str:
    """Write the figures, each beside its ratio to grad's; columns that say nothing are left out."""
    grad, *_ = figures = list(comparison)
    columns = [
        _column("", figures, lambda f: f.mode),
        _column("time/call", figures, lambda f: duration(f.seconds)),
        _column("", figures, lambda f: f"±{f.spread:.0%}"),
        _column("ratio", figures, lambda f: f"{f.ratio_to(grad):.2f}x"),
        _column("kept for backward", figures, lambda f: size(f.kept_bytes)),
        _column("ratio", figures, lambda f: ratio(f.kept_bytes, grad.kept_bytes)),
        _column("graph nodes", figures, lambda f: optional(f.graph_nodes, str)),
    ]
    if any(f.peak_bytes is not None for f in figures):
        columns += [
            _column("peak memory", figures, lambda f: optional(f.peak_bytes, size)),
            _column("ratio", figures, lambda f: ratio(f.peak_bytes, grad.peak_bytes)),
        ]
    lines = [*_aligned(columns), _how_measured(comparison)]
    if grad.graph_nodes is None:
        lines.append("graph nodes: no tensor in what fn returned, so there is no graph to count.")
    return "\n".join(lines)


def _column(
    heading: str, figures: Iterable["ModeFigures"], write: Callable[["ModeFigures"], str]
) -> list[str]:
    return [heading, *map(write, figures)]


def _aligned(columns: Sequence[Sequence[str]]) -> list[str]:
    first, *others = columns
    padded = [[cell.ljust(max(map(len, first))) for cell in first]]
    padded += [[cell.rjust(max(map(len, column))) for cell in column] for column in others]
    return ["  ".join(row) for row in zip(*padded, strict=True)]


def _how_measured(comparison: "ModeComparison") -> str:
    rounds = len(comparison.grad.times)
    return (
        f"median of {rounds} interleaved round(s), ± half their interquartile range; "
        f"{comparison.threads} thread(s), torch {comparison.torch_version}"
    )


def duration(seconds: float) -> str:
    """Write a time with its unit: ``1.23 ms``."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.2f} {unit}"
    return f"{seconds / 1e-9:.0f} ns"


def size(count: float) -> str:
    """Write a number of bytes with its unit: ``1.5 MiB``."""
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if abs(count) >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count:.0f} B"


def ratio(value: float | None, base: float | None) -> str:
    """Write a ratio, or - where there is none: ``0.71x``."""
    return f"{value / base:.2f}x" if value is not None and base else "-"


def optional(value: int | None, write: Callable[[int], str]) -> str:
    """Write a value, or - where it is not known."""
    return "-" if value is None else write(value)
