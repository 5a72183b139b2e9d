"""How large a batch fits without grad into the memory that the measured one takes with it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gradguard._compare.table import size


class BatchMemory(NamedTuple):
    """The most bytes that a call takes, its inputs included, for one size of batch."""

    batch: int
    grad: int
    no_grad: int


class LargerBatch(NamedTuple):
    """A batch size, and its standard error as a part of it.

    >>> LargerBatch(170, 0.01).batch
    170
    """

    batch: int
    error: float


@dataclass(frozen=True)
class Line:
    """The straight line through measured points, by least squares."""

    start: float
    slope: float
    worst: float  # distance of a point from the line, as a part of the point
    deviation: float
    xs: tuple[float, ...]

    @classmethod
    def through(cls, points: Sequence[tuple[float, float]]) -> "Line":
        """Fit three points or more."""
        xs, ys = zip(*points, strict=True)
        x_mean, y_mean = sum(xs) / len(xs), sum(ys) / len(ys)
        spread = sum((x - x_mean) ** 2 for x in xs)
        slope = sum((x - x_mean) * (y - y_mean) for x, y in points) / spread
        start = y_mean - slope * x_mean
        misses = [y - start - slope * x for x, y in points]
        worst = max(abs(miss) / max(y, 1) for miss, y in zip(misses, ys, strict=True))
        deviation = math.sqrt(sum(miss**2 for miss in misses) / (len(xs) - 2))
        return cls(start, slope, worst, deviation, xs)

    def where(self, y: float) -> tuple[float, float]:
        """Return the x at which the line is at y, and the standard error of this x."""
        x = (y - self.start) / self.slope
        mean = sum(self.xs) / len(self.xs)
        spread = sum((each - mean) ** 2 for each in self.xs)
        uncertainty = math.sqrt(1 / len(self.xs) + (x - mean) ** 2 / spread)
        return x, self.deviation / self.slope * uncertainty


_STRAIGHT = 0.05  # no point lies farther off its line
_CERTAIN = 0.1  # the error of what is said


def larger_batch(points: Sequence[BatchMemory]) -> LargerBatch | str:
    """Return the batch whose call under no_grad takes what the largest one takes with grad.

    Where that cannot be known, the reason why.
    """
    with_grad = Line.through([(one.batch, one.grad) for one in points])
    without = Line.through([(one.batch, one.no_grad) for one in points])
    worst = max(with_grad.worst, without.worst)
    if worst > _STRAIGHT:
        return f"memory does not grow in a straight line with the batch (a part is {worst:.0%} off)"
    if without.slope <= 0:
        return "without grad, memory does not grow with the batch"
    batch, deviation = without.where(points[-1].grad)
    if deviation > _CERTAIN * batch:
        return f"it would be {batch:.0f} ± {deviation:.0f}"
    return LargerBatch(int(batch), deviation / batch)


def told(points: Sequence[BatchMemory]) -> str:
    """Say it in one line."""
    found = larger_batch(points)
    if isinstance(found, str):
        return f"larger batch: not predicted: {found}."
    sizes, whole = ", ".join(str(one.batch) for one in points), points[-1]
    return (
        f"larger batch: the memory of {whole.batch} with grad ({size(whole.grad)}) is enough for "
        f"{found.batch} under no_grad, ± {found.error:.1%} (straight line through {sizes})."
    )
