"""The operator's part of the status: conditions, attempts, and the values fixed at acceptance."""

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, WithJsonSchema

from finetune_api.base import ShortText, Text, Time
from finetune_api.status.base import StatusModel
from finetune_api.status.restart import Restart

MAX_ATTEMPTS = 999
STORED_JOB_CHARACTERS = 32_768
"""Maximum length of status.resolved.job."""
ATTEMPTS_SHOWN = 20
"""Entries kept in status.attempts; the newest entry carries the counts of older entries."""


class Condition(StatusModel):
    """A condition, as metav1.Condition."""

    type: ShortText
    """Name of the condition, such as Accepted, Running or Failed."""
    status: Literal["True", "False", "Unknown"]
    """Whether the condition holds."""
    observed_generation: int | None = None
    """metadata.generation that the condition is based on."""
    last_transition_time: Time
    """Time at which status last changed."""
    reason: ShortText
    """Cause of the status in one word, for tools."""
    message: Annotated[str, StringConstraints(max_length=32_768)]
    """Explanation for people: what happened, why, and what to do."""


class Attempt(StatusModel):
    """An attempt: a child job of this FineTuneJob, and how it ended."""

    number: int = Field(ge=1, le=MAX_ATTEMPTS)
    """Number of the attempt, from 1."""
    job: ShortText
    """Name of the attempt's child job (batch/v1 Job)."""
    state: Literal["Queued", "Starting", "Running", "Ending", "Ended"]
    """State of the attempt, where Queued means that Kueue has not admitted its child job, and Ending that the operator
    ends it because of cause."""
    start_time: Time
    """Time at which the attempt was created."""
    running_time: Time | None = None
    """Time at which all pods of the attempt were first seen running; after an eviction, the next time."""
    end_time: Time | None = None
    """Time at which the trainers of the attempt were seen to have ended, or its pods to be gone."""
    cause: ShortText | None = None
    """Why the operator ends the attempt, in one word, set while state is Ending."""
    reason: ShortText | None = None
    """Cause of the end in one word, for tools."""
    exit_code: int | None = None
    """Exit code that decided how the attempt ended, if a container had any."""
    message: Text | None = None
    """Explanation of the end for people."""
    suspect: ShortText | None = None
    """Node whose hardware may be faulty, by the end of the attempt or because a rank straggles there."""
    avoids: list[ShortText] | None = Field(default=None, max_length=3)
    """Nodes that the pods avoid, as suspects of earlier attempts."""
    keeps: bool | None = None
    """Whether the attempt makes the artifact of the newest checkpoint, and trains nothing (spec.stop)."""
    micro_batch_size: int | None = None
    """Micro-batch of this attempt in rows, if it differs from that of the spec."""
    micro_batch_tokens: int | None = None
    """Micro-batch of this attempt in tokens, if it differs from that of the spec."""
    recompute: Literal["all"] | None = None
    """all, if the GPU ran out of memory at the smallest micro-batch before, with fewer layers recomputed."""
    checkpoint_step: int | None = None
    """Step of the newest checkpoint known at the end or, while the attempt runs, of the checkpoint that it resumed
    from."""
    failures: int = 0
    """Failures up to this attempt that count against backoffLimit: attempts, and restarts within their pods."""
    restarts: Restart | None = None
    """Newest restart of the ranks in the same pods, if there was any; its number counts them."""
    stalled: int = 0
    """Attempts in a row, up to this attempt, that ended without a newer checkpoint."""
    evictions: int | None = None
    """Number of times that Kueue took the pods of the attempt away, which continues when Kueue admits it again."""
    retry: int | None = None
    """Value of spec.retry that re-opened the job after this attempt; both counts start again with the next attempt."""


Parts = Annotated[dict[str, Any], WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True})]


class AppliedPresets(StatusModel):
    """What the job got from the presets of its namespace."""

    source: ShortText
    """Where the presets come from: the ConfigMap of the namespace, or the chart value presets.default."""
    filled: Parts | None = None
    """Fields of spec that the job leaves out, with the values that it got."""
    bounds: Parts | None = None
    """Bounds that the job was compared with."""


class Resolved(StatusModel):
    """Values fixed at acceptance for all attempts, also across an upgrade of the operator."""

    image: Text
    """Trainer image of all attempts."""
    contract: int
    """Version of the contract between operator and trainer."""
    digest: ShortText
    """Job digest: sha256 of all settings that decide the result."""
    job: Annotated[str, StringConstraints(max_length=STORED_JOB_CHARACTERS)] | None = None
    """Resolved job that every attempt receives: JSON, compressed by zlib, in base64."""
    presets: AppliedPresets | None = None
    """Presets that apply to all attempts."""
