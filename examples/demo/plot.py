"""A curve in the terminal, drawn with braille dots: 2 x 4 dots per character.

Called by `ending`. It needs no library, because the demo draws only the loss curve.
"""

from collections.abc import Sequence

WIDTH, HEIGHT = 60, 10
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""The bit of each dot of a braille character, by row and column."""


def curve(points: Sequence[tuple[float, float]], width: int = WIDTH, height: int = HEIGHT) -> list[str]:
    """The lines of the plot: y over x, with labels at both ends of each axis."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low, high = min(ys), max(ys)
    columns, rows = 2 * width - 1, 4 * height - 1
    dots = [
        (round(columns * (x - xs[0]) / ((xs[-1] - xs[0]) or 1)), round(rows * (high - y) / ((high - low) or 1)))
        for x, y in points
    ]
    cells = [[0x2800] * width for _ in range(height)]
    for (x, y), (x2, y2) in zip(dots, dots[1:] or dots, strict=False):
        steps = max(abs(x2 - x), abs(y2 - y), 1)
        for i in range(steps + 1):
            column, row = round(x + (x2 - x) * i / steps), round(y + (y2 - y) * i / steps)
            cells[row // 4][column // 2] |= DOTS[row % 4][column % 2]
    labels = [f"{high:.2f}", *[""] * (height - 2), f"{low:.2f}"]
    lines = [f"{label:>7} │{''.join(map(chr, cell))}" for label, cell in zip(labels, cells, strict=True)]
    first, last = f"{xs[0]:g}", f"{xs[-1]:g}"
    return [*lines, f"{'':>7} └{'─' * width}", f"{'':>9}{first}{last:>{width - len(first)}}"]
