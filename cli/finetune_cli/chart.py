"""Curves as text: dots of braille on a terminal, and plain characters elsewhere."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

Point = tuple[int, float]

DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bits of a braille character, by row and column."""
BRAILLE = 0x2800
MARKS = "*o+x#@"


def draw(curves: Mapping[str, Sequence[Point]], width: int = 72, height: int = 14, *, dots: bool = True) -> list[str]:
    """The lines of a chart. Several curves share the axes; with dots they are not told apart, so they get marks."""
    finite = {name: [point for point in points if math.isfinite(point[1])] for name, points in curves.items()}
    every = [point for points in finite.values() for point in points]
    if not every:
        return ["no points"]
    low, high = min(value for _, value in every), max(value for _, value in every)
    first, last = min(step for step, _ in every), max(step for step, _ in every)
    labels = [f"{high:.4g}", f"{low:.4g}"]
    margin = max(map(len, labels)) + 1
    columns = max(8, width - margin - 1)
    fine = dots and len(finite) == 1
    grid = _dots if fine else _marks
    rows = grid(finite, columns, height, (first, max(last - first, 1)), (low, (high - low) or 1.0))
    left = [labels[0], *[""] * (height - 2), labels[1]]
    lines = [f"{label:>{margin - 1}} |{row}".rstrip() for label, row in zip(left, rows, strict=True)]
    lines.append(" " * margin + "+" + "-" * columns)
    end = f"{last:,}"
    lines.append(" " * (margin + 1) + f"{first:,}".ljust(columns - len(end)) + end)
    if not fine:
        lines.append(" " * (margin + 1) + "  ".join(f"{_mark(at)} {name}" for at, name in enumerate(finite)))
    return lines


Axis = tuple[float, float]
"""(smallest value, extent)"""


def _dots(curves: Mapping[str, Sequence[Point]], columns: int, height: int, steps: Axis, values: Axis) -> list[str]:
    cells = [[0] * columns for _ in range(height)]
    for points in curves.values():
        for x, y in _line(points, 2 * columns - 1, 4 * height - 1, steps, values):
            cells[y // 4][x // 2] |= DOTS[y % 4][x % 2]
    return ["".join(chr(BRAILLE + cell) if cell else " " for cell in row) for row in cells]


def _marks(curves: Mapping[str, Sequence[Point]], columns: int, height: int, steps: Axis, values: Axis) -> list[str]:
    cells = [[" "] * columns for _ in range(height)]
    for at, points in enumerate(curves.values()):
        for x, y in _line(points, columns - 1, height - 1, steps, values):
            cells[y][x] = _mark(at)
    return ["".join(row) for row in cells]


def _line(points: Sequence[Point], right: int, bottom: int, steps: Axis, values: Axis) -> list[tuple[int, int]]:
    """The places of a curve, with those between two points."""
    places = [
        (round((step - steps[0]) / steps[1] * right), round((1 - (value - values[0]) / values[1]) * bottom))
        for step, value in points
    ]
    found = places[:1]
    for (x0, y0), (x1, y1) in pairwise(places):
        length = max(abs(x1 - x0), abs(y1 - y0), 1)
        found += [(x0 + (x1 - x0) * part // length, y0 + (y1 - y0) * part // length) for part in range(1, length + 1)]
    return found


def _mark(at: int) -> str:
    return MARKS[at % len(MARKS)]
