"""The models of a job without weights, on torch's meta device, built by the functions that build the real models.

`model_check` finds errors in names of layers with them, and `memory_estimate` counts their weights.
"""

import copy
from typing import Any

import torch
from finetune_api.tuning import LoraSpec, TuningSpec
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from finetune_trainer.model import lora_adapter, reward_head, trainable, vocabulary
from finetune_trainer.model.base import AUTO, Kind, Precision


def base_without_weights(config: PretrainedConfig, kind: Kind = "causal") -> PreTrainedModel:
    """The base model on the meta device."""
    auto = AUTO[kind]
    with torch.device("meta"):
        # The model's own code has read a config of a type that transformers does not know, so that code may run.
        own = type(config) not in auto._model_mapping
        if kind == "reward":
            config = copy.deepcopy(config)
            config.num_labels = 1
        model: PreTrainedModel = auto.from_config(config, dtype=torch.float32, trust_remote_code=own)
        if kind == "reward":
            reward_head.install(model)
    return model


def tuned_without_weights(
    config: PretrainedConfig, tuning: TuningSpec, precision: Precision, vocab_extra: int = 0, kind: Kind = "causal"
) -> Any:
    """The job's model on the meta device, which uses no memory, with its trained weights marked."""
    model = base_without_weights(config, kind)
    with torch.device("meta"):
        if vocab_extra:
            rows: Any = model.get_input_embeddings()
            model.resize_token_embeddings(rows.weight.shape[0] + vocab_extra, mean_resizing=False)
        new = list(vocabulary.embeddings(model)) if vocab_extra else []
        if tuning.method in ("lora", "qlora"):
            lora = tuning.lora or LoraSpec()
            lora_adapter.refuse_conflicts(lora)
            tuned: Any = lora_adapter.add(model, lora.model_copy(update={"dora": False}), 0, new)
            if lora.dora:
                _add_magnitudes(tuned)
        else:
            tuned = trainable.apply(model, tuning, 0)
            for layer in vocabulary.embeddings(model).values() if new else ():
                layer.requires_grad_(True)
    trainable.cast_trainable(tuned, precision)
    return tuned


def _add_magnitudes(tuned: nn.Module) -> None:
    """Add DoRA's vector to each adapter, a number per output. peft can create it from real weights only."""
    for module in list(tuned.modules()):
        vectors, adapter = getattr(module, "lora_magnitude_vector", None), getattr(module, "lora_B", None)
        if isinstance(vectors, nn.ModuleDict) and isinstance(adapter, nn.ModuleDict):
            for name, lora_b in adapter.items():
                vector: Any = nn.Module()
                vector.weight = nn.Parameter(torch.empty(int(lora_b.out_features), device="meta"))  # type: ignore[arg-type]
                vectors[name] = vector
