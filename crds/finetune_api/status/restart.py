"""A restart of the ranks within the pods of an attempt. The trainer reports it, and the operator copies it into the
entry of the attempt."""

from typing import Literal

from pydantic import Field

from finetune_api.base import ShortText, Text, Time
from finetune_api.status.base import StatusModel


class Restart(StatusModel):
    """The newest restart of the ranks within the pods of an attempt, and the end that it followed."""

    number: int = Field(ge=1)
    """Number of the restart within the attempt, from 1."""
    failures: int = Field(ge=0)
    """Restarts up to this restart that count against backoffLimit."""
    reason: ShortText
    """Cause of the end before the restart in one word, for tools."""
    exit_code: int = Field(ge=0, le=255)
    """Exit code of the end before the restart."""
    message: Text
    """Explanation of the end for people."""
    time: Time
    """Time at which the restart was decided."""
    micro_batch_size: int | None = None
    """Micro-batch since the restart in rows, if it differs from that of the spec."""
    micro_batch_tokens: int | None = None
    """Micro-batch since the restart in tokens, if it differs from that of the spec."""
    recompute: Literal["all"] | None = None
    """all, if the GPU ran out of memory at the smallest micro-batch before, with fewer layers recomputed."""
