"""spec.training and spec.checkpoints: hyperparameters, and when a checkpoint is saved."""

from typing import Literal, Self

from pydantic import ConfigDict, Field, model_validator
from pydantic.config import JsonDict

from finetune_api.base import ApiModel, cel, validated

GROUPED_PACKS = "groupByLength has no effect on packed rows: remove groupByLength or packing"
LENGTH = "set exactly one of epochs and maxSteps, which say how long to train"
ONE_MICRO_BATCH = "microBatchSize and microBatchTokens both say what a GPU holds at once: remove one of them"
DIVISOR = "microBatchSize must divide globalBatchSize: change either"
SCHEDULERS_WITH_MINIMUM = ("cosine_with_min_lr", "polynomial", "warmup_stable_decay")
MINIMUM_RATIO = (
    f"minLearningRateRatio needs scheduler {' or '.join(SCHEDULERS_WITH_MINIMUM)}: change scheduler, or remove"
    " minLearningRateRatio"
)
DECAY = "decayRatio needs scheduler warmup_stable_decay: change scheduler, or remove decayRatio"
DECAY_RATIO = 0.1
SUM_OF_RATIOS = (
    f"warmupRatio plus decayRatio (unset: {DECAY_RATIO}) must be at most 1, the share of all steps: lower either"
)
CYCLES = 2
RESTARTS = "schedulerCycles needs scheduler cosine_with_restarts: change scheduler, or remove schedulerCycles"
FSDP_OPTIMIZERS = ("adamw_torch_fused", "adamw_torch", "sgd", "rmsprop", "adagrad")
FSDP_OPTIMIZER = (
    "parallelism fsdp does not work with adafactor and the optimizers of bitsandbytes: use "
    f"{' or '.join(FSDP_OPTIMIZERS)}"
)
RECOMPUTED_TWICE = (
    "recompute and gradientCheckpointing contradict each other: remove gradientCheckpointing, which is deprecated (true"
    " means recompute all, false means recompute none)"
)

Recompute = Literal["auto", "none", "layers", "all"]

_RULES: list[JsonDict] = [
    cel("has(self.epochs) != has(self.maxSteps)", LENGTH),
    cel("!has(self.microBatchTokens) || !has(self.microBatchSize)", ONE_MICRO_BATCH),
    cel(
        "!has(self.microBatchSize) || self.globalBatchSize % self.microBatchSize == 0",
        DIVISOR,
    ),
    cel(
        "!self.groupByLength || !has(self.packing) || self.packing == 'none'",
        GROUPED_PACKS,
    ),
    cel(
        f"!has(self.minLearningRateRatio) || self.scheduler in {list(SCHEDULERS_WITH_MINIMUM)}",
        MINIMUM_RATIO,
    ),
    cel(f"self.parallelism != 'fsdp' || self.optimizer in {list(FSDP_OPTIMIZERS)}", FSDP_OPTIMIZER),
    cel("!has(self.decayRatio) || self.scheduler == 'warmup_stable_decay'", DECAY),
    cel(
        "self.scheduler != 'warmup_stable_decay'"
        f" || self.warmupRatio + (has(self.decayRatio) ? self.decayRatio : {DECAY_RATIO}) <= 1.0",
        SUM_OF_RATIOS,
    ),
    cel(f"self.schedulerCycles == {CYCLES} || self.scheduler == 'cosine_with_restarts'", RESTARTS),
    cel(
        "!has(self.recompute) || !has(self.gradientCheckpointing)"
        " || self.recompute == (self.gradientCheckpointing ? 'all' : 'none')",
        RECOMPUTED_TWICE,
    ),
]


