"""The two conditions by which tools that know no FineTuneJob see whether it is ready: Flux, Helm, all with kstatus.

Reconciling is True until the job ends, also while it is suspended: whoever waits for it waits on. Stalled is True if it
cannot continue unless somebody acts. A job with neither has succeeded. They follow from what else the status says, and
change only with it, so they cost no write. A job that ended under a release without them stays as it is.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from finetune_api.status import ConditionType, FineTuneJobStatus, Phase, Reason

from finetune_operator.plan.completion import ENDED, outcome, terminal
from finetune_operator.plan.conditions import find_condition, is_true, set_condition

NOT_ENDED = "The job has not ended."


def with_kstatus(
    status: FineTuneJobStatus, before: Mapping[str, Any], generation: int, now: datetime
) -> FineTuneJobStatus:
    """The status with both conditions as they follow from it. ``before`` has the value of each condition of the stored
    status, by type."""
    ended, stalled = terminal(status), is_stalled(status)
    if ended is not None and outcome(before) is not None and ConditionType.RECONCILING not in before:
        return status
    # A phase of another release may be anything. It is no reason.
    phase = next((known for known in Phase if known == status.phase), Phase.PENDING)
    reconciling = ended is None and not stalled
    if reconciling or find_condition(status, ConditionType.RECONCILING) is not None:
        message = NOT_ENDED if ended is None else ENDED
        status = _set(status, ConditionType.RECONCILING, reconciling, phase, message, generation, now)
    if stalled:
        reason, message = status.reason or phase, status.message or ""
        return _set(status, ConditionType.STALLED, True, reason, message, generation, now)
    if is_true(status, ConditionType.STALLED):
        return _set(status, ConditionType.STALLED, False, phase, "The job continues.", generation, now)
    return status


def is_stalled(status: FineTuneJobStatus) -> bool:
    """Whether the job waits for somebody to act: it has failed, was resumed with resources that do not fit it, or was
    taken out of its queue."""
    held = find_condition(status, ConditionType.SUSPENDED)
    misfit = held is not None and held.status == "True" and held.reason == Reason.INVALID_SPEC
    deactivated = status.phase is Phase.QUEUED and status.reason == Reason.DEACTIVATED
    return terminal(status) == "Failed" or misfit or deactivated


def _set(
    status: FineTuneJobStatus,
    kind: ConditionType,
    value: bool,
    reason: str,
    message: str,
    generation: int,
    now: datetime,
) -> FineTuneJobStatus:
    """The status with a condition, unless it says the same already."""
    old = find_condition(status, kind)
    if old is not None and (old.status == "True", old.reason, old.message) == (value, reason, message):
        return status
    return set_condition(status, kind, value, reason, message, generation, now)
