"""FineTuneJobStatus: what became of the job.

Two writers, kept apart by server-side apply and by the chart's admission policy: ``progress``, ``checkpoint`` and
``result`` belong to the trainer of the current attempt, everything else to the operator. Floats are strings, as
everywhere in Kubernetes status.
"""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from finetune_api.base import ApiModel as _ApiModel
from finetune_api.base import ShortText, Text, Time

TRAINER_FIELDS = ("progress", "checkpoint", "result")
MAX_ATTEMPTS = 999
ATTEMPTS_SHOWN = 20
"""Entries kept in status.attempts; what older ones counted is carried in the newest."""


class ApiModel(_ApiModel):
    """Unlike spec, status is read leniently: a newer release may have written fields that this one doesn't know."""

    model_config = ConfigDict(extra="ignore")


class Phase(StrEnum):
    """A summary for people, derived from the conditions."""

    PENDING = "Pending"
    PREPARING = "Preparing"
    QUEUED = "Queued"
    STARTING = "Starting"
    RUNNING = "Running"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class ConditionType(StrEnum):
    """What can be said of a job. Succeeded and Failed, once True, stay so."""

    ACCEPTED = "Accepted"
    PREPARED = "Prepared"
    QUOTA_RESERVED = "QuotaReserved"
    RUNNING = "Running"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class Reason(StrEnum):
    """Why a condition has its value. Adding one is an API change: tools match on these."""

    ACCEPTED = "Accepted"
    WAITING_FOR_JOB = "WaitingForJob"
    INVALID_SPEC = "InvalidSpec"
    WORKSPACE_NOT_SHAREABLE = "WorkspaceNotShareable"
    FETCHING = "Fetching"
    VALIDATING = "Validating"
    TOKENIZING = "Tokenizing"
    NO_WORKLOAD = "NoWorkload"
    WAITING_FOR_QUOTA = "WaitingForQuota"
    STARTING = "Starting"
    UNSCHEDULABLE = "Unschedulable"
    PULLING_IMAGE = "PullingImage"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    CONFIG_MISSING = "ConfigMissing"
    VOLUME_NOT_MOUNTED = "VolumeNotMounted"
    PODS_REJECTED = "PodsRejected"
    PARTLY_SCHEDULED = "PartlyScheduled"
    NODE_LOST = "NodeLost"
    RETRY_BACKOFF = "RetryBackoff"
    ENDING = "Ending"
    RUNNING = "Running"
    SUSPENDED_BY_USER = "SuspendedByUser"
    COMPLETED = "Completed"
    INVALID_DATA = "InvalidData"
    NOT_FOUND = "NotFound"
    ACCESS_DENIED = "AccessDenied"
    DIVERGED = "Diverged"
    NO_SPACE = "NoSpace"
    WORKSPACE_UNUSABLE = "WorkspaceUnusable"
    WORKSPACE_OCCUPIED = "WorkspaceOccupied"
    GPU_OUT_OF_MEMORY = "GPUOutOfMemory"
    BACKOFF_LIMIT_EXCEEDED = "BackoffLimitExceeded"
    NO_PROGRESS = "NoProgress"
    START_DEADLINE_EXCEEDED = "StartDeadlineExceeded"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    DEPENDENCY_FAILED = "DependencyFailed"
    # How an attempt ended, where that is not yet the end of the job.
    DISRUPTED = "Disrupted"
    SUPERSEDED = "Superseded"
    HUNG = "Hung"
    SOURCE_UNREACHABLE = "SourceUnreachable"
    INTERNAL_ERROR = "InternalError"
    OUT_OF_MEMORY = "OutOfMemory"
    KILLED = "Killed"
    JOB_DELETED = "JobDeleted"
    UNKNOWN = "Unknown"


