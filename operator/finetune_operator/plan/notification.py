"""Tell the end of a job to the webhook that spec.notify, or a preset, names: once for each end.

The Job's name is made from the end, so creating it twice makes one. `status.notifiedTime` says that it was created, and
is written after that: a crash in between reads the Job and writes it.
"""

from datetime import datetime, timedelta

from finetune_api.contract import AttemptFacts
from finetune_api.output import NotifySpec
from finetune_api.status import FineTuneJobStatus
from pydantic import ValidationError

from finetune_operator.manifests.notification import notification_job
from finetune_operator.names import notification_name
from finetune_operator.plan.decision import Need, Notify, Plan, missing
from finetune_operator.settings import Settings
from finetune_operator.views.job import JobView
from finetune_operator.views.metadata import Unreadable, format_time, parse_time
from finetune_operator.views.snapshot import Read, Snapshot

NEWS_SECONDS = 3600
"""An end that is older is no news: the job ended before it got spec.notify, or the cluster refused the Job so long."""
AGAIN_SECONDS = 60


def notify(
    view: JobView, status: FineTuneJobStatus, snapshot: Snapshot, now: datetime, settings: Settings
) -> Plan | Need | None:
    """What is to be done about it; None: nothing."""
    asked = wanted(view, status)
    if asked is None or status.notified_time is not None or status.completion_time is None:
        return None
    if status.phase not in (asked.when or ("Succeeded", "Failed")) or not _is_news(status.completion_time, now):
        return None
    if need := missing(snapshot, Read.JOB) or missing(snapshot, Read.NOTIFICATION):
        return need
    if snapshot.notified:
        return Plan(status.model_copy(update={"notified_time": format_time(now)}))
    name = notification_name(view.name, view.uid, status.completion_time)
    facts = AttemptFacts(
        namespace=view.namespace, name=view.name, uid=view.uid, attempt=max(1, status.attempt or 1), job_name=name
    )
    manifest = notification_job(facts, str(view.spec.get("stage")), asked, status, settings)
    return Plan(status, Notify(manifest), deadlines=(now + timedelta(seconds=AGAIN_SECONDS),))


def wanted(view: JobView, status: FineTuneJobStatus) -> NotifySpec | None:
    """spec.notify, else what the job got from the presets. What another release wrote and this cannot read is none."""
    applied = status.resolved.presets if status.resolved else None
    found = view.spec.get("notify") or ((applied.filled or {}).get("notify") if applied else None)
    try:
        return NotifySpec.model_validate(found) if found else None
    except ValidationError:
        return None


def _is_news(completed: str, now: datetime) -> bool:
    try:
        return now < parse_time(completed) + timedelta(seconds=NEWS_SECONDS)
    except Unreadable:
        return False
