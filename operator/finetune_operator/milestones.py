"""What a change of a job's status adds to the counters: an attempt has ended, a job has its quota, training has begun.

Only changes count that this process sees while it leads. Times are those of the status, so that a late watch changes
nothing.
"""

from datetime import datetime

from finetune_api.exit_codes import EndClass, end_class
from finetune_api.live_metrics import number
from finetune_api.status import Reason

from finetune_operator.job_metrics import attempts, conditions
from finetune_operator.metrics import Metrics
from finetune_operator.views.job import JobView
from finetune_operator.views.metadata import Raw, Unreadable, parse_time, section

BY_USER = (Reason.SUSPENDED_BY_USER, Reason.STOPPED_BY_USER)


def record(metrics: Metrics, before: JobView, after: JobView) -> None:
    """Count what the newer of two versions of a job shows for the first time."""
    stage = str(after.spec.get("stage"))
    ended = {entry.get("number") for entry in attempts(before.status) if entry.get("state") == "Ended"}
    for entry in attempts(after.status):
        if entry.get("state") == "Ended" and entry.get("number") not in ended:
            metrics.attempts[stage, how_it_ended(entry)] += 1
    if (waited := _between(_quota(before.status, "False"), _quota(after.status, "True"))) is not None:
        metrics.queued.observe(waited)
    if not _has_stepped(before.status) and _has_stepped(after.status):
        _first_step(metrics, after)


def how_it_ended(attempt: Raw) -> str:
    """The class of an attempt's end, as a label: done, user_error, disruption, fatal, gpu_out_of_memory or retry; or
    user, if its user suspended or stopped the job."""
    reason, code = attempt.get("reason"), attempt.get("exitCode")
    if reason in BY_USER:
        return "user"
    if reason == Reason.COMPLETED:
        return _label(EndClass.DONE)
    if reason == Reason.DISRUPTED:
        return _label(EndClass.DISRUPTION)
    return _label(end_class(code) if isinstance(code, int) else EndClass.RETRY)


def _label(end: EndClass) -> str:
    return end.value.replace(" ", "_")


def _first_step(metrics: Metrics, job: JobView) -> None:
    """The current attempt has done its first step, or its first step after a restart in the same pods."""
    progress, listed = section(job.status, "progress"), attempts(job.status)
    restart, done = section(progress, "restart"), progress.get("lastUpdateTime")
    if restart:
        since, cause = restart.get("time"), restart.get("reason")
    elif len(listed) > 1:
        previous = listed[-2]
        # A user's pause is no fault to recover from.
        if previous.get("reason") in BY_USER or "retry" in previous:
            return
        since, cause = previous.get("endTime"), previous.get("reason")
    else:
        if job.status.get("attempt") == 1 and (seconds := _between(job.created, done)) is not None:
            metrics.first_step.observe(seconds)
        return
    if (seconds := _between(since, done)) is not None:
        metrics.recovery.observe(seconds, str(cause))


def _has_stepped(status: Raw) -> bool:
    """Whether the current attempt has done a step since it began or was restarted."""
    progress = section(status, "progress")
    step, start = number(progress.get("step")), number(progress.get("startStep"))
    mine = progress.get("attempt") == status.get("attempt") and progress.get("activity", "Training") == "Training"
    return mine and step is not None and start is not None and step > start


def _quota(status: Raw, value: str) -> object:
    """Since when the condition QuotaReserved has this value."""
    found = (c for c in conditions(status) if c.get("type") == "QuotaReserved" and c.get("status") == value)
    return next((c.get("lastTransitionTime") for c in found), None)


def _between(since: object, until: object) -> float | None:
    times: list[datetime] = []
    for text in (since, until):
        try:
            times.append(parse_time(str(text)))
        except Unreadable:
            return None
    return max(0.0, (times[1] - times[0]).total_seconds())
