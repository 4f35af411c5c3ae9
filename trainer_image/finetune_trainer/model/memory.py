"""What one GPU has to hold, before there is one.

Called by ``prepare``. The model is built without weights (on torch's meta device) by the same functions that build the
real one, so what is kept of it is certain: weights, gradients, optimizer and adapters, to 1 % of real tensors by test.
Activations and logits are estimated, as docs/models.md says, too. Only what is certain may refuse a job.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from finetune_api.training import TrainingSpec
from finetune_api.tuning import LoraSpec, QuantizationSpec, TuningSpec
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from finetune_trainer.model import adapters, freeze, vocabulary
from finetune_trainer.model.base import Precision

MOMENTS = 2
"""AdamW keeps two numbers per trained weight, in the weight's own type."""
BLOCK, NESTED_BLOCK = 64, 256
"""bitsandbytes: weights that share a scale, and scales that share one of their own."""
NF4_CODE, NESTED_CODE = 16 * 4, 256 * 4
"""Its tables of values, one per layer."""
HEAD_TILE = 512
"""Positions that the fused head scores at once, each against the whole vocabulary."""
CONTEXT = 1 << 30
"""CUDA's context, cuBLAS workspaces and what the allocator can't use: about so much, whatever the model."""
HEADROOM = 0.95
"""Share of a GPU's memory that a proposal fills."""


@dataclass(frozen=True)
class Estimate:
    """Bytes on one GPU at the peak of a step."""

    weights: int
    """The model as it is loaded, frozen or trained."""
    gradients: int
    optimizer: int
    adapters: int
    """Weights that tuning adds: adapters, and the copies of modulesToSave."""
    activations: int
    logits: int

    @property
    def certain(self) -> int:
        """What is there at every step, whatever the rows are."""
        return self.weights + self.gradients + self.optimizer + self.adapters

    @property
    def total(self) -> int:
        """With what is only estimated."""
        return self.certain + self.activations + self.logits


def estimate(
    config: Any,
    tuning: TuningSpec,
    training: TrainingSpec,
    *,
    vocab_extra: int = 0,
    precision: Precision,
    length: int,
    micro_batch: int,
    shares: int = 1,
) -> Estimate:
    """For a model of this config. ``vocab_extra`` is the number of tokens that the job adds to its vocabulary,
    ``length`` that of the longest row, ``shares`` the number of GPUs that weights, gradients and optimizer are shared
    out to."""
    model = without_weights(config, tuning, precision, vocab_extra)
    frozen_type = 4 if precision == "fp32" else 2
    trained_type = 2 if precision == "pureBf16" else 4
    quantised = set(_quantised(model, tuning))
    weights = added = trained = 0
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            trained += weight.numel()
        if "lora_" in name or ".modules_to_save." in name:
            added += weight.numel() * trained_type
        elif name in quantised:
            weights += _packed(weight, tuning.quantization or QuantizationSpec())
        else:
            weights += weight.numel() * (trained_type if weight.requires_grad else frozen_type)
    computed_in = 4 if precision == "fp32" else 2
    activations = _activations(model, training, computed_in, trained_type, length * micro_batch)
    return Estimate(
        weights=weights // shares + _buffers(model),
        gradients=trained * trained_type // shares,
        optimizer=trained * trained_type * MOMENTS // shares,
        adapters=added // shares,
        activations=activations + (_gathered(model, computed_in) if shares > 1 else 0),
        logits=_logits(model, length * micro_batch, computed_in),
    )


def propose(
    config: Any,
    tuning: TuningSpec,
    training: TrainingSpec,
    gpu_bytes: int,
    *,
    vocab_extra: int = 0,
    precision: Precision,
    length: int,
    limit: int,
    shares: int = 1,
) -> int | None:
    """The largest divisor of ``limit`` (a GPU's share of the global batch) that should fit; None: not even 1 does."""
    one, two = (
        estimate(
            config,
            tuning,
            training,
            vocab_extra=vocab_extra,
            precision=precision,
            length=length,
            micro_batch=rows,
            shares=shares,
        )
        for rows in (1, 2)
    )
    per_row = max(1, two.activations - one.activations)
    room = HEADROOM * gpu_bytes - CONTEXT - one.certain - two.logits - (one.activations - per_row)
    fitting = [rows for rows in range(1, limit + 1) if limit % rows == 0 and rows * per_row <= room]
    return max(fitting, default=None)


def plain(config: Any) -> PreTrainedModel:
    """The base on the meta device."""
    with torch.device("meta"):
        make: Any = AutoModelForCausalLM.from_config
        # A config of a type that transformers doesn't know has been read by the model's own code, so that may run.
        own = type(config) not in AutoModelForCausalLM._model_mapping
        model: PreTrainedModel = make(config, dtype=torch.float32, trust_remote_code=own)
    return model


