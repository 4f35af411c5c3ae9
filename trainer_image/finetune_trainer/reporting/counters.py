"""Counters over all attempts of a job: tokens, samples, training time, and the best evaluation.

`progress` updates them. Each checkpoint saves them, and a resumed run reads them from it.
"""

import math
import time
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Counters:
    """All ranks have the same values, except for the time."""

    tokens: int = 0
    """Tokens trained on, without padding."""
    samples: int = 0
    """Rows or packs trained on."""
    best_loss: float | None = None
    """Lowest evaluation loss."""
    best_step: int | None = None
    evaluations_without_improvement: int = 0
    """Evaluations in a row since the last improvement by at least ``min_delta``."""
    _reference_loss: float | None = None
    """The loss of the last improvement. With ``min_delta`` it is not always the lowest loss."""
    _seconds_before: float = 0.0
    """Training time of earlier attempts."""
    _started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Training time of all attempts."""
        return self._seconds_before + time.monotonic() - self._started

    def start(self) -> None:
        """Start the clock of this attempt's training time."""
        self._started = time.monotonic()

    def record_evaluation(self, step: int, loss: float, min_delta: float = 0.0) -> None:
        """Record an evaluation. A NaN is never the best."""
        is_number = not math.isnan(loss)
        if is_number and (self.best_loss is None or loss < self.best_loss):
            self.best_loss, self.best_step = loss, step
        if is_number and (self._reference_loss is None or loss < self._reference_loss - min_delta):
            self._reference_loss, self.evaluations_without_improvement = loss, 0
        else:
            self.evaluations_without_improvement += 1

    def state_dict(self) -> dict[str, Any]:
        return {
            "tokens": self.tokens,
            "samples": self.samples,
            "seconds": self.seconds,
            "best_loss": self.best_loss,
            "best_step": self.best_step,
            "without_better": self.evaluations_without_improvement,
            "to_beat": self._reference_loss,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.tokens, self.samples = state["tokens"], state["samples"]
        self.best_loss, self.best_step = state["best_loss"], state["best_step"]
        self.evaluations_without_improvement, self._reference_loss = state["without_better"], state["to_beat"]
        self._seconds_before = state["seconds"]
