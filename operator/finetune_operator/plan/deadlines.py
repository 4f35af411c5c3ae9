"""How long an attempt may take to start, and how long its pods may take to end.

startDeadlineSeconds: an attempt whose pods don't all run by then is ended, and its GPUs are given back. The grace
period is the job's, or what saving a checkpoint has turned out to need.
"""

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

SAVING_SPARE_SECONDS, SAVING_SECONDS_MAX = 30, 3600


def start_deadline(attempt: Attempt, spec: FineTuneJobSpec, now: datetime) -> float:
    """Seconds left; negative when it is over."""
    return spec.start_deadline_seconds - (now - parse_time(attempt.start_time)).total_seconds()


def grace_period(kind: Kind, spec: FineTuneJobSpec, status: FineTuneJobStatus) -> int:
    """terminationGracePeriodSeconds of the next attempt: what the job asks for, and more where the newest checkpoint
    took so long to save that it might not be enough."""
    wanted = spec.resources.termination_grace_period_seconds
    saving = status.checkpoint.seconds if status.checkpoint and kind == "train" else None
    if saving is None:
        return wanted
    return max(wanted, min(2 * saving + SAVING_SPARE_SECONDS, SAVING_SECONDS_MAX))


def mark_expired(
    status: FineTuneJobStatus, kind: Kind, attempt: Attempt, spec: FineTuneJobSpec, finding: Finding
) -> FineTuneJobStatus:
    """The status that condemns the attempt, keeping why it did not start."""
    message = f"It did not start within {spec.start_deadline_seconds} s: {finding.reason}: {finding.message}"
    return with_attempt(status, kind, attempt.model_copy(update={"reason": EXPIRED, "message": message[:1024]}))