class Condition(ApiModel):
    """As metav1.Condition."""

    type: ShortText
    """What is said."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    observed_generation: int | None = None
    """metadata.generation that it was said of."""
    last_transition_time: Time
    """When status last changed."""
    reason: ShortText
    """Why, as one word for tools."""
    message: Annotated[str, StringConstraints(max_length=32_768)]
    """Why and what to do, for people."""


class Prepared(ApiModel):
    """What preparing found and made. Kept once for all attempts."""

    digest: ShortText
    """sha256 of the prepared data: equal for equal data, tokenizer, template and settings."""
    rows: int = Field(ge=0)
    """Rows to train on: of stages rm and dpo pairs, of ppo prompts."""
    evaluation_rows: int = Field(default=0, ge=0)
    """Rows to evaluate on."""
    tokens: int = Field(ge=0)
    """Tokens of the rows to train on."""
    trained_tokens: int = Field(ge=0)
    """Of these, tokens that count in the loss."""
    invalid_rows: int = Field(default=0, ge=0)
    """Broken rows that were left out, as the data sets' maxInvalidRows allow."""
    truncated_rows: int = Field(default=0, ge=0)
    """Rows cut at training.cutoffLength."""
    warning: Text | None = None
    """What looks wrong with the data, although it can be trained on."""
    report: Text | None = None
    """The whole report, as a path in the workspace."""
    gpu_memory_bytes: int | None = None
    """Estimate of what one GPU has to hold."""
    micro_batch_size: int | None = None
    """Micro-batch that the estimate proposes, where the GPU's memory is known."""


class Artifact(ApiModel):
    """What the training made."""

    uri: Text
    """Folder of the artifact, as pvc://claim/path."""
    kind: Literal["adapter", "model"]
    """adapter: a LoRA adapter for spec.model. model: a whole model."""
    digest: ShortText
    """sha256 over the names and contents of the artifact's files."""
    size_bytes: int = Field(ge=0)
    """Sum of the files' sizes."""
    published: Text | None = None
    """Where a copy of it is, as spec.output.uri, with the revision where there is one."""
    base: Text | None = None
    """Of an adapter: source of the model that it goes on."""
    base_adapter: bool = False
    """Of an adapter: whether an earlier adapter, kept with it, has to be merged into that model first."""
    base_digest: ShortText | None = None
    """sha256 of the model that the training started from, without its own code (Python files)."""
    tokenizer_digest: ShortText | None = None
    """sha256 of what the tokenizer does. Jobs that work together must agree in it."""


class Reference(ApiModel):
    """The artifact of another job that this one uses, as it was when this one was accepted."""

    use: Literal["model", "reference", "rewardModel"]
    """What for: model.fromJob, reference.fromJob of stage dpo, kto or ppo, or ppo.rewardModel.fromJob."""
    job: ShortText
    """Name of the other job."""
    uid: ShortText
    """Its identity."""
    stage: ShortText
    """Its stage."""
    artifact: Artifact
    """What it made."""


class Attempt(ApiModel):
    """One Job of this FineTuneJob, and how it ended."""

    number: int = Field(ge=1, le=MAX_ATTEMPTS)
    """From 1."""
    job: ShortText
    """Name of its batch/v1 Job."""
    state: Literal["Starting", "Running", "Ended"]
    """Where it stands."""
    start_time: Time
    """When it was created."""
    running_time: Time | None = None
    """When all its pods were first seen running."""
    end_time: Time | None = None
    """When its last pod was gone or ended."""
    reason: ShortText | None = None
    """How it ended, as one word."""
    exit_code: int | None = None
    """Exit code that decided, where there was one."""
    message: Text | None = None
    """How it ended, for people."""
    micro_batch_size: int | None = None
    """Micro-batch of this attempt where it differs from the spec's."""
    checkpoint_step: int | None = None
    """Newest checkpoint known when it ended; while it runs, the one that it went on from."""
    failures: int = 0
    """Attempts up to this one that counted against backoffLimit."""
    stalled: int = 0
    """Attempts in a row, up to this one, that ended without a newer checkpoint."""


class Resolved(ApiModel):
    """What was fixed at acceptance for all attempts, also across an upgrade of the operator."""

    image: Text
    """Trainer image."""
    contract: int
    """Version of the contract between operator and trainer."""
    digest: ShortText
    """sha256 of what decides the result: model, datasets, tuning, training."""


