"""What one GPU has to hold, before there is one.

Called by ``prepare``. The model is built without weights (on torch's meta device) by the same functions that build the
real one, so what is kept of it is certain: weights, gradients, optimizer and adapters, to 1 % of real tensors by test.
Activations and logits are estimated, as docs/models.md says, too. Only what is certain may refuse a job.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from finetune_api.training import TrainingSpec
from finetune_api.tuning import LoraSpec, QuantizationSpec, TuningSpec
from torch import nn
from transformers import PreTrainedModel

from finetune_trainer.model import adapters, freeze, score, value_head, vocabulary
from finetune_trainer.model.base import AUTO, Kind, Precision
from finetune_trainer.model.optimizer import embeddings, state_bytes

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
    reference: int
    """What is compared with: a copy of what is trained, or another model."""
    reward: int
    activations: int
    logits: int
    generation: int
    """The cache of answers that are being written, which is when nothing is trained."""

    @property
    def certain(self) -> int:
        """What is there at every step, whatever the rows are."""
        return self.weights + self.gradients + self.optimizer + self.adapters + self.reference + self.reward

    @property
    def total(self) -> int:
        """With what is only estimated."""
        return self.certain + max(self.activations + self.logits, self.generation)


@dataclass(frozen=True)
class Demands:
    """What a stage needs besides a model and rows to train it on. Unset: nothing, as pt and sft."""

    kind: Kind = "causal"
    rows: int = 1
    """That share a forward pass for each item of a micro-batch: the two of a pair."""
    copy: bool = False
    """A frozen copy of what is trained is kept."""
    reference: int = 0
    """Bytes of another model that is compared with, shared out as the model is."""
    passing: bool = False
    """It is gone before the first step: there is room for it where gradients and optimizer will be."""
    reward: int = 0
    """Bytes of a reward model, which each GPU holds whole."""
    critic: bool = False
    answers: tuple[int, int] = (0, 0)
    """So many are written at once, with so many tokens each, their prompts included."""


NOTHING_MORE = Demands()


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
    demands: Demands = NOTHING_MORE,
) -> Estimate:
    """For a model of this config. ``vocab_extra`` is the number of tokens that the job adds to its vocabulary,
    ``length`` that of the longest row, ``shares`` the number of GPUs that weights, gradients and optimizer are shared
    out to."""
    model = without_weights(config, tuning, precision, vocab_extra, demands.kind)
    if demands.critic:
        value_head.add(model)
    frozen_type = 4 if precision == "fp32" else 2
    trained_type = 2 if precision == "pureBf16" else 4
    quantised = set(_quantised(model, tuning))
    exact = set(map(id, embeddings(model)))
    halved = set(map(id, adapters.rounded_weights(model))) if _copies_whole(tuning, precision) else set()
    weights = added = trained = copied = optimizer = 0
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            trained += weight.numel()
            copied += weight.numel() * (2 if id(weight) in halved else trained_type)
            optimizer += state_bytes(training.optimizer, weight, trained_type, exact=id(weight) in exact)
        if "lora_" in name or ".modules_to_save." in name:
            added += weight.numel() * trained_type
        elif name in quantised:
            weights += _packed(weight, tuning.quantization or QuantizationSpec())
        else:
            weights += weight.numel() * (trained_type if weight.requires_grad else frozen_type)
    computed_in = 4 if precision == "fp32" else 2
    tokens = length * micro_batch * demands.rows
    activations = _activations(model, training, computed_in, trained_type, tokens)
    later = (trained * trained_type + optimizer) if demands.passing else 0
    reference = max(0, demands.reference + (copied if demands.copy else 0) - later)
    return Estimate(
        weights=weights // shares + _buffers(model),
        gradients=trained * trained_type // shares,
        optimizer=optimizer // shares,
        adapters=added // shares,
        reference=reference // shares,
        reward=demands.reward,
        activations=activations + (_gathered(model, computed_in) if shares > 1 else 0),
        logits=_logits(model, tokens, computed_in),
        generation=_generation(model, *demands.answers, computed_in),
    )


def propose(
    config: Any,
    tuning: TuningSpec,
    training: TrainingSpec,
    gpu_bytes: int,
    *,
    limit: int,
    **settings: Any,
) -> int | None:
    """The largest divisor of ``limit`` (a GPU's share of the global batch) that should fit; None: not even 1 does.
    ``settings`` are those of `estimate`."""
    one, two = (estimate(config, tuning, training, micro_batch=rows, **settings) for rows in (1, 2))
    per_row = max(1, two.activations - one.activations)
    room = HEADROOM * gpu_bytes - CONTEXT - one.certain - two.logits - (one.activations - per_row)
    fitting = [rows for rows in range(1, limit + 1) if limit % rows == 0 and rows * per_row <= room]
    return max(fitting, default=None)


def frozen(config: Any, tuning: TuningSpec, precision: Precision, kind: Kind = "causal") -> int:
    """Bytes of another model that is only asked: as small as the job's own base, and quantised where that is and
    ``tuning`` says so."""
    model = plain(config, kind)
    width = 4 if precision == "fp32" else 2
    quantised = set(_quantised(model, tuning))
    spec = tuning.quantization or QuantizationSpec()
    sizes = (
        _packed(weight, spec) if name in quantised else weight.numel() * width
        for name, weight in model.named_parameters()
    )
    return sum(sizes) + _buffers(model)


def plain(config: Any, kind: Kind = "causal") -> PreTrainedModel:
    """The base on the meta device."""
    auto = AUTO[kind]
    with torch.device("meta"):
        # A config of a type that transformers doesn't know has been read by the model's own code, so that may run.
        own = type(config) not in auto._model_mapping
        if kind == "reward":
            config = copy.deepcopy(config)
            config.num_labels = 1
        model: PreTrainedModel = auto.from_config(config, dtype=torch.float32, trust_remote_code=own)
        if kind == "reward":
            score.exact(model)
    return model


def without_weights(
    config: Any, tuning: TuningSpec, precision: Precision, vocab_extra: int = 0, kind: Kind = "causal"
) -> Any:
    """The job's model, its trained weights marked, on the meta device: shapes and no memory."""
    model = plain(config, kind)
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
    inner = ("lora_", "modules_to_save", "original_module")
    for name, _ in adapters.linear_layers(model):
        if not any(part in name for part in inner):
            yield f"{name}.weight"


def _copies_whole(tuning: TuningSpec, precision: Precision) -> bool:
    """Whether a copy of what is trained is one of whole layers, and smaller: `stages.reference`."""
    return tuning.method in ("full", "freeze") and precision == "bf16"


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
    scored = 0 if model.get_output_embeddings() is None else 2 * min(tokens, HEAD_TILE) * text.vocab_size * 4
    return int(scored + tokens * text.hidden_size * (4 + width))


def _generation(model: Any, rows: int, length: int, width: int) -> int:
    """Keys and values of all layers for each token of the answers and their prompts, which grow by copying; and the
    logits of the next token, with what is drawn from them."""
    text = model.config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    cache = 2 * text.num_hidden_layers * heads * size * width * rows * length
    return int(cache * (1 + 1 / text.num_hidden_layers) + 3 * 4 * rows * text.vocab_size)
