"""Curves of the metrics of a run, as texts in ``status.progress.curves``: for charts without a tracker.

A text has a version, the steps and the values: ``1;10*3,5;2.31,2.17,,1.985``. Steps are increments, of which ``10*3``
is three, so these are 10, 20, 30 and 35. Values are decimal numbers of five digits; nothing between two commas is not a
number. A value is the mean since the point before. docs/metrics.md has readers in other languages.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain, groupby, pairwise, repeat
from typing import Any

Point = tuple[int, float]
"""(step, value)"""

VERSION = "1"
POINTS = 256
"""Most points of a curve."""
BYTES = 16_384
"""Most bytes of all curves of a job, as JSON."""


def encode(points: Sequence[Point]) -> str:
    """The text of a curve. Steps never decrease."""
    increments = (after - before for before, after in pairwise(chain([0], (step for step, _ in points))))
    runs = ((by, len(list(run))) for by, run in groupby(increments))
    steps = ",".join(f"{by}*{times}" if times > 1 else str(by) for by, times in runs)
    return ";".join((VERSION, steps, ",".join(_number(value) for _, value in points)))


def decode(text: str) -> list[Point]:
    """The points of a curve. Raises ValueError if this release cannot read it."""
    version, *parts = text.split(";")
    if version != VERSION:
        raise ValueError(f"The curve has format {version[:10]!r}, but this release reads format {VERSION}. Upgrade it.")
    steps, values = parts
    runs = (run.partition("*") for run in steps.split(",") if run)
    increments = chain.from_iterable(repeat(int(by), int(times or 1)) for by, _, times in runs)
    numbers = [float(value) if value else math.nan for value in values.split(",")] if steps else []
    return list(zip(accumulate(increments), numbers, strict=True))


def pack(curves: Mapping[str, Sequence[Point]]) -> dict[str, str]:
    """The texts of all curves. The longest have half as many points until all fit into BYTES."""
    fitting = {name: points for name, points in curves.items() if points}
    texts = {name: encode(points) for name, points in fitting.items()}
    while len(json.dumps(texts)) > BYTES:
        longest = max(texts, key=lambda name: len(texts[name]))
        fitting[longest] = halved(fitting[longest])
        texts[longest] = encode(fitting[longest])
    return texts


def unpack(status: Mapping[str, Any]) -> dict[str, list[Point]]:
    """All curves of a job's status, by metric. Raises ValueError if this release cannot read one."""
    progress = status.get("progress") or {}
    return {name: decode(text) for name, text in (progress.get("curves") or {}).items()}


def halved(points: Sequence[Point]) -> list[Point]:
    """The means of each two points. The last point of an odd number stays."""
    return [mean(points[at : at + 2]) for at in range(0, len(points), 2)]


def mean(points: Sequence[Point]) -> Point:
    """One point for several: their mean, at the last step. Values that are no numbers do not count."""
    values = [value for _, value in points if math.isfinite(value)]
    return points[-1][0], sum(values) / len(values) if values else math.nan


@dataclass
class Curve:
    """A curve of a run of any length. When it has POINTS points and another value comes, each two become one, and
    later points have twice as many values. So it depends only on the values, not on when somebody looked at it."""

    width: int = 1
    """Values of a point."""
    _complete: list[Point] = field(default_factory=list)
    _rest: list[Point] = field(default_factory=list)
    """Values of the last point, which is not complete."""

    def add(self, step: int, value: float) -> None:
        """The next value. Steps never decrease."""
        if len(self._complete) == POINTS:
            self._complete, self.width = halved(self._complete), 2 * self.width
        self._rest.append((step, value))
        if len(self._rest) == self.width:
            self._complete.append(mean(self._rest))
            self._rest = []

    @property
    def points(self) -> list[Point]:
        """At most POINTS points. The last point may have fewer values than the others."""
        return [*self._complete, mean(self._rest)] if self._rest else self._complete


def _number(value: float) -> str:
    """A value as short as five digits can be: 2.3457, .11, 12346e1, 2e-5; empty if it is not a number."""
    if not math.isfinite(value):
        return ""
    digits, _, exponent = f"{value:.4e}".partition("e")
    whole, _, fraction = digits.partition(".")
    fraction = fraction.rstrip("0")
    scientific = f"{whole}{fraction}e{int(exponent) - len(fraction)}"
    plain = f"{value:.5g}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.5g}"
    return min(plain, scientific, key=len)
