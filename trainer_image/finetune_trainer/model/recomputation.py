"""Which layers of a model run again in the backward pass (activation checkpointing).

transformers recomputes all layers, or each n-th from the first. The layers between can be chosen singly, because each
has a switch of its own. What is recomputed has the same values, so results do not depend on it.
"""

from collections.abc import Callable
from typing import Any, Literal

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from finetune_trainer.model import freeze

KWARGS = {"use_reentrant": False}
"""Of torch's `checkpoint`."""


def of_model(model: Any) -> Literal["none", "all", "each"]:
    """The layers that the model's code can recompute: none, all at once, or any."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not getattr(base, "supports_gradient_checkpointing", False):
        return "none"
    layers = freeze.find_layers(base)[1]
    return "each" if all(isinstance(layer, GradientCheckpointingLayer) for layer in layers) else "all"


def keep_others(model: nn.Module, includes: Callable[[int], bool]) -> None:
    """In a model that recomputes all layers: keep the activations of those that are not to be recomputed."""
    for number, layer in enumerate(freeze.find_layers(model)[1]):
        if isinstance(layer, GradientCheckpointingLayer) and not includes(number):
            layer.gradient_checkpointing = False
