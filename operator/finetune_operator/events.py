"""Kubernetes Events about a FineTuneJob: one for each change of its phase or reason, best effort.

The name follows from what happened, so the same thing told twice is one Event.
"""

import hashlib
import logging
from datetime import datetime

from finetune_api.job import API_VERSION, KIND
from finetune_api.status import FineTuneJobStatus, Phase, Reason

from finetune_operator.cluster import ApiError, Cluster
from finetune_operator.names import MANAGER
from finetune_operator.observed import JobView, Raw, format_time

log = logging.getLogger(__name__)

_CALM = {
    Reason.WAITING_FOR_JOB,
    Reason.STARTING,
    Reason.FETCHING,
    Reason.VALIDATING,
    Reason.TOKENIZING,
    Reason.RUNNING,
    Reason.COMPLETED,
    Reason.PULLING_IMAGE,
    Reason.ENDING,
}


def event(view: JobView, before: FineTuneJobStatus, after: FineTuneJobStatus, now: datetime) -> Raw | None:
    """The Event for the step from one status to the next, or None when it is nothing to tell."""
    if (before.phase, before.reason) == (after.phase, after.reason) or after.reason is None:
        return None
    what = f"{view.uid}/{after.prepare_attempt}/{after.attempt}/{after.phase}/{after.reason}"
    calm = after.phase is not Phase.FAILED and after.reason in _CALM
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"{view.name}.{hashlib.sha256(what.encode()).hexdigest()[:16]}",
            "namespace": view.namespace,
        },
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": view.name,
            "namespace": view.namespace,
            "uid": view.uid,
        },
        "type": "Normal" if calm else "Warning",
        "reason": after.reason,
        "message": (after.message or "")[:1024],
        "source": {"component": MANAGER},
        "reportingComponent": MANAGER,
        "firstTimestamp": format_time(now),
        "lastTimestamp": format_time(now),
        "count": 1,
    }


async def post(cluster: Cluster, raw: Raw | None) -> None:
    """Never in the way of the work: an Event that can't be posted is a line in the log."""
    if raw is None:
        return
    try:
        await cluster.create(raw)
    except ApiError as error:
        if error.status != 409:
            log.warning("event not posted: %s", error)
