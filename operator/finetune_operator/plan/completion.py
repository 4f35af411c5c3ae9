"""The two ends of a job, and the one place that decides whether a job has ended.

The conditions decide: phase, reason and message are for people. A job whose status is lost has not ended for the
operator; its workspace knows that it is done, and prepare reports it. `plan/reopening.py` has the one way back.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from finetune_api.status import ConditionType, FineTuneJobStatus, Phase, Reason

from finetune_operator.plan.conditions import set_condition, set_phase
from finetune_operator.plan.judgement import Verdict
from finetune_operator.views.metadata import format_time

ENDED = "The job has ended."


def terminal(status: FineTuneJobStatus) -> Literal["Succeeded", "Failed"] | None:
    """How the job ended; None while it has not. A success is final, whatever else the status says."""
    return outcome({condition.type: condition.status for condition in status.conditions or []})


def outcome(conditions: Mapping[str, Any]) -> Literal["Succeeded", "Failed"] | None:
    """The same from the types and values of the conditions, for a status that is not parsed."""
    if conditions.get(ConditionType.SUCCEEDED) == "True":
        return "Succeeded"
    return "Failed" if conditions.get(ConditionType.FAILED) == "True" else None


def succeeded(status: FineTuneJobStatus, verdict: Verdict, generation: int, now: datetime) -> FineTuneJobStatus:
    """Copies artifact and final metrics from the trainer's result into the operator's own fields."""
    result = verdict.result
    artifact = result.artifact if result else None
    message = verdict.message
    if result is not None and artifact is not None:
        trained = "Trained by an earlier run with the same spec" if result.kind == "prepare" else "Trained"
        message = f"{trained}; the {artifact.kind} is at {artifact.uri}."
    reason = Reason.COMPLETED
    if result is not None and artifact is not None and verdict.reason is Reason.STOPPED_BY_USER:
        reason, message = verdict.reason, f"{result.message}; the {artifact.kind} is at {artifact.uri}."
    metrics = result.metrics if result else None
    status = status.model_copy(update={"artifact": artifact, "metrics": metrics, "completion_time": format_time(now)})
    status = set_condition(status, ConditionType.RUNNING, False, reason, ENDED, generation, now)
    status = set_condition(status, ConditionType.SUCCEEDED, True, reason, message, generation, now)
    return set_phase(status, Phase.SUCCEEDED, reason, message)


def failed(
    status: FineTuneJobStatus, reason: Reason, message: str, generation: int, now: datetime
) -> FineTuneJobStatus:
    """Tools match on the reason; the message says what to do."""
    status = status.model_copy(update={"completion_time": format_time(now)})
    if any(c.type == ConditionType.PREPARED and c.status == "Unknown" for c in status.conditions or []):
        status = set_condition(status, ConditionType.PREPARED, False, reason, message, generation, now)
    status = set_condition(status, ConditionType.RUNNING, False, reason, ENDED, generation, now)
    status = set_condition(status, ConditionType.FAILED, True, reason, message, generation, now)
    return set_phase(status, Phase.FAILED, reason, message)
