"""Tables of figures: as text, as HTML, and how their numbers are written."""

from collections.abc import Callable, Sequence
from html import escape


def aligned(columns: Sequence[Sequence[str]]) -> str:
    """Lay out columns, each with its heading first; names to the left, numbers to the right."""
    first, *others = columns
    padded = [[cell.ljust(max(map(len, first))) for cell in first]]
    padded += [[cell.rjust(max(map(len, column))) for cell in column] for column in others]
    return "\n".join("  ".join(row) for row in zip(*padded, strict=True))


def html(columns: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    """Return the same as an HTML table with notes below it."""
    heading, *rows = (_html_row(row) for row in zip(*columns, strict=True))
    below = "".join(f"<br>{escape(note)}" for note in notes).removeprefix("<br>")
    return (
        f"<table><thead>{heading}</thead><tbody>{''.join(rows)}</tbody></table>"
        f"<small>{below}</small>"
    )


def _html_row(cells: Sequence[str]) -> str:
    name, *numbers = (escape(cell) for cell in cells)
    others = "".join(f'<td style="text-align: right">{cell}</td>' for cell in numbers)
    return f'<tr><th style="text-align: left">{name}</th>{others}</tr>'


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
