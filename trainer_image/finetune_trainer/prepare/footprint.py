"""The memory of one GPU as a function of the micro-batch and of the layers that are recomputed, and which to recompute.

`memory_estimate` finds the numbers of a job, PREPARED.json keeps them, and an attempt decides by them when it starts.
Arithmetic alone: neither torch nor a GPU is needed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

from finetune_api.micro_batch import MicroBatch
from finetune_api.training import Recompute

CONTEXT = 1 << 30
"""Bytes for CUDA's context, cuBLAS workspaces and fragmentation, for any model."""
HEADROOM = 0.95
"""Share of a GPU's memory that an estimate may fill."""
MARGIN = 1.15
"""What is estimated may be this much larger before a choice does not fit."""


@dataclass(frozen=True)
class Recomputation:
    """How many layers run again in the backward pass, because only their inputs were kept."""

    recomputed: int
    layers: int
    """All layers of the model."""

    def includes(self, layer: int) -> bool:
        """Whether this layer, counted from 0, is recomputed. The recomputed layers are spread evenly."""
        return (layer + 1) * self.recomputed // self.layers > layer * self.recomputed // self.layers

    def __str__(self) -> str:
        return {0: "none", self.layers: "all"}.get(self.recomputed, f"{self.recomputed} of {self.layers} layers")


@dataclass(frozen=True)
class Estimate:
    """Bytes on one GPU, for a micro-batch."""

    weights: int
    """The model as it is loaded, frozen or trained."""
    gradients: int
    optimizer: int
    adapters: int
    """Weights that tuning adds: adapters, and the copies of modulesToSave."""
    reference: int
    """The reference model: a copy of what is trained, or another model."""
    reward: int
    exchange: int
    """Buffers in which GPUs exchange gradients, or weights that are gathered from shards."""
    casts: int
    """bf16 copies of trained fp32 weights, which autocast keeps until the forward pass ends."""
    activations: int
    """Kept from the forward pass for the backward pass."""
    backward: int
    """While the backward pass is in one layer: what it recomputes, its gradients, and copies of weights."""
    logits: int
    """While the head computes: a tile of logits, and the gradients of what the head read."""
    generation: int
    """The key-value cache while answers are generated. No backward pass runs at that time."""
    accumulates: bool = True
    """Whether gradients of an earlier micro-batch exist while activations are kept."""

    @property
    def certain(self) -> int:
        """Bytes that every step needs, whatever its rows."""
        return self.weights + self.gradients + self.optimizer + self.adapters + self.reference + self.reward

    @property
    def estimated(self) -> int:
        """Bytes beyond what is certain, at the peak."""
        peak = max(self.activations + max(self.casts + self.logits, self.backward), self.generation)
        return self.exchange + max(0, peak - (0 if self.accumulates else self.gradients))

    @property
    def total(self) -> int:
        """Bytes at the peak of a step."""
        return self.certain + self.estimated

    def fits(self, gpu: int) -> bool:
        """Whether it should fit into a GPU of ``gpu`` bytes, with what CUDA needs, and if the estimate is a bit low."""
        return self.certain + MARGIN * self.estimated + CONTEXT <= HEADROOM * gpu


