"""Divergence: a training that learns nothing ends, instead of holding GPUs until its last step.

`loop` checks after each step, on all ranks, with values that are the same on each.
"""

import math

from finetune_api.training import TrainingSpec

from finetune_trainer.errors import Diverged
from finetune_trainer.model.base import Precision

ZERO_STEPS = 50
"""Consecutive steps with a loss of zero that cannot be an accident."""
SKIPPED_STEPS = 32
"""Consecutive skipped steps that cannot be the search for a scale: it starts at 2^16."""
OUT_OF_RANGE = (
    " The numbers of some models exceed the range of fp16: if nothing else helps, set training.precision to fp32, or"
    " use GPUs that compute in bf16 (Ampere or newer)."
)
CROSS_ENTROPY_STAGES = ("pt", "sft")
"""A cross-entropy comes near zero and never reaches it. The losses of other stages may be zero."""


def diverged(training: TrainingSpec, precision: Precision, step: int, loss: float, denominator: float) -> Diverged:
    """The error of a step whose loss or gradient is not finite. ``denominator``: what the loss was divided by."""
    if not denominator:
        return Diverged(
            f"Step {step}: none of its rows has a token to train on. Check the rows and the template of their dataset."
        )
    what = f"the loss is {loss}" if not math.isfinite(loss) else "the gradient is not finite"
    return Diverged(
        f"Step {step}: {what}. Lower training.learningRate ({training.learning_rate:g}), raise training.warmupRatio"
        f" ({training.warmup_ratio:g}) or lower training.maxGradNorm ({training.max_grad_norm:g}). Check the rows of"
        f" the last steps for outliers.{OUT_OF_RANGE if precision == 'fp16' else ''}"
    )


class SkippedSteps:
    """Counts the consecutive steps of this run that changed no weight. In fp16 the loss is multiplied by a scale, so
    that small gradients are not lost. Where a gradient exceeds fp16, the step is skipped and the scale halved: in the
    first steps of every job, and now and then later. It is no divergence unless it
    continues."""

    def __init__(self) -> None:
        self._steps = 0

    def check(self, step: int, *, skipped: bool) -> None:
        """Count a step. Raises Diverged after `SKIPPED_STEPS` consecutive steps that were skipped."""
        self._steps = self._steps + 1 if skipped else 0
        if self._steps == SKIPPED_STEPS:
            raise Diverged(
                f"The gradient was not finite in {SKIPPED_STEPS} consecutive steps, the last of them step {step},"
                " however small the scale of the loss: the model's numbers exceed the range of fp16. Set"
                " training.precision to fp32, or use GPUs that compute in bf16 (Ampere or newer)."
            )


class ZeroLosses:
    """Counts the consecutive steps of this run whose loss was exactly zero."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._steps = 0

    def check(self, step: int, loss: float) -> None:
        """Count a step. Raises Diverged after `ZERO_STEPS` consecutive steps with a loss of exactly zero."""
        if self._stage not in CROSS_ENTROPY_STAGES:
            return
        self._steps = self._steps + 1 if loss == 0.0 else 0
        if self._steps == ZERO_STEPS:
            raise Diverged(
                f"The loss was exactly 0 in {ZERO_STEPS} consecutive steps, the last of them step {step}: the model"
                " learns nothing. Either the weights broke and the model predicts the same for every input: lower"
                " training.learningRate. Or all rows are the same few tokens: check the data."
            )
