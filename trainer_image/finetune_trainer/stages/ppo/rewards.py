"""The reward of each token: the normalized score of its answer, less a penalty on divergence from the reference.

`collector` calls this for a rollout, and `trainer` for an evaluation. Two things adapt during training, and both are in
checkpoints: the KL coefficient, and running statistics of the scores.
"""

import logging
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from finetune_api.stages import PpoSpec

from finetune_trainer.stages.ppo.losses import Floats, Mask

log = logging.getLogger(__name__)

Normalization = Literal["model", "running", "none"]

LARGEST_KL_ERROR = 0.2
"""Bound of the relative error by which `AdaptiveKl` corrects its coefficient."""


def kl_per_token(log_probs: Floats, ref_log_probs: Floats, mask: Mask) -> Floats:
    """[answers, tokens]: log p - log p_ref of each token, zero outside the mask. Its mean over samples is the KL
    divergence of the policy from the reference (Schulman, "Approximating KL Divergence", 2020, estimator k1)."""
    return np.where(mask, log_probs.astype(np.float64) - ref_log_probs, 0.0)


def token_rewards(scores: Floats, kl: Floats, mask: Mask, coefficient: float) -> Floats:
    """[answers, tokens]: each token pays for its divergence, and the last token of an answer gets the score (Ziegler et
    al., "Fine-Tuning Language Models from Human Preferences", 2019, eq. 2). ``scores`` is [answers]."""
    rewards = np.where(mask, -coefficient * kl, 0.0)
    answers, last = np.arange(len(mask)), mask.sum(axis=1) - 1
    rewards[answers, last] += scores
    return rewards


@dataclass
class FixedKl:
    """The KL coefficient is constant."""

    coefficient: float

    def update(self, kl: float, answers: int) -> None:
        """After a rollout. ``kl``: mean divergence of its answers, in nats; ``answers``: their number."""

    def state_dict(self) -> dict[str, float]:
        return {"kl_coefficient": self.coefficient}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.coefficient = state["kl_coefficient"]


@dataclass
class AdaptiveKl(FixedKl):
    """The KL coefficient follows a target (Ziegler et al., 2019, section 2.2). After a rollout of n answers it is
    multiplied by

    1 + min(1, n / horizon) e,  e = clip(KL / target - 1, -0.2, 0.2).

    Without the bound of 1, a rollout larger than ``horizon`` could make the coefficient negative: a reward."""

    target: float
    horizon: int

    def update(self, kl: float, answers: int) -> None:
        error = min(max(kl / self.target - 1, -LARGEST_KL_ERROR), LARGEST_KL_ERROR)
        self.coefficient *= 1 + error * min(1.0, answers / self.horizon)


def kl_controller(settings: PpoSpec) -> FixedKl:
    """The controller that the job asks for."""
    if settings.kl_control == "fixed":
        return FixedKl(settings.kl_coefficient)
    return AdaptiveKl(settings.kl_coefficient, settings.kl_target, settings.kl_horizon)


@dataclass
class RunningStatistics:
    """Mean and standard deviation of all scores so far, updated by batches (Chan, Golub and LeVeque, "Updating Formulae
    and a Pairwise Algorithm for Computing Sample Variances", 1979)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    """Sum of squared deviations from the mean."""

    @property
    def std(self) -> float:
        """1 if all scores are equal."""
        return math.sqrt(self.squares / self.count) if self.squares > 0 else 1.0

    def add(self, scores: Floats) -> None:
        count, mean = self.count + len(scores), float(scores.mean(dtype=np.float64))
        squares = float(((scores.astype(np.float64) - mean) ** 2).sum())
        difference = mean - self.mean
        self.squares += squares + difference**2 * self.count * len(scores) / count
        self.mean += difference * len(scores) / count
        self.count = count


def normalization_of(settings: PpoSpec, std: float | None) -> Normalization:
    """The normalization in use: what the job asks for, but ``running`` if the reward model has no statistics."""
    return "running" if settings.reward_normalization == "model" and not std else settings.reward_normalization


class RewardNormalizer:
    """Scores of answers -> normalized rewards: scaled, clipped, and less a penalty for a missing end.

    ``mean`` and ``std``: statistics of the reward model's scores, if stage rm measured them. ``ignores_stop_token``:
    the reward model does not see whether an answer has an end. In all methods, ``scores`` (raw), ``has_end`` and
    ``is_empty`` are [answers]: whether an answer ends with a stop token, and whether it is nothing but that.
    """

    def __init__(
        self, settings: PpoSpec, mean: float | None, std: float | None, ignores_stop_token: bool = False
    ) -> None:
        self.ignores_stop_token = ignores_stop_token
        self.clip, self.penalty = settings.reward_clip, settings.missing_eos_penalty
        self.model_scale = (mean or 0.0, std) if std else None
        self.kind = normalization_of(settings, std)
        if self.kind != settings.reward_normalization:
            log.info("the reward model has no statistics of its scores: rewards are normalized by running statistics")
        self.running = RunningStatistics()
        self.evaluation_scale: tuple[float, float] | None = None
        """With running statistics: mean and deviation at the first evaluation, which all evaluations use."""

    def rollout_rewards(self, scores: Floats, has_end: Mask, is_empty: Mask | None = None) -> Floats:
        """[answers]: rewards of a rollout, whose scores count in the running statistics.

        If the reward model does not see the stop token, an empty answer gets the lowest reward: its score is that of
        the prompt, for which the model was not trained, and the policy would learn to exploit it."""
        if self.kind == "running":
            self.running.add(scores)
        return self._rewards(scores, has_end, is_empty, self._scale, self.clip)

    def evaluation_rewards(self, scores: Floats, has_end: Mask, is_empty: Mask | None = None) -> Floats:
        """[answers]: rewards of an evaluation. All evaluations have one scale, so that they compare: with running
        statistics that of the first, and without a clip, because the clip of training moves with the statistics."""
        if self.kind != "running":
            return self._rewards(scores, has_end, is_empty, self._scale, self.clip)
        self.evaluation_scale = self.evaluation_scale or self._scale
        return self._rewards(scores, has_end, is_empty, self.evaluation_scale, math.inf)

    @property
    def _scale(self) -> tuple[float, float]:
        """Current mean and deviation."""
        if self.kind == "running":
            return self.running.mean, self.running.std
        return self.model_scale if self.kind == "model" and self.model_scale is not None else (0.0, 1.0)

    def _rewards(
        self, scores: Floats, has_end: Mask, is_empty: Mask | None, scale: tuple[float, float], clip: float
    ) -> Floats:
        mean, std = scale
        rewards = np.clip((scores.astype(np.float64) - mean) / std, -clip, clip)
        if self.ignores_stop_token and is_empty is not None:
            rewards = np.where(is_empty, np.minimum(rewards, -self.clip), rewards)
        return np.where(has_end, rewards, rewards - self.penalty)

    def state_dict(self) -> dict[str, Any]:
        running = self.running
        return {
            "rewards": running.count,
            "reward_mean": running.mean,
            "reward_squares": running.squares,
            "reward_scale": self.evaluation_scale,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.running = RunningStatistics(state["rewards"], state["reward_mean"], state["reward_squares"])
        scale = state["reward_scale"]
        self.evaluation_scale = (scale[0], scale[1]) if scale else None