def without_weights(config: Any, tuning: TuningSpec, precision: Precision, vocab_extra: int = 0) -> Any:
    """The job's model, its trained weights marked, on the meta device: shapes and no memory."""
    model = plain(config)
    with torch.device("meta"):
        if vocab_extra:
            rows: Any = model.get_input_embeddings()
            model.resize_token_embeddings(rows.weight.shape[0] + vocab_extra, mean_resizing=False)
        new = list(vocabulary.embeddings(model)) if vocab_extra else []
        if tuning.method in ("lora", "qlora"):
            lora = tuning.lora or LoraSpec()
            adapters.refuse_pairs(lora)
            tuned: Any = adapters.add(model, lora.model_copy(update={"dora": False}), 0, new)
            if lora.dora:
                _add_magnitudes(tuned)
        else:
            tuned = adapters.apply(model, tuning, 0)
            for layer in vocabulary.embeddings(model).values() if new else ():
                layer.requires_grad_(True)
    adapters.cast_trainable(tuned, precision)
    return tuned


def _add_magnitudes(tuned: nn.Module) -> None:
    """DoRA's vector beside each adapter, which peft can make only of weights that are there: one number per output."""
    for module in list(tuned.modules()):
        vectors, adapter = getattr(module, "lora_magnitude_vector", None), getattr(module, "lora_B", None)
        if isinstance(vectors, nn.ModuleDict) and isinstance(adapter, nn.ModuleDict):
            for name, made in adapter.items():
                vector: Any = nn.Module()
                vector.weight = nn.Parameter(torch.empty(int(made.out_features), device="meta"))  # type: ignore[arg-type]
                vectors[name] = vector


def _quantised(model: Any, tuning: TuningSpec) -> Iterator[str]:
    """Names of the weights that bitsandbytes packs: of all linear layers but the head."""
    if tuning.method != "qlora":
        return
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        inner = ("lora_", "modules_to_save", "original_module")
        if isinstance(module, nn.Linear) and module is not head and not any(part in name for part in inner):
            yield f"{name}.weight"


def _packed(weight: torch.Tensor, spec: QuantizationSpec) -> int:
    """Bytes of one quantised weight with its scales."""
    if spec.bits == 8:
        return weight.numel() + 4 * weight.shape[0]
    blocks = math.ceil(weight.numel() / BLOCK)
    size = math.ceil(weight.numel() / 2) + NF4_CODE
    if not spec.double_quantization:
        return size + 4 * blocks
    return size + blocks + 4 * math.ceil(blocks / NESTED_BLOCK) + NESTED_CODE + 4


def _buffers(model: nn.Module) -> int:
    return sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())


def _gathered(model: Any, width: int) -> int:
    """What is whole at a time where ranks hold shares: a layer and the next one that is fetched meanwhile, embeddings
    and head, and the gradients of as much."""
    layers = freeze.find_layers(model)[1]
    largest = max(sum(weight.numel() for weight in layer.parameters()) for layer in layers)
    inside = {id(weight) for weight in layers.parameters()}
    outside = sum(weight.numel() for weight in model.parameters() if id(weight) not in inside)
    return int(2 * width * (2 * largest + outside))


def _activations(model: Any, training: TrainingSpec, width: int, trained_width: int, tokens: int) -> int:
    """What the backward pass needs of the forward pass.

    A linear layer keeps its input, in the type that it computes in; layers that share an input (q, k, v; gate, up) keep
    it once. An adapter keeps a copy of its input in its own type, and its rank. What lies between - norms in fp32,
    attention, the gate - is about as much again. With recomputation only one layer is there at a time, besides the
    inputs of all.
    """
    text = model.config.get_text_config()
    layers, hidden = text.num_hidden_layers, text.hidden_size
    keys = ("q_proj", "o_proj", "gate_proj", "down_proj", "qkv_proj", "c_attn", "c_proj", "c_fc", "gate_up_proj")
    linear = {}
    lora = 0
    for name, module in model.named_modules():
        last = name.removesuffix(".base_layer").rpartition(".")[2]
        if isinstance(module, nn.Linear) and ".layers.0." in f".{name}." and "lora_" not in name:
            linear[last] = module
        if ".layers.0." in f".{name}." and isinstance(module, nn.Linear) and ".lora_A." in f".{name}.":
            lora += module.in_features * (trained_width if trained_width != width else 0) + 4 * module.out_features
    inputs = sum(module.in_features for last, module in linear.items() if last in keys) or 4 * hidden
    outputs = sum(module.out_features for module in linear.values()) or 6 * hidden
    norms = 2 * (4 + width) * hidden
    layer = (inputs + outputs) * width + lora + norms
    # Coming back through a layer, the gradients of its widest part are there, too.
    back = 2 * width * max((module.out_features for module in linear.values()), default=4 * hidden)
    kept = layers * hidden * width + layer if training.gradient_checkpointing else layers * layer
    return int(tokens * (kept + back))


def _logits(model: Any, tokens: int, width: int) -> int:
    """The head scores a tile of positions at a time: logits and their gradient; and the hidden states' gradient."""
    text = model.config.get_text_config()
    return int(2 * min(tokens, HEAD_TILE) * text.vocab_size * 4 + tokens * text.hidden_size * (4 + width))
