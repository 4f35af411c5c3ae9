"""What is left of a job, and for how long: child jobs with their pods and logs, and Services.

The child jobs of the attempts that status lists are kept while the job lives, for their logs. After the job has ended
all of them are kept for ttlSecondsAfterFinished. The FineTuneJob, the workspace and the artifact are never deleted.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from finetune_api.status import ATTEMPTS_SHOWN, FineTuneJobStatus

from finetune_operator.names import Kind
from finetune_operator.plan.attempts import entries
from finetune_operator.plan.decision import Delete, DeleteService, Need, Plan, missing
from finetune_operator.plan.presets import with_presets
from finetune_operator.settings import Settings
from finetune_operator.views.child_job import ChildJobView
from finetune_operator.views.job import JobView
from finetune_operator.views.metadata import Unreadable, format_time, parse_time, section
from finetune_operator.views.snapshot import Read, Snapshot


def outdated(status: FineTuneJobStatus, snapshot: Snapshot, kind: Kind) -> ChildJobView | None:
    """A finished child job of an attempt that status lists no more."""
    listed = entries(status, kind)
    if len(listed) < ATTEMPTS_SHOWN:
        return None
    oldest = listed[0].number
    finished = (child for child in snapshot.child_jobs_of(kind) if child.finished and not child.deleting)
    return next((child for child in finished if child.attempt < oldest), None)


def clean_up(
    view: JobView, status: FineTuneJobStatus, snapshot: Snapshot, now: datetime, settings: Settings
) -> Plan | Need:
    """The job has ended. A child job that still runs is deleted at once, all others when their time is over. The
    FineTuneJob is read before: somebody may have re-opened it."""
    children = snapshot.child_jobs
    if unfinished := [child for child in children if not child.finished]:
        return _delete(unfinished, status, snapshot)
    begun = status.attempts or status.prepare_attempts
    expires = expiry(view, status, settings)
    if expires is None or not (children or (begun and status.children_deleted_time is None)):
        return Plan(status)
    if now < expires:
        return Plan(status, deadlines=(expires,))
    if children:
        return _delete(children, status, snapshot)
    if status.attempts and section(view.spec, "resources").get("nodes", 1) != 1:
        if need := missing(snapshot, Read.JOB) or missing(snapshot, Read.SERVICES):
            return need
        if snapshot.services:
            return Plan(status, DeleteService(snapshot.services[0]))
    return Plan(status.model_copy(update={"children_deleted_time": format_time(now)}))


def _delete(children: Sequence[ChildJobView], status: FineTuneJobStatus, snapshot: Snapshot) -> Plan | Need:
    """The first that nobody has deleted. The others wait for their pods to end."""
    child = next((child for child in children if not child.deleting), None)
    if child is None:
        return Plan(status)
    return missing(snapshot, Read.JOB) or Plan(status, Delete(child))


def expiry(view: JobView, status: FineTuneJobStatus, settings: Settings) -> datetime | None:
    """When the children of a job that has ended are deleted. None: they stay."""
    seconds = with_presets(view.spec, status).get("ttlSecondsAfterFinished", settings.ttl_seconds_after_finished)
    if not isinstance(seconds, int) or seconds < 0 or status.completion_time is None:
        return None
    try:
        return parse_time(status.completion_time) + timedelta(seconds=seconds)
    except Unreadable:
        return None
