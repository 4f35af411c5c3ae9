"""What keeps the policy near the reference: a price on divergence, and who sets it.

Used by the rollout. The controllers follow Ziegler et al., "Fine-Tuning Language Models from Human Preferences", 2019;
their state is kept in checkpoints.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from finetune_api.stages import PpoSpec

from finetune_trainer.stages.ppo.advantages import Floats, Mask

LARGEST_ERROR = 0.2
"""Beyond it, how far divergence is off no longer counts."""


def divergence(log_probs: Floats, reference: Floats, mask: Mask) -> Floats:
    """log p - log p_ref of each token drawn: its mean over draws is the KL divergence of policy from reference
    (Schulman, "Approximating KL Divergence", 2020, k1). Zero elsewhere."""
    return np.where(mask, log_probs.astype(np.float64) - reference, 0.0)


def rewards(scores: Floats, divergences: Floats, mask: Mask, coefficient: float) -> Floats:
    """Of each token (Ziegler et al., eq. 2): each pays for its divergence, the last one gets the answer's score."""
    result = np.where(mask, -coefficient * divergences, 0.0)
    answers, last = np.arange(len(mask)), mask.sum(axis=1) - 1
    result[answers, last] += scores
    return result


@dataclass
class Fixed:
    """The coefficient stays."""

    coefficient: float

    def update(self, divergence: float, answers: int) -> None:
        """After a rollout of so many answers, whose mean divergence was this."""

    def state_dict(self) -> dict[str, Any]:
        return {"kl_coefficient": self.coefficient}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.coefficient = state["kl_coefficient"]


@dataclass
class Adaptive(Fixed):
    """The coefficient follows the target (Ziegler et al., section 2.2): with e = clip(KL / target - 1, -0.2, 0.2) it is
    multiplied by 1 + K e, where K is the share of ``horizon`` that the answers make, at most all of it: else a large
    rollout could turn the price into a reward."""

    target: float
    horizon: int

    def update(self, divergence: float, answers: int) -> None:
        error = min(max(divergence / self.target - 1, -LARGEST_ERROR), LARGEST_ERROR)
        self.coefficient *= 1 + error * min(1.0, answers / self.horizon)


def controller(settings: PpoSpec) -> Fixed:
    """As the job has it."""
    if settings.kl_control == "fixed":
        return Fixed(settings.kl_coefficient)
    return Adaptive(settings.kl_coefficient, settings.kl_target, settings.kl_horizon)