class TrainingSpec(ApiModel):
    """Hyperparameters. Set exactly one of epochs and maxSteps."""

    model_config = ConfigDict(json_schema_extra=validated(_RULES))

    epochs: float | None = Field(default=None, gt=0, le=1000)
    """Passes over the data; a fraction is allowed. Raise it if the evaluation loss still falls at the end."""
    max_steps: int | None = Field(default=None, ge=1, le=100_000_000)
    """Optimizer steps, whatever the size of the data. Use it for a short trial or a fixed budget."""
    learning_rate: float | None = Field(default=None, gt=0, le=1)
    """Peak learning rate. Unset: 1e-4 (lora, qlora) or 1e-5 (full, freeze); a twentieth of that in stages dpo, kto,
    ppo. Lower it if the loss jumps."""
    scheduler: Literal[
        "linear",
        "cosine",
        "cosine_with_restarts",
        "cosine_with_min_lr",
        "polynomial",
        "constant",
        "constant_with_warmup",
        "inverse_sqrt",
        "warmup_stable_decay",
    ] = "cosine"
    """Course of the learning rate after the warmup, named as in transformers. polynomial has power 1 and falls to
    minLearningRateRatio."""
    min_learning_rate_ratio: float | None = Field(default=None, ge=0, lt=1)
    """Share of the peak at the end (cosine_with_min_lr, polynomial, warmup_stable_decay). Unset: 0.1 for
    cosine_with_min_lr, otherwise 0."""
    decay_ratio: float | None = Field(default=None, gt=0, lt=1)
    """Share of all steps in which the learning rate falls at the end (warmup_stable_decay). Unset: 0.1."""
    scheduler_cycles: int = Field(default=CYCLES, ge=2, le=10_000)
    """Times that the learning rate falls from the peak to zero (cosine_with_restarts)."""
    optimizer: Literal[
        "adamw_torch_fused",
        "adamw_torch",
        "adamw_8bit",
        "paged_adamw_32bit",
        "paged_adamw_8bit",
        "adafactor",
        "lion_32bit",
        "lion_8bit",
        "sgd",
        "rmsprop",
        "adagrad",
    ] = "adamw_torch_fused"
    """Optimizer, named as in transformers; names with bit are of bitsandbytes. Use an 8bit or paged optimizer to save
    memory."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the first moment. The default fits most jobs."""
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the second moment. Lower it, for example to 0.95, if the loss spikes."""
    adam_epsilon: float = Field(default=1e-8, gt=0, le=1)
    """Term that keeps steps finite when the second moment is near zero. The default fits most jobs."""
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    """Share of all steps in which the learning rate rises from zero. Raise it if the loss jumps at the start."""
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    """Decoupled weight decay. Raise it, for example to 0.1, if the model overfits."""
    max_grad_norm: float = Field(default=1.0, ge=0, le=1000)
    """Norm to which gradients are clipped; 0: no clipping. Lower it if the loss spikes."""
    global_batch_size: int = Field(default=16, ge=1, le=65_536)
    """Rows per optimizer step over all GPUs, whatever their number. Raise it for steadier steps. The GPUs must share it
    evenly."""
    micro_batch_size: int | None = Field(default=None, ge=1, le=65_536)
    """Rows per GPU and forward pass; the rest accumulates. Lower it to save memory. Unset: the largest of 4, 2, 1 that
    divides each GPU's share."""
    micro_batch_tokens: int | None = Field(default=None, ge=8, le=16_777_216)
    """Tokens per GPU and forward pass, instead of microBatchSize; at least the longest row. Set it if lengths vary.
    Unset: microBatchSize counts."""
    cutoff_length: int = Field(default=2048, ge=8, le=1_048_576)
    """Longest row in tokens. A longer row loses its end, or is left out if no answer remains (packing wrapped: it is
    split). Raise it for long rows."""
    packing: Literal["none", "bfd", "wrapped"] | None = None
    """Several documents per row, for rows of equal size. bfd: whole and isolated. wrapped: a stream cut into rows
    (stage pt). Unset: wrapped in pt, otherwise none."""
    group_by_length: bool = False
    """Batch rows of similar length: GPUs wait less for each other, but the order is less random. Turn it on if lengths
    vary widely."""
    neftune_noise_alpha: float | None = Field(default=None, gt=0, le=100)
    """Noise on the embeddings while training (NEFTune, Jain et al., 2023); 5 is usual. Set it if a small data set
    overfits. Unset: none."""
    precision: Literal["auto", "bf16", "pureBf16", "fp16", "fp32"] = "auto"
    """auto: bf16 on GPUs (fp16 before Ampere), fp32 on CPUs. bf16 and fp16 train fp32 weights; pureBf16 does not: less
    memory, less accuracy. Use it with AdamW."""
    recompute: Recompute | None = None
    """Layers that run again in the backward pass: less memory, up to a third more time. Unset: auto, as few as fit.
    layers: at least one."""
    gradient_checkpointing: bool | None = None
    """Deprecated, use recompute: true means all, false means none."""
    parallelism: Literal["ddp", "fsdp"] = "ddp"
    """ddp: each GPU holds the whole model. fsdp: GPUs share weights, gradients and optimizer (FSDP2). Use fsdp if a GPU
    cannot hold the model."""
    log_every_steps: int = Field(default=5, ge=1, le=10_000)
    """Optimizer steps between two lines of the training log. Lower it for short jobs."""
    seed: int = Field(default=42, ge=0, le=2_147_483_647)
    """Seed of data order, new weights and dropout. Change it to measure how much results vary."""

    @property
    def recomputed(self) -> Recompute:
        """recompute, or what the deprecated gradientCheckpointing says."""
        if self.gradient_checkpointing is None:
            return self.recompute or "auto"
        return "all" if self.gradient_checkpointing else "none"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.epochs is None) == (self.max_steps is None):
            raise ValueError(LENGTH)
        if self.micro_batch_size is not None and self.micro_batch_tokens is not None:
            raise ValueError(ONE_MICRO_BATCH)
        if self.micro_batch_size is not None and self.global_batch_size % self.micro_batch_size:
            raise ValueError(
                f"{DIVISOR}; microBatchSize is {self.micro_batch_size}, globalBatchSize is {self.global_batch_size}"
            )
        if self.group_by_length and self.packing not in (None, "none"):
            raise ValueError(GROUPED_PACKS)
        if self.min_learning_rate_ratio is not None and self.scheduler not in SCHEDULERS_WITH_MINIMUM:
            raise ValueError(MINIMUM_RATIO)
        if self.decay_ratio is not None and self.scheduler != "warmup_stable_decay":
            raise ValueError(DECAY)
        decay = DECAY_RATIO if self.decay_ratio is None else self.decay_ratio
        if self.scheduler == "warmup_stable_decay" and self.warmup_ratio + decay > 1:
            raise ValueError(SUM_OF_RATIOS)
        if self.scheduler_cycles != CYCLES and self.scheduler != "cosine_with_restarts":
            raise ValueError(RESTARTS)
        if self.parallelism == "fsdp" and self.optimizer not in FSDP_OPTIMIZERS:
            raise ValueError(FSDP_OPTIMIZER)
        if self.recompute not in (None, self.recomputed):
            raise ValueError(RECOMPUTED_TWICE)
        return self


class CheckpointsSpec(ApiModel):
    """When a checkpoint is saved. After a disruption or a failure the next attempt resumes from the newest verified
    checkpoint."""

    every_steps: int | None = Field(default=None, ge=1, le=100_000_000)
    """Optimizer steps between checkpoints, in addition to everyMinutes. Set it to save at known steps. Unset:
    everyMinutes only."""
    every_minutes: int = Field(default=15, ge=1, le=1440)
    """Longest time between checkpoints in minutes, and so the most work that a crash loses. Raise it if saving is
    slow."""
    keep: int = Field(default=2, ge=1, le=100)
    """Newest checkpoints to keep, in addition to the checkpoint with the lowest evaluation loss. May change; the next
    attempt reads it."""
