"""The two ends of a job. Both are for good."""

from datetime import datetime

from finetune_api.status import ConditionType, FineTuneJobStatus, Phase, Reason

from finetune_operator.observed import format_time
from finetune_operator.plan.conditions import summarized, with_condition
from finetune_operator.plan.judgement import Verdict


def succeeded(status: FineTuneJobStatus, verdict: Verdict, generation: int, now: datetime) -> FineTuneJobStatus:
    """With the artifact and the final metrics, copied from the trainer's result into the operator's own fields."""
    artifact = verdict.result.artifact if verdict.result else None
    message = f"Trained; the {artifact.kind} is at {artifact.uri}." if artifact else verdict.message
    metrics = verdict.result.metrics if verdict.result else None
    status = status.model_copy(update={"artifact": artifact, "metrics": metrics, "completion_time": format_time(now)})
    status = with_condition(status, ConditionType.RUNNING, False, Reason.COMPLETED, "Over.", generation, now)
    status = with_condition(status, ConditionType.SUCCEEDED, True, Reason.COMPLETED, message, generation, now)
    return summarized(status, Phase.SUCCEEDED, Reason.COMPLETED, message)


def failed(
    status: FineTuneJobStatus, reason: Reason, message: str, generation: int, now: datetime
) -> FineTuneJobStatus:
    """With the reason that tools match on and the message that says what to do."""
    status = status.model_copy(update={"completion_time": format_time(now)})
    if any(c.type == ConditionType.PREPARED and c.status == "Unknown" for c in status.conditions or []):
        status = with_condition(status, ConditionType.PREPARED, False, reason, message, generation, now)
    status = with_condition(status, ConditionType.RUNNING, False, reason, "Over.", generation, now)
    status = with_condition(status, ConditionType.FAILED, True, reason, message, generation, now)
    return summarized(status, Phase.FAILED, reason, message)
