"""The trainer's part of the status: progress, checkpoint and result of the current attempt."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from finetune_api import curves
from finetune_api.base import ShortText, Text, Time, cel, validated
from finetune_api.status.artifact import Artifact
from finetune_api.status.base import StatusModel
from finetune_api.status.gpu import RunUses
from finetune_api.status.restart import Restart

TRAINER_FIELDS = ("progress", "checkpoint", "result")
"""Fields of status that the trainer writes; all others are the operator's."""

Metrics = Annotated[dict[ShortText, ShortText], Field(max_length=32)]
Curves = Annotated[
    dict[ShortText, Annotated[str, StringConstraints(max_length=curves.BYTES)]],
    Field(
        max_length=64,
        json_schema_extra={
            "x-kubernetes-map-type": "atomic",
            **validated([cel(f"self.map(k, size(self[k])).sum() <= {curves.BYTES}", "all curves fit into 16 KiB")]),
        },
    ),
]


class Prepared(StatusModel):
    """Summary of the prepared data, which all attempts share."""

    digest: ShortText
    """sha256 of the prepared data, equal for equal data, tokenizer, template and settings."""
    rows: int = Field(ge=0)
    """Rows to train on (stages rm and dpo: pairs; stage ppo: prompts)."""
    evaluation_rows: int = Field(default=0, ge=0)
    """Held-out rows."""
    tokens: int = Field(ge=0)
    """Tokens of the rows to train on."""
    longest_row: int | None = Field(default=None, ge=0)
    """Tokens of the longest row or pair to train on, which is the smallest micro-batch in tokens."""
    trained_tokens: int = Field(ge=0)
    """Tokens of these rows that count in the loss."""
    invalid_rows: int = Field(default=0, ge=0)
    """Invalid rows that were skipped, as maxInvalidRows allows."""
    truncated_rows: int = Field(default=0, ge=0)
    """Rows that were cut at training.cutoffLength."""
    left_out_rows: int | None = None
    """Rows that were left out because training.cutoffLength leaves nothing to train in them, as the warning says."""
    packs: int | None = None
    """Packs of the rows to train on, if training.packing packs them."""
    not_used: Text | None = None
    """Columns and keys that have values and are not used, with the number of rows."""
    warning: Text | None = None
    """Problem with the data that does not prevent training."""
    report: Text | None = None
    """Path of the full report in the workspace."""
    gpu_memory_bytes: int | None = None
    """Estimated memory that each GPU needs, in bytes."""
    micro_batch_size: int | None = None
    """Micro-batch that the estimate proposes, if the memory of the GPU is known."""


class SlowestRank(StatusModel):
    """The rank that computes slowest, compared with the other ranks over the last steps."""

    rank: int = Field(ge=0)
    """Number of the rank."""
    node_rank: int = Field(ge=0)
    """Node rank of its pod."""
    ratio: ShortText
    """Its own time per step, without waiting, divided by the median of the other ranks."""
    since_step: int | None = None
    """Step since which the rank counts as a straggler, if it does."""
    stragglers: int | None = None
    """Number of ranks that count as stragglers, if any does."""


