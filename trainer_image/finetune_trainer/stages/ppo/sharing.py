"""Weights that the reward model has in common with the policy are there once: where both go on one base, all but their
adapters and the head.

Called by `reward` once the policy is where it computes. What is shared is equal to the last bit and frozen in both, so
scores are what they were.
"""

from typing import Any

import torch
from torch import nn


def place(model: nn.Module, device: torch.device, policy: nn.Module) -> int:
    """The model's weights on the device, one by one, so that what is there already never needs room twice. Returns
    the bytes that it has in common with the policy."""
    frozen = {_plain(name): weight for name, weight in policy.named_parameters() if not weight.requires_grad}
    shared = 0
    for name, weight in model.named_parameters():
        moved, there = weight.data.to(device), frozen.get(_plain(name))
        if there is not None and _equal(there.data, moved):
            moved = there.data
            shared += moved.numel() * moved.element_size()
        weight.data = moved
    return shared


def _plain(name: str) -> str:
    """A weight's name without what peft has put around its layer."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def _equal(one: Any, other: torch.Tensor) -> bool:
    alike = one.device == other.device and one.dtype == other.dtype and one.shape == other.shape
    return alike and torch.equal(one, other)
