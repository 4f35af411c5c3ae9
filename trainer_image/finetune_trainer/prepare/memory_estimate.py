"""The memory that a GPU needs, computed without a GPU.

The model is built without weights (on torch's meta device) by the functions that build the real model, so weights,
gradients, optimizer and adapters are certain; tests hold them to 1 % of real tensors. Activations and logits are
estimates (docs/models.md). Only what is certain may fail a job: see `memory_check`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from finetune_api.micro_batch import MicroBatch, first_micro_batch
from finetune_api.training import TrainingSpec
from finetune_api.tuning import QuantizationSpec, TuningSpec
from torch import nn
from transformers import PretrainedConfig

from finetune_trainer.model import freeze, recomputation, trainable, value_head
from finetune_trainer.model.base import MIXED, Kind, Precision
from finetune_trainer.model.optimizer import embedding_weights, state_bytes
from finetune_trainer.prepare import saved_activations
from finetune_trainer.prepare.footprint import Footprint
from finetune_trainer.prepare.model_without_weights import base_without_weights, tuned_without_weights

BLOCK, NESTED_BLOCK = 64, 256
"""bitsandbytes: weights that share a scale, and scales that share a scale of the second level."""
NF4_CODE, NESTED_CODE = 16 * 4, 256 * 4
"""bitsandbytes: bytes of the value tables, per layer."""
HEAD_TILE = (4096, 32_768)
"""Positions, and tokens of the vocabulary, of a tile of TRL's fused head. A test compares them with TRL's, whose import
takes a second."""
WIDE_GRADIENTS = 3
"""Gradients as wide as the widest part of a layer that exist at once: of a gated product, and of its two factors."""


@dataclass(frozen=True)
class StageRequirements:
    """What a stage needs besides a model and its rows. The defaults are those of pt and sft."""

    kind: Kind = "causal"
    rows: int = 1
    """Rows in a forward pass per sample of a micro-batch: 2 for pairs."""
    copy: bool = False
    """Whether a frozen copy of what is trained is kept."""
    reference: int = 0
    """Bytes of another model as the reference, sharded as the model is."""
    reference_precomputed: bool = False
    """Whether the reference is released before the first step: it may use the space of gradients and optimizer."""
    reward: int = 0
    """Bytes of a reward model, which is not sharded."""
    critic: bool = False
    answers: tuple[int, int] = (0, 0)
    """(answers generated at once, tokens of each with its prompt)."""


NO_REQUIREMENTS = StageRequirements()


@dataclass(frozen=True)
class Masks:
    """Bytes that attention needs for each pair of positions of a row, if it reads a mask."""

    once: int = 0
    """The mask itself, for all layers."""
    layer: int = 0
    """Kept by each layer: the mask in the number type of the scores, or the scores themselves."""


NO_MASKS = Masks()


def masks_of(implementation: str, config: PretrainedConfig, precision: Precision) -> Masks:
    """The masks of an implementation of attention that is not flash attention."""
    width = 4 if precision == "fp32" else 2
    if implementation == "eager":  # the softmax in fp32, and in the type of the values
        return Masks(once=width, layer=(4 + width) * config.get_text_config().num_attention_heads)
    return Masks(once=1, layer=width)


def footprint(
    config: PretrainedConfig,
    tuning: TuningSpec,
    training: TrainingSpec,
    *,
    vocab_extra: int = 0,
    precision: Precision,
    length: int,
    ranks: int = 1,
    masks: Masks = NO_MASKS,
    requirements: StageRequirements = NO_REQUIREMENTS,
) -> Footprint:
    """For a model of this config. ``vocab_extra``: tokens that the job adds to the vocabulary; ``length``: tokens of
    the longest row; ``ranks``: GPUs that train together; ``masks``: what attention needs for each pair of positions."""
    model = tuned_without_weights(config, tuning, precision, vocab_extra, requirements.kind)
    if requirements.critic:
        value_head.add(model)
    shards = ranks if training.parallelism == "fsdp" else 1
    sizes = _weights(model, tuning, training, precision)
    computed_in = 4 if precision == "fp32" else 2
    saved = saved_activations.of_model(
        model,
        trained_width=sizes.trained_width,
        frozen_width=computed_in,
        autocast=precision in MIXED,
        repeated_keys=masks.layer > 0,
    )
    released = (sizes.gradients + sizes.optimizer) if requirements.reference_precomputed else 0
    reference = max(0, requirements.reference + (sizes.copied if requirements.copy else 0) - released)
    exchanged = sizes.gradients if ranks > 1 else 0  # DDP's buckets
    samples = (first_micro_batch(training) or MicroBatch(1)).rows(requirements.rows * length)
    return Footprint(
        weights=sizes.weights // shards + _buffers(model),
        gradients=sizes.gradients // shards,
        optimizer=sizes.optimizer // shards,
        adapters=sizes.added // shards,
        reference=reference // shards,
        reward=requirements.reward,
        exchange=_gathered(model, computed_in) if shards > 1 else exchanged,
        casts=sizes.casts if shards == 1 else 0,  # shards are gathered in bf16
        length=length,
        rows=requirements.rows,
        share=max(1, training.global_batch_size // ranks),
        layers=len(freeze.find_layers(model)[1]),
        recomputable=recomputation.of_model(model),
        layer=saved.layer + _kept_by_dora(model, tuning, computed_in),
        layer_input=saved.layer_input,
        outside=saved.outside,
        working=WIDE_GRADIENTS * saved.widest + 2 * saved.layer_input,
        mask=masks.once,
        layer_mask=masks.layer,
        generation=_generation(model, *requirements.answers, computed_in) // samples,
        **_head(model, saved.layer_input, computed_in),
    )


@dataclass(frozen=True)
class _Weights:
    """Bytes of all weights, before they are sharded."""

    trained_width: int
    weights: int = 0
    added: int = 0
    gradients: int = 0
    optimizer: int = 0
    copied: int = 0
    """A frozen copy of what is trained."""
    casts: int = 0


def _weights(model: Any, tuning: TuningSpec, training: TrainingSpec, precision: Precision) -> _Weights:
    frozen_type = 4 if precision == "fp32" else 2
    trained_type = 2 if precision == "pureBf16" else 4
    quantized = set(_quantized_weights(model, tuning))
    exact = set(map(id, embedding_weights(model)))
    computed_in_bf16 = set(map(id, trainable.autocast_weights(model))) if precision in MIXED else set()
    halved = computed_in_bf16 if _copy_is_rounded(tuning, precision) else set()
    weights = added = trained = copied = optimizer = casts = 0
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            trained += weight.numel()
            copied += weight.numel() * (2 if id(weight) in halved else trained_type)
            optimizer += state_bytes(training.optimizer, weight, trained_type, exact=id(weight) in exact)
            casts += 2 * weight.numel() if id(weight) in computed_in_bf16 else 0
        if "lora_" in name or ".modules_to_save." in name:
            added += weight.numel() * trained_type
        elif name in quantized:
            weights += _quantized_bytes(weight, tuning.quantization or QuantizationSpec())
        else:
            weights += weight.numel() * (trained_type if weight.requires_grad else frozen_type)
    return _Weights(trained_type, weights, added, trained * trained_type, optimizer, copied, casts)


def frozen_model_bytes(
    config: PretrainedConfig, tuning: TuningSpec, precision: Precision, kind: Kind = "causal"
) -> int:
    """Bytes of another model that is not trained, in the number type of the job's own base, quantized if ``tuning``
    quantizes."""
    model = base_without_weights(config, kind)
    width = 4 if precision == "fp32" else 2
    quantized = set(_quantized_weights(model, tuning))
    spec = tuning.quantization or QuantizationSpec()
    sizes = (
        _quantized_bytes(weight, spec) if name in quantized else weight.numel() * width
        for name, weight in model.named_parameters()
    )
    return sum(sizes) + _buffers(model)


def _quantized_weights(model: Any, tuning: TuningSpec) -> Iterator[str]:
    """Names of the weights that bitsandbytes quantizes: those of all linear layers except the head."""
    if tuning.method != "qlora":
        return
    inner = ("lora_", "modules_to_save", "original_module")
    for name, _ in trainable.linear_layers(model):
        if not any(part in name for part in inner):
            yield f"{name}.weight"


def _copy_is_rounded(tuning: TuningSpec, precision: Precision) -> bool:
    """Whether the reference is a copy of whole layers with weights in 16 bit: see ``training.reference_model``."""
    return tuning.method in ("full", "freeze") and precision in MIXED


def _quantized_bytes(weight: torch.Tensor, spec: QuantizationSpec) -> int:
    """Bytes of a quantized weight with its scales."""
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
    """Bytes that are gathered at a time if ranks hold shards: a layer and the next layer, which is prefetched,
    embeddings and head, and the gradients of the same weights."""
    layers = freeze.find_layers(model)[1]
    largest = max(sum(weight.numel() for weight in layer.parameters()) for layer in layers)
    inside = {id(weight) for weight in layers.parameters()}
    outside = sum(weight.numel() for weight in model.parameters() if id(weight) not in inside)
    return int(2 * width * (2 * largest + outside))


def _kept_by_dora(model: Any, tuning: TuningSpec, width: int) -> int:
    """Bytes that DoRA keeps of each token in a layer besides: the output of each adapted layer, before it is scaled and
    with its scale. peft can't run it without weights."""
    if tuning.lora is None or not tuning.lora.dora:
        return 0
    layer = freeze.find_layers(model)[1][0]
    return sum(2 * width * module.out_features for name, module in layer.named_modules() if name.endswith("base_layer"))


