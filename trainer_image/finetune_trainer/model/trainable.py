"""Which weights of a loaded model are trained, and in which number type: what all tuning methods share.

Called by `build`, by the memory estimate, and by the trainer. Trained weights are fp32, because bf16 loses small
updates, unless the job asks for pureBf16.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from finetune_api.tuning import FreezeSpec, LoraSpec, TuningSpec
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from finetune_trainer.model import freeze, lora_adapter, reward_head
from finetune_trainer.model.base import COMPUTED_IN, MIXED, Precision
from finetune_trainer.model.scalar_head import ScalarHead


def load_dtype(method: str, precision: Precision) -> torch.dtype:
    """The number type in which the base is loaded: fp32 for trained weights, and for frozen weights the smallest
    type that the job's precision allows.

    Method freeze trains a part of the loaded weights. `cast_frozen` casts the others later.
    """
    if precision in MIXED and method in ("full", "freeze"):
        return torch.float32
    return COMPUTED_IN[precision]


def apply(model: PreTrainedModel, tuning: TuningSpec, seed: int) -> PreTrainedModel | PeftModel:
    """The model with its trainable weights marked. Fresh weights are drawn from the seed."""
    if tuning.method == "full":
        model.requires_grad_(True)
        return model
    if tuning.method == "freeze":
        freeze.apply(model, tuning.freeze or FreezeSpec())
        if reward_head.is_reward_model(model):
            model.get_submodule(reward_head.NAME).requires_grad_(True)
        return model
    return lora_adapter.add(model, tuning.lora or LoraSpec(), seed)


def cast_trainable(model: nn.Module, precision: Precision) -> None:
    """Give every trained weight its number type, whichever type TRL, peft or a resumed checkpoint gave it."""
    dtype = torch.bfloat16 if precision == "pureBf16" else torch.float32
    for weight in model.parameters():
        if weight.requires_grad and weight.dtype != dtype:
            weight.data = weight.data.to(dtype)


def cast_frozen(model: nn.Module, precision: Precision) -> None:
    """For method freeze in bf16 or fp16: trained weights stay fp32, frozen weights take half the memory."""
    for weight in model.parameters():
        if not weight.requires_grad:
            weight.data = weight.data.to(COMPUTED_IN[precision])


def linear_layers(model: Any) -> Iterator[tuple[str, nn.Linear]]:
    """(name, layer) of all linear layers except a language model's head, whose weights are read without calling it, and
    scalar heads, which compute in fp32."""
    lm_head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not lm_head and not isinstance(module, ScalarHead):
            yield name, module


def autocast_weights(model: Any) -> Iterator[nn.Parameter]:
    """The weights that autocast casts to 16 bit in each forward pass, whichever type they are stored in."""
    for _, layer in linear_layers(model):
        yield from layer.parameters(recurse=False)


def count_weights(model: nn.Module) -> tuple[int, int]:
    """(trained, all). 4 bit weights are packed, two in a byte; their quantization state knows their shape."""
    sizes = [
        (math.prod(state.shape) if (state := getattr(weight, "quant_state", None)) else weight.numel(), weight)
        for weight in model.parameters()
    ]
    return sum(size for size, weight in sizes if weight.requires_grad), sum(size for size, _ in sizes)
