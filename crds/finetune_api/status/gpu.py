"""GPU time by use: what the trainer reports of its run, and what the operator counts over all runs of a job."""

from typing import Annotated, Literal

from pydantic import Field

from finetune_api.base import ShortText, Time
from finetune_api.status.base import StatusModel

Use = Literal["startup", "load", "train", "evaluate", "save", "redone", "stalled", "idle"]
USES: tuple[Use, ...] = ("startup", "load", "train", "evaluate", "save", "redone", "stalled", "idle")
"""In the order in which a run has them."""

Amounts = Annotated[dict[ShortText, Annotated[int, Field(ge=0)]], Field(max_length=len(USES))]


class RunUses(StatusModel):
    """What a run has spent its time on, by the trainer's clock. The sum is the time from since to the last sign of its
    ranks."""

    run: ShortText
    """uid of the pod of node 0."""
    since: Time
    """Time at which the trainer began."""
    milliseconds: Amounts
    """Milliseconds of the run by use."""
    redone_steps: int = 0
    """Optimizer steps that an earlier run had done already."""


class GpuRun(StatusModel):
    """The run whose pods hold GPUs, as of the last write of the operator."""

    id: ShortText | None = None
    """uid of the pod of node 0, once it has a node."""
    attempt: int
    """Number of the attempt that the run belongs to."""
    gpus: int
    """GPUs of the pods that have a node."""
    since: Time
    """Time since which the pods hold the GPUs, on average."""


class Gpu(StatusModel):
    """GPU time of the job's runs that have ended, by use."""

    hours: ShortText
    """GPU hours, for people."""
    goodput: ShortText | None = None
    """Share of the GPU time that trained, from 0 to 1."""
    seconds: int
    """GPU seconds: GPUs times the time for which pods held them."""
    uses: Amounts
    """GPU seconds by use, whose sum is seconds."""
    redone_steps: int = 0
    """Optimizer steps that were done more than once."""
    counted: Time | None = None
    """Creation of the newest pod that is counted."""
    run: GpuRun | None = None
    """Run at hand, which is counted when it has ended."""
