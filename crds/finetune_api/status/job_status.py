"""FineTuneJobStatus: the observed state of a job.

Two writers share it. Server-side apply and the chart's admission policy keep them apart: ``progress``, ``checkpoint``
and ``result`` belong to the trainer of the current attempt, everything else belongs to the operator. The operator
removes the progress of an attempt that is over, except for its curves. Floats are strings, as everywhere in the status
of Kubernetes objects.
"""

from typing import Any

from pydantic import Field, field_validator

from finetune_api.base import ShortText, Text, Time
from finetune_api.status.artifact import Artifact, Reference
from finetune_api.status.base import StatusModel
from finetune_api.status.gpu import Gpu
from finetune_api.status.operator import ATTEMPTS_SHOWN, MAX_ATTEMPTS, Attempt, Condition, Resolved
from finetune_api.status.trainer import Checkpoint, Metrics, Prepared, Progress, Result
from finetune_api.status.vocabulary import Phase

NOT_OBSERVED = -1
"""kstatus takes an object without observedGeneration for ready. The CRD gives a new job this value, which no generation
has."""


class FineTuneJobStatus(StatusModel):
    """Observed state of the job."""

    observed_generation: int | None = Field(default=None, json_schema_extra={"default": NOT_OBSERVED})
    """metadata.generation that the operator has acted on (-1: the operator has not seen the job yet)."""
    phase: Phase | None = Field(default=None, json_schema_extra={"default": Phase.PENDING.value})
    """Summary of the conditions for people."""
    reason: ShortText | None = None
    """Cause of the phase in one word, for tools."""
    message: Text | None = None
    """Explanation of the phase for people: what happened, why, and what to do."""
    conditions: list[Condition] | None = Field(
        default=None,
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    """Conditions of the job: Accepted, Prepared, QuotaReserved, Running, Suspended, Succeeded and Failed, and those of
    kstatus (Reconciling, Stalled)."""
    attempt: int | None = Field(default=None, ge=0, le=MAX_ATTEMPTS)
    """Number of the current training attempt."""
    attempts: list[Attempt] | None = Field(
        default=None,
        max_length=ATTEMPTS_SHOWN,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["number"]},
    )
    """Newest training attempts, oldest first."""
    prepare_attempt: int | None = Field(default=None, ge=0, le=MAX_ATTEMPTS)
    """Number of the current prepare attempt."""
    prepare_attempts: list[Attempt] | None = Field(
        default=None,
        max_length=ATTEMPTS_SHOWN,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["number"]},
    )
    """Newest prepare attempts, oldest first."""
    prepared: Prepared | None = None
    """Summary of the prepared data, which all attempts share."""
    references: list[Reference] | None = Field(
        default=None,
        max_length=3,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["use"]},
    )
    """Artifacts of other jobs that this job uses, fixed at acceptance for all attempts."""
    resolved: Resolved | None = None
    """Image, contract and job digest, fixed at acceptance for all attempts."""
    artifact: Artifact | None = None
    """Artifact of the job after it has succeeded."""
    metrics: Metrics | None = None
    """Final metrics of the job after it has succeeded."""
    start_time: Time | None = None
    """Time at which the first attempt was created."""
    completion_time: Time | None = None
    """Time at which the job succeeded or failed."""
    retry: int | None = None
    """Last value of spec.retry that the operator has seen; a higher value re-opens a job that has Failed."""
    active_seconds: int | None = Field(default=None, ge=0)
    """Seconds that all attempts together have trained, up to activeSince."""
    active_since: Time | None = None
    """Time since which the current attempt trains without a break."""
    gpu: Gpu | None = None
    """GPU time of the job by use, over all runs that have ended."""
    children_deleted_time: Time | None = None
    """Time at which the pods, Jobs and Services of the finished job were deleted (ttlSecondsAfterFinished)."""
    notified_time: Time | None = None
    """Time at which the pod was created that tells the end of the job to its webhook (spec.notify)."""
    progress: Progress | None = None
    """Progress of the current attempt, written by the trainer."""
    checkpoint: Checkpoint | None = None
    """Newest verified checkpoint, written by the trainer."""
    result: Result | None = None
    """How the last run ended, written by the trainer."""

    @field_validator("progress", mode="before")
    @classmethod
    def _of_an_attempt(cls, progress: Any) -> Any:
        """None between two attempts: then there are only curves, which `finetune_api.curves.unpack` reads."""
        return None if isinstance(progress, dict) and "attempt" not in progress else progress
