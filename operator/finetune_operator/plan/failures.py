"""A failure of the operator or of the API server, in the status of the job that it holds up.

Such a failure may prevent the plan itself. So it is written over the status that the job has: into the condition of its
phase, whose value stays, and into reason and message. The failure is over when a plan has no step left to fail; all
that the plan does not say again by itself is then said again here.
"""

from datetime import datetime

from finetune_api.status import ConditionType, FineTuneJobStatus, Phase, Reason

from finetune_operator.plan.attempts import current
from finetune_operator.plan.completion import ENDED, outcome, terminal
from finetune_operator.plan.conditions import MESSAGE_MAX, sentence, set_condition, set_phase
from finetune_operator.views.metadata import Raw, format_time

TOLD = (Reason.API_SERVER_ERROR, Reason.OPERATOR_ERROR)
QUOTED = MESSAGE_MAX - 350
"""Characters of an error that are repeated, so that the advice after it is not cut."""
_CONDITIONS = {
    Phase.PENDING: (ConditionType.ACCEPTED, "Unknown"),
    Phase.PREPARING: (ConditionType.PREPARED, "Unknown"),
}
"""The condition that says what a job does in a phase, and its value if it is not set yet."""
_ADVICE = {
    Reason.API_SERVER_ERROR: "The operator tries again by itself. If this lasts, check the API server, the admission"
    " webhooks, and the operator's rights.",
    Reason.OPERATOR_ERROR: "The operator tries again by itself. If this lasts, restart it, and report the stack trace"
    " in its log.",
}


def tell(status: Raw, reason: Reason, error: str, generation: int, now: datetime) -> Raw:
    """The operator's part of the status with a failure. It takes and returns the plain dictionary: a status that cannot
    be parsed must not keep the failure from being told."""
    phase = status.get("phase") or Phase.PENDING
    listed = {condition["type"]: condition for condition in status.get("conditions") or []}
    over = outcome({name: condition.get("status") for name, condition in listed.items()}) is not None
    kind, value = _CONDITIONS.get(phase, (ConditionType.RUNNING, "False"))
    held_up = "The job has ended, but the operator cannot clean up" if over else "The operator cannot continue"
    words = " ".join(error.split())[:QUOTED]
    message = f"{held_up}: {sentence(words)} {_ADVICE[reason]}"
    old = listed.get(kind) or {"status": value, "lastTransitionTime": format_time(now)}
    listed[kind] = {**old, "type": kind, "observedGeneration": generation, "reason": reason, "message": message}
    reported = {**status, "conditions": list(listed.values())}
    return reported if over else {**reported, "phase": phase, "reason": reason, "message": message}


def is_told(status: FineTuneJobStatus) -> bool:
    """Whether the status tells a failure."""
    conditions = status.conditions or []
    return status.reason in TOLD or any(c.type == ConditionType.RUNNING and c.reason in TOLD for c in conditions)


def over(status: FineTuneJobStatus, generation: int, now: datetime) -> FineTuneJobStatus:
    """The status of a job whose failure is over and whose plan only waits."""
    if terminal(status):
        reason = next((known for known in Reason if known == status.reason), Reason.COMPLETED)
        return set_condition(status, ConditionType.RUNNING, False, reason, ENDED, generation, now)
    held = next((c for c in status.conditions or [] if c.type == ConditionType.ACCEPTED), None)
    if held is not None and held.reason == Reason.NOT_SUPPORTED:
        return _held(status, held.message, generation, now)
    preparing = status.phase is Phase.PREPARING
    attempt = current(status, "prepare" if preparing else "train")
    reason, message = Reason.ENDING, "Waiting for the attempt's pods to end."
    if attempt is not None and attempt.state == "Ended":
        reason = Reason.RETRY_BACKOFF
        message = (
            f"Attempt {attempt.number} ended: {attempt.reason}: {sentence(attempt.message or '')} The next follows."
        )
    if preparing:
        status = set_condition(status, ConditionType.PREPARED, None, reason, message, generation, now)
        return set_phase(status, Phase.PREPARING, reason, message)
    status = set_condition(status, ConditionType.RUNNING, False, reason, message, generation, now)
    return set_phase(status, Phase.STARTING, reason, message)


def _held(status: FineTuneJobStatus, message: str, generation: int, now: datetime) -> FineTuneJobStatus:
    """The status of an accepted job that this release cannot read. Its attempt may run, so the phase and the value of
    its condition stay."""
    kind, _ = _CONDITIONS.get(status.phase or Phase.PENDING, (ConditionType.RUNNING, ""))
    old = next((c.status for c in status.conditions or [] if c.type == kind), None)
    value = {"True": True, "False": False}.get(old or "")
    status = set_condition(status, kind, value, Reason.NOT_SUPPORTED, message, generation, now)
    return status.model_copy(update={"reason": Reason.NOT_SUPPORTED, "message": message})
