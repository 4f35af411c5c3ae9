"""Kubernetes Events about a FineTuneJob: one for each change of its phase or reason, and for each restart of its
trainer in the same pods. `recorder` posts them.

The name is derived from what happened, so the same change never makes two Events.
"""

import hashlib
from datetime import datetime

from finetune_api.job import API_VERSION, KIND
from finetune_api.status import ConditionType, FineTuneJobStatus, Phase, Reason

from finetune_operator.names import MANAGER
from finetune_operator.views.job import JobView
from finetune_operator.views.metadata import Raw, format_time

_NORMAL = {
    Reason.WAITING_FOR_JOB,
    Reason.REOPENED,
    Reason.NO_WORKLOAD,
    Reason.WAITING_FOR_QUOTA,
    Reason.WAITING_FOR_ADMISSION,
    Reason.ADMITTED,
    Reason.STARTING,
    Reason.FETCHING,
    Reason.VALIDATING,
    Reason.TOKENIZING,
    Reason.RUNNING,
    Reason.COMPLETED,
    Reason.PULLING_IMAGE,
    Reason.ENDING,
    Reason.SUSPENDED_BY_USER,
    Reason.STOPPED_BY_USER,
}


def event(view: JobView, before: FineTuneJobStatus, after: FineTuneJobStatus, now: datetime) -> Raw | None:
    """The Event for a change of status, or None if phase and reason stay and nothing was restarted."""
    restart = restart_number(after)
    unchanged = (before.phase, before.reason) == (after.phase, after.reason) and restart <= restart_number(before)
    if unchanged or after.reason is None:
        return None
    change = f"{view.uid}/{after.prepare_attempt}/{after.attempt}/{restart}/{after.phase}/{after.reason}"
    # The same may happen again to a job that was re-opened, or that Kueue took off its GPUs.
    change += f"/{after.retry}" if after.retry else ""
    # A queue may take the quota of an attempt away and give it again.
    quota = (c.last_transition_time for c in after.conditions or [] if c.type == ConditionType.QUOTA_RESERVED)
    change += "".join(f"/{time}" for time in quota)
    normal = after.phase is not Phase.FAILED and after.reason in _NORMAL
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"{view.name}.{hashlib.sha256(change.encode()).hexdigest()[:16]}",
            "namespace": view.namespace,
        },
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": view.name,
            "namespace": view.namespace,
            "uid": view.uid,
        },
        "type": "Normal" if normal else "Warning",
        "reason": after.reason,
        "message": (after.message or "")[:1024],
        "source": {"component": MANAGER},
        "reportingComponent": MANAGER,
        "firstTimestamp": format_time(now),
        "lastTimestamp": format_time(now),
        "count": 1,
    }


def restart_number(status: FineTuneJobStatus) -> int:
    """Restarts within the pods of the newest training attempt."""
    newest = (status.attempts or [])[-1:]
    return next((entry.restarts.number for entry in newest if entry.restarts), 0)