class Progress(StatusModel):
    """Progress of the current attempt, written by the trainer. Only curves stay when it is over."""

    # The CRD requires no field and has no default: between two attempts there are only curves.
    model_config = ConfigDict(json_schema_extra=lambda schema: schema.pop("required"))

    attempt: int
    """Number of the attempt that wrote the progress."""
    kind: Literal["prepare", "train"] | None = None
    """Kind of the attempt that wrote the progress (a training attempt may prepare, too)."""
    activity: Literal["Fetching", "Validating", "Tokenizing", "Loading", "Training"] = Field(
        default="Training", json_schema_extra={"default": None}
    )
    """What the attempt does at the moment."""
    step: int = Field(ge=0)
    """Optimizer steps done (while preparing: rows, or MiB fetched)."""
    total_steps: int = Field(ge=0)
    """Optimizer steps in total (while preparing: rows or MiB, 0 if unknown)."""
    percent: int = Field(ge=0, le=100)
    """Percentage of totalSteps that is done."""
    start_step: int | None = Field(default=None, ge=0)
    """Optimizer step that the attempt started from: that of the checkpoint that it resumed from, or 0."""
    recompute: ShortText | None = None
    """Layers that run again in the backward pass to save memory: none, all, or a part, such as 8 of 32 layers."""
    summary: ShortText
    """Progress for people, such as 12/50 (24%) or Tokenizing 1200/5000 (24%)."""
    epoch: ShortText | None = None
    """Passes over the data that are done."""
    loss: ShortText | None = None
    """Last logged training loss."""
    learning_rate: ShortText | None = None
    """Last logged learning rate."""
    tokens_per_second: ShortText | None = None
    """Tokens trained per second over all GPUs, without padding."""
    eta_seconds: int | None = None
    """Estimated seconds to the end."""
    eta: ShortText | None = None
    """Estimated time to the end for people, such as 5m12s."""
    memory_bytes: int | None = Field(default=None, ge=0)
    """Peak host memory of the pod of rank 0 so far, in bytes, for comparison with resources.memory."""
    slowest_rank: SlowestRank | None = None
    """The slowest of several ranks."""
    restart: Restart | None = None
    """Newest restart of the ranks in the same pods, if there was any."""
    curves: Curves | None = None
    """Curves of the metrics over all attempts, as texts that finetune_api.curves reads."""
    uses: RunUses | None = None
    """What the run has spent its time on."""
    last_update_time: Time
    """Time of this update."""


def finished(attempt: int, metrics: Metrics | None, time: str) -> Progress | None:
    """The last progress of a training, from its final metrics. None if they do not have it."""
    try:
        steps, loss = int(float((metrics or {})["steps"])), float((metrics or {})["finalLoss"])
    except (KeyError, ValueError, OverflowError):
        return None
    return Progress(
        attempt=attempt,
        kind="train",
        step=steps,
        total_steps=steps,
        percent=100,
        summary=f"{steps}/{steps} (100%)",
        loss=f"{loss:.4f}",
        eta_seconds=0,
        eta="0s",
        last_update_time=time,
    )


class Checkpoint(StatusModel):
    """Newest verified checkpoint, which the trainer writes at each save and when it resumes."""

    attempt: int
    """Number of the attempt that saved the checkpoint."""
    step: int = Field(ge=0)
    """Optimizer step of the checkpoint."""
    path: Text
    """Directory of the checkpoint in the workspace."""
    time: Time
    """Time at which the checkpoint was complete."""
    seconds: int | None = Field(default=None, ge=0)
    """Seconds that saving took, which the grace period of later attempts allows for."""


class OutOfMemory(StatusModel):
    """How a GPU ran out of memory."""

    phase: Literal["load", "train", "evaluate", "generate", "save"]
    """Activity that ran out of memory (only train lowers the micro-batch of the next attempt)."""
    rank: int = Field(ge=0)
    """Rank of the process that ran out of memory."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Rows that the process held at once in this activity, unless training.microBatchTokens says how many tokens."""
    micro_batch_tokens: int | None = Field(default=None, ge=1)
    """Most tokens that the process held at once in this activity."""
    recompute: ShortText | None = None
    """Layers that ran again in the backward pass, as in progress."""
    peak_bytes: int | None = None
    """Peak memory of the tensors of the process, in bytes."""
    free_bytes: int | None = None
    """Memory that the GPU had left, in bytes."""


class Result(StatusModel):
    """How a run ended, written by the trainer and equal to its termination message."""

    kind: Literal["prepare", "train"]
    """Kind of the run: prepare or train."""
    attempt: int
    """Number of the attempt that the run belongs to."""
    exit_code: int = Field(ge=0, le=255)
    """Exit code of the pod."""
    reason: ShortText
    """Cause of the end in one word, for tools."""
    message: Text
    """Explanation for people: what happened, why, and what to do."""
    artifact: Artifact | None = None
    """Artifact of a successful training, or the artifact that a prepare run found in the workspace."""
    metrics: Metrics | None = None
    """Final metrics of the training that made the artifact."""
    prepared: Prepared | None = None
    """Summary of the prepared data after a successful prepare run."""
    out_of_memory: OutOfMemory | None = None
    """Details of the memory shortage, if a GPU ran out of memory."""
    faulty_node: int | None = Field(default=None, ge=0)
    """Node rank of the pod that reported an error of its hardware."""
    restart: Restart | None = None
    """Newest restart of the ranks in the same pods, if there was any."""
    uses: RunUses | None = None
    """What the run has spent its time on."""
