"""Two jobs that each hold a part of the nodes that both need would wait for each other until their start deadlines.

So they take turns. Among the attempts that hold some nodes and lack others, the attempt of the oldest job keeps its
nodes. Every other gives its nodes back after `Settings.partly_scheduled_timeout`, and begins again after its backoff,
which doubles and differs between jobs. The oldest then gets what the others gave back, or ends at its start deadline.

Each job decides by itself from what the watches show. All jobs have the same order, so never two of them keep their
nodes for each other.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from finetune_api.status import FineTuneJobStatus

from finetune_operator.plan.attempts import current
from finetune_operator.plan.context import Context
from finetune_operator.plan.decision import Need, missing
from finetune_operator.settings import Settings
from finetune_operator.views.job import JobView
from finetune_operator.views.metadata import section
from finetune_operator.views.pod import PodView
from finetune_operator.views.snapshot import Read, Snapshot

LOOK_SECONDS = 15
"""Between two looks at the other jobs."""


def _held_since(pods: Sequence[PodView]) -> datetime | None:
    """Since when the pods hold the same nodes and lack others; None if they do not."""
    placed = [pod.scheduled or pod.created for pod in pods if pod.node and not pod.gone]
    lacks = any(pod.unschedulable is not None for pod in pods)
    return max(placed) if placed and lacks else None


def unknown_rivals(status: FineTuneJobStatus, snapshot: Snapshot, now: datetime, settings: Settings) -> Need | None:
    """The need to know the other jobs, once the attempt has held nodes for long enough."""
    attempt = current(status, "train")
    if attempt is None or attempt.state != "Starting":
        return None
    held = _held_since(snapshot.pods_of("train", attempt.number))
    if held is None or now < held + timedelta(seconds=settings.partly_scheduled_timeout):
        return None
    return missing(snapshot, Read.RIVALS)


def look_again(context: Context, pods: Sequence[PodView]) -> tuple[datetime, ...]:
    """When to look at the other jobs."""
    held = _held_since(pods)
    if held is None:
        return ()
    first = held + timedelta(seconds=context.settings.partly_scheduled_timeout)
    return (max(first, context.now + timedelta(seconds=LOOK_SECONDS)) if context.now >= first else first,)


def gives_way(context: Context, status: FineTuneJobStatus) -> str:
    """Why the attempt gives its nodes back, as sentences; empty if it keeps them."""
    view = context.view
    mine = _age(view, status.start_time)
    older = [
        rival
        for rival in context.snapshot.rivals
        if rival.uid != view.uid and _age(rival, rival.status.get("startTime")) < mine and _compete(view, rival)
    ]
    if not older:
        return ""
    first = min(older, key=lambda rival: _age(rival, rival.status.get("startTime")))
    # The name of a job is not for the users of other namespaces.
    who = f"Job {first.name}" if first.namespace == view.namespace else "A job of another namespace"
    return (
        f"{who}, which is older, also holds some nodes and lacks others. This attempt gave its nodes back, so that"
        " either of the two can start. It does not count against backoffLimit."
    )


def _age(view: JobView, start: str | None) -> tuple[str, str, str]:
    """The order of jobs, oldest first. Times are written with the same length."""
    return start or "9999", view.namespace, view.name


def _compete(view: JobView, other: JobView) -> bool:
    """Whether a node may be the place of pods of either job, as far as their specs show."""
    first, second = section(view.spec, "resources"), section(other.spec, "resources")
    if _gpu(first) and _gpu(second) and _gpu(first) != _gpu(second):
        return False
    ours, theirs = section(first, "nodeSelector"), section(second, "nodeSelector")
    return all(theirs.get(label, value) == value for label, value in ours.items())


def _gpu(resources: dict[str, Any]) -> str:
    """The resource name of the GPUs; empty for a job without GPUs."""
    return str(resources.get("gpuResource", "nvidia.com/gpu")) if resources.get("gpusPerNode", 1) else ""
