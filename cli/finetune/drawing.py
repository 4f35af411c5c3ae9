"""A curve as a small picture for notebooks."""

import math
from collections.abc import Sequence

from finetune_cli.chart import Point

WIDTH, HEIGHT, MARGIN = 360, 80, 4
"""Pixels."""


def svg(points: Sequence[Point], name: str) -> str:
    """The picture of a curve with its first and last value, as SVG. Empty if it has fewer than two points."""
    finite = [point for point in points if math.isfinite(point[1])]
    if len(finite) < 2:
        return ""
    (first, start), (last, end) = finite[0], finite[-1]
    low, high = min(value for _, value in finite), max(value for _, value in finite)
    places = " ".join(
        f"{MARGIN + (step - first) / max(last - first, 1) * (WIDTH - 2 * MARGIN):.1f},"
        f"{MARGIN + (high - value) / ((high - low) or 1.0) * (HEIGHT - 2 * MARGIN):.1f}"
        for step, value in finite
    )
    line = f'<polyline points="{places}" fill="none" stroke="#1f77b4" stroke-width="1.5"/>'
    text = f"{name} {start:.4g} at step {first}, {end:.4g} at step {last}"
    picture = f'<svg width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="{text}">{line}</svg>'
    return f"<br>{picture}<br><small>{text}</small>"
