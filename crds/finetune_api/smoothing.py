"""The smoothed line of a noisy curve, as in plots: a Savitzky-Golay filter of first order.

In the middle, a value is the mean of a window around it. At both ends, where no window fits around a value, it lies on
the straight line that fits the first or the last window best (least squares), within the lowest and the highest value
of that window. So a straight line stays as it is, without a lag, and the result never leaves the values.
"""

import math
from collections.abc import Sequence


def window(count: int) -> int:
    """Values in the window: about the square root of their number, an odd number. 5 of 17, 11 of 100, 33 of 1000."""
    return min(2 * round(math.sqrt(count) / 2) + 1, max(count - 1 + count % 2, 1))


def smoothed(values: Sequence[float]) -> list[float]:
    """A smooth line through values at equal distances. What is not a number stays, and does not count."""
    numbers = iter(_filtered([value for value in values if math.isfinite(value)]))
    return [next(numbers) if math.isfinite(value) else value for value in values]


def _filtered(values: list[float]) -> list[float]:
    width = window(len(values))
    if width == 1:
        return values
    half = width // 2
    means = [sum(values[at : at + width]) / width for at in range(len(values) - width + 1)]
    line = [*_fitted(values[:width])[:half], *means, *_fitted(values[-width:])[-half:]]
    return _within(line, values)  # rounding may leave the values


def _fitted(part: list[float]) -> list[float]:
    """The straight line that fits best, within the values: a steep line may leave them at its ends."""
    half, mean = len(part) // 2, sum(part) / len(part)
    places = range(-half, half + 1)
    slope = sum(place * value for place, value in zip(places, part, strict=True)) / sum(place**2 for place in places)
    return _within([mean + slope * place for place in places], part)


def _within(line: list[float], values: list[float]) -> list[float]:
    low, high = min(values), max(values)
    return [min(max(value, low), high) for value in line]