class Progress(ApiModel):
    """Where training is. Written by the trainer."""

    attempt: int
    """Attempt that wrote it."""
    activity: Literal["Fetching", "Validating", "Tokenizing", "Training"] = "Training"
    """What it is doing."""
    step: int = Field(ge=0)
    """Optimizer steps done; while preparing: rows, or MiB fetched."""
    total_steps: int = Field(ge=0)
    """Optimizer steps in all; while preparing: rows or MiB, 0 where that isn't known yet."""
    percent: int = Field(ge=0, le=100)
    """step of totalSteps."""
    summary: ShortText
    """The same for people: 12/50 (24%), or Tokenizing 1200/5000 (24%)."""
    epoch: ShortText | None = None
    """Passes over the data done."""
    loss: ShortText | None = None
    """Last logged training loss."""
    learning_rate: ShortText | None = None
    """Last logged learning rate."""
    tokens_per_second: ShortText | None = None
    """Tokens trained per second over all GPUs, without padding."""
    eta_seconds: int | None = None
    """Estimated time to the end."""
    eta: ShortText | None = None
    """The same for people: 5m12s."""
    memory_bytes: int | None = Field(default=None, ge=0)
    """The most host memory that the pod of rank 0 has used so far, against resources.memory."""
    last_update_time: Time
    """When this was written."""


class Checkpoint(ApiModel):
    """The newest checkpoint that is whole. Written by the trainer: when it goes on from one, and with each save."""

    attempt: int
    """Attempt that saved it."""
    step: int = Field(ge=0)
    """Its optimizer step."""
    path: Text
    """Its folder in the workspace."""
    time: Time
    """When it was complete."""
    seconds: int | None = Field(default=None, ge=0)
    """How long saving it took. Pods of later attempts get a grace period in which it can be done again."""


Metrics = Annotated[dict[ShortText, ShortText], Field(max_length=32)]


class OutOfMemory(ApiModel):
    """What a GPU's memory was used up by."""

    phase: Literal["load", "train", "evaluate", "generate", "save"]
    """What was being done. Only a lack in train lowers the micro-batch of the next attempt."""
    rank: int = Field(ge=0)
    """Process that ran out."""
    micro_batch_size: int = Field(ge=1)
    """Rows that it held at once in that phase."""
    peak_bytes: int | None = None
    """The most that its tensors held."""
    free_bytes: int | None = None
    """What the GPU had left then."""


class Result(ApiModel):
    """How a run ended, in its own words. Written by the trainer, and its termination message."""

    kind: Literal["prepare", "train"]
    """What ran."""
    attempt: int
    """Attempt that it was."""
    exit_code: int = Field(ge=0, le=255)
    """Exit code of the pod."""
    reason: ShortText
    """The same as one word."""
    message: Text
    """What happened and what to do."""
    artifact: Artifact | None = None
    """What was made, on success."""
    metrics: Metrics | None = None
    """Final metrics, on success."""
    prepared: Prepared | None = None
    """What was prepared, on success of kind prepare."""
    out_of_memory: OutOfMemory | None = None
    """What did not fit, where a GPU's memory was used up."""


class FineTuneJobStatus(ApiModel):
    """What became of the job."""

    observed_generation: int | None = None
    """metadata.generation that the operator has acted on."""
    phase: Phase | None = None
    """Summary of the conditions."""
    reason: ShortText | None = None
    """Why the job is in this phase, as one word."""
    message: Text | None = None
    """Why, and what to do."""
    conditions: list[Condition] | None = Field(
        default=None,
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    """What can be said of the job: Accepted, Running, Succeeded, Failed and others."""
    attempt: int | None = Field(default=None, ge=0, le=MAX_ATTEMPTS)
    """Number of the current attempt."""
    attempts: list[Attempt] | None = Field(
        default=None,
        max_length=ATTEMPTS_SHOWN,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["number"]},
    )
    """The newest attempts at training, oldest first."""
    prepare_attempt: int | None = Field(default=None, ge=0, le=MAX_ATTEMPTS)
    """Number of the current attempt at preparing."""
    prepare_attempts: list[Attempt] | None = Field(
        default=None,
        max_length=ATTEMPTS_SHOWN,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["number"]},
    )
    """The newest attempts at preparing, oldest first."""
    prepared: Prepared | None = None
    """What preparing found and made."""
    references: list[Reference] | None = Field(
        default=None,
        max_length=3,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["use"]},
    )
    """Artifacts of other jobs that this one uses, fixed at acceptance for all attempts."""
    resolved: Resolved | None = None
    """What was fixed at acceptance."""
    artifact: Artifact | None = None
    """What the job made."""
    metrics: Metrics | None = None
    """Final metrics."""
    start_time: Time | None = None
    """When the first attempt was created."""
    completion_time: Time | None = None
    """When the job ended."""
    progress: Progress | None = None
    """Where training is."""
    checkpoint: Checkpoint | None = None
    """The newest checkpoint."""
    result: Result | None = None
    """How the last run ended, in the trainer's words."""
