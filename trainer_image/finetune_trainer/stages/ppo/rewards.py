"""From what a reward model says to what the policy learns from: scores of one scale, held within bounds.

Used by the rollout, and by evaluations. Running statistics are kept in checkpoints.
"""

import logging
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from finetune_api.stages import PpoSpec

from finetune_trainer.stages.ppo.advantages import Floats, Mask

log = logging.getLogger(__name__)

Normalization = Literal["model", "running", "none"]


@dataclass
class Running:
    """Mean and deviation of all scores so far (Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for
    Computing Sample Variances", 1979)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    """Sum of squared deviations from the mean."""

    @property
    def std(self) -> float:
        """1 while there is nothing to tell scores apart by."""
        return math.sqrt(self.squares / self.count) if self.squares > 0 else 1.0

    def add(self, scores: Floats) -> None:
        count, mean = self.count + len(scores), float(scores.mean(dtype=np.float64))
        squares = float(((scores.astype(np.float64) - mean) ** 2).sum())
        apart = mean - self.mean
        self.squares += squares + apart**2 * self.count * len(scores) / count
        self.mean += apart * len(scores) / count
        self.count = count


def normalization(settings: PpoSpec, std: float | None) -> Normalization:
    """What rewards are normalized by: as the job asks, but by running statistics where what scores brings none."""
    return "running" if settings.reward_normalization == "model" and not std else settings.reward_normalization


class Normalizer:
    """Of one job. ``mean`` and ``std`` are those that stage rm measured, where it did; ``blind`` is a scorer that
    doesn't see whether an answer came to its end."""

    def __init__(self, settings: PpoSpec, mean: float | None, std: float | None, blind: bool = False) -> None:
        self.blind = blind
        self.clip, self.penalty = settings.reward_clip, settings.missing_eos_penalty
        self.measured = (mean or 0.0, std) if std else None
        self.kind = normalization(settings, std)
        if self.kind != settings.reward_normalization:
            log.info("what scores comes without statistics of its own: rewards are normalized by running ones")
        self.running = Running()
        self.first: tuple[float, float] | None = None
        """Mean and deviation that evaluations go by, where statistics are running ones: those of the first."""

    def __call__(self, scores: Floats, ended: Mask, empty: Mask | None = None) -> Floats:
        """Of a rollout: normalized, clipped, and less by the penalty where an answer didn't come to its end. An
        ``empty`` one, which has nothing but its end, is worth the least to a scorer that is blind: it has scored the
        prompt, where nothing was trained, and a policy would soon find that out."""
        if self.kind == "running":
            self.running.add(scores)
        return self._worth(scores, ended, empty, self._scale, self.clip)

    def held_out(self, scores: Floats, ended: Mask, empty: Mask | None = None) -> Floats:
        """Of an evaluation: the same on a scale that stays, as evaluations are compared. Running statistics stay those
        of the first one, and nothing is clipped by them: the bounds of training move along with it."""
        if self.kind != "running":
            return self._worth(scores, ended, empty, self._scale, self.clip)
        self.first = self.first or self._scale
        return self._worth(scores, ended, empty, self.first, math.inf)

    @property
    def _scale(self) -> tuple[float, float]:
        """Mean and deviation, as of now."""
        if self.kind == "running":
            return self.running.mean, self.running.std
        return self.measured if self.kind == "model" and self.measured is not None else (0.0, 1.0)

    def _worth(
        self, scores: Floats, ended: Mask, empty: Mask | None, scale: tuple[float, float], bound: float
    ) -> Floats:
        mean, std = scale
        normal = np.clip((scores.astype(np.float64) - mean) / std, -bound, bound)
        if self.blind and empty is not None:
            normal = np.where(empty, np.minimum(normal, -self.clip), normal)
        return np.where(ended, normal, normal - self.penalty)

    def state_dict(self) -> dict[str, Any]:
        running = self.running
        return {
            "rewards": running.count,
            "reward_mean": running.mean,
            "reward_squares": running.squares,
            "reward_scale": self.first,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.running = Running(state["rewards"], state["reward_mean"], state["reward_squares"])
        scale = state["reward_scale"]
        self.first = (scale[0], scale[1]) if scale else None
