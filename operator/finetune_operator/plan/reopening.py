"""The one way out of the end of a job: a job that has Failed is re-opened, and its next attempt follows.

Somebody raises spec.retry above status.retry; or the job failed only because a job that it names had Failed, and that
job is re-opened or created again. The budget of attempts starts again, and training resumes from the newest verified
checkpoint. A job that has Succeeded is never re-opened.
"""

from datetime import datetime

from finetune_api.status import ConditionType, FineTuneJobStatus, Phase, Reason

from finetune_operator.plan.attempts import KINDS, current, set_attempt
from finetune_operator.plan.completion import terminal
from finetune_operator.plan.conditions import find_condition, set_condition, set_phase
from finetune_operator.views.job import JobView
from finetune_operator.views.metadata import Unreadable
from finetune_operator.views.snapshot import Snapshot
from finetune_operator.views.status import parse_status

_PREPARED_AGAIN = (Reason.INVALID_DATA, Reason.NOT_FOUND, Reason.ACCESS_DENIED)
"""Somebody corrects data, a source or credentials before a retry, so they are fetched and checked again."""


def acknowledged(view: JobView, status: FineTuneJobStatus) -> FineTuneJobStatus:
    """The status with spec.retry: this value is used, whether it re-opened the job or found nothing to re-open."""
    return status.model_copy(update={"retry": view.retry}) if view.retry > (status.retry or 0) else status


def is_retried(view: JobView, status: FineTuneJobStatus) -> bool:
    """Whether somebody asks for another try of a job that has Failed."""
    return terminal(status) == "Failed" and view.retry > (status.retry or 0)


def may_continue(view: JobView, status: FineTuneJobStatus, snapshot: Snapshot) -> bool:
    """Whether a job failed only because of the jobs that it names, and all of these exist and have not Failed, as far
    as the watches show. Whether it really can continue is decided like the acceptance of a new job."""
    failed = find_condition(status, ConditionType.FAILED)
    if terminal(status) != "Failed" or failed is None or failed.reason != Reason.DEPENDENCY_FAILED:
        return False
    others = snapshot.dependencies.jobs
    return bool(view.dependencies) and all(
        name in others and not others[name].deleting and not _has_failed(others[name]) for name in view.dependencies
    )


def _has_failed(other: JobView) -> bool:
    try:
        return terminal(parse_status(other.status)) == "Failed"
    except Unreadable:
        return True


def reopened(view: JobView, status: FineTuneJobStatus, now: datetime) -> FineTuneJobStatus:
    """The status of a job that has Failed, as a job that has not ended."""
    retried = is_retried(view, status)
    why = f"spec.retry was raised to {view.retry}" if retried else "the jobs that it names continue"
    message = f"The job is open again: {why}."
    old = find_condition(status, ConditionType.FAILED)

    def unset(kind: ConditionType, value: bool | None) -> None:
        nonlocal status
        status = set_condition(status, kind, value, Reason.REOPENED, message, view.generation, now)

    prepared = find_condition(status, ConditionType.PREPARED)
    if prepared is not None and (prepared.status != "True" or (old and old.reason in _PREPARED_AGAIN)):
        unset(ConditionType.PREPARED, None)
    unset(ConditionType.RUNNING, False)
    unset(ConditionType.FAILED, False)
    if retried:
        status = acknowledged(view, status)
        for kind in KINDS:
            if newest := current(status, kind):
                status = set_attempt(status, kind, newest.model_copy(update={"retry": status.retry}))
    status = status.model_copy(update={"completion_time": None, "children_deleted_time": None, "notified_time": None})
    return set_phase(status, Phase.PENDING, Reason.REOPENED, message)
