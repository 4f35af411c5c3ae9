"""spec.training and spec.checkpoints: how long, how fast, and how often it is saved."""

from typing import Literal, Self

from pydantic import ConfigDict, Field, model_validator
from pydantic.config import JsonDict

from finetune_api.base import ApiModel, cel, validated

GROUPED = "groupByLength has nothing to group where packing fills every row: leave one of them out"
FLOORED = ("cosine_with_min_lr", "polynomial", "warmup_stable_decay")
FLOOR = "minLearningRateRatio goes with scheduler " + " or ".join(FLOORED)
DECAY = "decayRatio goes with scheduler warmup_stable_decay"
DECAY_RATIO = 0.1
PHASES = f"warmupRatio and decayRatio (unset: {DECAY_RATIO}) must be at most 1 together: both are shares of all steps"
CYCLES = 2
CYCLIC = "schedulerCycles goes with scheduler cosine_with_restarts"
SHARED = ("adamw_torch_fused", "adamw_torch", "sgd", "rmsprop", "adagrad")
UNSHARED_STEPS = (
    "parallelism fsdp: optimizers of bitsandbytes and adafactor can't step on shares of weights: use "
    + " or ".join(SHARED)
)

_RULES: list[JsonDict] = [
    cel("has(self.epochs) != has(self.maxSteps)", "say how long to train: set exactly one of epochs and maxSteps"),
    cel(
        "!has(self.microBatchSize) || self.globalBatchSize % self.microBatchSize == 0",
        "microBatchSize must divide globalBatchSize",
    ),
    cel(
        "!self.groupByLength || !has(self.packing) || self.packing == 'none'",
        GROUPED,
    ),
    cel(
        f"!has(self.minLearningRateRatio) || self.scheduler in {list(FLOORED)}",
        FLOOR,
    ),
    cel(f"self.parallelism != 'fsdp' || self.optimizer in {list(SHARED)}", UNSHARED_STEPS),
    cel("!has(self.decayRatio) || self.scheduler == 'warmup_stable_decay'", DECAY),
    cel(
        "self.scheduler != 'warmup_stable_decay'"
        f" || self.warmupRatio + (has(self.decayRatio) ? self.decayRatio : {DECAY_RATIO}) <= 1.0",
        PHASES,
    ),
    cel(f"self.schedulerCycles == {CYCLES} || self.scheduler == 'cosine_with_restarts'", CYCLIC),
]


