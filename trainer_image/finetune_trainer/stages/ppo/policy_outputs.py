"""One forward pass of the policy, its value head or the reference over given answers.

`collector` calls it before a rollout is learned from, and `trainer` in each step. Both use the same pass, so the ratio
of new to old probabilities is 1 until the first update. It never computes the logits of all positions.
"""

from typing import NamedTuple

import torch
from torch import nn

from finetune_trainer.data.collate import Batch
from finetune_trainer.data.row import IGNORED
from finetune_trainer.model import value_head
from finetune_trainer.training import logprobs

HEAD_OUTPUTS = ("log_probs", "entropy")
"""What the policy's fused head computes."""


class PolicyOutputs(NamedTuple):
    """Each is [tokens of all answers], row after row, in fp32."""

    log_probs: torch.Tensor
    """Log-probability of each token."""
    values: torch.Tensor | None
    """Value of the state before each token; None without a value head."""
    entropy: torch.Tensor | None
    """Entropy of the distribution of each token; None for the reference on GPUs."""


def forward(model: nn.Module, batch: Batch) -> PolicyOutputs:
    """``batch``: tokens of answers have labels. ``model`` may be wrapped."""
    output = logprobs.score(model, batch, HEAD_OUTPUTS)
    has_label = batch["labels"][:, 1:] != IGNORED

    def of_answers(values: torch.Tensor | None) -> torch.Tensor | None:
        if values is None:
            return None
        # On CPUs the head computes these positions alone: [1, tokens]. On GPUs it computes all: [1, T-1].
        return (values[0] if values.device.type == "cpu" else values[has_label]).float()

    log_probs = of_answers(output["log_probs"])
    assert log_probs is not None
    return PolicyOutputs(log_probs, of_answers(output.get(value_head.VALUES)), of_answers(output.get("entropy")))


def disable_dropout(model: nn.Module) -> None:
    """With dropout, the ratio of new to old probabilities would not be 1 before the first update."""
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, float) and (name == "p" or "drop" in name):
                setattr(module, name, 0.0)
