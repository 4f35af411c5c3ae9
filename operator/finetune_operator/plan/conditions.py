"""Conditions, and the phase, reason and message that are derived from them."""

from datetime import datetime

from finetune_api.status import Condition, ConditionType, FineTuneJobStatus, Phase, Reason

from finetune_operator.views.metadata import Unreadable, format_time, parse_time

MESSAGE_MAX = 1024


def set_condition(
    status: FineTuneJobStatus,
    kind: ConditionType,
    value: bool | None,
    reason: str,
    message: str,
    generation: int,
    now: datetime,
) -> FineTuneJobStatus:
    """The status with one condition set. Its transition time changes only when its value does, or if it is no time."""
    text = {True: "True", False: "False", None: "Unknown"}[value]
    conditions = {condition.type: condition for condition in status.conditions or []}
    old = conditions.get(kind)
    kept = old is not None and old.status == text and _is_time(old.last_transition_time)
    conditions[kind] = Condition.model_validate(
        {
            "type": kind,
            "status": text,
            "observedGeneration": generation,
            "lastTransitionTime": old.last_transition_time if old is not None and kept else format_time(now),
            "reason": reason,
            "message": message[:MESSAGE_MAX],
        }
    )
    # A newer release may know more types.
    order: dict[str, int] = {known: position for position, known in enumerate(ConditionType)}
    ordered = sorted(conditions.values(), key=lambda condition: order.get(condition.type, len(order)))
    return status.model_copy(update={"conditions": ordered})


def with_generation(status: FineTuneJobStatus, before: object) -> FineTuneJobStatus:
    """The status; if it is the first of a generation, with all conditions of that generation, also those that did not
    change. `kubectl wait` does not take a condition for true that was found for an older generation."""
    seen, known = status.observed_generation, set(ConditionType)
    if seen == before or not status.conditions:
        return status
    conditions = [
        condition.model_copy(update={"observed_generation": seen}) if condition.type in known else condition
        for condition in status.conditions
    ]
    return status.model_copy(update={"conditions": conditions})


def _is_time(text: str) -> bool:
    try:
        parse_time(text)
    except Unreadable:
        return False
    return True


def set_phase(status: FineTuneJobStatus, phase: Phase, reason: Reason, message: str) -> FineTuneJobStatus:
    """The status with the three fields that people read first."""
    return status.model_copy(update={"phase": phase, "reason": reason, "message": message[:MESSAGE_MAX]})


def find_condition(status: FineTuneJobStatus, kind: ConditionType) -> Condition | None:
    return next((c for c in status.conditions or [] if c.type == kind), None)


def is_true(status: FineTuneJobStatus, kind: ConditionType) -> bool:
    found = find_condition(status, kind)
    return found is not None and found.status == "True"


def sentence(text: str) -> str:
    """The text with a full stop at its end, so that another sentence can follow."""
    text = text.rstrip()
    return text if not text or text[-1] in ".!?" else f"{text}."
