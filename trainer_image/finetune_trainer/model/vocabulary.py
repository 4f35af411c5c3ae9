"""New tokens: rows that the base model's embeddings don't have yet.

Called by `build`, `merge` and ``generate``. A new row starts as the mean of the others, so that it is neither loud nor
random: the same base always grows the same way.
"""

from typing import Any

import torch
from finetune_api.model import ModelSettings
from transformers import PreTrainedModel


def grow(model: PreTrainedModel, size: int) -> bool:
    """Make room for ``size`` tokens; a vocabulary padded beyond that stays as it is."""
    inputs: Any = model.get_input_embeddings()
    before = inputs.weight.shape[0]
    if size <= before:
        return False
    model.resize_token_embeddings(size, mean_resizing=False)
    with torch.no_grad():
        for layer in embeddings(model).values():
            weight = layer.weight
            weight[before:] = weight[:before].mean(0, dtype=torch.float32).to(weight.dtype)
    return True


def embeddings(model: PreTrainedModel) -> dict[str, Any]:
    """Last part of the name -> the input and, where it has weights of its own, the output embedding."""
    inputs: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    found = {}
    for name, module in model.named_modules():
        if module is inputs or (module is head and head.weight is not inputs.weight):
            found[name.rpartition(".")[2]] = module
    return found


def adds_tokens(model: ModelSettings) -> bool:
    """Whether the job adds words, whose embeddings are trained."""
    return bool(model.new_tokens or model.new_special_tokens)