def _head(model: Any, hidden_bytes: int, width: int) -> dict[str, int]:
    """What TRL's fused head needs: a tile of logits, a part of the head's weights in the type in which it computes, the
    hidden states of the trained positions with their gradients (in fp32, in their own type, and in their place among
    all positions), and the gradient of the head in fp32. A reward head needs next to nothing."""
    text, lm_head = model.config.get_text_config(), model.get_output_embeddings()
    head = 4 * text.hidden_size + 3 * hidden_bytes
    if lm_head is None:
        return {"head": head, "tile": 0, "tile_positions": 0, "head_weights": 0}
    positions, vocabulary = HEAD_TILE
    weight = lm_head.weight
    part = min(vocabulary, weight.shape[0]) * weight.shape[1] * width
    trained = 4 * weight.numel() if weight.requires_grad else 0
    return {"head": head, "tile": vocabulary * width, "tile_positions": positions, "head_weights": part + trained}


def _generation(model: Any, rows: int, length: int, width: int) -> int:
    """Bytes of keys and values of all layers for each token of prompts and answers, whose buffers grow by copying; and
    of the logits of the next token, from which it is sampled."""
    text = model.config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    cache = 2 * text.num_hidden_layers * heads * size * width * rows * length
    return int(cache * (1 + 1 / text.num_hidden_layers) + 3 * 4 * rows * text.vocab_size)
