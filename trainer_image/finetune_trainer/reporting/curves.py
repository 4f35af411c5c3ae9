"""The curves of a run for status.progress.curves, from the lines of its log.

A run that resumes adds the lines that its log has, so its curves are those of an unbroken run. `progress` calls this on
rank 0.
"""

import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from finetune_api.curves import Curve, pack

from finetune_trainer.reporting.names import CURVES

SECONDS = 60.0
"""Shortest time between two writes of the curves, except for the last."""


class Curves:
    """The curves of all attempts of the job."""

    def __init__(self) -> None:
        self._curves: dict[str, Curve] = defaultdict(Curve)
        self._changed = True
        self._packed_at = -SECONDS

    def add(self, line: Mapping[str, Any]) -> None:
        """A line of the log."""
        values = {name: line[key] for key, name in CURVES.items() if line.get(key) is not None}
        for name, value in values.items():
            self._curves[name].add(line["current_steps"], value)
        self._changed |= bool(values)

    def due(self, at_once: bool = False) -> dict[str, str] | None:
        """The texts of the curves, if they have changed and it is time to write them."""
        now = time.monotonic()
        if not self._changed or not (at_once or now - self._packed_at >= SECONDS):
            return None
        self._changed, self._packed_at = False, now
        return pack({name: curve.points for name, curve in self._curves.items()})
