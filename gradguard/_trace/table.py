"""The table of `trace()`, and how modes are named in it."""

from collections.abc import Iterable, Sequence
from html import escape

_HEADER = ("where", "function", "thread", "before", "after")


def mode(state: tuple[bool, bool]) -> str:
    """Name a mode: with inference mode on, nothing is recorded whatever the grad flag says."""
    grad, inference = state
    if inference:
        return "inference, grad on" if grad else "inference"
    return "grad on" if grad else "grad off"


def table(
    rows: Iterable[tuple[str, str, str, str, str]],
    still_open: Sequence[bool],
    *,
    hidden: int,
    dropped: int,
) -> str:
    """Lay out the switches, oldest first; ``still_open`` marks those never switched back.

    Args:
        rows: place, function, thread, mode before and after.
        still_open: one for each row.
        hidden: how many more are kept but not shown.
        dropped: how many more were recorded than are kept.

    """
    cells = [_HEADER, *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    marks = ["  ", *("* " if mark else "  " for mark in still_open)]
    lines = [
        mark
        + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for mark, row in zip(marks, cells, strict=True)
    ]
    return "\n".join((*lines, _summary(len(still_open) + hidden, sum(still_open), hidden, dropped)))


def html(
    rows: Iterable[tuple[str, str, str, str, str]],
    still_open: Sequence[bool],
    *,
    hidden: int,
    dropped: int,
) -> str:
    """Return the same as an HTML table, with what was never switched back in bold."""
    heading = "".join(f'<th style="text-align: left">{name}</th>' for name in _HEADER)
    body = ""
    for row, is_open in zip(rows, still_open, strict=True):
        style = "text-align: left" + ("; font-weight: bold" if is_open else "")
        body += (
            "<tr>" + "".join(f'<td style="{style}">{escape(cell)}</td>' for cell in row) + "</tr>"
        )
    said = _summary(len(still_open) + hidden, sum(still_open), hidden, dropped)
    said = said.replace("* never", "bold: never")
    table = f"<table><thead><tr>{heading}</tr></thead><tbody>{body}</tbody></table>"
    return f"{table}<small>{escape(said)}</small>"


def _summary(kept: int, still_open: int, hidden: int, dropped: int) -> str:
    said = [f"{kept} switch{'' if kept == 1 else 'es'} of the mode"]
    if still_open:
        said.append(f"* never switched back: {still_open}")
    if hidden:
        said.append(f"the first {hidden} not shown (iterate over the trace)")
    if dropped:
        said.append(f"{dropped} older ones not kept (trace(limit=...))")
    return "; ".join(said) + "."
