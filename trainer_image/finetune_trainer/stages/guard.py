"""A training that learns nothing ends, instead of holding GPUs to its last step.

Called by `steps` on all ranks, which know the same, after each step.
"""

import math

from finetune_api.training import TrainingSpec

from finetune_trainer.errors import Diverged

STEPS = 50
"""In a row, after which a loss of zero is no accident."""
STAGES = ("pt", "sft")
"""Their loss is a cross-entropy, which comes near zero and never reaches it; others' losses may be zero in earnest."""


def diverged(training: TrainingSpec, step: int, loss: float, counted: float) -> Diverged:
    """What to say of a step whose loss or gradient is no number; ``counted`` is what its loss was divided by."""
    if not counted:
        return Diverged(
            f"step {step}: none of its rows has a token that is trained. Look at the rows and their template"
        )
    what = f"the loss is {loss}" if not math.isfinite(loss) else "the gradient is no longer a number"
    return Diverged(
        f"step {step}: {what}. Lower training.learningRate ({training.learning_rate:g}), raise warmupRatio"
        f" ({training.warmup_ratio:g}) or lower maxGradNorm ({training.max_grad_norm:g}); look at the data trained"
        " last for rows unlike the others"
    )


class Zeros:
    """The steps in a row, of this run, whose loss was exactly zero."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._steps = 0

    def look(self, step: int, loss: float) -> None:
        """At each step's loss. Raises Diverged where it has been exactly zero for long."""
        if self._stage not in STAGES:
            return
        self._steps = self._steps + 1 if loss == 0.0 else 0
        if self._steps == STEPS:
            raise Diverged(
                f"the loss was exactly 0 in {STEPS} steps in a row, the last of them step {step}: nothing is learned"
                " any more. Likely causes: the weights broke, and the model predicts the same whatever it sees (lower"
                " training.learningRate); or all rows are the same few tokens (look at the data)"
            )