@dataclass(frozen=True)
class Footprint:
    """What decides the memory of a job besides its micro-batch and recomputation."""

    weights: int
    gradients: int
    optimizer: int
    adapters: int
    reference: int
    reward: int
    exchange: int
    casts: int
    length: int
    """Tokens of the longest row."""
    rows: int
    """Rows in a forward pass for each sample of a micro-batch: 2 for pairs."""
    share: int
    """Samples of a GPU in each step."""
    layers: int
    recomputable: Literal["none", "all", "each"]
    """The layers that the model's code can recompute: none, all at once, or any."""
    layer: int
    """Bytes that a layer keeps of each token."""
    layer_input: int
    """Bytes of a layer's input for each token."""
    outside: int
    """Bytes kept of each token before and after the layers."""
    working: int
    """Bytes of each token for the gradients inside a layer."""
    mask: int
    """Bytes of a mask for each pair of positions of a row."""
    layer_mask: int
    """Bytes that a layer keeps for each pair of positions."""
    head: int
    """Bytes of each token while the head computes."""
    tile: int
    """Bytes of logits for each position of a tile."""
    tile_positions: int
    head_weights: int
    """Bytes for weights of the head while it computes."""
    generation: int
    """Bytes of the cache of generated answers, for each sample of a micro-batch."""

    @classmethod
    def read(cls, content: Mapping[str, Any] | None) -> Self | None:
        """From PREPARED.json. None if it has none, or that of another release."""
        if content is None or set(content) != {field.name for field in fields(cls)}:
            return None
        return cls(**content)

    @property
    def sample(self) -> int:
        """Tokens of the longest sample."""
        return self.rows * self.length

    def at(self, micro_batch: MicroBatch, recomputation: Recomputation) -> Estimate:
        """The estimate for a micro-batch that is full of rows of the greatest length."""
        tokens = micro_batch.size * self.sample
        if micro_batch.unit == "tokens":  # the longest sample always has room, and more than a step does not exist
            tokens = min(max(micro_batch.size, self.sample), self.share * self.sample)
        pairs = tokens * self.length
        recomputed = recomputation.recomputed
        kept = self.layers - recomputed
        of_layer = tokens * self.layer + pairs * self.layer_mask
        of_inputs = tokens * (self.outside + recomputed * self.layer_input)
        casts = self.casts * (kept + bool(recomputed)) // max(1, self.layers)
        return Estimate(
            weights=self.weights,
            gradients=self.gradients,
            optimizer=self.optimizer,
            adapters=self.adapters,
            reference=self.reference,
            reward=self.reward,
            exchange=self.exchange,
            casts=self.casts,
            activations=kept * of_layer + of_inputs + pairs * self.mask,
            backward=(of_layer if recomputed else 0) + tokens * self.working + min(casts, self.casts),
            logits=tokens * self.head + min(tokens, self.tile_positions) * self.tile + self.head_weights,
            generation=tokens // self.sample * self.generation,
            accumulates=tokens < self.share * self.sample,
        )

    def recompute(self, layers: int) -> Recomputation:
        """The recomputation of so many layers."""
        return Recomputation(layers, self.layers)

    def choose(self, mode: Recompute, micro_batch: MicroBatch, gpu: int | None) -> Recomputation:
        """What ``training.recompute`` means for a micro-batch: for auto and layers, the fewest layers with which it
        fits into ``gpu`` bytes. None: unknown, where auto is all, and layers is half of them."""
        none, half, every = self.recompute(0), self.recompute(-(-self.layers // 2)), self.recompute(self.layers)
        if mode == "none" or self.recomputable == "none":
            return none
        if mode == "all" or (mode == "layers" and self.recomputable == "all"):
            return every
        if gpu is None:
            return half if mode == "layers" else every
        steps = (0, self.layers) if self.recomputable == "all" else range(mode == "layers", self.layers + 1)
        choices = map(self.recompute, steps)
        return next((choice for choice in choices if self.at(micro_batch, choice).fits(gpu)), every)

    def largest_micro_batch(
        self, recomputation: Recomputation, gpu: int, unit: Literal["rows", "tokens"] = "rows"
    ) -> MicroBatch | None:
        """The largest that should fit; None if not even one sample fits. In rows: a divisor of a GPU's share of the
        global batch. In tokens: of so many of the longest samples."""
        samples = range(self.share, 0, -1)
        sizes = (
            MicroBatch(number * self.sample, "tokens") if unit == "tokens" else MicroBatch(number)
            for number in samples
            if unit == "tokens" or self.share % number == 0
        )
        return next((size for size in sizes if self.at(size, recomputation).fits(gpu)), None)