class TrainingSpec(ApiModel):
    """Hyper-parameters. Set exactly one of epochs and maxSteps."""

    model_config = ConfigDict(json_schema_extra=validated(_RULES))

    epochs: float | None = Field(default=None, gt=0, le=1000)
    """Passes over the data; a fraction is allowed."""
    max_steps: int | None = Field(default=None, ge=1, le=100_000_000)
    """Optimizer steps, whatever the size of the data."""
    learning_rate: float | None = Field(default=None, gt=0, le=1)
    """Peak learning rate. Unset: 1e-4 for lora and qlora, 1e-5 for full and freeze; of stages dpo, kto and ppo a
    twentieth of that."""
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
    """How the learning rate moves after the warm-up, which all of them have; the names are those of transformers.
    polynomial is of power 1: linear, down to minLearningRateRatio."""
    min_learning_rate_ratio: float | None = Field(default=None, ge=0, lt=1)
    """cosine_with_min_lr, polynomial and warmup_stable_decay: share of the peak that is left at the end. Unset: 0.1 for
    cosine_with_min_lr, else 0."""
    decay_ratio: float | None = Field(default=None, gt=0, lt=1)
    """warmup_stable_decay: share of all steps over which the learning rate falls at the end. Unset: 0.1."""
    scheduler_cycles: int = Field(default=CYCLES, ge=2, le=10_000)
    """cosine_with_restarts: how often the learning rate falls from the peak to zero."""
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
    """The names are those of transformers; those with bit are of bitsandbytes."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the first moment."""
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the second moment."""
    adam_epsilon: float = Field(default=1e-8, gt=0, le=1)
    """Keeps steps finite where the second moment is near zero."""
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    """Share of all steps over which the learning rate rises from zero."""
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    """Decoupled weight decay."""
    max_grad_norm: float = Field(default=1.0, ge=0, le=1000)
    """Gradients are clipped to this norm; 0: no clipping."""
    global_batch_size: int = Field(default=16, ge=1, le=65_536)
    """Rows per optimizer step over all GPUs: what the model sees, however many GPUs there are."""
    micro_batch_size: int | None = Field(default=None, ge=1, le=65_536)
    """Rows per GPU and forward pass: what has to fit into memory. The rest of the global batch is accumulated.
    Unset: the largest of 4, 2 and 1 that divides each GPU's share of globalBatchSize."""
    cutoff_length: int = Field(default=2048, ge=8, le=1_048_576)
    """Longest row in tokens; what is longer is cut at the end (with packing wrapped: goes on in the next row)."""
    packing: Literal["none", "bfd", "wrapped"] | None = None
    """Several documents in one row, so that nothing is padded. bfd: whole documents, best fit first, none of which sees
    another. wrapped: one stream of documents, cut into rows (stage pt only). Unset: wrapped for pt, else none."""
    group_by_length: bool = False
    """Rows of like length share a batch: much less padding, at the cost of an order that is not wholly random."""
    neftune_noise_alpha: float | None = Field(default=None, gt=0, le=100)
    """Noise on the embeddings while training (NEFTune, Jain et al., 2023); 5 is usual."""
    precision: Literal["auto", "bf16", "pureBf16", "fp32"] = "auto"
    """auto: bf16 on GPUs, fp32 on CPUs. bf16 keeps trained weights in fp32, pureBf16 does not."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass: much less memory, about a third more time."""
    parallelism: Literal["ddp", "fsdp"] = "ddp"
    """How several GPUs share the work. ddp: each holds the whole model. fsdp: each holds a share of weights, gradients
    and optimizer (FSDP2), for models that one GPU cannot hold."""
    log_every_steps: int = Field(default=5, ge=1, le=10_000)
    """Optimizer steps between two lines of the training log."""
    seed: int = Field(default=42, ge=0, le=2_147_483_647)
    """Seed of the data order, of fresh weights and of dropout."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.epochs is None) == (self.max_steps is None):
            raise ValueError("say how long to train: set exactly one of epochs and maxSteps")
        if self.micro_batch_size is not None and self.global_batch_size % self.micro_batch_size:
            raise ValueError(
                f"microBatchSize must divide globalBatchSize; {self.micro_batch_size} does not divide"
                f" {self.global_batch_size}"
            )
        if self.group_by_length and self.packing not in (None, "none"):
            raise ValueError(GROUPED)
        if self.min_learning_rate_ratio is not None and self.scheduler not in FLOORED:
            raise ValueError(FLOOR)
        if self.decay_ratio is not None and self.scheduler != "warmup_stable_decay":
            raise ValueError(DECAY)
        decay = DECAY_RATIO if self.decay_ratio is None else self.decay_ratio
        if self.scheduler == "warmup_stable_decay" and self.warmup_ratio + decay > 1:
            raise ValueError(PHASES)
        if self.scheduler_cycles != CYCLES and self.scheduler != "cosine_with_restarts":
            raise ValueError(CYCLIC)
        if self.parallelism == "fsdp" and self.optimizer not in SHARED:
            raise ValueError(UNSHARED_STEPS)
        return self


class CheckpointsSpec(ApiModel):
    """When the run is saved. A disrupted or crashed run goes on from the newest checkpoint."""

    every_steps: int | None = Field(default=None, ge=1, le=100_000_000)
    """Save every so many optimizer steps, besides everyMinutes."""
    every_minutes: int = Field(default=15, ge=1, le=1440)
    """Save when so many minutes have passed since the last checkpoint: the most that a crash can cost."""
    keep: int = Field(default=2, ge=1, le=100)
    """Checkpoints kept: the newest, and besides them the one with the lowest evaluation loss. May be changed while the
    job runs; the next attempt reads it."""
