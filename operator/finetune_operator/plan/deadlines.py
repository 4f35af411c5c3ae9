"""startDeadlineSeconds: an attempt whose pods don't all run by then is ended, and its GPUs are given back."""

from datetime import datetime

from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Attempt, FineTuneJobStatus, Reason

from finetune_operator.names import Kind
from finetune_operator.observed import parse_time
from finetune_operator.plan.attempts import with_attempt
from finetune_operator.plan.startup import Finding

EXPIRED = Reason.START_DEADLINE_EXCEEDED
"""As an unfinished attempt's reason: its Job is to be deleted. It is written before the Job is deleted, so that the
missing Job is understood afterwards."""


def start_deadline(attempt: Attempt, spec: FineTuneJobSpec, now: datetime) -> float:
    """Seconds left; negative when it is over."""
    return spec.start_deadline_seconds - (now - parse_time(attempt.start_time)).total_seconds()


def mark_expired(
    status: FineTuneJobStatus, kind: Kind, attempt: Attempt, spec: FineTuneJobSpec, finding: Finding
) -> FineTuneJobStatus:
    """The status that condemns the attempt, keeping why it did not start."""
    message = f"It did not start within {spec.start_deadline_seconds} s: {finding.reason}: {finding.message}"
    return with_attempt(status, kind, attempt.model_copy(update={"reason": EXPIRED, "message": message[:1024]}))
