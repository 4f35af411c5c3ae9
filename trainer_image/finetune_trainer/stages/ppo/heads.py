"""What policy and critic say of given answers: one forward pass, never the logits of all positions.

Used by the trainer, before and while it learns, so that what nothing was learned from yet is the same in both.
"""

from typing import Any, NamedTuple

import torch
from torch import nn

from finetune_trainer.data.row import IGNORED
from finetune_trainer.model import value_head
from finetune_trainer.stages import logprobs
from finetune_trainer.stages.engine import Batch

OUTPUTS = ("log_probs", "entropy")
"""Of the fused head."""


class Said(NamedTuple):
    """Of the tokens with labels: flat, row after row."""

    log_probs: torch.Tensor
    values: torch.Tensor | None
    """None of a model without a critic."""
    entropy: torch.Tensor | None
    """Of the distribution that each was drawn from."""


def say(model: Any, batch: Batch) -> Said:
    """``model`` may be wrapped. On CPUs, only the positions that are asked for are scored."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    labels = inputs["labels"]
    there = labels[:, 1:] != IGNORED
    reduced = labels.device.type == "cpu"
    if reduced:
        output = getattr(logprobs.bare(model), logprobs.POSITIONS).score(model, inputs, OUTPUTS)
    else:
        output = model(**inputs, use_cache=False, fused_lm_head=True)

    def flat(values: torch.Tensor | None) -> torch.Tensor | None:
        return None if values is None else (values[0] if reduced else values[there]).float()

    log_probs = flat(output.log_probs)
    assert log_probs is not None
    return Said(log_probs, flat(output.get(value_head.VALUES)), flat(output.get("entropy")))


def without_dropout(model: nn.Module) -> None:
    """The ratio of new to old probabilities is 1 before anything is learned only where nothing is left to chance."""
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, float) and (name == "p" or "drop" in name):
                setattr(module, name, 0.0)
