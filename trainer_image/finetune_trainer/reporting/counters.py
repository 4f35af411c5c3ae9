"""What is counted over all attempts of a job, not only this one: saved with each checkpoint, and read back from it.

Filled by `progress`, kept by `checkpoints.kept`.
"""

import math
import time
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Counters:
    """Every rank has the same, except for the time."""

    tokens: int = 0
    """Trained on, without padding."""
    samples: int = 0
    """Rows, or packs, trained on."""
    best_loss: float | None = None
    """Lowest evaluation loss."""
    best_step: int | None = None
    without_better: int = 0
    """Evaluations in a row that were no better than what counted as better last."""
    _to_beat: float | None = None
    """The loss that counted as better last: with a least difference, it isn't always the lowest."""
    _seconds_before: float = 0.0
    _started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Training time."""
        return self._seconds_before + time.monotonic() - self._started

    def start(self) -> None:
        """Training time runs from here on."""
        self._started = time.monotonic()

    def evaluated(self, step: int, loss: float, min_delta: float = 0.0) -> None:
        """Take note of an evaluation. A NaN is never the best."""
        number = not math.isnan(loss)
        if number and (self.best_loss is None or loss < self.best_loss):
            self.best_loss, self.best_step = loss, step
        if number and (self._to_beat is None or loss < self._to_beat - min_delta):
            self._to_beat, self.without_better = loss, 0
        else:
            self.without_better += 1

    def state_dict(self) -> dict[str, Any]:
        return {
            "tokens": self.tokens,
            "samples": self.samples,
            "seconds": self.seconds,
            "best_loss": self.best_loss,
            "best_step": self.best_step,
            "without_better": self.without_better,
            "to_beat": self._to_beat,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.tokens, self.samples = state["tokens"], state["samples"]
        self.best_loss, self.best_step = state["best_loss"], state["best_step"]
        self.without_better, self._to_beat = state["without_better"], state["to_beat"]
        self._seconds_before = state["seconds"]
