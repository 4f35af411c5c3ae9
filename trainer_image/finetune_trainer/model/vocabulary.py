"""New tokens: rows that the base model's embeddings do not have yet.

Called wherever a model meets a tokenizer with new tokens. A new row starts as the mean of the others, so it is neither
dominant nor random, and the same base always grows in the same way.
"""

from typing import Any

import torch
from finetune_api.model import ModelSettings
from transformers import PreTrainedModel


def grow(model: PreTrainedModel, size: int) -> bool:
    """Make room for ``size`` tokens. Returns whether the embeddings changed: a larger vocabulary stays as it is."""
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
    """Last part of the name -> the input embedding, and the output embedding if it has weights of its own."""
    inputs: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return {
        name.rpartition(".")[2]: module
        for name, module in model.named_modules()
        if module is inputs or (module is head and head.weight is not inputs.weight)
    }


def adds_tokens(model: ModelSettings) -> bool:
    """Whether the job adds tokens, whose embeddings are then trained."""
    return bool(model.new_tokens or model.new_special_tokens)
