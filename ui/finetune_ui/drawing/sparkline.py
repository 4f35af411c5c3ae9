"""A curve in the size of a word."""

import math
from collections.abc import Sequence

from finetune_api.smoothing import smoothed

WIDTH, HEIGHT, POINTS = 96, 24, 48


def sparkline(points: Sequence[tuple[int, float]]) -> str:
    """The path of an SVG of WIDTH by HEIGHT; empty for fewer than two values. Large values are at the top."""
    found = [(step, value) for step, value in points if math.isfinite(value)]
    if len(found) < 2:
        return ""
    every = -(-len(found) // POINTS)
    line = smoothed([value for _, value in found])
    chosen = [*range(0, len(found) - 1, every), len(found) - 1]
    first, last = found[0][0], found[-1][0]
    low, high = min(line), max(line)
    across, up = (WIDTH - 2) / ((last - first) or 1), (HEIGHT - 2) / ((high - low) or 1)
    places = (f"{1 + (found[at][0] - first) * across:.1f},{1 + (high - line[at]) * up:.1f}" for at in chosen)
    return "M" + "L".join(places)
