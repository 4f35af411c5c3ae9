"""A training that learns nothing ends, instead of holding GPUs to its last step.

Called by `steps` on all ranks, which know the same: after each step, and with each line of the log.
"""

import math
from collections.abc import Sequence
from typing import Any

from finetune_api.training import TrainingSpec

from finetune_trainer.errors import Diverged

STEPS = 10
"""Log lines in a row after which a loss of zero is no accident."""
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


def check_loss(stage: str, history: Sequence[dict[str, Any]]) -> None:
    """Raises Diverged where the loss has been exactly zero for long."""
    if stage not in STAGES or history[-1].get("loss") != 0.0:
        return
    last = [entry for entry in history if "loss" in entry][-STEPS:]
    if len(last) == STEPS and all(entry["loss"] == 0.0 for entry in last):
        raise Diverged(
            f"the loss was exactly 0 in the last {STEPS} lines of the log, from step {last[0]['step']} to"
            f" {last[-1]['step']}: nothing is learned any more. Likely causes: the weights broke, and the model"
            " predicts the same whatever it sees (lower training.learningRate); or all rows are the same few tokens"
            " (look at the data)"
        )
