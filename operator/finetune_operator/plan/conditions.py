"""Conditions, and the phase, reason and message that are derived from them."""

from datetime import datetime

from finetune_api.status import Condition, ConditionType, FineTuneJobStatus, Phase, Reason

from finetune_operator.observed import format_time

MESSAGE_MAX = 1024


def with_condition(
    status: FineTuneJobStatus,
    kind: ConditionType,
    value: bool | None,
    reason: Reason,
    message: str,
    generation: int,
    now: datetime,
) -> FineTuneJobStatus:
    """The status with one condition set; its transition time moves only when its value does."""
    text = {True: "True", False: "False", None: "Unknown"}[value]
    known = {condition.type: condition for condition in status.conditions or []}
    old = known.get(kind)
    since = old.last_transition_time if old is not None and old.status == text else format_time(now)
    known[kind] = Condition.model_validate(
        {
            "type": kind,
            "status": text,
            "observedGeneration": generation,
            "lastTransitionTime": since,
            "reason": reason,
            "message": message[:MESSAGE_MAX],
        }
    )
    order = list(ConditionType)
    ordered = sorted(known.values(), key=lambda condition: order.index(ConditionType(condition.type)))
    return status.model_copy(update={"conditions": ordered})


def is_true(status: FineTuneJobStatus, kind: ConditionType) -> bool:
    return any(c.type == kind and c.status == "True" for c in status.conditions or [])


def is_terminal(status: FineTuneJobStatus) -> bool:
    """Succeeded and Failed are for good."""
    return is_true(status, ConditionType.SUCCEEDED) or is_true(status, ConditionType.FAILED)


def summarized(status: FineTuneJobStatus, phase: Phase, reason: Reason, message: str) -> FineTuneJobStatus:
    """The status with the three fields that people read first."""
    return status.model_copy(update={"phase": phase, "reason": reason, "message": message[:MESSAGE_MAX]})
